"""Assets: what is fetched is verified, unpacked safely, reused, and refused without a trace when it is wrong.

The packages are small real ones made here; pip fetches them from a folder instead of an index.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mm_llama.assets import (
    TOOLS,
    Asset,
    _verify,
    asset,
    asset_file,
    fetch_asset,
    find_asset,
    manifest,
    status_of,
)
from mm_llama.cli.assets import main as assets_main

PHOTO = b"not really a photo" * 100


def make_wheel(path: Path, members: dict[str, bytes]) -> None:
    info = "tinyphotos-1.0.dist-info"
    members = {
        **members,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tinyphotos\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**members, f"{info}/RECORD": record}.items():
            wheel.writestr(name, data)


def entry_for(path: Path, **changes: object) -> Asset:
    entry = Asset(
        name="tiny_photos",
        purpose="photographs for this test",
        uses=("test",),
        kind="pypi-wheel",
        package="tinyphotos",
        version="1.0",
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        download_bytes=path.stat().st_size,
        licence="CC0-1.0",
        members=("tinyphotos/data/*.jpg",),
        num_files=2,
        unpacked_bytes=2 * len(PHOTO),
        instead="draw something yourself",
    )
    return replace(entry, **changes)  # type: ignore[arg-type]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and nowhere else; the cache lies beside it."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MM_LLAMA_OFFLINE", raising=False)
    return folder


@pytest.fixture
def wheel(index: Path) -> Path:
    path = index / "tinyphotos-1.0-py3-none-any.whl"
    photos = {"tinyphotos/data/cat.jpg": PHOTO, "tinyphotos/data/pets/dog.jpg": PHOTO}
    make_wheel(path, {**photos, "tinyphotos/__init__.py": b"raise SystemExit"})
    return path


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*"))


def test_fetch_unpacks_only_the_chosen_members_and_says_what_it_did(tmp_path: Path, wheel: Path) -> None:
    said = io.StringIO()
    folder = fetch_asset(entry_for(wheel), progress=said)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == ["asset.json", "tinyphotos/data/cat.jpg", "tinyphotos/data/pets/dog.jpg"]
    assert (folder / "tinyphotos/data/pets/dog.jpg").read_bytes() == PHOTO
    assert said.getvalue().count("\n") == 1 and "tiny_photos" in said.getvalue()
    assert list((tmp_path / "cache" / "assets").iterdir()) == [folder]  # no temporary folder stays


def test_strip_leaves_off_the_leading_part_of_names(wheel: Path) -> None:
    folder = fetch_asset(entry_for(wheel, strip="tinyphotos/data/"))
    assert (folder / "cat.jpg").read_bytes() == PHOTO and (folder / "pets/dog.jpg").is_file()


def test_second_fetch_uses_the_cache_even_offline(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entry_for(wheel)
    first = fetch_asset(entry)
    before = (first / "asset.json").stat().st_mtime_ns
    wheel.unlink()
    monkeypatch.setenv("MM_LLAMA_OFFLINE", "1")
    assert fetch_asset(entry) == first
    assert (first / "asset.json").stat().st_mtime_ns == before


def test_corrupt_download_is_refused_and_leaves_nothing(tmp_path: Path, wheel: Path) -> None:
    entry = entry_for(wheel)
    make_wheel(wheel, {"tinyphotos/data/cat.jpg": b"something else", "tinyphotos/data/dog.jpg": PHOTO})
    with pytest.raises(ValueError, match="tiny_photos.*another hash than the pinned one.*refused"):
        fetch_asset(entry)
    assert cached(tmp_path) == [tmp_path / "cache" / "assets"]


def test_wrong_hash_is_refused_whatever_client_brought_the_file(wheel: Path) -> None:
    with pytest.raises(ValueError, match="sha256 [0-9a-f]{64}, expected 0000.*refused"):
        _verify(entry_for(wheel, sha256="0" * 64, kind="npm"), wheel)


def test_package_with_other_contents_than_the_manifest_says_is_refused(tmp_path: Path, wheel: Path) -> None:
    with pytest.raises(ValueError, match="unpacked to 2 files, not 3"):
        fetch_asset(entry_for(wheel, num_files=3))
    with pytest.raises(ValueError, match="more bytes than allowed"):
        fetch_asset(entry_for(wheel, unpacked_bytes=2 * len(PHOTO) - 1))
    assert cached(tmp_path) == [tmp_path / "cache" / "assets"]


def test_damaged_cache_is_noticed_and_fetched_again(wheel: Path) -> None:
    entry = entry_for(wheel)
    folder = fetch_asset(entry)
    (folder / "tinyphotos/data/cat.jpg").write_bytes(PHOTO[:-1])
    status = status_of(entry)
    assert status.state == "damaged" and "cat.jpg" in status.detail
    assert fetch_asset(entry) == folder
    assert (folder / "tinyphotos/data/cat.jpg").read_bytes() == PHOTO
    (folder / "asset.json").unlink()
    assert status_of(entry).state == "damaged"
    fetch_asset(entry)
    assert status_of(entry).state == "ready"


def test_a_cache_of_another_selection_is_not_reused(wheel: Path) -> None:
    fetch_asset(entry_for(wheel))
    one = entry_for(wheel, members=("tinyphotos/data/cat.jpg",), num_files=1, unpacked_bytes=len(PHOTO))
    assert status_of(one).state == "damaged"
    folder = fetch_asset(one)
    assert not (folder / "tinyphotos/data/pets").exists()


def test_two_processes_fetching_at_once_both_succeed(tmp_path: Path, wheel: Path) -> None:
    entry = entry_for(wheel)
    fields = json.dumps(vars(entry))
    code = (
        "import json, sys; from mm_llama.assets import Asset, fetch_asset;"
        "fields = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(sys.argv[1]).items()};"
        "print(fetch_asset(Asset(**fields)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, fields]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)
    ]
    folders = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert folders == {str(status_of(entry).folder)} and status_of(entry).state == "ready"
    assert len(list((tmp_path / "cache" / "assets").iterdir())) == 1


def test_leftovers_of_a_killed_process_go_after_a_day(tmp_path: Path, wheel: Path) -> None:
    home = tmp_path / "cache" / "assets"
    for name, age in (("old", 25 * 3600), ("new", 60)):
        folder = home / f".fetch-{name}"
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x")
        os.utime(folder, times=(time.time() - age, time.time() - age))
    fetch_asset(entry_for(wheel))
    assert not (home / ".fetch-old").exists() and (home / ".fetch-new").exists()


def test_offline_fetch_says_what_is_missing_and_what_else_serves(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_LLAMA_OFFLINE", "1")
    with pytest.raises(
        ValueError, match="tiny_photos.*photographs for this test.*MM_LLAMA_OFFLINE.*draw something"
    ):
        fetch_asset(entry_for(wheel))


def test_package_that_the_index_lacks_is_named_with_what_pip_said(tmp_path: Path, wheel: Path) -> None:
    entry = entry_for(wheel)
    wheel.unlink()
    with pytest.raises(
        ValueError, match=r"pip could not bring it \(.*No matching distribution.*tinyphotos==1.0"
    ):
        fetch_asset(entry)
    assert cached(tmp_path) == [tmp_path / "cache" / "assets"]


@pytest.mark.parametrize("kind", ["npm", "debian"])
def test_missing_client_is_named(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=f"needs {TOOLS[kind]}, which is not installed.*draw something yourself"
    ):
        fetch_asset(entry_for(wheel, kind=kind))


def test_unwritable_cache_is_named(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot write to the cache .*MM_LLAMA_CACHE"):
        fetch_asset(entry_for(wheel))


def make_sdist(path: Path, proof: Path) -> None:
    """A source package whose build backend leaves a file when any of its code runs."""
    backend = f"""
open({str(proof)!r}, "w").close()
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    import os
    info = os.path.join(folder, "tinyphotos-1.0.dist-info")
    os.mkdir(info)
    with open(os.path.join(info, "METADATA"), "w") as out:
        out.write("Metadata-Version: 2.1\\nName: tinyphotos\\nVersion: 1.0\\n")
    return "tinyphotos-1.0.dist-info"
def build_wheel(*args, **kwargs):
    raise NotImplementedError
"""
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": backend,
        "PKG-INFO": "Metadata-Version: 2.1\nName: tinyphotos\nVersion: 1.0\n",
        "data/cat.jpg": "cat",
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"tinyphotos-1.0/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))


def test_source_package_is_hash_checked_before_any_of_its_code_runs(tmp_path: Path, index: Path) -> None:
    path, proof = index / "tinyphotos-1.0.tar.gz", tmp_path / "code_ran"
    make_sdist(path, proof)
    entry = entry_for(
        path,
        kind="pypi-sdist",
        members=("*/data/*.jpg",),
        strip="tinyphotos-1.0/",
        num_files=1,
        unpacked_bytes=3,
    )
    with pytest.raises(ValueError, match="another hash"):
        fetch_asset(replace(entry, sha256="0" * 64))
    assert not proof.exists()
    folder = fetch_asset(entry)
    assert (folder / "data/cat.jpg").read_text() == "cat"
    assert proof.exists()  # else the check above would show nothing


def test_every_manifest_entry_is_complete_and_the_demo_needs_pip_only() -> None:
    assert len({entry.folder_name for entry in manifest().values()}) == len(manifest())
    for entry in manifest().values():
        assert len(entry.sha256) == 64 and set(entry.sha256) <= set("0123456789abcdef"), entry.name
        assert entry.uses and entry.members and entry.licence and entry.purpose, entry.name
        assert 0 < entry.num_files and 0 < entry.unpacked_bytes and 0 < entry.download_bytes, entry.name
        if "demo" in entry.uses:
            assert TOOLS[entry.kind] == "pip", entry.name


def test_unknown_asset_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'smolm2'.*smollm2_135m"):
        find_asset("smolm2")


def test_asset_file_finds_one_file_and_refuses_none_or_several(asset_dir: Callable[[str], Path]) -> None:
    assert (
        asset_file("llama_models", "dog.jpg") == asset_dir("llama_models") / "llama_models/resources/dog.jpg"
    )
    assert asset_file("llama_models", "llama3/tokenizer.model").stat().st_size == 2_183_982
    with pytest.raises(ValueError, match="has no file matching 'wolf.jpg'"):
        asset_file("llama_models", "wolf.jpg")
    with pytest.raises(ValueError, match="has 2 files .* matching '\\*.jp\\*g'"):
        asset_file("llama_models", "*.jp*g")


def test_asset_without_fetching_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="mm-llama assets fetch easy_vqa"):
        asset("easy_vqa", fetch=False)
    assert list(tmp_path.iterdir()) == []


def test_cli_lists_locates_and_reports_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path))
    monkeypatch.setenv("MM_LLAMA_OFFLINE", "1")
    assert assets_main(["list", "--for", "demo", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == {
        name for name, entry in manifest().items() if "demo" in entry.uses
    }
    assert {row["state"] for row in rows} == {"missing"}
    assert assets_main(["list"]) == 0
    assert "fetch what is missing with: mm-llama assets fetch smollm2_135m" in capsys.readouterr().out
    with pytest.raises(ValueError, match="smollm2_135m.*core.source=PATH"):
        assets_main(["path", "smollm2_135m"])
    # Asked for by use, what npm and apt-get would bring is left out; what pip would bring is a failure.
    assert assets_main(["fetch", "--for", "test", "--json"]) == 2
    states = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states["lenml_llama3_1"] == "left out" and states["easy_vqa"] == "failed"
    assert assets_main(["fetch", "lenml_llama3_1"]) == 2
    assert "error: asset 'lenml_llama3_1'" in capsys.readouterr().err
