"""Animated GIF and WebP as clips, through Pillow: each picture for as long as the file says."""

from __future__ import annotations

import bisect
import os
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from mm_llama.data.decode import upright_rgb
from mm_llama.data.video_limits import (
    DAMAGED,
    NEAR,
    Budget,
    ClipError,
    ClipInfo,
    check_length,
    check_size,
    damage,
)

if TYPE_CHECKING:
    from PIL import Image

FORMATS = {"gif": "GIF", "webp": "WEBP"}
MAX_BYTES = 256_000_000  # Pillow reads the file whole
# Browsers show a picture that asks for next to no time for a tenth of a second, and files count on it.
_SHORTEST, _INSTEAD = 0.02, 0.1


class Animation:
    """One opened animation: `info`, and `frames`. Nothing is kept but the picture at hand.

    Frames build on each other, so all are decoded once for their times and again up to the last wanted one.
    ClipError for a still picture, what is over the limits of `budget`, and what does not decode.
    """

    def __init__(self, file: BinaryIO, container: str, budget: Budget) -> None:
        still = ClipError(f"is a still picture ({FORMATS[container]}); give it as a picture, not as a clip")
        if container == "webp" and not is_animated(file, container):
            raise still
        size = _size(file, container)
        check_size(*size, budget.limits)  # before Pillow, whose WebP decoder allocates its canvas on opening
        if file.seek(0, os.SEEK_END) > MAX_BYTES:
            raise ClipError(f"has more than {MAX_BYTES:,} bytes, the limit for animations; write it as MP4")
        if not is_animated(file, container):
            raise still
        self._file, self._format, self._budget = file, FORMATS[container], budget
        self._starts = [0.0]
        for _, seconds, _ in self._pictures():
            self._starts.append(self._starts[-1] + seconds)
            check_length(self._starts[-1], budget.limits)
        self.info = ClipInfo(
            container=container,
            codec=container,
            width=size[0],
            height=size[1],
            duration=self._starts[-1],
            has_audio=False,
            backend="pillow",
        )

    def close(self) -> None:
        """Nothing is left open."""

    def frames(self, moments: Sequence[float]) -> Iterator[tuple[int, float, Image.Image]]:
        """Pictures shown at `moments` (ascending): (how many moments show it, its time, RGB picture)."""
        wanted: dict[int, int] = {}
        for moment in moments:
            index = bisect.bisect_right(self._starts, moment + NEAR, 0, len(self._starts) - 1) - 1
            wanted[index] = wanted.get(index, 0) + 1
        for index, _, image in self._pictures():
            if index in wanted:
                yield wanted.pop(index), self._starts[index], upright_rgb(image)
            if not wanted:
                return

    def _pictures(self) -> Iterator[tuple[int, float, Image.Image]]:
        """(index, seconds that it is shown, the picture as PIL has it), in order."""
        from PIL import Image

        self._file.seek(0)
        with (
            damage("a picture of it does not decode"),
            Image.open(self._file, formats=[self._format]) as image,
        ):
            for index in range(getattr(image, "n_frames", 1)):
                self._budget.spend(1)
                image.seek(index)
                check_size(*image.size, self._budget.limits)
                image.load()
                seconds = image.info.get("duration", 0) / 1000
                yield index, seconds if seconds >= _SHORTEST else _INSTEAD, image


def is_animated(file: BinaryIO, container: str) -> bool:
    """Whether an open GIF or WebP file has more than one picture. ClipError when its header does not parse."""
    from PIL import Image

    if container == "webp":
        file.seek(0)
        head = file.read(21)
        return len(head) == 21 and head[12:16] == b"VP8X" and bool(head[20] & 2)
    file.seek(0)
    with damage("its header does not parse"), Image.open(file, formats=["GIF"]) as image:
        return bool(getattr(image, "is_animated", False))


def _size(file: BinaryIO, container: str) -> tuple[int, int]:
    """Width and height of the canvas of a GIF or animated WebP, from its first bytes."""
    file.seek(0)
    head = file.read(30)
    if len(head) < 30:
        raise ClipError(DAMAGED + "its header does not parse")
    if container == "gif":
        width, height = struct.unpack("<HH", head[6:10])
        return width, height
    return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
