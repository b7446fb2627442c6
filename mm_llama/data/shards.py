"""WebDataset shards: tar files of rows, read where they lie, by a reader of our own.

A row is the members of one stem, side by side: a chat (`KEY.json` with `messages`, which names its media: `KEY.0.jpg`)
or a plain layout (`KEY.jpg` and `KEY.txt`, `KEY.wav` and `KEY.txt`, `KEY.mp4` and a caption in `KEY.json`). Endings
that are none of these are an error: nothing is unpickled, and nothing left out without a word.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from glob import glob, has_magic
from itertools import accumulate, product
from pathlib import Path, PurePosixPath
from typing import Any

from mm_llama.data.captioned import ANSWERS, KIND_OF_ENDING, QUESTIONS, Wording, kind_of_ending
from mm_llama.data.causes import RowError
from mm_llama.data.files import Member, stamp_of
from mm_llama.data.sources import Row, parse_json
from mm_llama.data.tar import TarError, TarMember, tar_members

FORMAT = "mm_llama shard index 1"
MANIFEST = "shards.json"  # beside shards that `mm-llama data pack` wrote
PARTIAL = "shards.partial.json"  # the same while it writes
TEXTS = ("json", "txt", "cls")
MAX_TEXT_BYTES = 16_000_000
MAX_SHARDS = 1_000_000
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass
class _Index:
    """Where the rows of one shard begin and the last one ends; `refused`: number of a row and why it is none."""

    starts: list[int] = field(default_factory=list)
    end: int = 0
    digest: str = ""
    refused: dict[str, str] = field(default_factory=dict)


class Shards:
    """The rows of tar shards, by index; of each row eight bytes are held, its start.

    `files` is a path, a folder, or a pattern with `{000..009}`, `{a,b}`, `*`, `?`, or a list of these. `on_damage`:
    "error" refuses shards that are cut short or hold members that no row can have; "skip" leaves it to the row at that
    place to fail, so that a loader counts it. `ignore` are endings that are left out knowingly. `index` is a folder
    where the places are kept: as long as a shard's size, times and inode stay, it is not gone through again. The others
    are those of `Wording`.

    Raises FileNotFoundError for a pattern without a file, ValueError for a shard that cannot be read.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        prompt: str | None = None,
        question: Sequence[str] = QUESTIONS,
        answer: Sequence[str] = ANSWERS,
        language: str = "English",
        ignore: Sequence[str] = (),
        on_damage: str = "error",
        index: str | Path | None = None,
    ) -> None:
        if on_damage not in ("error", "skip"):
            raise ValueError(f"on_damage must be 'error' or 'skip', not {on_damage!r}")
        self.files = shard_files(files)
        self.wording = Wording(prompt, question, answer, language)
        self.ignore = frozenset(ending.removeprefix(".").lower() for ending in ignore)
        folder = None if index is None else Path(index)
        # Threads wait for a network disk side by side.
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda path: _indexed(path, folder), self.files))
        for path, entry in zip(self.files, found, strict=True):
            if entry.refused and on_damage == "error":
                number, why = next(iter(entry.refused.items()))
                raise ValueError(
                    f"{path} {why} (row {int(number) + 1}); pack it again, or set on_damage=skip"
                )
        self._starts = [array("Q", [*entry.starts, entry.end]) for entry in found]
        self._refused = [entry.refused for entry in found]
        self.blocks = list(accumulate(len(entry.starts) for entry in found))
        if not self.blocks[-1]:
            raise ValueError(f"{self.files[0]}: the shards hold no rows")
        said = json.dumps([self.wording.identity(), sorted(self.ignore), [entry.digest for entry in found]])
        self.digest = "sha256:" + hashlib.sha256(said.encode()).hexdigest()

    def __len__(self) -> int:
        return self.blocks[-1]

    def name_of(self, index: int) -> str:
        """Return `shard/key` of row `index`."""
        shard, number = self._place(index)
        try:
            return self._named(shard, self._members(shard, number))
        except (ValueError, OSError, IndexError):
            return f"{self.files[shard]}/(row {number + 1})"

    def row(self, index: int) -> Row:
        """Return row `index`. Raises RowError naming shard and key, or the member that is wrong."""
        shard, number = self._place(index)
        path = self.files[shard]
        if (why := self._refused[shard].get(str(number))) is not None:
            raise RowError(f"{self.name_of(index)}: the shard {why}", "bad_shard")
        try:
            members = self._members(shard, number)
        except TarError as error:
            raise RowError(
                f"{path}: the shard {error}, and was not when it was opened", "bad_shard"
            ) from None
        name = self._named(shard, members)
        texts: dict[str, bytes] = {}
        media: dict[str, Member] = {}
        for member in members:
            ending = _key(member.name)[1]
            if ending in self.ignore:
                continue
            if ending in texts:
                raise RowError(f"{name}: the row has two members that end in .{ending}", "bad_type")
            if ending in TEXTS:
                with Member(path, member.offset, member.size, member.name).open() as file:
                    texts[ending] = file.read()
            elif f".{ending}" in KIND_OF_ENDING:
                media[member.name] = Member(path, member.offset, member.size, member.name)
            else:
                raise RowError(
                    f"{name}: nothing reads the member {member.name}; leave its ending out with ignore=[{ending}]",
                    "bad_type",
                )
        return self._row(texts, media, name)

    def read_ahead(self, rows: Sequence[int]) -> None:
        """Ask the system to read the stretches of the shards that hold these rows, in one go and without waiting."""
        wanted: dict[int, list[int]] = {}
        for shard, number in map(self._place, rows):
            wanted.setdefault(shard, []).append(number)
        for shard, numbers in wanted.items():
            start, end = self._starts[shard][min(numbers)], self._starts[shard][max(numbers) + 1]
            with contextlib.suppress(OSError):  # a hint: what is wrong with a shard is told where it is read
                file = os.open(self.files[shard], os.O_RDONLY)
                try:
                    os.posix_fadvise(file, start, end - start, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(file)

    def _row(self, texts: Mapping[str, bytes], media: dict[str, Member], name: str) -> Row:
        record: dict[str, Any] = {}
        if "json" in texts:
            record = parse_json(texts["json"], f"{name}.json")
            if not isinstance(record, dict):
                raise RowError(f"{name}.json: must be an object, not {type(record).__name__}", "bad_type")
        for ending, key in (("txt", "caption"), ("cls", "label")):
            if ending in texts:
                try:
                    record = record | {key: texts[ending].decode("utf-8")}
                except UnicodeDecodeError as error:
                    raise RowError(
                        f"{name}.{ending}: not UTF-8 text (byte {error.start})", "bad_json"
                    ) from None
        if "messages" not in record:
            given = [(kind_of_ending(member), place) for member, place in media.items()]
            return self.wording.row(record, [(kind, place) for kind, place in given if kind], name, _none)
        unused = dict(media)

        def find(kind: str, called: str) -> Member:
            for member, place in media.items():
                if called in (member, PurePosixPath(member).name):
                    unused.pop(member, None)
                    return place
            raise FileNotFoundError(
                f"{kind} member {called} is not in the row; it has {', '.join(media) or 'none'}"
            )

        # `id` and `extra` as in a JSONL row.
        inner = record.pop("extra", {})
        if not isinstance(inner, dict):
            raise RowError(f"{name}.json: 'extra' must be an object, not {type(inner).__name__}", "bad_type")
        row = self.wording.row(inner | record, (), name, find)
        if unused:
            raise RowError(f"{name}: the member {next(iter(unused))} stands nowhere in its chat", "bad_type")
        return row

    def _named(self, shard: int, members: Sequence[TarMember]) -> str:
        return f"{self.files[shard]}/{_key(members[0].name)[0]}"

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"no row {index} of {len(self)}")
        shard = bisect_right(self.blocks, index)
        return shard, index - (self.blocks[shard - 1] if shard else 0)

    def _members(self, shard: int, number: int) -> list[TarMember]:
        start, stop = self._starts[shard][number : number + 2]
        # Opened for each row: no handle to share with worker processes.
        file = os.open(self.files[shard], os.O_RDONLY)
        try:
            return [member for member in tar_members(file, start, stop) if not member.folder]
        finally:
            os.close(file)


def shard_files(files: str | Path | Sequence[str | Path]) -> list[str]:
    """Return the paths that patterns name, in order. Raises FileNotFoundError for one without a file."""
    given = [files] if isinstance(files, str | Path) else list(files)
    found: list[str] = []
    for pattern in map(str, given):
        if re.match(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://", pattern):
            raise ValueError(
                f"{pattern} is no file: shards are read from disks, nothing is fetched and no program run"
            )
        for path in _unbraced(os.path.expanduser(pattern)):
            found += _files_of(path)
    if not found:
        raise FileNotFoundError("there is no shard: give files, a folder or patterns (files)")
    if len(set(found)) < len(found):
        twice = next(path for path in found if found.count(path) > 1)
        raise ValueError(f"{twice} is named twice: its rows would come twice (files)")
    return found


def _files_of(path: str) -> list[str]:
    if os.path.isdir(path):
        if os.path.exists(os.path.join(path, PARTIAL)):
            raise ValueError(
                f"{path} is not packed to its end; the same `mm-llama data pack` goes on with it"
            )
        manifest = Path(path, MANIFEST)
        inside = sorted(glob(os.path.join(glob_safe(path), "*.tar")))
        if manifest.is_file():
            listed = json.loads(manifest.read_text("utf-8"))["shards"]
            sizes = {os.path.join(path, entry["file"]): entry["bytes"] for entry in listed}
            for file, size in sizes.items():
                if not os.path.isfile(file) or os.path.getsize(file) != size:
                    raise ValueError(
                        f"{file} is missing or not as it was packed ({manifest}: {size:,} bytes)"
                    )
            if other := sorted(set(inside) - set(sizes)):
                raise ValueError(
                    f"{other[0]} is not listed in {manifest}; move it elsewhere, or delete the list"
                )
            return list(sizes)
        found = inside
    elif has_magic(path) and not os.path.exists(path):
        found = sorted(glob(path))
    else:
        found = [path] if os.path.isfile(path) else []
    if not found:
        raise FileNotFoundError(f"there is no shard at {path}")
    return found


def glob_safe(path: str) -> str:
    """Return a path whose brackets and stars mean themselves to glob."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _unbraced(pattern: str) -> Iterator[str]:
    """Every path of a pattern with {000..012} and {a,b}, in order."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[list[str]] = []
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            choices.append([piece])
        elif match := _RANGE.fullmatch(piece):
            first, last = map(int, match.groups())
            width = len(match[1]) if match[1].startswith("0") else 0
            if not 0 <= last - first < MAX_SHARDS:
                raise ValueError(f"{pattern}: {{{piece}}} is no range from a number up to another (files)")
            choices.append([f"{value:0{width}d}" for value in range(first, last + 1)])
        else:
            choices.append(piece.split(",") if "," in piece else [f"{{{piece}}}"])
    return ("".join(parts) for parts in product(*choices))


def _key(name: str) -> tuple[str, str]:
    """(key, ending) of a member: the ending is all behind the last dot of the name, the key all before its first."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0], base.rpartition(".")[2].lower() if "." in base else ""


def _none(kind: str, name: str) -> Any:
    raise FileNotFoundError(f"{kind} {name}: media of a plain layout are its members")


# --- indices


def _indexed(path: str, folder: Path | None) -> _Index:
    stamp = stamp_of(path)
    kept = None
    if folder is not None and stamp is not None:
        name = hashlib.sha256(f"{FORMAT}\n{os.path.abspath(path)}\n{stamp}".encode()).hexdigest()
        kept = folder / f"{name[:32]}.json"
        try:
            index = _Index(**json.loads(kept.read_text("utf-8")))
            os.utime(kept)  # last used now: what `mm-llama data cache` goes by
            return index
        except (OSError, ValueError, TypeError):
            pass
    index = _index(path)
    if kept is not None and stamp_of(path) == stamp:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(asdict(index)), "utf-8")
        os.replace(partial, kept)
    return index


def _index(path: str) -> _Index:
    """Go through a shard's headers once; texts are read too, because what rows say is part of the digest."""
    index, digest = _Index(), hashlib.sha256()
    keys: set[str] = set()
    last: str | None = None
    names: set[str] = set()
    file = os.open(path, os.O_RDONLY)
    try:
        for member in tar_members(file):
            if member.folder:
                continue
            key, ending = _key(member.name)
            if key != last:
                index.starts.append(member.start)
                names, last = set(), key
            here = str(len(index.starts) - 1)
            why = member.wrong and f"has a member {member.name!r} that {member.wrong}"
            if key in keys and not names:
                why = f"has the key {key!r} twice; the members of a row lie side by side, and a key is one row's"
            elif member.name in names:
                why = f"has the member {member.name!r} twice"
            elif ending in TEXTS and member.size > MAX_TEXT_BYTES:
                why = f"has a text {member.name!r} of {member.size:,} bytes, more than {MAX_TEXT_BYTES:,}"
            if why:
                index.refused.setdefault(here, why)
            keys.add(key)
            names.add(member.name)
            digest.update(f"{member.name}\0{member.size}\0".encode())
            if ending in TEXTS and not why:
                digest.update(os.pread(file, member.size, member.offset))
            index.end = member.end
    except TarError as error:
        if error.offset == 0:
            raise ValueError(f"{path} {error}") from None
        # Whether the last row before it is whole cannot be known: what is missing may be a member of it.
        if not index.starts:
            index.starts.append(error.offset)
        index.refused[str(len(index.starts) - 1)] = str(error)
        index.end = max(index.end, error.offset) + 1
        digest.update(str(error).encode())
    finally:
        os.close(file)
    index.digest = digest.hexdigest()
    return index
