"""What a long evaluation has found so far, kept on disk: told to stop or killed, the same command goes on from there.

`recall(key, make)` gives what was found under a key before, or makes it; outside of `keeping` it only makes it. A key
stands for one batch as it is, so that what is computed together stays together.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Journal:
    """A JSONL file of {key, value, seconds}; a last line that a crash cut short counts for nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = 0.0  # that making what was recalled took, then
        self._found: dict[str, dict[str, Any]] = {}
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        for line in lines[:-1]:
            try:
                record = json.loads(line)
            except ValueError:  # the cut line of an earlier process, which the next one wrote behind
                continue
            self._found[record["key"]] = record
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if lines and lines[-1]:
            self._file.write(b"\n")

    def __len__(self) -> int:
        return len(self._found)

    def recall(self, key: str, make: Callable[[], T]) -> T:
        """Return what was found under `key`, or make it and write it down; values are JSON data."""
        if key in self._found:
            self.seconds += self._found[key]["seconds"]
            known: T = self._found[key]["value"]
            return known
        start = time.perf_counter()
        value = make()
        record = {"key": key, "value": value, "seconds": time.perf_counter() - start}
        self._found[key] = record
        self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
        self._file.flush()
        return value

    def close(self) -> None:
        """Close the file."""
        self._file.close()


_current: list[Journal] = []


@contextmanager
def keeping(path: Path) -> Iterator[Journal]:
    """Recall from and write to the journal at `path` in this block; the file goes when the block ends well."""
    journal = Journal(path)
    _current.append(journal)
    try:
        yield journal
    finally:
        _current.remove(journal)
        journal.close()
    path.unlink()


def recall(what: object, make: Callable[[], T]) -> T:
    """Return `make()`, or what an earlier process made of the same `what` (told apart by its `repr`)."""
    if not _current:
        return make()
    return _current[-1].recall(hashlib.sha256(repr(what).encode()).hexdigest(), make)


def clock() -> float:
    """Return seconds for differences, in which what was recalled took as long as it did when it was made."""
    return time.perf_counter() + (_current[-1].seconds if _current else 0.0)
