"""The repository itself: plain small files, pinned and declared libraries, and commands that exist."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mm_llama
from mm_llama.cli import VERBS
from mm_llama.cli.doctor import LIBRARIES

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 1_000_000
# The one voice that is shipped, so that `say` works at once: each part in 16 bits.
VOICE, VOICE_BYTES = ROOT / "mm_llama" / "voices" / "english", 6_000_000
PICTURES = (".png", ".jpg")  # the only files that need not be text


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def requirements() -> dict[str, list[Requirement]]:
    """Requirements by extra, the base under `base`."""
    table = project()["project"]
    return {
        extra: [Requirement(text) for text in texts]
        for extra, texts in {"base": table["dependencies"], **table["optional-dependencies"]}.items()
    }


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!]+", line) for line in lines)
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_every_tracked_file_is_small_plain_text_or_a_picture() -> None:
    for path in tracked_files():
        assert not path.is_symlink(), path
        assert path.stat().st_size <= (VOICE_BYTES if path.parent.parent == VOICE else MAX_BYTES), path
        executable = bool(path.stat().st_mode & stat.S_IXUSR)
        assert executable == (path == ROOT / ".ci" / "run"), path
        if path.suffix not in PICTURES and path.parent.parent != VOICE:
            text = path.read_bytes().decode("utf-8")  # raises for anything else
            assert "\0" not in text and "\r" not in text, path


def test_modules_are_one_idea_each_and_named_for_it() -> None:
    for package in ("mm_llama", "encoders", "adapters"):
        for path in (ROOT / package).rglob("*.py"):
            assert path.stem not in ("utils", "helpers", "common"), path
            assert len(path.read_text("utf-8").splitlines()) <= 400, f"{path} is longer than 400 lines"


def test_test_files_have_names_of_their_own() -> None:
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_every_test_is_collected() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        if not path.name.startswith("test_"):
            assert not re.search(r"^def test_", path.read_text("utf-8"), re.MULTILINE), path


def test_version_is_the_same_everywhere() -> None:
    assert project()["project"]["version"] == mm_llama.__version__


def test_every_direct_requirement_is_pinned_at_or_above_its_floor() -> None:
    pinned = pins()
    for extra, wanted in requirements().items():
        for requirement in wanted:
            if requirement.name == "mm_llama":
                continue
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} ({extra}) is not in constraints.txt"
            assert requirement.specifier.contains(version), f"{requirement} ({extra}) but {version} is pinned"
    build = [Requirement(text) for text in project()["build-system"]["requires"]]
    assert all(requirement.specifier.contains(pinned[requirement.name]) for requirement in build)


def test_the_extra_named_all_is_every_extra_of_use() -> None:
    wanted = requirements()
    (whole,) = wanted["all"]
    assert whole.extras == set(wanted) - {
        "base",
        "all",
        "oracles",
        "dev",
        "perceptual",
    }  # the last is compiled where it is installed


def test_doctor_knows_exactly_the_declared_libraries() -> None:
    wanted = requirements()
    declared = {
        extra: {canonicalize_name(requirement.name) for requirement in group}
        for extra, group in wanted.items()
        if extra not in ("all", "dev")
    }
    known = {extra: {canonicalize_name(name) for name in group} for extra, group in LIBRARIES.items()}
    assert known == declared


def test_every_library_that_our_source_imports_is_declared() -> None:
    declared = {module.split(".")[0] for extra, group in LIBRARIES.items() for module in group.values()}
    declared -= set(LIBRARIES["oracles"].values())
    # packaging comes with hydra-core; the doctor does without it where it is absent.
    own = {"mm_llama", "encoders", "adapters", "packaging"}
    pattern = re.compile(r"^\s*(?:import|from)\s+([A-Za-z_]\w*)", re.MULTILINE)
    for package in ("mm_llama", "encoders", "adapters"):
        for path in (ROOT / package).rglob("*.py"):
            code = re.sub(r'"""[\s\S]*?"""', "", path.read_text("utf-8"))
            foreign = set(pattern.findall(code)) - own - set(sys.stdlib_module_names)
            if path.parent == ROOT / "mm_llama" / "bench":  # a peer is what a benchmark stands beside
                foreign -= set(LIBRARIES["oracles"].values())
            assert foreign <= declared, f"{path}: {foreign - declared} is not declared in pyproject.toml"


def documents() -> list[Path]:
    return [
        path for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md") if (path := ROOT / name).is_file()
    ]


def commands(path: Path) -> list[str]:
    """Command lines in the fenced blocks and in back quotes of a document."""
    text = path.read_text("utf-8")
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in fenced for line in block.splitlines()]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + re.findall(r"`([^`\n]+)`", rest)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_commands_in_the_documents_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for command in commands(path):
        words = re.sub(r"^(\w+=\S+\s+)+", "", command).split()
        if len(words) > 1 and words[0] == "make":
            named = {word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word)}
            assert named <= targets, f"{path.name}: `{command}`: the Makefile has no {named - targets}"
        if len(words) > 1 and words[0] == "mm-llama" and re.fullmatch(r"[a-z]+", words[1]):
            assert words[1] in VERBS, f"{path.name}: `{command}`: there is no such verb"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_files_that_the_documents_link_to_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_paths_of_the_tour_exist() -> None:
    (tour,) = re.findall(
        r"^## Tour\n+```\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    first = [line.split()[0] for line in tour.splitlines()]
    named = re.findall(r"(?:mm_llama|tests)/\S+(?:/|\.py|\.json)", tour)
    assert len(first) > 10
    for name in [*first, *named]:
        assert (ROOT / name).exists(), name
    packages = {path.parent.name for path in (ROOT / "mm_llama").glob("*/__init__.py")} - {"testing"}
    assert packages <= {Path(name).name for name in first}


def test_ci_entry_fails_when_the_set_up_or_a_test_fails(tmp_path: Path) -> None:
    for name in ("Makefile", ".ci/run"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    entry = ["bash", str(tmp_path / ".ci" / "run")]
    set_up = subprocess.run(
        entry, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PYTHON": "false"}
    )
    assert set_up.returncode != 0
    # A set-up that is done, and a test that fails: a python that only knows how to exit with 1.
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.created", ".venv/.installed-all"):
        (tmp_path / name).touch()
    for name, status in (("mm-llama", 0), ("python", 1)):
        (tools / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (tools / name).chmod(0o755)
    failing = subprocess.run(entry, capture_output=True, text=True)
    assert failing.returncode != 0 and "pytest" in failing.stdout
    (tools / "python").write_text("#!/bin/sh\nexit 0\n")
    assert subprocess.run(entry, capture_output=True, text=True).returncode == 0
