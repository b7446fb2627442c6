"""A sweep in one process: what is finished is left alone, what is broken goes on, one failure stops no other job."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mm_llama.cli import main
from mm_llama.stages.checkpoint_files import find_checkpoint
from mm_llama.stages.lock import run_lock
from mm_llama.stages.metrics import read_metrics
from mm_llama.sweeps import identity, job
from tests.sweeps.conftest import folders_of, lines_of, overrides, tensors_of

STEPS = "stage.num_steps=6"


@pytest.fixture(scope="module")
def command(folder: Path) -> list[str]:
    """A sweep whose first job fails."""
    return overrides(folder, "threads=1", STEPS, "name=mixed", "-m", "optim.lr=1e30,1e-3,3e-3")


@pytest.fixture(scope="module")
def swept(folder: Path, command: list[str]) -> Path:
    """The folder of that sweep, once it has run."""
    assert main(command) == 1
    return folder / "runs" / "mixed_sweep"


@pytest.fixture
def again(swept: Path, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the sweep to go on from, and what puts a command there."""
    shutil.copytree(swept, tmp_path / "mixed_sweep")
    return tmp_path / "mixed_sweep", f"runs={tmp_path}"


def test_a_job_that_fails_stops_no_other_and_the_exit_code_is_1(swept: Path) -> None:
    jobs = folders_of(swept)
    assert list(jobs) == ["lr-0.001", "lr-0.003", "lr-1e30"]
    statuses = [line["status"] for line in lines_of(swept)]
    assert statuses == ["started", "failed", "started", "finished", "started", "finished"]
    for name in ("lr-0.001", "lr-0.003"):
        assert json.loads((jobs[name] / "summary.json").read_text())["finished"]
    (failed,) = [line for line in lines_of(swept) if line["status"] == "failed"]
    assert re.search(r"stopped before update \d: .*colours.jsonl", str(failed["error"]))


def test_a_repeated_sweep_says_what_is_finished_and_runs_nothing(
    again: tuple[Path, str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, runs = again
    before = {
        path: path.stat().st_mtime_ns for path in sweep.rglob("*") if path.suffix in (".jsonl", ".json")
    }
    assert main([*command, runs]) == 1
    out, err = capsys.readouterr()
    jobs = folders_of(sweep)
    for name in ("lr-0.001", "lr-0.003"):
        assert f"finished already: {jobs[name]}\n" in out
    assert f"left alone (sweep.retry=true tries again): {jobs['lr-1e30']}\n" in out
    assert f"error: {jobs['lr-1e30']}: stopped before update" in err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_failed_jobs_are_tried_again_when_asked(again: tuple[Path, str], command: list[str]) -> None:
    sweep, runs = again
    assert main([*command, runs, "sweep.retry=true"]) == 1
    added = lines_of(sweep)[6:]
    assert [line["status"] for line in added] == ["started", "failed"]
    assert added[0]["folder"] == folders_of(sweep)["lr-1e30"].name


def test_a_wider_grid_runs_the_new_points_alone_whatever_their_numbers(
    again: tuple[Path, str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, runs = again
    before = folders_of(sweep)
    wider = [*command[:-1], "optim.lr=2e-3,3e-3,1e-3", "seed=1,0", runs]
    assert main(wider) == 0
    after = folders_of(sweep)
    assert before.items() <= after.items()
    assert sorted(after.keys() - before.keys()) == ["lr-0.001_seed-1", "lr-0.002_seed-0", "lr-0.002_seed-1",
                                                    "lr-0.003_seed-1"]  # fmt: skip
    assert len(lines_of(sweep)) == 6 + 2 * 4
    assert "6 jobs, 4 to run, 4 of them new" in capsys.readouterr().out


def test_a_point_that_says_the_same_as_another_is_one_job(
    again: tuple[Path, str], command: list[str]
) -> None:
    sweep, runs = again
    assert main([*command[:-1], "optim.lr=1e-3,0.001", runs]) == 0
    assert len(lines_of(sweep)) == 6


def test_a_bad_value_fails_its_own_job(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = overrides(folder, STEPS, f"runs={tmp_path}", "name=bad", "-m", "optim.schedule=nonesuch,cosine")
    assert main(argv) == 1
    assert re.search(r"^error: \S*schedule-nonesuch_\w+: .*'nonesuch'", capsys.readouterr().err, re.MULTILINE)
    assert [line["status"] for line in lines_of(tmp_path / "bad_sweep")] == [
        "started",
        "failed",
        "started",
        "finished",
    ]


def test_a_fault_that_is_no_persons_fails_its_own_job_and_leaves_its_trace(
    again: tuple[Path, str],
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep, runs = again

    def fault(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("by us")

    monkeypatch.setattr(job, "run_stage", fault)
    assert main([*command, runs, "optim.lr=7e-3,8e-3"]) == 1
    assert [line["status"] for line in lines_of(sweep)[6:]] == ["started", "failed"] * 2
    file = folders_of(sweep)["lr-0.007"] / "error.txt"
    assert (
        "Traceback" in file.read_text()
        and f"ZeroDivisionError: by us (see {file})" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("optim.lr=1e-3,much", r"optim\.lr.*'much'"),
        ("modality/image=tiny,tinny", r"modality/image=tinny: there is no such choice \(did you mean tiny"),
        ("hydra/launcher=jobblib", r"hydra/launcher=jobblib: .*come with pip install 'mm_llama\[sweep\]'"),
        ("sweep.code=other", r"sweep\.code is 'other', expected same or any"),
        ("core.numbers.dim=64,???", r"core\.numbers\.dim"),
    ],
)
def test_a_point_that_does_not_compose_is_told_before_any_job_runs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], choices: str, message: str
) -> None:
    argv = overrides(folder, STEPS, f"runs={tmp_path}", "name=wrong", "-m", "optim.lr=1e-3,2e-3")
    assert main([*argv[:-1], *(["optim.lr=1e-3,2e-3"] if "lr" not in choices else []), choices]) == 2
    assert re.search(rf"^error: .*{message}", capsys.readouterr().err, re.MULTILINE)
    assert not (tmp_path / "wrong_sweep").exists()


def test_a_sweep_over_stages_needs_a_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        one
        for one in overrides(folder, "stage.num_steps=2", f"runs={tmp_path}", "-m")
        if one != "stage=image_sft"
    ]
    assert main([*argv, "stage=image_sft,image_pretrain"]) == 2
    assert "give it one with name=..." in capsys.readouterr().err
    assert main([*argv, "stage=image_sft,image_pretrain", "name=both"]) == 0
    assert list(folders_of(tmp_path / "both_sweep")) == ["stage-image_pretrain", "stage-image_sft"]


def test_other_code_runs_anew_unless_any_will_do(
    again: tuple[Path, str], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, runs = again
    wanted = [*command[:-1], "optim.lr=1e-3", runs]
    monkeypatch.setattr(identity, "source_digest", lambda: "0" * 16)
    assert main([*wanted, "sweep.code=any"]) == 0
    assert len(lines_of(sweep)) == 6
    assert main(wanted) == 0
    assert len(lines_of(sweep)) == 8 and lines_of(sweep)[-2]["folder"] != folders_of(sweep)["lr-0.003"].name


def test_a_job_whose_code_changed_while_it_waited_fails(
    again: tuple[Path, str],
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep, runs = again
    monkeypatch.setattr(job, "identity_of", lambda config: "0" * 16)
    assert main([*command, runs, "optim.lr=5e-3,6e-3"]) == 1
    assert "has changed since the sweep began" in capsys.readouterr().err
    assert not list((sweep / str(lines_of(sweep)[-2]["folder"])).glob("checkpoints/*"))


def test_a_job_that_another_process_runs_is_left_to_it(
    again: tuple[Path, str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, runs = again
    with (sweep / "ledger.jsonl").open("a") as file:  # as if the last job had not ended
        kept = (sweep / "ledger.jsonl").read_text().splitlines(keepends=True)[:5]
        file.truncate(0)
        file.writelines(kept)
    running = folders_of(sweep)["lr-0.003"]
    wanted = [*command[:-1], "optim.lr=1e-3,3e-3", runs]
    with run_lock(running):
        assert main(wanted) == 75
        assert f"left to the process that runs it: {running}" in capsys.readouterr().out
    assert main(wanted) == 0
    assert f"continues: {running}" in capsys.readouterr().out


def test_a_sweep_from_a_file_and_folders_of_ones_own_configs(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {optim.lr: '1e-3,2e-3'}}}\n"
    )
    argv = overrides(folder, STEPS, f"runs={tmp_path}", "sweep=mine", "--config-dir", str(tmp_path / "conf"))
    assert main(argv) == 0
    assert list(folders_of(tmp_path / "image_sft_sweep")) == ["lr-0.001", "lr-0.002"]
    assert lines_of(tmp_path / "image_sft_sweep")[0]["config_dirs"] == [str(tmp_path / "conf")]


def steps_of(run: Path) -> list[int]:
    """The steps that a run has logged, after a 0."""
    return [0, *(record["step"] for record in read_metrics(run / "metrics.jsonl"))]


LONG = ("threads=1", "stage.num_steps=60", "stage.save_every=5", "optim.lr=1e-3,3e-3", "-m")


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What a sweep that nothing interrupts trains, by job."""
    assert main(overrides(folder, *LONG, "name=unbroken")) == 0
    return {name: tensors_of(run) for name, run in folders_of(folder / "runs" / "unbroken_sweep").items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 75)]
)
def test_an_interrupted_sweep_goes_on_to_the_same_tensors(
    folder: Path,
    start: Callable[..., subprocess.Popen[str]],
    unbroken: dict[str, dict[str, torch.Tensor]],
    number: signal.Signals,
    code: int,
) -> None:
    name = f"stopped_{number.name}"
    argv, sweep = overrides(folder, *LONG, f"name={name}"), folder / "runs" / f"{name}_sweep"
    process = start(argv)
    deadline = time.monotonic() + 200
    # In the second job, two steps after it saved.
    while len(lines_of(sweep)) < 3 or steps_of(folders_of(sweep)["lr-0.003"])[-1] < 7:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code, out
    assert code < 0 or f"{number.name}: the sweep was stopped; the same command continues it" in out
    assert [line["status"] for line in lines_of(sweep)][:3] == ["started", "finished", "started"]
    jobs = folders_of(sweep)
    if code == 75:  # the step that was being made is finished and saved
        steps = [
            json.loads(line)["step"] for line in (jobs["lr-0.003"] / "metrics.jsonl").read_text().splitlines()
        ]
        assert find_checkpoint(jobs["lr-0.003"]).name == f"step_{steps[-1]:08d}"
    first = (jobs["lr-0.001"] / "metrics.jsonl").stat().st_mtime_ns
    assert main(argv) == 0
    assert (jobs["lr-0.001"] / "metrics.jsonl").stat().st_mtime_ns == first
    for job_name, tensors in unbroken.items():
        found = tensors_of(folders_of(sweep)[job_name])
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
