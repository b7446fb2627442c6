"""Wheel, sdist and editable install each work from an empty folder, with their own files and nothing else's.

The environments are new; torch and the other libraries are lent to them from the running one, and mm_llama is
not: what is imported must be what was installed.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("mm_llama", "encoders", "adapters", "conf", "tests")
FILES = ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", "Makefile")

pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [os.fspath(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the repository holds, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    (folder / "runs").mkdir()
    (folder / "runs" / "private.txt").write_text("not for a package")
    return folder


@pytest.fixture(scope="module")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, sources, folder=folder)
    return folder


def new_environment(folder: Path) -> Path:
    """An empty virtual environment that is lent the running one's libraries, not its editable installs."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # A line in a .pth adds that folder alone: the .pth files in it, as of editable installs, stay unread.
    lent = dict.fromkeys([*site.getsitepackages(), sysconfig.get_path("platlib")])
    (packages / "lent.pth").write_text("\n".join(lent) + "\n")
    return folder / "bin"


def install(bin_dir: Path, *what: str | Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", bin_dir / "python", "install", "-q", "--no-deps"]
    run(*pip, "--no-build-isolation", "--force-reinstall", *what, folder=bin_dir)


def check_use(bin_dir: Path, home: Path, conf: Path, empty: Path) -> None:
    """The commands of an installation work from an empty folder and come from `home`."""
    assert "usage: mm-llama" in run(bin_dir / "mm-llama", "--help", folder=empty)
    assert run(bin_dir / "python", "-m", "mm_llama", "--version", folder=empty).startswith("mm-llama 0.")
    report = json.loads(run(bin_dir / "mm-llama", "doctor", "--json", folder=empty))
    assert report["mm_llama"]["folder"] == str(home / "mm_llama")
    assert report["mm_llama"]["conf"] == str(conf)
    code = "import encoders, adapters; print(encoders.__file__); print(adapters.__file__)"
    expected = [str(home / name / "__init__.py") for name in ("encoders", "adapters")]
    assert run(bin_dir / "python", "-c", code, folder=empty).splitlines() == expected
    overrides = ("stage=image_pretrain", "core=tiny", "--cfg", "job")
    composed = run(bin_dir / "mm-llama", "train", *overrides, folder=empty)
    assert "core:" in composed and "stage:" in composed
    assert run(bin_dir / "mm-llama-train", *overrides, folder=empty) == composed
    assert "mm-llama eval" in run(bin_dir / "mm-llama-eval", "--help", folder=empty)
    assert list(empty.iterdir()) == []


def test_wheel_and_sdist_hold_the_packages_and_the_configs_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mm_llama", "encoders", "adapters"}
    packaged = {name.removeprefix("mm_llama/conf/") for name in names if name.startswith("mm_llama/conf/")}
    assert packaged == {str(path.relative_to(ROOT / "conf")) for path in (ROOT / "conf").rglob("*.yaml")}
    assert "mm_llama/assets.json" in names
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {name.split("/")[0] for name in inside} - {".gitignore"} == {*SOURCES, *FILES, "PKG-INFO"}
    assert "conf/train.yaml" in inside and "tests/install/test_install.py" in inside


def test_wheel_in_an_empty_environment_works_from_an_empty_folder(built: Path, tmp_path: Path) -> None:
    bin_dir = new_environment(tmp_path / "venv")
    (wheel,) = built.glob("*.whl")
    install(bin_dir, wheel)
    home = Path(run(bin_dir / "python", "-c", "import mm_llama; print(mm_llama.__file__)", folder=tmp_path))
    home = home.parent.parent
    assert tmp_path / "venv" in home.parents
    (tmp_path / "empty").mkdir()
    check_use(bin_dir, home, home / "mm_llama" / "conf", tmp_path / "empty")


def test_wheel_built_from_the_sdist_has_the_same_files(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run(*pip, "-w", tmp_path, sdist, folder=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_editable_install_works_from_an_empty_folder_and_reads_the_checkout(
    sources: Path, tmp_path: Path
) -> None:
    bin_dir = new_environment(tmp_path / "venv")
    install(bin_dir, "-e", sources)
    (tmp_path / "empty").mkdir()
    check_use(bin_dir, sources, sources / "conf", tmp_path / "empty")


def test_checkout_works_without_being_installed(sources: Path) -> None:
    assert "usage: mm-llama" in run(sys.executable, "-m", "mm_llama", "--help", folder=sources)
    code = "from mm_llama.paths import conf_dir; print(conf_dir())"
    assert run(sys.executable, "-c", code, folder=sources).strip() == str(sources / "conf")
