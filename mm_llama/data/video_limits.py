"""What a clip may cost, what is known of it before it is decoded, and which moments of it are shown."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

MAX_BYTES = 20_000_000_000
MAX_PIXELS = 4096 * 2160
MAX_SECONDS = 12 * 3600.0
MAX_DECODED = 100_000
MAX_WALL_SECONDS = 600.0

# A frame counts as shown this long (seconds) before it begins: containers round times to a millisecond.
NEAR = 1e-3

DAMAGED = "is cut short or damaged: "


class ClipError(Exception):
    """What is wrong with a clip, in words that follow its name. Never a decoder's own words."""


class SoundAlone(ClipError):
    """A container of clips in which there is sound and no moving picture."""


class NoPicturesError(ValueError):
    """The same, said of a file: it can be heard, but not seen."""


@dataclass(frozen=True)
class Limits:
    """Ceilings of one call, by the names of `open_clip`'s arguments."""

    max_pixels: int = MAX_PIXELS
    max_seconds: float = MAX_SECONDS
    max_decoded: int = MAX_DECODED
    max_wall_seconds: float = MAX_WALL_SECONDS


@dataclass(frozen=True)
class ClipInfo:
    """What a clip says of itself: `duration` in seconds is that of its pictures, width and height as stored."""

    container: str
    codec: str
    width: int
    height: int
    duration: float
    has_audio: bool
    backend: str


@dataclass
class Budget:
    """What is left of the limits of one call."""

    limits: Limits
    num_decoded: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        """Wall time left; never below 0."""
        return max(0.0, self.started + self.limits.max_wall_seconds - time.monotonic())

    def check(self) -> None:
        """Raise ClipError when the time is over."""
        if not self.seconds_left:
            raise ClipError(
                f"takes more than {self.limits.max_wall_seconds:g} s to read, the limit (max_wall_seconds)"
            )

    def spend(self, num_frames: int) -> None:
        """Count frames before they are decoded; raise ClipError when they are too many."""
        self.check()
        self.num_decoded += num_frames
        if self.num_decoded > self.limits.max_decoded:
            raise ClipError(
                f"needs more than {self.limits.max_decoded:,} frames decoded to show the wanted ones, the limit "
                "(max_decoded): it has few keyframes; take fewer frames or write it again with more keyframes"
            )


def moments(duration: float, num_frames: int) -> list[float]:
    """Seconds of the wanted frames: the centres of `num_frames` equal parts of the duration."""
    return [(index + 0.5) * duration / num_frames for index in range(num_frames)]


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raise ClipError for a frame size that is none or too large."""
    if width < 1 or height < 1:
        raise ClipError(f"says that its frames have {width}x{height} pixels, so there is nothing to see")
    if width * height > limits.max_pixels:
        raise ClipError(
            f"has frames of {width}x{height} pixels, more than the limit of {limits.max_pixels:,} (max_pixels); "
            "make it smaller"
        )


def check_length(duration: float, limits: Limits) -> None:
    """Raise ClipError for a duration over the limit."""
    if duration > limits.max_seconds:
        raise ClipError(
            f"lasts {duration:,.0f} s, more than the limit of {limits.max_seconds:,.0f} s (max_seconds); cut it"
        )


class GuardedFile:
    """What the demuxer reads from: a file without a name, which looks at the clock at every read."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._file, self._budget = file, budget

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        self._budget.check()
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move as a file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()


@contextlib.contextmanager
def damage(what: str) -> Iterator[None]:
    """Whatever a decoder raises becomes ClipError with our words: its own have carried memory addresses."""
    try:
        yield
    except ClipError:
        raise
    except Exception:
        raise ClipError(DAMAGED + what) from None


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """A ClipError within becomes a ValueError that begins with the name of what was read."""
    try:
        yield
    except SoundAlone as error:
        raise NoPicturesError(f"{name} {error}") from None
    except ClipError as error:
        raise ValueError(f"{name} {error}") from None
