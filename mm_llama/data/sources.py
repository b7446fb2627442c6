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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from mm_llama.core.messages import MediaPart, Message, Text, messages_from_dicts, near

ROW_KEYS = ("messages", "id", "extra")


@dataclass(frozen=True)
class Row:
    """One conversation, and where it stands."""

    messages: tuple[Message, ...]
    source: str  # "file:line"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one line of a file."""

    source: str
    what: str

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


class JsonlChat:
    """Chats in a JSONL file; holds one offset a line, never the file.

    Raises FileNotFoundError when the file is missing, ValueError when it holds no row.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"data file {self.path} does not exist")
        self._folder = self.path.parent.absolute()
        self.offsets, self.lines, self.digest = _index(self.path)
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
        """Row `index`, checked. Raises ValueError naming file and line."""
        return parse_row(self.text(index), self.name_of(index), self._folder)


class ChatRows:
    """Rows given in memory: OpenAI-style message lists. Paths are relative to `folder`."""

    def __init__(
        self, rows: list[list[dict[str, Any]]], *, name: str = "rows", folder: str | Path = "."
    ) -> None:
        if not rows:
            raise ValueError(f"{name}: there are no rows")
        self.name = name
        self.rows = [
            _row(messages, {}, f"{name}:{i + 1}", Path(folder).absolute()) for i, messages in enumerate(rows)
        ]
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
            name = source.name_of(index)
            yield Problem(name, str(error).removeprefix(f"{name}: "))


def parse_row(line: bytes, source: str, folder: Path) -> Row:
    """One line of a JSONL chat file as a checked Row. Raises ValueError that begins with `source`."""
    try:
        data = json.loads(line.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not UTF-8 text (byte {error.start} of the line)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ValueError(f"{source}: JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{source}: a line must be an object with 'messages', not {type(data).__name__}")
    for key in data:
        if key not in ROW_KEYS:
            raise ValueError(
                f"{source}: unknown key {key!r}{near(key, ROW_KEYS)}; a row has {', '.join(ROW_KEYS)}"
            )
    if "messages" not in data:
        raise ValueError(f"{source}: the key 'messages' is missing")
    extra = data.get("extra", {})
    if not isinstance(extra, dict):
        raise ValueError(f"{source}: 'extra' must be an object, not {type(extra).__name__}")
    if "id" in data:
        extra = {**extra, "id": data["id"]}
    return _row(data["messages"], extra, source, folder)


def _row(messages: Any, extra: Mapping[str, Any], source: str, folder: Path) -> Row:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{source}: 'messages' must be a list of at least one message")
    try:
        parsed = messages_from_dicts(messages)
        resolved = tuple(_resolve(message, folder, i) for i, message in enumerate(parsed))
        _check_answers(resolved)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return Row(resolved, source, extra)


def _check_answers(messages: tuple[Message, ...]) -> None:
    answers = [(i, message) for i, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise ValueError("no assistant message, so nothing to learn from this row")
    for i, message in answers:
        if any(isinstance(part, MediaPart) for part in message.parts):
            raise ValueError(f"messages[{i}]: an assistant message can hold text only")
        if not "".join(part.text for part in message.parts if isinstance(part, Text)).strip():
            raise ValueError(f"messages[{i}]: the assistant's answer is empty")
    if not any(message.train for _, message in answers):
        raise ValueError("every assistant message has 'train' off, so nothing to learn from this row")


def _resolve(message: Message, folder: Path, index: int) -> Message:
    """Media named by a string become the absolute path of a file that exists."""
    if not any(isinstance(part, MediaPart) for part in message.parts):
        return message
    parts = []
    for part in message.parts:
        if isinstance(part, MediaPart) and isinstance(part.source, str):
            path = os.path.join(folder, part.source)
            if not os.path.isfile(path):
                raise ValueError(f"messages[{index}]: {part.kind} file {path} does not exist")
            part = replace(part, source=path)
        parts.append(part)
    return replace(message, parts=tuple(parts))


def _index(path: Path) -> tuple[array[int], array[int], str]:
    """Offset and number of each line that is not blank, and the digest of the file, in one pass."""
    offsets, lines, digest = array("Q"), array("Q"), hashlib.sha256()
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
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
