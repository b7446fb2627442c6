"""Launchers that start other processes: workers find config and code, share the cores, and stop when told."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from omegaconf import OmegaConf

from mm_llama.cli import main
from mm_llama.sweeps.sweep import num_cores
from tests.sweeps.conftest import folders_of, lines_of, overrides, tensors_of

STEPS = ("stage.num_steps=20", "stage.save_every=5", "-m")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What the jobs train one after the other in one process, with the threads that two side by side get."""
    threads = f"threads={max(1, num_cores() // 2)}"
    assert main(overrides(folder, *STEPS, "optim.lr=1e-3,3e-3", "name=alone", threads)) == 0
    runs = folders_of(folder / "runs" / "alone_sweep")
    return {name: tensors_of(runs[name]) for name in ("lr-0.001", "lr-0.003")}


def check(sweep: Path, alone: dict[str, dict[str, torch.Tensor]], statuses: list[str]) -> None:
    runs = folders_of(sweep)
    for name, tensors in alone.items():
        found = tensors_of(runs[name])
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    ends = {str(line["job"]): str(line["status"]) for line in lines_of(sweep)}
    assert sorted(ends.values()) == statuses
    for run in runs.values():
        assert OmegaConf.load(run / "hydra" / "config.yaml").threads == max(1, num_cores() // 2)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not what():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.mark.slow
def test_joblib_is_stopped_with_its_workers_and_goes_on(
    folder: Path, start: Start, alone: dict[str, dict[str, torch.Tensor]]
) -> None:
    sweep = folder / "runs" / "side_sweep"
    argv = overrides(folder, *STEPS, "optim.lr=1e-3,1e30,3e-3", "name=side", "hydra/launcher=joblib",
                     "hydra.launcher.n_jobs=2")  # fmt: skip
    process = start(argv)
    wait_for(lambda: bool(list(sweep.glob("lr-0.001_*/checkpoints/step_*"))), process)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 75 and "SIGTERM: the sweep was stopped; the same command continues it" in out
    assert len(workers) >= 2 and not [
        one for one in workers if one.is_running() and "loky.backend.popen" in str(one)
    ]
    assert "stopped" in {line["status"] for line in lines_of(sweep)}
    done = start(argv)
    out, _ = done.communicate(timeout=200)
    assert done.returncode == 1, out
    assert f"continues: {folders_of(sweep)['lr-0.001']}" in out and "stopped before update" in out
    assert "the loss is not finite" in out
    assert '"step"' not in out and '"step": 20' in (folders_of(sweep)["lr-0.003"] / "output.log").read_text()
    check(sweep, alone, ["failed", "finished", "finished"])


@pytest.mark.slow
def test_workers_of_a_sweep_that_was_killed_save_and_leave(folder: Path, start: Start) -> None:
    sweep = folder / "runs" / "orphans_sweep"
    argv = overrides(folder, "stage.num_steps=4000", "-m", "optim.lr=1e-3,2e-3", "name=orphans",
                     "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")  # fmt: skip
    process = start(argv)
    wait_for(lambda: sum(path.stat().st_size > 0 for path in sweep.glob("*/metrics.jsonl")) == 2, process)
    process.kill()
    assert process.stdout is not None
    process.stdout.close()
    process.wait()
    deadline = time.monotonic() + 60
    while [line["status"] for line in lines_of(sweep)].count("stopped") < 2:
        assert time.monotonic() < deadline, lines_of(sweep)
        time.sleep(0.1)
    assert len(list(sweep.glob("*/checkpoints/step_*"))) == 2


@pytest.mark.slow
def test_submitit_runs_jobs_in_processes_of_its_own(
    folder: Path, start: Start, alone: dict[str, dict[str, torch.Tensor]]
) -> None:
    cpus = max(1, num_cores() // 2)
    argv = overrides(folder, *STEPS, "optim.lr=1e-3,3e-3", "name=local", "hydra/launcher=submitit_local",
                     f"hydra.launcher.cpus_per_task={cpus}")  # fmt: skip
    process = start(argv)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    check(folder / "runs" / "local_sweep", alone, ["finished", "finished"])


# What a cluster would do with a submission: run each task of the array, where its #SBATCH lines say, as srun would.
SBATCH = """#!/bin/bash
cp "${!#}" "$(dirname "$0")/submission.sh"
for task in $(seq 0 $(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "${!#}")); do
    SLURM_JOB_ID=77$task SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \\
    SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=here \\
    nohup bash "${!#}" </dev/null >/dev/null 2>&1 &
done
echo "Submitted batch job 77"
"""
SRUN = """#!/bin/bash
while [ "${1#-}" != "$1" ]; do [[ $1 == *=* || $1 == --unbuffered ]] && shift || shift 2; done
exec "$@"
"""


@pytest.mark.slow
def test_slurm_gets_an_array_of_jobs_with_what_they_ask_for(
    folder: Path, start: Start, alone: dict[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    for name, text in (
        ("sbatch", SBATCH),
        ("srun", SRUN),
        ("sacct", "#!/bin/bash\n"),
        ("scancel", "#!/bin/bash\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    cpus = max(1, num_cores() // 2)
    queue = (
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.timeout_min=600",
    )
    cores = f"hydra.launcher.cpus_per_task={cpus}"
    argv = overrides(folder, *STEPS, "optim.lr=1e-3,3e-3", "name=slurm", *queue, cores)
    process = start(argv, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    check(folder / "runs" / "slurm_sweep", alone, ["finished", "finished"])
    script = (tmp_path / "submission.sh").read_text()
    for line in (
        f"--cpus-per-task={cpus}",
        "--partition=gpu",
        "--time=600",
        "--array=0-1%2",
        "--job-name=mm_llama",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "-m submitit.core._submit" in script
