"""What a cache folder holds, how large it is and when it was last used; what can be made again may be removed.

That are features and shard indices. Made data sets and assets are listed, and left alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FEATURES, INDICES = "features", "shards"
KEPT = ("data", "assets")
STALE_SECONDS = 86_400.0  # a half-written file is of a process that ended when nobody touched it for a day


@dataclass(frozen=True)
class Entry:
    """A file that can be made again, or (`removable` off) a folder that is left alone; times are seconds since 1970."""

    path: Path
    what: str
    num_bytes: int
    used: float
    removable: bool = True


def entries(root: Path) -> list[Entry]:
    """Return all that lies in a cache, the files that can be made again first, the longest unused first of them."""
    found = [*_files(root / FEATURES, "*/*.safetensors"), *_files(root / INDICES, "*.json")]
    found.sort(key=lambda entry: (entry.used, entry.path))
    for name in KEPT:
        for folder in sorted(path for path in (root / name).glob("*") if path.is_dir()):
            sizes = [
                (file.stat().st_size, file.stat().st_mtime) for file in folder.rglob("*") if file.is_file()
            ]
            if sizes:
                size, used = sum(size for size, _ in sizes), max(time for _, time in sizes)
                found.append(Entry(folder, f"{name}/{folder.name}", size, used, removable=False))
    return found


def prune(
    root: Path, *, days: float | None = None, max_bytes: int | None = None, dry: bool = False
) -> list[Entry]:
    """Remove what was not used for `days`, then the longest unused until `max_bytes` are left; return what went.

    Also half-written files that nobody writes any more. Processes that have a file open go on reading it. `dry` removes
    nothing.
    """
    if (days is not None and days < 0) or (max_bytes is not None and max_bytes < 0):
        raise ValueError(f"days={days} and max_bytes={max_bytes} must not be negative")
    now = time.time()
    left = [entry for entry in entries(root) if entry.removable]
    gone = [
        entry
        for pattern in (f"{FEATURES}/*/.*.partial", f"{INDICES}/*.partial")
        for entry in _files(root, pattern)
        if now - entry.used > STALE_SECONDS
    ]
    if days is not None:
        old = [entry for entry in left if now - entry.used > days * 86_400]
        gone, left = gone + old, left[len(old) :]
    if max_bytes is not None:
        total = sum(entry.num_bytes for entry in left)
        for entry in left:
            if total <= max_bytes:
                break
            gone.append(entry)
            total -= entry.num_bytes
    if not dry:
        for entry in gone:
            entry.path.unlink(missing_ok=True)
    return gone


def _files(folder: Path, pattern: str) -> Iterator[Entry]:
    for path in folder.glob(pattern):
        try:
            found = path.stat()
        except FileNotFoundError:  # another process prunes
            continue
        name = INDICES if path.suffix == ".json" else f"{FEATURES}/{path.parent.name}"
        yield Entry(path, name, found.st_size, found.st_mtime)


def identity_of_features(folder: Path) -> dict[str, Any]:
    """Return what the features in a folder are of: encoder, preprocessing, dtype and how many media."""
    identity: dict[str, Any] = {}
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                about = json.loads(file.read(min(length, 100_000_000)))["__metadata__"]
                count += len(json.loads(about["keys"]))
            except (ValueError, KeyError):
                continue
        identity = {key: about.get(key, "") for key in ("encoder", "preprocess", "dtype")}
    return identity | {"media": count}
