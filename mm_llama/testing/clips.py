"""Small clips for tests: pictures that differ from frame to frame, in any container that PyAV writes."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

SAMPLE_RATE = 48_000


def moving_pictures(
    num_frames: int, size: tuple[int, int], photo: Image.Image | None = None
) -> list[Image.Image]:
    """A window that wanders over a photograph (or a gradient), with a bar that says which frame it is."""
    from PIL import Image, ImageDraw

    width, height = size
    ground = photo.convert("RGB") if photo else Image.linear_gradient("L").convert("RGB")
    ground = ground.resize((2 * width, 2 * height))
    pictures = []
    for index in range(num_frames):
        left, top = index * 3 % width, index * 2 % height
        picture = ground.crop((left, top, left + width, top + height))
        bar = 1 + (index * 7) % max(2, width - 2)
        ImageDraw.Draw(picture).rectangle((0, 0, bar, max(1, height // 6)), fill=(230, 40, 40))
        pictures.append(picture)
    return pictures


def encode_clip(
    pictures: Sequence[Image.Image],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    rate: int = 10,
    gop: int = 12,
    pix_fmt: str = "yuv420p",
    milliseconds: Sequence[int] | None = None,
    sound: str = "",
    seekable: bool = True,
    path: str | Path = "",
    muxer: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    **context: Any,
) -> bytes:
    """The bytes of a clip of `pictures`, each shown for 1/`rate` s or from its own of `milliseconds` on.

    `sound` is an audio codec for a tone as long as the clip. `seekable` False writes as a live recorder does,
    without going back; with `path` the clip goes through a file there, for muxers that read what they wrote.
    `context` are attributes of PyAV's codec context (`max_b_frames`, `colorspace`).
    """
    import av

    data = io.BytesIO()
    target: Any = str(path) if path else data if seekable else _Stream(data)
    with av.open(target, "w", format=container, options=muxer or {}) as writer:
        stream: Any = writer.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        tick = Fraction(1, 1000) if milliseconds else Fraction(1, rate)
        stream.codec_context.time_base = tick
        tone: Any = writer.add_stream(sound, rate=SAMPLE_RATE, layout="mono") if sound else None
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = (milliseconds[index] if milliseconds else index), tick
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())
        if tone is not None:
            _add_tone(writer, tone, len(pictures) / rate)
    return Path(path).read_bytes() if path else data.getvalue()


def encode_sound(container: str = "mp4", codec: str = "aac", seconds: float = 1.0) -> bytes:
    """The bytes of a file that holds a tone and nothing else."""
    import av

    data = io.BytesIO()
    with av.open(data, "w", format=container) as writer:
        _add_tone(writer, writer.add_stream(codec, rate=SAMPLE_RATE, layout="mono"), seconds)
    return data.getvalue()


def box(data: bytes, *path: bytes) -> tuple[int, int]:
    """(start, size) of a box of an MP4 file, the first of each name on the path."""
    start, end = 0, len(data)
    for depth, name in enumerate(path):
        while True:
            size, found = struct.unpack(">I4s", data[start : start + 8])
            if found == name:
                break
            start += size
            if start >= end:
                raise ValueError(f"no box {name!r}")
        if depth + 1 < len(path):
            start, end = start + 8, start + size
    return start, size


def replace_box(data: bytes, path: Sequence[bytes], body: bytes) -> bytes:
    """The MP4 file with another body in a box of `moov`, which must be the last one; sizes are put right."""
    start, size = box(data, *path)
    changed = bytearray(data)
    for depth in range(1, len(path)):
        at, old = box(data, *path[:depth])
        changed[at : at + 4] = struct.pack(">I", old + len(body) + 8 - size)
    changed[start : start + size] = struct.pack(">I4s", len(body) + 8, path[-1]) + body
    return bytes(changed)


class _Stream:
    """A file that can only be written on."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        return self._file.write(data)


def _add_tone(writer: Any, stream: Any, seconds: float) -> None:
    import av
    import numpy as np

    size = 960
    wave = (np.sin(np.arange(size) / 20) * 3000).astype(np.int16)[None]
    for start in range(0, int(seconds * SAMPLE_RATE), size):
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        writer.mux(stream.encode(frame))
    writer.mux(stream.encode())
