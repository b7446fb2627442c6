"""A run that is killed again and again, by itself in a process: `python killed_runs.py '{...}'` prints what came of it.

Everything is imported once; every attempt is a fork, so that fifty of them take a minute. Half of the attempts are
killed at a random time, half at a random one of the things they do to files (opening, renaming, deleting: the middle
of a save, of a rotation, of the features that are being cached). A few are told to stop by a signal there.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mm_llama.build import compose_config
from mm_llama.cli import main
from mm_llama.stage_run import run_stage

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.fork", "shutil.rmtree")


class Watch:
    """Sends this process a signal at the `count`-th thing that it does to files below `root`."""

    def __init__(self, root: str, count: int, number: int, times: int = 1) -> None:
        self.root, self.count, self.number, self.times, self.seen = root, count, number, times, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS and (event == "os.fork" or str(args[0]).startswith(self.root)):
            self.seen += 1
            if self.seen == self.count:
                for _ in range(self.times):
                    os.kill(os.getpid(), self.number)


def attempt(
    overrides: list[str], root: Path, name: str, after: float | None = None, watch: Watch | None = None
) -> tuple[int, float]:
    """Run in a fork and return its exit code (negative: the signal that ended it) and how long it took."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        log = os.open(root / "log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1), os.dup2(log, 2)
        if watch is not None:
            sys.addaudithook(watch)
        code = 99
        try:
            code = main(["train", *overrides, f"name={name}"])
        except SystemExit as left:
            code = int(left.code or 0)
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # workers that outlive it
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def kills(overrides: list[str], root: Path, number: int, seed: int) -> dict[str, Any]:
    """An unbroken run, then `number` interruptions of as many runs as that takes; each finished one is listed."""
    draw = random.Random(seed)
    code, seconds = attempt(overrides, root, "whole")
    found: dict[str, Any] = {"whole": code, "finished": [], "codes": [], "seconds": seconds}
    run = 0
    while len(found["codes"]) < number or code != 0:
        name, more = f"run{run}", len(found["codes"]) < number
        kind = len(found["codes"]) % 8
        if not more or (len(found["codes"]) >= number // 2 and not found["finished"]):
            code, _ = attempt(
                overrides, root, name
            )  # in peace, so that one run ends half-way and one at the end
            more = False
        elif kind % 2:
            code, _ = attempt(overrides, root, name, after=draw.uniform(0, 0.8 * seconds))
        else:
            told = (
                {0: signal.SIGTERM, 4: signal.SIGUSR1}.get(kind, signal.SIGKILL)
                if len(found["codes"]) % 3
                else signal.SIGKILL
            )
            watch = Watch(str(root), draw.randint(1, 80), told)
            code, _ = attempt(overrides, root, name, watch=watch)
        if more:
            found["codes"].append(code)
        if code == 0:
            found["finished"].append(name)
            run += 1
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    order = json.loads(sys.argv[1])
    os.environ["MM_LLAMA_CACHE"] = str(Path(order["root"]) / "cache")
    compose_config("train", order["overrides"])  # loads what composing needs, before the forks
    assert run_stage
    print(json.dumps(kills(order["overrides"], Path(order["root"]), order["number"], order["seed"])))
