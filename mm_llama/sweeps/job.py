"""One job of a sweep, in the sweep's own process or in a worker's: it runs, and the ledger says what became of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mm_llama.stage_run import run_stage
from mm_llama.stages.lock import Locked, run_lock
from mm_llama.stages.metrics import environment
from mm_llama.stages.preemption import EXIT_CODE
from mm_llama.sweeps.identity import config_of, hash_of, identity_of, source_digest
from mm_llama.sweeps.ledger import FAILED, FINISHED, STARTED, STOPPED, Ledger, typed

# The process that runs the sweep; a worker imports this module anew and finds 0.
sweep_process = 0


def run_job(cfg: DictConfig) -> str:
    """Run the job that a launcher has composed and return what became of it.

    Of what goes wrong nothing is raised, so that the other jobs run; in the sweep's own process a signal is, so that
    none of them does.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if os.getpid() == sweep_process:
        print(f"begins: {folder.name}", flush=True)
        return _run(cfg, folder)
    return _worker.run(cfg, folder)


def _run(cfg: DictConfig, folder: Path) -> str:
    ledger, job = Ledger(folder.parent), str(cfg.sweep.job)
    try:
        with run_lock(folder):
            entry = ledger.read().get(job)
            if entry is not None and entry.status == FINISHED and (folder / "summary.json").is_file():
                return FINISHED  # by another sweep, since this one was planned
            ledger.append(job, STARTED, **_facts(cfg, folder))
            status: str = STOPPED
            facts: dict[str, Any] = {}
            try:
                status, facts = _outcome(cfg, folder)
            except SystemExit as stop:
                # Any other code is a launcher's, which starts the job once more (submitit, when its time is up).
                if os.getpid() == sweep_process or stop.code != EXIT_CODE:
                    raise
            finally:
                ledger.append(job, status, **facts)
            return status
    except Locked:
        return STARTED  # another process is at it


def _outcome(cfg: DictConfig, folder: Path) -> tuple[str, dict[str, Any]]:
    try:
        _check_planned(cfg)
        result = run_stage(cfg, run_dir=folder)
    except (ValueError, OSError) as error:
        message = str(error) or type(error).__name__
    except Exception as error:
        # A fault of ours or of a library: where it came from is kept, and the other jobs run.
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        message = f"{type(error).__name__}: {error}".splitlines()[0] + f" (see {folder / 'error.txt'})"
    else:
        finite = abs(result.objective) < float("inf")  # false for nan too
        return FINISHED, {"objective": result.objective if finite else None, "minutes": result.minutes}
    print(f"error: {folder.name}: {message}", file=sys.stderr, flush=True)
    return FAILED, {"error": message}


def _facts(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    paths = [
        source.path
        for source in HydraConfig.get().runtime.config_sources
        if "command-line" in source.provider
    ]
    return {
        "folder": folder.name,
        "config": hash_of(config_of(cfg)),
        "code": source_digest(),
        "commit": environment()["commit"],
        "overrides": typed(HydraConfig.get().overrides.task),
        "config_dirs": paths,
    }


def _check_planned(cfg: DictConfig) -> None:
    if cfg.sweep.code == "same" and identity_of(config_of(cfg)) != cfg.sweep.job:
        raise ValueError(
            "the code, or the run that stage.init names, has changed since the sweep began: this would be another job; "
            "give the command again, or take any code with sweep.code=any"
        )


class _Worker:
    """What a process has to do that runs jobs for a sweep in another process."""

    def __init__(self) -> None:
        self.entered = self.stopping = self.busy = False
        self.parent = 0

    def run(self, cfg: DictConfig, folder: Path) -> str:
        """Run one job, unless this process has been told to stop."""
        self._enter()
        if self.stopping:
            return STOPPED
        print(f"begins: {folder.name}", flush=True)
        status = STOPPED
        self.busy = True
        try:
            with self._output(folder):
                status = _run(cfg, folder)
        except SystemExit as stop:  # told to stop, before the job began or after it ended
            if stop.code != EXIT_CODE:
                raise
        finally:
            self.busy = False
        self.stopping |= status == STOPPED
        return status

    @contextmanager
    def _output(self, folder: Path) -> Iterator[None]:
        """Keep what jobs that run side by side print apart; submitit does so itself."""
        if "SUBMITIT_EXECUTOR" in os.environ:
            yield
            return
        log = (folder / "output.log").open("a", encoding="utf-8", buffering=1)
        with log, redirect_stdout(log), redirect_stderr(log):
            yield

    def _enter(self) -> None:
        if self.entered:
            return
        self.entered = True
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._receive)
        if "SUBMITIT_EXECUTOR" not in os.environ:
            # A terminal sends SIGINT to all processes, and the sweep sends SIGTERM on: one is enough, two would mean
            # that the job leaves without saving.
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            self.parent = os.getppid()
            threading.Thread(target=self._watch, daemon=True).start()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        if self.busy:
            raise SystemExit(EXIT_CODE)

    def _watch(self) -> None:
        """End with the process that runs the sweep, however it ended: the job is saved, and no other one begins."""
        while os.getppid() == self.parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        self.stopping = True
        while self.busy:
            time.sleep(0.1)
        os._exit(EXIT_CODE)


_worker = _Worker()
