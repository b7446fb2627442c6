"""Source rows: chats from JSONL files, read by index, with errors that name the file and the line.

A line is one object: `{"messages": [{"role": ..., "content": ...}], "id": ..., "extra": {...}}`. Content is
a string or a list of parts (`{"type": "text", "text": ...}`, `{"type": "image", "path": ...}`, and the
OpenAI forms `image_url` and so on). Paths are relative to the file's folder. `extra` is carried along
untouched.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mm_llama.core.messages import MediaPart, Message, Text, messages_from_dicts, near
from mm_llama.data.causes import RowError, cause_of

MAX_LINE = 1 << 28  # bytes; a line is in memory whole
ROW_KEYS = ("messages", "id", "extra")
# From the kind of a medium and the name that a row gives it to where it lies; raises FileNotFoundError or RowError.
Find = Callable[[str, str], Any]


@dataclass(frozen=True)
class Row:
    """One conversation, and where it stands."""

    messages: tuple[Message, ...]
    source: str  # "file:line"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row."""

    source: str
    what: str
    cause: str = "bad_row"

    def __str__(self) -> str:
        return f"{self.source}: {self.what}"


def evenly(num: int, limit: int) -> Sequence[int]:
    """Return the indices of `limit` of `num` rows at even strides, the same ones every time; 0 means all."""
    return [index * num // limit for index in range(limit)] if 0 < limit < num else range(num)


class Source(Protocol):
    """Rows by index. `digest` identifies the contents, so that a resumed run notices other data."""

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row: ...

    def name_of(self, index: int) -> str: ...


def blocks_of(source: Any, size: int) -> list[int]:
    """Return where the stretches of a source end that are cheap to read in order: its `blocks`, else of `size` rows."""
    own: list[int] | None = getattr(source, "blocks", None)
    return own or [*range(size, len(source), size), len(source)]


class JsonlChat:
    """Chats in a JSONL file; holds one offset a line, never the file.

    Raises FileNotFoundError when the file is missing, ValueError when it holds no row.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"data file {self.path} does not exist: name one (data.train.0.source.path=FILE, or --data FILE)"
            )
        self._folder = self.path.parent.absolute()
        self.offsets, self.lines, self.digest = index_lines(self.path)
        if not len(self.offsets):
            raise ValueError(f"{self.path}: the file holds no rows")

    def __len__(self) -> int:
        return len(self.offsets)

    def name_of(self, index: int) -> str:
        """`file:line` of row `index`."""
        return f"{self.path}:{self.lines[index]}"

    def text(self, index: int) -> bytes:
        """The line of row `index` as stored."""
        # Opened for each row: no handle to share with worker processes or to lose when the object is pickled.
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            return file.readline()

    def row(self, index: int) -> Row:
        """Row `index`, checked. Raises RowError naming file and line."""
        return parse_row(self.text(index), self.name_of(index), in_folder(self._folder))


class ChatRows:
    """Rows given in memory: OpenAI-style message lists. Paths are relative to `folder`."""

    def __init__(
        self, rows: list[list[dict[str, Any]]], *, name: str = "rows", folder: str | Path = "."
    ) -> None:
        if not rows:
            raise ValueError(f"{name}: there are no rows")
        self.name = name
        find = in_folder(Path(folder).absolute())
        self.rows = [make_row(messages, {}, f"{name}:{i + 1}", find) for i, messages in enumerate(rows)]
        self.digest = "sha256:" + hashlib.sha256(repr(self.rows).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def name_of(self, index: int) -> str:
        """`name:number` of row `index`, counted from 1 like lines."""
        return self.rows[index].source

    def row(self, index: int) -> Row:
        """Row `index`."""
        return self.rows[index]


def validate(path: str | Path) -> Iterator[Problem]:
    """Every bad line of a JSONL chat file, in order. Raises what `JsonlChat` raises for the file itself."""
    source = JsonlChat(path)
    for index in range(len(source)):
        try:
            source.row(index)
        except ValueError as error:
            yield problem_of(source.name_of(index), error)


def problem_of(name: str, error: Exception) -> Problem:
    """Return an error as the problem of the row of that name."""
    return Problem(name, str(error).removeprefix(f"{name}: "), cause_of(error))


def parse_row(line: bytes, source: str, where: Path | Find) -> Row:
    """One line of a JSONL chat file as a checked Row; `where` is the folder of its media, or how they are found.

    Raises RowError that begins with `source`.
    """
    data = parse_json(line, source)
    if not isinstance(data, dict):
        what = f"{source}: a line must be an object with 'messages', not {type(data).__name__}"
        raise RowError(what, "bad_type")
    for key in data:
        if key not in ROW_KEYS:
            raise RowError(
                f"{source}: unknown key {key!r}{near(key, ROW_KEYS)}; a row has {', '.join(ROW_KEYS)}",
                "bad_type",
            )
    if "messages" not in data:
        raise RowError(f"{source}: the key 'messages' is missing", "bad_type")
    extra = data.get("extra", {})
    if not isinstance(extra, dict):
        raise RowError(f"{source}: 'extra' must be an object, not {type(extra).__name__}", "bad_type")
    if "id" in data:
        extra = {**extra, "id": data["id"]}
    return make_row(data["messages"], extra, source, in_folder(where) if isinstance(where, Path) else where)


def parse_json(text: bytes, source: str) -> Any:
    """Strict JSON: UTF-8, no key twice, no NaN. Raises RowError that begins with `source`."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start} of the line)"
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} (column {error.colno})"
    except RecursionError:
        what = "JSON nested too deeply"
    except ValueError as error:
        what = str(error)
    raise RowError(f"{source}: {what}", "bad_json")


def make_row(messages: Any, extra: Mapping[str, Any], source: str, find: Find) -> Row:
    """Return OpenAI-style message dicts as a checked Row. Raises RowError that begins with `source`."""
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{source}: 'messages' must be a list of at least one message", "bad_type")
    try:
        parsed = messages_from_dicts(messages)
        resolved = tuple(_resolve(message, find, i) for i, message in enumerate(parsed))
        _check_answers(resolved)
    except (ValueError, OSError) as error:
        raise RowError(f"{source}: {error}", cause_of(error, "bad_type")) from None
    return Row(resolved, source, extra)


def in_folder(folder: Path) -> Find:
    """Media are files, named from a folder."""

    def find(kind: str, name: str) -> str:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{kind} file {path} does not exist")
        return path

    return find


def _check_answers(messages: tuple[Message, ...]) -> None:
    answers = [(i, message) for i, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise RowError("no assistant message, so nothing to learn from this row", "empty_answer")
    for i, message in answers:
        if any(isinstance(part, MediaPart) for part in message.parts):
            raise ValueError(f"messages[{i}]: an assistant message can hold text only")
        if not "".join(part.text for part in message.parts if isinstance(part, Text)).strip():
            raise RowError(f"messages[{i}]: the assistant's answer is empty", "empty_answer")
    if not any(message.train for _, message in answers):
        raise ValueError("every assistant message has 'train' off, so nothing to learn from this row")


def _resolve(message: Message, find: Find, index: int) -> Message:
    """Media named by a string become what `find` gives for it."""
    if not any(isinstance(part, MediaPart) for part in message.parts):
        return message
    parts = []
    for part in message.parts:
        if isinstance(part, MediaPart) and isinstance(part.source, str):
            try:
                part = replace(part, source=find(part.kind, part.source))
            except (ValueError, OSError) as error:
                raise RowError(f"messages[{index}]: {error}", cause_of(error)) from None
        parts.append(part)
    return replace(message, parts=tuple(parts))


def index_lines(path: Path) -> tuple[array[int], array[int], str]:
    """Offset and number of each line that is not blank, and the digest of the file, in one pass."""
    offsets, lines, digest = array("Q"), array("Q"), hashlib.sha256()
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                raise ValueError(
                    f"{path}:{number}: a line of more than {MAX_LINE:,} bytes: is that JSONL? Name large media by "
                    "their paths, or pack them (mm-llama data pack)"
                )
            digest.update(line)
            if line.strip():
                offsets.append(offset)
                lines.append(number)
            offset += len(line)
    return offsets, lines, "sha256:" + digest.hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice in one object")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
