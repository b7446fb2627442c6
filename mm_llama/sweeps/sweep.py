"""A sweep: plan its jobs, leave out what the ledger says is finished, hand the rest to a launcher, say what came."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mm_llama.paths import conf_dir
from mm_llama.stages.preemption import EXIT_CODE, NAMES, Stopped, stop_signals
from mm_llama.sweeps import job as job_module
from mm_llama.sweeps.job import run_job
from mm_llama.sweeps.ledger import FAILED, FINISHED, Entry, Ledger, is_running
from mm_llama.sweeps.plan import Job, parse, plan, points, swept

# Launchers whose jobs are processes on this machine that end with the sweep.
ELSEWHERE = ("JoblibLauncher", "LocalLauncher")


def run_sweep(overrides: Sequence[str]) -> int:
    """Run the sweep of a command line and return its exit code.

    0: every job is finished. 1: one failed, now or before. 75: a signal ended it, or another process is at one of its
    jobs; the same command continues. Raises ValueError, and Hydra's errors, for what does not compose, before any job
    runs.
    """
    for name in ("hydra", "hydra_plugins"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with stop_signals(), initialize_config_dir(str(conf_dir()), job_name="mm_llama", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        cfg = hydra.compose_config("train", list(overrides), run_mode=RunMode.MULTIRUN)
        sweep = Sweep(cfg, HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(cfg)))
        given = parse(cfg, hydra.config_loader)
        if cfg.sweep.trials:
            from mm_llama.sweeps.search import search

            return search(sweep, given, cfg.sweep.trials, cfg.sweep.seed)
        sweep.run(points(given), swept(given))
        return sweep.end()


class Sweep:
    """Runs points in the folder of one sweep and remembers what became of them."""

    def __init__(self, cfg: DictConfig, context: HydraContext) -> None:
        self.cfg, self.context = cfg, context
        try:
            self.folder = Path(cfg.hydra.sweep.dir)
        except OmegaConfBaseException as error:
            raise ValueError(
                "stages are swept, so the sweep has no name of its own: give it one with name=..."
            ) from error
        if cfg.sweep.code not in ("same", "any"):
            raise ValueError(f"sweep.code is {cfg.sweep.code!r}, expected same or any")
        self.ledger = Ledger(self.folder)
        self.launcher = str(cfg.hydra.launcher.get("_target_", "")).rsplit(".", 1)[-1]
        self.side_by_side = _side_by_side(self.launcher, cfg.hydra.launcher)
        self.jobs: dict[str, Job] = {}
        self.stopped = ""
        self.lost = 0

    def run(self, grid: Sequence[Sequence[str]], keys: Sequence[str]) -> list[Entry]:
        """Run what is not finished of a grid; returns what the ledger then says of each point's job."""
        known = self.ledger.read()
        jobs = plan(self.cfg, self.context.config_loader, grid, keys, known)
        distinct = {job.identity: job for job in jobs}
        self.jobs |= distinct
        wanted = self._choose(list(distinct.values()), known)
        size = self.cfg.hydra.sweeper.get("max_batch_size") or (
            self.side_by_side if self.launcher == "LocalLauncher" else len(wanted)
        )
        for start in range(0, len(wanted), size or 1):
            if not self.stopped:
                self._launch(wanted[start : start + size])
        known = self.ledger.read()
        return [known.get(job.identity, Entry(job.identity, job.folder)) for job in jobs]

    def end(self) -> int:
        """Say what became of the sweep and return its exit code."""
        known = self.ledger.read()
        entries = {identity: known.get(identity) for identity in self.jobs}
        failed = [entry for entry in entries.values() if entry is not None and entry.status == FAILED]
        finished = sum(entry is not None and entry.status == FINISHED for entry in entries.values())
        print(f"{self.folder}: {finished} of {len(self.jobs)} jobs finished, {len(failed)} failed")
        for entry in failed:
            print(f"error: {self.folder / entry.folder}: {entry.error}", file=sys.stderr)
        if self.stopped:
            print(f"{self.stopped}: the sweep was stopped; the same command continues it", file=sys.stderr)
            return EXIT_CODE
        print(f"the results: mm-llama report {self.folder}")
        if failed or self.lost:
            return 1
        return 0 if finished == len(self.jobs) else EXIT_CODE

    def _choose(self, jobs: Sequence[Job], known: dict[str, Entry]) -> list[Job]:
        """Return the jobs to run, and say why the others are not."""
        chosen: list[Job] = []
        for job in jobs:
            entry, folder = known.get(job.identity), self.folder / job.folder
            if entry is None:
                chosen.append(job)
            elif entry.status == FINISHED and (folder / "summary.json").is_file():
                print(f"finished already: {folder}")
            elif entry.status == FAILED and not self.cfg.sweep.retry:
                print(f"failed before, left alone (sweep.retry=true tries again): {folder}")
            elif is_running(folder):
                print(f"left to the process that runs it: {folder}")
            else:
                print(f"{'again' if entry.status == FAILED else 'continues'}: {folder}")
                chosen.append(job)
        new = sum(job.identity not in known for job in chosen)
        print(f"{self.folder}: {len(jobs)} jobs, {len(chosen)} to run, {new} of them new", flush=True)
        return chosen

    def _launch(self, jobs: Sequence[Job]) -> None:
        """Run jobs, side by side where the launcher does; returns when all have ended or the sweep is stopped."""
        together = min(self.side_by_side, len(jobs))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=run_job, config=self.cfg
        )
        overrides = [[*job.overrides, *self._own(job, together)] for job in jobs]
        job_module.sweep_process = os.getpid()
        try:
            with self._signals() if self.launcher in ELSEWHERE else nullcontext():
                launcher.launch(overrides, initial_job_idx=0)
        except (SystemExit, KeyboardInterrupt) as stop:
            self.stopped = self.stopped or (stop.name if isinstance(stop, Stopped) else "interrupted")
        except Exception as error:  # a worker that was killed, a queue that is not there
            if not self.stopped:
                self.lost += 1
                text = f"{type(error).__name__}: {error}".splitlines()[0]
                print(
                    f"error: {self.launcher} gave up: {text}; the same command continues what did not end",
                    file=sys.stderr,
                )
        finally:
            job_module.sweep_process = 0

    def _own(self, job: Job, together: int) -> list[str]:
        """Return what the sweep adds to a job's overrides."""
        own = [f"sweep.job={job.identity}", f"hydra.sweep.subdir={job.folder}"]
        own.append(f"hydra.sweep.dir={_quoted(str(self.folder))}")
        cpus = self.cfg.hydra.launcher.get("cpus_per_task")
        if not job.threads and cpus:
            own.append(f"threads={cpus}")
        elif not job.threads and together > 1:
            own.append(f"threads={max(1, num_cores() // together)}")
        return own

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Until the end of the block a first signal is sent on to the workers, and waited for; a second one leaves."""
        previous: dict[int, Any] = {}

        def restore() -> None:
            while previous:
                signal.signal(*previous.popitem())

        def receive(number: int, frame: FrameType | None) -> None:
            self.stopped = signal.Signals(number).name
            restore()
            import psutil

            for child in psutil.Process().children():
                child.terminate()

        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    previous[number] = signal.signal(number, receive)
        try:
            yield
        finally:
            restore()


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _side_by_side(launcher: str, settings: DictConfig) -> int:
    """Return how many jobs a launcher runs on this machine at a time."""
    if launcher == "JoblibLauncher":
        num = int(settings.n_jobs)
        return num if num > 0 else max(1, num_cores() + 1 + num)  # -1 is every core, as joblib counts
    if launcher == "LocalLauncher":
        return max(1, num_cores() // (settings.get("cpus_per_task") or 1))
    return 1


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
