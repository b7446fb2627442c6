"""One writer a run folder: a second process that would write it is refused, with the first one named."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from filelock import FileLock, Timeout

P = ParamSpec("P")
R = TypeVar("R")

_held: set[Path] = set()


class Locked(ValueError):
    """Another process writes this run folder."""


@contextmanager
def run_lock(run_dir: str | Path) -> Iterator[None]:
    """Hold the lock of a run folder; within a block that holds it already nothing is done.

    The operating system lets go of it when the process ends, however it ends, so no lock is ever stale. Raises Locked
    where another process holds it.
    """
    folder = Path(run_dir).resolve()
    if folder in _held:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / ".lock", timeout=0), folder / ".lock.json"
    try:
        lock.acquire()
    except Timeout:
        raise Locked(
            f"{run_dir} is being written by {_owner(owner)}: wait for it, stop it, or give this run another name=..."
        ) from None
    _held.add(folder)
    try:
        owner.write_text(
            json.dumps({"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%FT%T%z")})
            + "\n",
            encoding="utf-8",
        )
        yield
    finally:
        _held.discard(folder)
        owner.unlink(missing_ok=True)
        lock.release()


def one_writer(function: Callable[P, R]) -> Callable[P, R]:
    """Hold the lock of the `run_dir` that `function` is called with, while it runs."""

    @wraps(function)
    def locked(*args: P.args, **kwargs: P.kwargs) -> R:
        with run_lock(cast(str | Path, kwargs["run_dir"])):
            return function(*args, **kwargs)

    return locked


def _owner(path: Path) -> str:
    try:
        found = json.loads(path.read_text("utf-8"))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
