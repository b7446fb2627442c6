"""The doctor survives broken libraries, names them, and tells what breaks the base from what does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm_llama.cli import doctor

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bad_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the installed libraries, for stand-ins that do not import."""
    folder = tmp_path / "bad"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder


def test_a_library_that_raises_or_ends_the_process_does_not_hide_the_others(bad_libraries: Path) -> None:
    (bad_libraries / "soxr.py").write_text("raise OSError('libsoxr.so: cannot open shared object file')\n")
    (bad_libraries / "av.py").write_text("import os; os._exit(7)\n")
    (bad_libraries / "psutil.py").write_text("raise SystemExit(3)\n")
    found = doctor._probe_in_children(["soxr", "einops", "av", "psutil", "omegaconf"])
    assert found["soxr"] == {"error": "OSError: libsoxr.so: cannot open shared object file"}
    assert found["av"] == {"error": "importing it ended the process (exit status 7)"}
    assert found["psutil"] == {"error": "SystemExit: 3"}
    assert found["einops"] == {} and found["omegaconf"] == {}


def run_doctor(*arguments: str, path: list[Path], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "MM_LLAMA_CACHE": str(folder)}
    command = [sys.executable, "-m", "mm_llama", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)


@pytest.mark.slow
def test_broken_extra_leaves_the_base_working_and_says_why(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "torchaudio.py").write_text("raise RuntimeError('built for another torch')\n")
    done = run_doctor("--json", path=[bad, ROOT], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    speech = report["libraries"]["speech"]
    assert speech["torchaudio"]["state"] == "broken" and speech["soundfile"]["state"] == "works"
    assert speech["torchaudio"]["error"] == "RuntimeError: built for another torch"
    assert report["libraries"]["base"]["torch"]["state"] == "works" and report["machine"]["threads"] >= 1
    assert {row["state"] for row in report["assets"]} == {"missing"}
    assert report["fetch"].startswith("mm-llama assets fetch smollm2_135m")
    assert report["mm_llama"]["folder"] == str(ROOT / "mm_llama")


@pytest.mark.slow
def test_broken_base_library_and_a_foreign_adapters_package_are_problems(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    (bad / "adapters").mkdir(parents=True)
    (bad / "adapters" / "__init__.py").write_text("")
    (bad / "einops.py").write_text("raise ImportError('half an installation')\n")
    done = run_doctor(path=[bad, ROOT], folder=tmp_path)
    assert done.returncode == 1
    assert "PROBLEM einops: ImportError: half an installation" in done.stdout
    assert f"PROBLEM the package `adapters` is {bad / 'adapters'}" in done.stdout
    assert done.stdout.endswith("the base does not work\n")


def test_too_old_base_library_is_a_problem(tmp_path: Path, bad_libraries: Path) -> None:
    for name, text in (
        ("mm_llama", "Requires-Dist: einops>=0.8\nRequires-Dist: av>=99; extra == 'video'\n"),
        ("einops", ""),
    ):
        info = bad_libraries / f"{name}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n{text}")
    assert doctor._floor_errors() == ["einops 0.1 is installed, but mm_llama needs einops>=0.8"]


def test_the_dead_decord_beside_decord2_is_noted(bad_libraries: Path) -> None:
    libraries = {"video": {name: {"version": "3.4.0", "state": "works"} for name in ("decord2", "av")}}
    assert not any("decord" in note for note in doctor._notes(libraries))
    info = bad_libraries / "decord-0.6.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: decord\nVersion: 0.6.0\n")
    assert "decord 0.6.0 is installed together with decord2" in doctor._notes(libraries)[0]


def test_what_reads_clips_is_noted() -> None:
    def note(decord: str, av: str) -> str:
        video = {"decord2": {"version": "1", "state": decord}, "av": {"version": "1", "state": av}}
        return next(note for note in doctor._notes({"video": video}) if note.startswith("clips"))

    assert note("works", "works") == note("not installed", "works") == "clips are read with PyAV"
    assert "with decord, since PyAV does not work" in note("works", "broken")
    assert "cannot be read: neither PyAV nor decord works" in note("not installed", "broken")


def test_more_threads_than_cores_are_noted_and_a_busy_machine_is_not() -> None:
    assert doctor._load_notes(2.9, 2) == [] and doctor._load_notes(0.1, 1) == []
    (note,) = doctor._load_notes(7.0, 2)
    assert "7.0 threads were at work on 2 cores" in note and "threads=1" in note
