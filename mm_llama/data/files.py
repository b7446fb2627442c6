"""A medium's file, opened for a decoder: paths and bytes alike become an open file of a known size.

Decoders never see a path, so no path can mean more than a file to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """Words for messages: what is wanted ("clip"), what it may be, what would do instead, endings of such files.

    `none_here` follows the name of a folder that holds none.
    """

    noun: str
    given_as: str
    expected: str
    suffixes: tuple[str, ...]
    none_here: str = ""


@contextlib.contextmanager
def opened(source: Any, wanted: Wanted, max_bytes: int) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (name for messages, open file at its start) of a path or of the bytes of a file.

    ValueError for what is neither, is empty or has more than `max_bytes`; FileNotFoundError for no file at all.
    """
    file: BinaryIO
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, file = f"a {wanted.noun} given as {len(source):,} bytes", io.BytesIO(source)
    elif isinstance(source, (str, Path)):
        name, file = str(source), open_file(source, wanted)
    else:
        raise ValueError(f"a {wanted.noun} is {wanted.given_as}, not {type(source).__name__}")
    with file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if not size:
            raise ValueError(f"{name} is empty; {wanted.expected}")
        if size > max_bytes:
            raise ValueError(f"{name} has {size:,} bytes, more than the limit of {max_bytes:,} (max_bytes)")
        yield name, file


def open_file(source: str | Path, wanted: Wanted) -> BinaryIO:
    """Open a regular file; ValueError for an address or a folder, FileNotFoundError where there is nothing."""
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        raise ValueError(f"{source[:60]} is an address; download the {wanted.noun} and give its path")
    path = Path(source)
    if path.is_dir():
        found = sorted(p.name for p in path.iterdir() if p.suffix.lower() in wanted.suffixes)
        hint = f", for example {path / found[0]}" if found else wanted.none_here
        raise ValueError(f"{path} is a folder; give one {wanted.noun}{hint}")
    if not path.exists():
        raise FileNotFoundError(f"there is no {wanted.noun} at {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file; {wanted.expected}")
    return path.open("rb")


def digest_of(file: BinaryIO) -> str:
    """Return the hexadecimal SHA-256 of what is left of a file."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
