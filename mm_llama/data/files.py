"""A medium's file, opened for a decoder: paths, members and bytes alike become an open file of a known size.

Decoders never see a path, so no path can mean more than a file to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20
_WINDOW_BUFFER = 1 << 16
FRESH_SECONDS = 2.0  # a file changed more lately could change again without its times telling
Stamp = tuple[int, ...]


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


@dataclass(frozen=True)
class Member:
    """A file inside another one: `size` bytes of `path` from `offset` on, by `name`. Nothing is read before `open`."""

    path: str
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"

    def open(self) -> BinaryIO:
        """Return it as an open file of its own."""
        return io.BufferedReader(_Window(self), _WINDOW_BUFFER)


class _Window(io.RawIOBase):
    """The bytes of a member; reads at places of its own, so that nothing is shared but the file."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        self._member, self._at = member, 0
        self._file = open(member.path, "rb", buffering=0)  # noqa: SIM115  closed by close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._member.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._member.size - self._at))
        data = os.pread(self._file.fileno(), wanted, self._member.offset + self._at)
        if wanted and not data:
            raise ValueError(f"{self._member} is cut short: {self._member.path} ends within it")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def stamp_of(source: Any) -> Stamp | None:
    """What a file's contents can be remembered under while it stays as it is; None for what cannot be remembered.

    The time of change of the inode is in it, which no program can set: contents changed under the same name, size and
    time of modification are noticed. A file that was changed within the last seconds has no stamp yet. Raises OSError
    where there is no file.
    """
    if not isinstance(source, str | Member):
        return None
    found = os.stat(source.path if isinstance(source, Member) else source)
    if time.time_ns() - found.st_ctime_ns < FRESH_SECONDS * 1e9:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


@contextlib.contextmanager
def opened(source: Any, wanted: Wanted, max_bytes: int) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (name for messages, open file at its start) of a path, a member, or the bytes of a file.

    ValueError for what is neither, is empty or has more than `max_bytes`; FileNotFoundError for no file at all.
    """
    file: BinaryIO
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, file = f"a {wanted.noun} given as {len(source):,} bytes", io.BytesIO(source)
    elif isinstance(source, (str, Path, Member)):
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


def open_file(source: str | Path | Member, wanted: Wanted) -> BinaryIO:
    """Open a regular file; ValueError for an address or a folder, FileNotFoundError where there is nothing."""
    if isinstance(source, Member):
        return source.open()
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
