"""Rows of any source written as tar shards: the same bytes every time, each shard whole, on from where it stopped."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from mm_llama.core.messages import MEDIA_TYPES, MediaPart, Message, Text
from mm_llama.data.captioned import KIND_OF_ENDING
from mm_llama.data.causes import RowError, cause_of, medium_error
from mm_llama.data.checking import Decoder, media_of
from mm_llama.data.decode import kind_of
from mm_llama.data.files import Member
from mm_llama.data.order import permutation
from mm_llama.data.shards import MANIFEST, PARTIAL
from mm_llama.data.sources import Row, Source
from mm_llama.data.video import HEAD_BYTES, container_of

FORMAT = "mm_llama shards 1"
_ENDINGS = {
    "JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "WAV": "wav", "FLAC": "flac", "Ogg": "ogg",
    "MP3": "mp3", "AAC": "aac", "mp4": "mp4", "matroska": "mkv", "avi": "avi",
}  # fmt: skip


def pack(
    source: Source,
    out: str | Path,
    *,
    origin: str = "",
    shard_bytes: int = 500_000_000,
    shard_rows: int = 0,
    shuffle: int | None = None,
    decode: bool = False,
    on_error: str = "error",
    max_skipped: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the rows of a source as tar shards into the folder `out`, and return the list that lies beside them.

    A shard is full at `shard_bytes` or `shard_rows` (0: no limit). `shuffle` is a seed: rows are written in another
    order. `decode` decodes every medium first. `on_error` "skip" leaves out rows that are bad, at most `max_skipped`.
    A run that was cut off goes on behind its last whole shard, if data and options are the same; nothing reads a folder
    that is not finished.

    Raises ValueError for a bad row, FileExistsError for a folder that holds anything else.
    """
    if shard_bytes < 1 or shard_rows < 0 or max_skipped < 0:
        raise ValueError(
            f"shard_bytes={shard_bytes} is at least 1, shard_rows={shard_rows} and max_skipped={max_skipped} at least 0"
        )
    folder = Path(out)
    identity = {"format": FORMAT, "digest": source.digest, "rows_in": len(source), "shard_bytes": shard_bytes}
    identity |= {"shard_rows": shard_rows, "shuffle": shuffle, "decode": decode, "on_error": on_error}
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        state, done = _begun(folder, identity | {"from": origin})
        if done:
            say(f"{folder} is packed already")
            return state
        if state["shards"]:
            say(f"going on behind {len(state['shards'])} shards, at row {state['next'] + 1} of {len(source)}")
        order = None if shuffle is None else permutation(len(source), shuffle)
        shard: _Shard | None = None
        try:
            for place, row in _rows(source, order, state, on_error, max_skipped, decode):
                shard = shard or _Shard(folder, len(state["shards"]))
                shard.add(f"{place:09d}", row)
                if shard.num_bytes >= shard_bytes or shard.num_rows == shard_rows:
                    say(_finish(folder, shard, state, place + 1))
                    shard = None
            if shard is not None:
                say(_finish(folder, shard, state, len(source)))
                shard = None
        finally:
            if shard is not None:
                shard.discard()
        if not state["shards"]:
            raise ValueError(f"no row of {len(source)} can be packed: {_counted(state)}")
        del state["next"]
        state["rows"] = sum(entry["rows"] for entry in state["shards"])
        for stale in folder.glob(".rows-*.partial"):
            stale.unlink()
        _write(folder / PARTIAL, state)
        os.replace(folder / PARTIAL, folder / MANIFEST)
        _sync(folder)
    return state


def row_as_json(row: Row, names: Mapping[int, str]) -> bytes:
    """Return a row as the line of a JSONL chat file, its media under the given names, numbered in order."""
    numbers = iter(range(len(names)))

    def part_of(part: Text | MediaPart) -> dict[str, Any]:
        if isinstance(part, Text):
            return {"type": "text", "text": part.text}
        said = {"transcript": part.transcript} if part.transcript else {}
        return {"type": MEDIA_TYPES[part.kind], "path": names[next(numbers)], **said}

    def message_of(message: Message) -> dict[str, Any]:
        parts = message.parts
        content: Any = [part_of(part) for part in parts]
        if len(parts) == 1 and isinstance(parts[0], Text):
            content = parts[0].text
        flags = {"end_of_message": message.end_of_message, "python_tag": message.python_tag}
        told = {key: True for key, value in flags.items() if value} | (
            {} if message.train else {"train": False}
        )
        return {"role": message.role, "content": content, **told}

    extra = dict(row.extra)
    data: dict[str, Any] = {"messages": [message_of(message) for message in row.messages]}
    data |= {"id": extra.pop("id")} if "id" in extra else {}
    data |= {"extra": extra} if extra else {}
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RowError(f"{row.source}: 'extra' cannot be written as JSON ({error})", "bad_type") from None


class _Shard:
    """One tar file while it is written: nothing in it but names and contents, so that equal rows give equal bytes."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"rows-{number:06d}.tar"
        self.path = folder / f".{self.name}.partial"
        self._file = self.path.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115  closed when the shard is whole
        self.num_rows = 0

    @property
    def num_bytes(self) -> int:
        """Bytes so far."""
        return self._file.tell()

    def add(self, key: str, row: Row) -> None:
        """Write a row and its media."""
        media = [part.source for part in media_of(row)]
        names = {number: f"{key}.{number}.{_ending(source, row)}" for number, source in enumerate(media)}
        text = row_as_json(row, names)
        self._member(f"{key}.json", io.BytesIO(text), len(text))
        for number, source in enumerate(media):
            with _opened(source) as (file, size):
                self._member(names[number], file, size)
        self.num_rows += 1

    def close(self) -> None:
        """Write the end, down to the disk."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _member(self, name: str, file: BinaryIO, size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size = size
        self._tar.addfile(info, file)


def _finish(folder: Path, shard: _Shard, state: dict[str, Any], following: int) -> str:
    """Put a shard in its place, and what is done by then on the list; returns what can be said of it."""
    shard.close()
    size = shard.path.stat().st_size
    entry = {"file": shard.name, "rows": shard.num_rows, "bytes": size, "sha256": _sha256(shard.path)}
    os.replace(shard.path, folder / shard.name)
    state["shards"] = [*state["shards"], entry]
    state["next"] = following
    _write(folder / PARTIAL, state)
    return f"{shard.name}: {shard.num_rows} rows, {size / 1e6:,.1f} MB"


def _rows(
    source: Source, order: Any, state: dict[str, Any], on_error: str, max_skipped: int, decode: bool
) -> Iterator[tuple[int, Row]]:
    """(place, row) from `state["next"]` on; bad rows are counted in the state where that is allowed."""
    decoder = Decoder()
    for place in range(state["next"], len(source)):
        index = place if order is None else int(order[place])
        try:
            row = source.row(index)
            if decode:
                decoder.check(row)
            for part in media_of(row):
                try:
                    _ending(part.source, row)
                    with _opened(part.source):
                        pass
                except (ValueError, OSError) as error:
                    raise (
                        error if isinstance(error, RowError) else medium_error(row.source, part.kind, error)
                    ) from error
        except (ValueError, OSError) as error:
            if on_error == "error":
                raise
            # Kept by place: rows that are met ahead of a shard's end are met again when that is lost.
            state["skipped"] = [*state["skipped"], [place, cause_of(error), str(error)]]
            if len(state["skipped"]) > max_skipped:
                raise ValueError(
                    f"{len(state['skipped'])} rows skipped ({_counted(state)}), more than {max_skipped} "
                    f"(--max-skipped); the last: {error}"
                ) from None
            continue
        yield place, row


def _counted(state: Mapping[str, Any]) -> str:
    causes = Counter(cause for _, cause, _ in state["skipped"])
    return ", ".join(f"{count} {cause}" for cause, count in sorted(causes.items()))


def _begun(folder: Path, identity: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """(state, whether it is finished) of what a folder holds; its shards are held against their digests."""
    for name in (MANIFEST, PARTIAL):
        path = folder / name
        if not path.is_file():
            continue
        state: dict[str, Any] = json.loads(path.read_text("utf-8"))
        other = [key for key, value in identity.items() if key != "from" and state.get(key) != value]
        if other:
            raise FileExistsError(
                f"{folder} holds shards of other data or options ({', '.join(other)}); delete it or choose another"
            )
        for entry in state["shards"]:
            shard = folder / entry["file"]
            if (
                not shard.is_file()
                or shard.stat().st_size != entry["bytes"]
                or _sha256(shard) != entry["sha256"]
            ):
                raise ValueError(f"{shard} is not as it was packed; delete {folder} and pack again")
        listed = {entry["file"] for entry in state["shards"]}
        _refuse_others(folder, listed | {name}, begun=name == PARTIAL)
        return state, name == MANIFEST
    _refuse_others(folder, set(), begun=False)
    state = identity | {"shards": [], "skipped": [], "next": 0}
    _write(folder / PARTIAL, state)
    return state, False


def _refuse_others(folder: Path, listed: set[str], begun: bool) -> None:
    """Refuse what packing did not write; a shard that was not listed before a stop is written again."""
    for path in sorted(folder.iterdir()):
        ours = begun and path.name.startswith(("rows-", ".rows-", f".{PARTIAL}"))
        if path.name not in listed and not ours:
            raise FileExistsError(f"{folder} holds {path.name}; choose an empty folder")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ValueError(f"another process packs into {folder}") from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _opened(source: Any) -> Iterator[tuple[BinaryIO, int]]:
    file: BinaryIO
    if isinstance(source, Member):
        file, size = source.open(), source.size
    elif isinstance(source, bytes):
        file, size = io.BytesIO(source), len(source)
    else:
        file, size = open(source, "rb"), os.path.getsize(source)  # noqa: SIM115  closed below
    with file:
        yield file, size


def _ending(source: Any, row: Row) -> str:
    """The ending of a medium's name: its own, or what its content begins like."""
    if isinstance(source, str | Member):
        own = PurePath(source if isinstance(source, str) else source.name).suffix.lower()
        if own in KIND_OF_ENDING:
            return own[1:]
    if not isinstance(source, str | bytes | Member):
        raise RowError(
            f"{row.source}: media made in memory ({type(source).__name__}) cannot be packed", "bad_row"
        )
    with _opened(source) as (file, _):
        head = file.read(HEAD_BYTES)
    found = _ENDINGS.get(container_of(head)) or _ENDINGS.get(kind_of(head) or "")
    if found is None:
        raise RowError(f"{row.source}: a medium begins like {kind_of(head) or 'no known format'}", "bad_type")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, state: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(state, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
