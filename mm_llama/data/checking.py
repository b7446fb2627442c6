"""Rows looked at whole: every medium decoded from its first byte to its last, and what is measured on the way."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterator
from typing import Any

from mm_llama.core.messages import MediaPart
from mm_llama.data.causes import RowError, cause_of, medium_error
from mm_llama.data.decode import open_image
from mm_llama.data.files import Member
from mm_llama.data.media import KEYS
from mm_llama.data.sources import Row

FRAMES_A_SECOND = 30  # of a clip, looked at
MAX_FRAMES = 3000
Measures = dict[str, float]


def media_of(row: Row) -> Iterator[MediaPart]:
    """Yield the media of a row in order."""
    for message in row.messages:
        yield from (part for part in message.parts if isinstance(part, MediaPart))


class Decoder:
    """Decodes media, each once however many rows show it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Hashable], Measures | RowError] = {}

    def check(self, row: Row) -> list[Measures]:
        """Decode every medium of a row and return what was measured of each. Raises RowError naming the row."""
        found = []
        for part in media_of(row):
            identity = identity_of(part.kind, part.source)
            known = self._known.get((part.kind, identity))
            if known is None:
                try:
                    known = measured(part.kind, part.source)
                except (ValueError, OSError) as error:
                    known = medium_error("", part.kind, error)
                self._known[part.kind, identity] = known
            if isinstance(known, RowError):
                raise RowError(f"{row.source}{known}", cause_of(known))
            found.append(known)
        return found


def identity_of(kind: str, source: Any) -> Hashable:
    """Return what two sources of one medium share: where it lies, else a digest of its content."""
    return source if isinstance(source, str | Member) else KEYS[kind](source)


def num_bytes(source: Any) -> int:
    """Return the size of a medium's file."""
    if isinstance(source, Member):
        return source.size
    return (
        len(source)
        if isinstance(source, bytes)
        else os.path.getsize(source)
        if isinstance(source, str)
        else 0
    )


def measured(kind: str, source: Any) -> Measures:
    """Decode a medium and return its size: width and height, or seconds, or all three. Raises as its reader does."""
    if kind == "image":
        picture = open_image(source)
        return {"width": picture.width, "height": picture.height}
    if kind == "speech":
        from mm_llama.data.sound import RATE, open_sound, sound_blocks

        if isinstance(source, str | bytes | Member):
            return {"seconds": sum(len(block) for block in sound_blocks(source)) / RATE}
        return {"seconds": open_sound(source).seconds}
    from mm_llama.data.video import open_clip, probe_clip

    about = probe_clip(source)
    frames = min(MAX_FRAMES, max(8, math.ceil(about.duration * FRAMES_A_SECOND)))
    open_clip(source, num_frames=frames, each=lambda picture: None)
    return {"width": about.width, "height": about.height, "seconds": about.duration}
