"""Chosen members out of a downloaded archive, as streams; nothing is extracted by the archive's own rules.

Only regular files leave an archive, only under names that stay inside the target folder, and never more
bytes than the caller allows.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

CHUNK_BYTES = 1 << 20

OpenMember = Callable[[], IO[bytes]]


def unpack_members(
    archive: Path, patterns: Sequence[str], folder: Path, *, strip: str = "", max_bytes: int
) -> dict[str, int]:
    """Write the members that match any shell-style pattern below `folder`; returns their names and sizes.

    `strip` is a leading part of member names that is left off. `*` in a pattern also matches `/`. Raises
    ValueError for a chosen member that is a link or a device, whose name leaves `folder`, that comes twice,
    or that takes the total past `max_bytes`; for a pattern that matches nothing; and for a broken archive.
    """
    try:
        return _unpack(archive, patterns, folder, strip, max_bytes)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise ValueError(f"{archive.name}: the archive cannot be read ({error})") from error


def _unpack(
    archive: Path, patterns: Sequence[str], folder: Path, strip: str, max_bytes: int
) -> dict[str, int]:
    written: dict[str, int] = {}
    unmatched = set(patterns)
    left = max_bytes
    with _members(archive) as members:
        for name, is_regular, open_member in members:
            matching = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
            if not matching:
                continue
            if not is_regular:
                raise ValueError(f"{archive.name}: member {name!r} is not a regular file; refused")
            unmatched.difference_update(matching)
            target = _safe_name(archive.name, name, strip)
            if target in written:
                raise ValueError(f"{archive.name}: two members would be written as {target!r}; refused")
            with open_member() as source:
                written[target] = _copy(source, folder / target, left, archive.name)
            left -= written[target]
    if unmatched:
        raise ValueError(f"{archive.name}: no member matches {', '.join(sorted(unmatched))}")
    return written


def _safe_name(archive: str, name: str, strip: str) -> str:
    """The relative name a member is written under; ValueError for one that could leave its folder."""
    path = PurePosixPath(name)
    parts = path.parts
    unsafe = path.is_absolute() or ".." in parts or "\\" in name or "\0" in name or ":" in (parts or ("",))[0]
    if unsafe or not parts:
        raise ValueError(f"{archive}: member name {name!r} leaves the folder it is unpacked to; refused")
    relative = str(path)
    if strip:
        if not relative.startswith(strip):
            raise ValueError(f"{archive}: member {name!r} does not lie below {strip!r}")
        relative = relative[len(strip) :]
        return _safe_name(archive, relative, "")
    return relative


def _copy(source: IO[bytes], target: Path, max_bytes: int, archive: str) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    num_bytes = 0
    with open(target, "xb") as out:
        while chunk := source.read(CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise ValueError(f"{archive}: the chosen members hold more bytes than allowed; refused")
            out.write(chunk)
    return num_bytes


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, bool, OpenMember]]]:
    """(name, is a regular file, opener) of every member that is not a folder, in archive order."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as file:
            yield _zip_members(file)
    elif archive.name.endswith((".tar.gz", ".tgz", ".tar")):
        with tarfile.open(archive, "r|*") as tar:
            yield _tar_members(tar)
    elif archive.suffix == ".deb":
        with _deb_stream(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            yield _tar_members(tar)
    else:
        raise ValueError(f"{archive.name}: not a wheel, zip, tar or Debian archive")


def _zip_members(file: zipfile.ZipFile) -> Iterator[tuple[str, bool, OpenMember]]:
    for info in file.infolist():
        if info.is_dir():
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        yield info.filename, kind in (0, stat.S_IFREG), lambda info=info: file.open(info)  # type: ignore[misc]


def _tar_members(tar: tarfile.TarFile) -> Iterator[tuple[str, bool, OpenMember]]:
    for info in tar:
        if info.isdir():
            continue
        name = info.name.removeprefix("./")
        yield name, info.isreg(), lambda info=info: tar.extractfile(info)  # type: ignore[misc]


@contextmanager
def _deb_stream(archive: Path) -> Iterator[IO[bytes]]:
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise ValueError(f"{archive.name}: reading a Debian package needs dpkg-deb, which is not installed")
    process = subprocess.Popen(
        [tool, "--fsys-tarfile", os.fspath(archive)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
        while process.stdout.read(CHUNK_BYTES):  # what follows the last member, so that dpkg-deb can finish
            pass
        if process.wait() != 0:
            raise ValueError(f"{archive.name}: dpkg-deb could not read it")
    finally:
        process.stdout.close()
        process.kill()
        process.wait()
