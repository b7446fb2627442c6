"""Small clips: frames in, an MP4 file (H.264) out, the same bytes each time for the same library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Nothing that makes the bytes depend on more than the frames: x264 divides pictures among threads, and its
# macroblock tree gave other bytes now and then on one machine. One key frame, since most frames of a clip are read.
ENCODER = {"crf": "20", "preset": "veryfast", "threads": "1", "bf": "0", "g": "64", "x264-params": "mbtree=0"}


@dataclass(frozen=True)
class Pose:
    """Where a sprite is in one frame: centre and longer side, as shares of the frame's side."""

    x: float
    y: float
    size: float


def compose(
    background: Image.Image, looks: Sequence[Image.Image], poses: Sequence[Pose | None]
) -> list[np.ndarray]:
    """Return frames uint8[side, side, 3]: a sprite over a square background, frame by frame; None hides it.

    `looks` are RGBA pictures of the sprite, shown in turn: look t in frame t.
    """
    from PIL import Image

    ground = np.asarray(background.convert("RGB"))
    side = ground.shape[0]
    scaled: dict[tuple[int, int], np.ndarray] = {}
    frames = []
    for t, pose in enumerate(poses):
        frame = ground.copy()
        frames.append(frame)
        if pose is None:
            continue
        index, longer = t % len(looks), max(2, round(pose.size * side))
        if (index, longer) not in scaled:
            look = looks[index]
            scale = longer / max(look.size)
            size = (max(1, round(look.width * scale)), max(1, round(look.height * scale)))
            # Colours are weighed by their opacity, so that what is transparent does not bleed into the rim.
            small = look.convert("RGBa").resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
            scaled[index, longer] = np.asarray(small)
        _put(frame, scaled[index, longer], round(pose.x * side), round(pose.y * side))
    return frames


def _put(frame: np.ndarray, sprite: np.ndarray, x: int, y: int) -> None:
    """Lay a sprite, colours premultiplied, over a frame with its centre at (x, y); what sticks out is cut."""
    height, width = sprite.shape[:2]
    left, top = x - width // 2, y - height // 2
    rows = slice(max(0, top), max(0, top + height))
    columns = slice(max(0, left), max(0, left + width))
    under = frame[rows, columns].astype(np.uint16)
    part = sprite[max(0, -top) :, max(0, -left) :][: under.shape[0], : under.shape[1]].astype(np.uint16)
    mixed = part[..., :3] + (under * (255 - part[..., 3:]) + 127) // 255
    frame[rows, columns] = np.minimum(mixed, 255)


def write_clip(path: str | Path, frames: Iterable[np.ndarray], *, fps: int) -> None:
    """Write frames uint8[h, w, 3], h and w even, as an MP4 file.

    Raises ValueError when the library is not installed or there is no frame.
    """
    av = _pyav()
    frames = list(frames)
    if not frames:
        raise ValueError(f"{path}: a clip needs at least one frame")
    height, width = frames[0].shape[:2]
    # Bit-exact: neither a version nor a date goes into the file.
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, fps)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _pyav():  # type: ignore[no-untyped-def]
    try:
        import av
    except ImportError:
        raise ValueError(
            'clips are written with PyAV, which is not installed: pip install "mm_llama[video]"'
        ) from None
    return av
