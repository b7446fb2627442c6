"""What a checkpoint is, remembered: its digest and hash, so that a big one is not read twice at every start.

A record is keyed by path, size, modification and change time of every file that it depends on. The folder is
`MM_LLAMA_CACHE`, else `~/.cache/mm_llama`; one that cannot be written costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for what can be made again: `MM_LLAMA_CACHE`, else `~/.cache/mm_llama`."""
    named = os.environ.get("MM_LLAMA_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "mm_llama"


def remembered(what: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
    """Return `compute()`, or the answer recorded for `what` and these very files."""
    facts = [what]
    for file in files:
        status = file.stat()
        # The change time too: `cp -p` of another checkpoint of the same size keeps the modification time.
        facts.append(f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}")
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    record = cache_folder() / "digests" / f"{key}.json"
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["value"])
    except (OSError, ValueError, KeyError, TypeError):
        value = compute()
    with contextlib.suppress(OSError):
        write_text(record, json.dumps({"what": what, "value": value, "files": [str(f) for f in files]}))
    return value


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
