"""Rows -> samples: chat rendering as token ids, the targets of the loss, and which media stand where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mm_llama.core.chat import ChatFormat
from mm_llama.data.decode import image_key
from mm_llama.data.sources import Row

KeyOf = Callable[[Any], str]


@dataclass(frozen=True)
class MediaRef:
    """One medium in a row: its placeholder's position, where it comes from, what identifies its content."""

    kind: str
    position: int
    source: Any
    key: str


@dataclass
class Sample:
    """A rendered row. `targets[i]`: token i is to be predicted."""

    tokens: list[int]
    targets: list[bool]
    media: list[MediaRef]
    source: str

    @property
    def num_tokens(self) -> int:
        """Positions of the row, placeholders included."""
        return len(self.tokens)


class TooLongError(ValueError):
    """A row has more tokens than allowed."""


def make_sample(
    row: Row, chat: ChatFormat, *, max_tokens: int = 0, media_keys: Mapping[str, KeyOf] | None = None
) -> Sample:
    """Render `row` with `chat`.

    `max_tokens` 0 means no limit; a longer row raises TooLongError, it is never cut. `media_keys` gives,
    for each kind of media, the function from source to content key (default: images). Errors begin with the
    row's source.
    """
    keys = {"image": image_key} if media_keys is None else media_keys
    rendered = _render(row, chat)
    check_length(len(rendered.tokens), max_tokens, row.source)
    media = []
    for placeholder in rendered.media:
        if placeholder.kind not in keys:
            raise ValueError(
                f"{row.source}: no reader for {placeholder.kind} media here; "
                f"this run reads {sorted(keys) or 'text'}"
            )
        try:
            key = _content_key(keys[placeholder.kind], placeholder.source)
        except (ValueError, OSError) as error:
            raise ValueError(f"{row.source}: {placeholder.kind}: {error}") from error
        media.append(MediaRef(placeholder.kind, placeholder.position, placeholder.source, key))
    return Sample(list(rendered.tokens), list(rendered.targets), media, row.source)


def count_tokens(row: Row, chat: ChatFormat, *, max_tokens: int = 0) -> int:
    """Number of tokens of the rendered row, without touching its media. Raises as `make_sample` does."""
    num_tokens = len(_render(row, chat).tokens)
    check_length(num_tokens, max_tokens, row.source)
    return num_tokens


def check_length(num_tokens: int, max_tokens: int, source: str) -> None:
    """Raise TooLongError when a row has more than `max_tokens` tokens (0: no limit)."""
    if max_tokens and num_tokens > max_tokens:
        raise TooLongError(
            f"{source}: the row has {num_tokens} tokens and the limit is {max_tokens}; "
            "split it, raise loader.max_tokens, or set loader.on_too_long=skip"
        )


def _render(row: Row, chat: ChatFormat) -> Any:
    try:
        rendered = chat.render(row.messages)
    except ValueError as error:
        raise ValueError(f"{row.source}: {error}") from error
    if not any(rendered.targets):
        raise ValueError(f"{row.source}: no token of this row is a target, so nothing to learn from it")
    return rendered


def _content_key(key_of: KeyOf, source: Any) -> str:
    """The content key of a medium; for a file remembered until the file changes."""
    if not isinstance(source, str):
        return key_of(source)
    stat = Path(source).stat()
    return _file_key(key_of, source, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1 << 17)
def _file_key(key_of: KeyOf, path: str, modified: int, size: int) -> str:
    return key_of(path)
