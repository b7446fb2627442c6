"""The ledger of a sweep: one JSON line for every job that began or ended. Lines are added and never changed."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

NAME = "ledger.jsonl"
# What a line says of a job. One that began and did not end is broken, or still running where its lock is held.
STARTED, FINISHED, FAILED, STOPPED = "started", "finished", "failed", "stopped"


@dataclass
class Entry:
    """What the ledger knows of one job: the lines about it, put together."""

    job: str
    folder: str = ""
    config: str = ""
    status: str = ""
    error: str = ""
    objective: float | None = None
    overrides: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    lines: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """`ledger.jsonl` in the folder of a sweep; several processes may write it, and any may be killed at any time."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / NAME

    def append(self, job: str, status: str, **facts: Any) -> None:
        """Add one line about a job; it is on the disk when this returns."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        record = {"time": now, "job": job, "status": status, **facts}
        record |= {"pid": os.getpid(), "host": platform.node()}
        line = json.dumps(record, allow_nan=False) + "\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{NAME}.lock"), self.path.open("ab") as file:
            file.truncate(_end_of_last_line(self.path))  # what a killed process had begun to write
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[str, Entry]:
        """Return what is known of each job, by its identity. A last line that was cut short is left out.

        Raises ValueError, with file and line, for any other line that cannot be read.
        """
        entries: dict[str, Entry] = {}
        if not self.path.is_file():
            return entries
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                record: Mapping[str, Any] = json.loads(line)
                entry = entries.setdefault(record["job"], Entry(record["job"]))
                entry.status = str(record["status"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}:{number}: not a line of a ledger ({error}); remove the line, or move the file "
                    "away to begin the sweep anew (runs that are there continue or are finished at once)"
                ) from error
            entry.error, entry.objective = str(record.get("error", "")), record.get("objective")
            for key in ("folder", "config", "overrides", "config_dirs"):
                if key in record:
                    setattr(entry, key, record[key])
            entry.lines |= record
        return entries


def typed(overrides: Sequence[str]) -> list[str]:
    """Return what a person typed of a job's overrides: what the sweep adds begins with the name of the job."""
    own = next(
        (place for place, text in enumerate(overrides) if text.startswith("sweep.job=")), len(overrides)
    )
    return list(overrides[:own])


def is_running(folder: Path) -> bool:
    """Say whether a process holds the lock of a run folder; the system lets go of it however that process ends."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _end_of_last_line(path: Path) -> int:
    text = path.read_bytes()
    return text.rfind(b"\n") + 1
