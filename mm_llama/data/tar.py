"""Members of a tar file by their headers: where each lies. Nothing is extracted, and no content is looked at.

Read are POSIX (ustar), GNU and pax archives that are not compressed. Every header's checksum is held against it, and an
archive must end as one does: what is cut short, damaged, or goes on after its end is an error that says where.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

BLOCK = 512
MAX_NAME_BYTES = 65_536  # of a long name or a pax header
MAX_MEMBERS = 50_000_000
_END_BYTES = 1 << 20  # looked at behind the end mark; writers pad to 10 kB
_ZEROS = bytes(BLOCK)
_SPACES = 8 * ord(" ")
_REGULAR, _FOLDER = (b"0", b"\0", b"7"), b"5"
_OTHER = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class TarError(ValueError):
    """What is wrong with an archive as a whole, and from which byte on; members before that are whole."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what)
        self.offset = offset


@dataclass(frozen=True)
class TarMember:
    """A member: `start` is where its headers begin, `offset` where its `size` bytes do. `wrong`: why it is refused."""

    name: str
    start: int
    offset: int
    size: int
    wrong: str = ""
    folder: bool = False

    @property
    def end(self) -> int:
        """Where the next member's headers begin."""
        return self.offset + -(-self.size // BLOCK) * BLOCK


def tar_members(file: int, start: int = 0, stop: int | None = None) -> Iterator[TarMember]:
    """Yield the members of an open archive (a descriptor), from the headers at `start`, before `stop` or to the end.

    Raises TarError for what is no whole archive. Members that are not regular files, and names that leave the folder
    they would be unpacked to, come with `wrong` set.
    """
    total = os.fstat(file).st_size
    at, count = start, 0
    while stop is None or at < stop:
        member = _member(file, at, total)
        if member is None:
            return
        count += 1
        if count > MAX_MEMBERS:
            raise TarError(f"has more than {MAX_MEMBERS:,} members, the limit; write several shards", at)
        yield member
        at = member.end


def _member(file: int, start: int, total: int) -> TarMember | None:
    """The member whose headers begin at `start`; None at the end of the archive."""
    at, name, size = start, "", -1
    while True:
        header = os.pread(file, BLOCK, at)
        if header == _ZEROS and at == start:
            _check_end(file, at, total)
            return None
        kind, own_size = _checked(header, at, total)
        if kind not in (b"L", b"K", b"x", b"g"):
            break
        body = _body(file, at, own_size, total)
        if kind == b"L":
            name = _text(body.rstrip(b"\0"))
        elif kind in (b"x", b"g"):
            found = _pax(body, at)
            if kind == b"g" and found.keys() & {"path", "size"}:
                raise TarError(f"names or sizes all its members at once (at byte {at:,}); pack it again", at)
            name, size = found.get("path", name), int(found.get("size", size))
        at += BLOCK + -(-own_size // BLOCK) * BLOCK
    size = own_size if size < 0 else size
    name = (name or _own_name(header)).removeprefix("./")
    wrong = "" if kind in (*_REGULAR, _FOLDER) else f"is {_OTHER.get(kind, 'no regular file')}; refused"
    folder = kind == _FOLDER or (kind in _REGULAR and name.endswith("/"))
    if wrong or folder:
        size = size if kind not in (b"1", b"2", _FOLDER) else 0
    if at + BLOCK + size > total:
        raise TarError(f"is cut short: {name!r} at byte {at:,} has {size:,} bytes, more than follow", start)
    return TarMember(name, start, at + BLOCK, size, wrong or ("" if folder else _wrong_name(name)), folder)


def _checked(header: bytes, at: int, total: int) -> tuple[bytes, int]:
    """(type, size) of a header whose checksum is right."""
    if len(header) < BLOCK:
        what = "it ends without its end mark" if not header else "it ends within a header"
        raise TarError(f"is cut short: {what}, at byte {total:,}", at)
    given = _number(header[148:156])
    signed = sum(header) - sum(header[148:156]) + _SPACES
    if given != signed and given != signed - 256 * sum(byte > 127 for byte in header[:148] + header[156:]):
        if at == 0:
            packed = next((name for magic, name in _COMPRESSED.items() if header.startswith(magic)), "")
            said = f"is compressed ({packed}); its members cannot be read where they lie: unpack it to a plain tar"
            raise TarError(said if packed else "is no tar archive", at)
        raise TarError(f"is damaged: the header at byte {at:,} does not have its checksum", at)
    size = _number(header[124:136])
    if size < 0:
        raise TarError(f"is damaged: the header at byte {at:,} gives no size", at)
    return header[156:157], size


def _check_end(file: int, at: int, total: int) -> None:
    rest = os.pread(file, _END_BYTES, at)
    if rest.strip(b"\0") or total - at > _END_BYTES:
        raise TarError(
            f"goes on after its end mark at byte {at:,}: archives put behind each other are read as the first alone; "
            "pack them again",
            at,
        )


def _body(file: int, at: int, size: int, total: int) -> bytes:
    if size > MAX_NAME_BYTES or at + BLOCK + size > total:
        raise TarError(f"is damaged: the header at byte {at:,} has a name of {size:,} bytes", at)
    return os.pread(file, size, at + BLOCK)


def _pax(body: bytes, at: int) -> dict[str, str]:
    """The records of a pax header: "LENGTH key=value\\n" each."""
    records: dict[str, str] = {}
    while body:
        length, _, _ = body.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(body) or body[int(length) - 1] != 10:
            raise TarError(f"is damaged: the pax header at byte {at:,} does not parse", at)
        key, equals, value = body[len(length) + 1 : int(length) - 1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise TarError(
                f"holds a file with holes (sparse, at byte {at:,}); write the archive without --sparse", at
            )
        if not equals or (key == b"size" and not (value.isdigit() and len(value) < 20)):
            raise TarError(f"is damaged: the pax header at byte {at:,} does not parse", at)
        records[_text(key)] = _text(value)
        body = body[int(length) :]
    return records


def _number(field: bytes) -> int:
    """An octal number, or a binary one as GNU writes large ones; -1 for neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    return int(digits, 8) if digits and not digits.strip(b"01234567") else -1


def _own_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0")[0]):
        name = prefix + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _wrong_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        return "has a name that leaves the folder; refused"
    return ""
