"""Clips: any common container, safely, to pictures that stand evenly over time; only those are decoded.

Frame i of F is the one shown at the centre of the i-th of F equal parts of the clip. `backend` "auto" takes
PyAV where it is installed, else decord; animated GIF and WebP go through Pillow. PyAV is the reference: decord
gives the same frames, bit for bit, but for mirrored clips (it knows quarter turns only) and AVI, which it does
not get (`mm_llama/data/video_decord.py` has the reasons). Pixels are as stored: neither stretched to another
shape of pixels nor deinterlaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mm_llama.data.decode import IMAGE_FORMATS, image_key, kind_of, open_image
from mm_llama.data.files import Member, Wanted, digest_of, open_file, opened
from mm_llama.data.video_limits import (
    MAX_BYTES,
    MAX_DECODED,
    MAX_PIXELS,
    MAX_SECONDS,
    MAX_WALL_SECONDS,
    NEAR,
    Budget,
    ClipError,
    ClipInfo,
    Limits,
    moments,
    named,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

BACKENDS = ("auto", "pyav", "decord")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp")
HEAD_BYTES = 4096

_EXPECTED = "expected an MP4, MOV, WebM, MKV or AVI clip, or an animated GIF or WebP"
_SOUND = ("MP3", "AAC", "FLAC", "WAV", "Ogg")
_QUICKTIME = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # of files from before there was ftyp
_CLIP = Wanted("clip", "a path, bytes or a list of PIL pictures", _EXPECTED, VIDEO_SUFFIXES)


@dataclass(frozen=True)
class Clip:
    """Pictures of a clip.

    `frames` are upright RGB PIL pictures of the clip's own size, or what `each` made of them; `times` float64[F]
    are the seconds at which each begins to be shown, counted from the clip's start. A clip with fewer frames
    than were asked for repeats some: `num_distinct` says how many are different. `num_decoded` counts the
    frames that went through a decoder.
    """

    frames: list[Any]
    times: NDArray[np.float64]
    duration: float
    has_audio: bool
    backend: str
    num_distinct: int
    num_decoded: int


def open_clip(
    source: str | Path | bytes | Member | Sequence[Image.Image],
    *,
    num_frames: int,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    max_seconds: float = MAX_SECONDS,
    max_decoded: int = MAX_DECODED,
    max_wall_seconds: float = MAX_WALL_SECONDS,
    backend: str = "auto",
    each: Callable[[Image.Image], Any] | None = None,
) -> Clip:
    """`num_frames` pictures of a clip, evenly over its time.

    `source` is a path, the bytes of a file, or a clip given as PIL pictures, of which each lasts one second.
    `each` is called with every picture when it is decoded and its result kept instead, so that one picture at
    a time is in memory at full size. ValueError, naming the file, for what is no clip (a still picture, sound,
    a playlist), is damaged, or is over a limit: bytes of the file, pixels of a frame, seconds of the clip,
    frames to decode on the way to the wanted ones, seconds of work. FileNotFoundError for no file at all.
    """
    _check_arguments(num_frames, backend)
    limits = Limits(max_pixels, max_seconds, max_decoded, max_wall_seconds)
    if isinstance(source, (list, tuple)):
        return _pictures(source, num_frames, limits, each)
    with _opened(source, max_bytes) as (name, file, container), named(name):
        budget = Budget(limits)
        with _reader(file, container, budget, backend, num_frames) as (info, frames):
            return _collected(info, frames(moments(info.duration, num_frames)), budget, each)


def probe_clip(
    source: str | Path | bytes | Member | Sequence[Image.Image],
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    max_seconds: float = MAX_SECONDS,
    max_wall_seconds: float = MAX_WALL_SECONDS,
    backend: str = "auto",
) -> ClipInfo:
    """What a clip says of itself, without decoding its pictures (but for GIF and WebP). Raises as `open_clip`."""
    _check_arguments(1, backend)
    limits = Limits(max_pixels, max_seconds, MAX_DECODED, max_wall_seconds)
    if isinstance(source, (list, tuple)):
        _check_pictures(source, limits)
        return _info_of(source)
    with (
        _opened(source, max_bytes) as (name, file, container),
        named(name),
        _reader(file, container, Budget(limits), backend, 1) as (info, _),
    ):
        return info


def video_key(
    source: str | Path | bytes | Member | Sequence[Image.Image], *, max_bytes: int = MAX_BYTES
) -> str:
    """Content identity "sha256:...": of the file's bytes, or of the sizes and pixels of PIL pictures in order."""
    if isinstance(source, (list, tuple)):
        _check_pictures(source, Limits())
        digest = hashlib.sha256()
        for picture in source:
            digest.update(image_key(picture).encode())
        return "sha256:" + digest.hexdigest()
    with opened(source, _CLIP, max_bytes) as (_, file):
        return "sha256:" + digest_of(file)


def medium_of(source: str | Path | bytes | Member) -> str:
    """What the content of a file begins like: "image", "video" or "audio"; "" for none of these.

    The name's ending plays no part. Animated GIF and WebP are videos, damaged ones images. Raises as `open_clip`
    does where there is no file to look at.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_file(source, _CLIP) as file:
        head = file.read(HEAD_BYTES)
        container = container_of(head)
        if container in ("gif", "webp"):
            from mm_llama.data.animations import is_animated

            with contextlib.suppress(ClipError):
                return "video" if is_animated(file, container) else "image"
            return "image"
    if container:
        return "audio" if head[4:12] in (b"ftypM4A ", b"ftypM4B ") else "video"
    kind = kind_of(head)
    return "image" if kind in IMAGE_FORMATS else "audio" if kind in _SOUND else ""


def container_of(head: bytes) -> str:
    """The container that a file's first bytes begin: mp4 (MOV too), matroska (WebM too), avi, gif, webp or ""."""
    if head[4:8] == b"ftyp":
        return "" if kind_of(head) in ("HEIC", "AVIF") else "mp4"
    if head[4:8] in _QUICKTIME:
        return "mp4"
    if head.startswith(b"\x1aE\xdf\xa3") and (b"webm" in head[:64] or b"matroska" in head[:64]):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] in (b"AVI ", b"WEBP"):
        return head[8:12].decode().strip().lower()
    return "gif" if head.startswith((b"GIF87a", b"GIF89a")) else ""


def _check_arguments(num_frames: int, backend: str) -> None:
    if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1:
        raise ValueError(f"num_frames is {num_frames!r}, expected a whole number of at least 1")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")


# --- sources


@contextlib.contextmanager
def _opened(source: Any, max_bytes: int) -> Iterator[tuple[str, BinaryIO, str]]:
    """(name for messages, file, container) of what begins like a clip."""
    with opened(source, _CLIP, max_bytes) as (name, file):
        head = file.read(HEAD_BYTES)
        container = container_of(head)
        if not container:
            kind = kind_of(head) or "no known format"
            if kind in IMAGE_FORMATS:
                raise ValueError(f"{name} is a still picture ({kind}); give it as a picture, not as a clip")
            if kind in _SOUND:
                raise ValueError(f"{name} is sound ({kind}); {_EXPECTED}")
            raise ValueError(f"{name} holds {kind}; {_EXPECTED}")
        yield name, file, container


# --- readers

Frames = Iterator[tuple[int, float, "Image.Image"]]


@contextlib.contextmanager
def _reader(
    file: BinaryIO, container: str, budget: Budget, backend: str, num_frames: int
) -> Iterator[tuple[ClipInfo, Callable[[Sequence[float]], Frames]]]:
    """(what is known, the function from moments to frames) of a clip, by the backend that is to read it."""
    if container in ("gif", "webp"):
        from mm_llama.data.animations import Animation

        animation = Animation(file, container, budget)
        yield animation.info, animation.frames
    elif _backend(backend) == "pyav":
        from mm_llama.data.video_av import AvClip

        clip = AvClip(file, container, budget)
        with contextlib.closing(clip):
            yield clip.info, clip.frames
    else:
        from mm_llama.data.video_decord import DecordClip

        child = DecordClip(file, container, budget, num_frames)
        with contextlib.closing(child):
            yield child.info, lambda _: child.frames()


def _backend(asked: str) -> str:
    """The backend to use: PyAV before decord."""
    modules = {"pyav": "av", "decord": "decord"}
    installed = [name for name, module in modules.items() if importlib.util.find_spec(module)]
    if asked in installed:
        return asked
    if asked == "auto" and installed:
        return installed[0]
    lacking = (
        f"backend={asked!r} is not installed" if asked != "auto" else "neither PyAV nor decord is installed"
    )
    raise ValueError(f'clips cannot be read, {lacking}: pip install "mm_llama[video]"')


def _collected(
    info: ClipInfo, frames: Frames, budget: Budget, each: Callable[[Image.Image], Any] | None
) -> Clip:
    import numpy as np

    kept: list[Any] = []
    times: list[float] = []
    num_distinct = 0
    for count, time, picture in frames:
        kept += [picture if each is None else each(picture)] * count
        times += [time] * count
        num_distinct += 1
    return Clip(
        kept,
        np.array(times, np.float64),
        info.duration,
        info.has_audio,
        info.backend,
        num_distinct,
        budget.num_decoded,
    )


def _pictures(
    source: Sequence[Image.Image],
    num_frames: int,
    limits: Limits,
    each: Callable[[Image.Image], Any] | None,
) -> Clip:
    _check_pictures(source, limits)
    info = _info_of(source)
    shown = Counter(math.floor(moment + NEAR) for moment in moments(info.duration, num_frames))
    frames = (
        (count, float(index), open_image(source[index], max_pixels=limits.max_pixels))
        for index, count in shown.items()
    )
    return _collected(info, frames, Budget(limits), each)


def _info_of(source: Sequence[Image.Image]) -> ClipInfo:
    width, height = source[0].size
    return ClipInfo("pictures", "", width, height, float(len(source)), has_audio=False, backend="pillow")


def _check_pictures(source: Sequence[Any], limits: Limits) -> None:
    from PIL import Image

    if not source:
        raise ValueError("a clip given as pictures needs at least one")
    if len(source) > limits.max_seconds:
        raise ValueError(
            f"a clip given as {len(source):,} pictures, a second each, is longer than the limit of "
            f"{limits.max_seconds:,.0f} s (max_seconds)"
        )
    for index, picture in enumerate(source):
        if not isinstance(picture, Image.Image):
            raise ValueError(
                f"picture {index} of a clip given as pictures is {type(picture).__name__}, not a PIL picture"
            )
