"""Rows -> samples: chat rendering as token ids, the targets of the loss, and which media stand where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from mm_llama.core.chat import ChatFormat, MediaPart, Rendered
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.data.causes import RowError, cause_of, medium_error
from mm_llama.data.decode import image_key
from mm_llama.data.files import Member, Stamp, stamp_of
from mm_llama.data.sources import Row, Source

KeyOf = Callable[[Any], str]
SizeOf = Callable[[Any], int]


@dataclass(frozen=True)
class MediaRef:
    """One medium in a row: its placeholder's position, where it comes from, what identifies its content.

    `transcript` are the tokens of what is said in it, where that is known.
    """

    kind: str
    position: int
    source: Any
    key: str
    transcript: tuple[int, ...] = ()


@dataclass
class Sample:
    """A rendered row. `targets[i]`: token i is to be predicted. `labels` are the row's own (`extra.labels`)."""

    tokens: list[int]
    targets: list[bool]
    media: list[MediaRef]
    source: str
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Positions of the row, one for each placeholder."""
        return len(self.tokens)


class TooLongError(RowError):
    """A row has more tokens than allowed."""


def make_sample(
    row: Row,
    chat: ChatFormat,
    *,
    max_tokens: int = 0,
    media_keys: Mapping[str, KeyOf] | None = None,
    media_sizes: Mapping[str, SizeOf] | None = None,
) -> Sample:
    """Render `row` with `chat`.

    `max_tokens` 0 means no limit; a longer row raises TooLongError, it is never cut. `media_keys` gives,
    for each kind of media, the function from source to content key (default: images). `media_sizes` gives how many
    positions a medium takes, at most, of the kinds that are spliced into rows. Errors begin with the row's source.
    """
    keys = {"image": image_key} if media_keys is None else media_keys
    rendered = _render(row, chat)
    check_length(_num_positions(rendered, media_sizes, row.source), max_tokens, row.source)
    media = []
    for placeholder in rendered.media:
        ref = _reference(placeholder.kind, placeholder.position, placeholder.source, keys, row.source)
        media.append(replace(ref, transcript=said_in(placeholder.transcript, chat.tokenizer)))
    labels = row.extra.get("labels", {})
    if not isinstance(labels, Mapping):
        raise ValueError(f"{row.source}: 'extra.labels' must be an object, not {type(labels).__name__}")
    return Sample(list(rendered.tokens), list(rendered.targets), media, row.source, labels)


def said_in(transcript: str | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens of a transcript, none without one.

    As text within a sentence: with the space before it, so that every word has its common token.
    """
    return tuple(tokenizer.encode(f" {transcript.strip()}")) if transcript else ()


def count_tokens(
    row: Row, chat: ChatFormat, *, max_tokens: int = 0, media_sizes: Mapping[str, SizeOf] | None = None
) -> int:
    """Number of positions of the rendered row; its media are only touched as `media_sizes` does.

    Raises as `make_sample` does.
    """
    num_tokens = _num_positions(_render(row, chat), media_sizes, row.source)
    check_length(num_tokens, max_tokens, row.source)
    return num_tokens


def distinct_media(
    sources: Iterable[Source], media_keys: Mapping[str, KeyOf] | None = None, *, skip_errors: bool = False
) -> list[MediaRef]:
    """Every medium of the sources once, by content key, for encoding them all; rows are not rendered.

    The position of each is 0. `skip_errors` leaves out what cannot be read: the loader will meet, count and
    report it in its row.
    """
    keys = {"image": image_key} if media_keys is None else media_keys
    found: dict[tuple[str, str], MediaRef] = {}
    seen: set[tuple[str, str | Member]] = set()
    for source in sources:
        for index in range(len(source)):
            try:
                row = source.row(index)
                for part in (part for message in row.messages for part in message.parts):
                    if not isinstance(part, MediaPart):
                        continue
                    if isinstance(part.source, str | Member):
                        if (part.kind, part.source) in seen:
                            continue
                        seen.add((part.kind, part.source))
                    ref = _reference(part.kind, 0, part.source, keys, row.source)
                    found.setdefault((ref.kind, ref.key), ref)
            except (ValueError, OSError):
                if not skip_errors:
                    raise
    return list(found.values())


def check_length(num_tokens: int, max_tokens: int, source: str, key: str = "loader.max_tokens") -> None:
    """Raise TooLongError when a row has more than `max_tokens` tokens (0: no limit), which `key` sets."""
    if max_tokens and num_tokens > max_tokens:
        raise TooLongError(
            f"{source}: the row has {num_tokens} tokens and the limit is {max_tokens}; "
            f"split it, raise {key}, or set loader.on_too_long=skip",
            "too_long",
        )


def _num_positions(rendered: Rendered, media_sizes: Mapping[str, SizeOf] | None, row: str) -> int:
    total = len(rendered.tokens)
    for placeholder in rendered.media:
        if placeholder.kind in (media_sizes or {}):
            try:
                total += (media_sizes or {})[placeholder.kind](placeholder.source) - 1
            except (ValueError, OSError) as error:
                raise medium_error(row, placeholder.kind, error) from error
    return total


def _render(row: Row, chat: ChatFormat) -> Rendered:
    try:
        rendered = chat.render(row.messages)
    except ValueError as error:
        raise RowError(f"{row.source}: {error}", cause_of(error)) from error
    if not any(rendered.targets):
        raise ValueError(f"{row.source}: no token of this row is a target, so nothing to learn from it")
    return rendered


def _reference(kind: str, position: int, source: Any, keys: Mapping[str, KeyOf], row: str) -> MediaRef:
    if kind not in keys:
        raise ValueError(f"{row}: no reader for {kind} media here; this run reads {sorted(keys) or 'text'}")
    try:
        return MediaRef(kind, position, source, content_key(keys[kind], source))
    except (ValueError, OSError) as error:
        raise medium_error(row, kind, error) from error


def content_key(key_of: KeyOf, source: Any) -> str:
    """The content key of a medium; for a file remembered until the file changes."""
    stamp = stamp_of(source)
    return key_of(source) if stamp is None else _file_key(key_of, source, stamp)


@lru_cache(maxsize=1 << 17)
def _file_key(key_of: KeyOf, source: str | Member, stamp: Stamp) -> str:
    return key_of(source)
