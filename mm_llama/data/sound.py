"""Sound: any common file, the sound of a clip, or raw samples, safely, to one channel at one rate.

Channels are averaged and the rate is changed by soxr, block by block: hours of sound need the memory of a block, and
what comes out in blocks is what comes out whole. A file that is cut short, holds no sound, changes its rate on the way,
or goes over a limit is an error; nothing is left out without a word.

Shapes: n samples of a block, T samples in all, C channels.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from mm_llama.data.decode import kind_of
from mm_llama.data.files import Member, Wanted, digest_of, opened
from mm_llama.data.sound_av import (
    DEMUXERS,
    EXPECTED,
    HEADERLESS,
    MAX_CHANNELS,
    RATES,
    Recording,
    check_finite,
    check_wav,
)
from mm_llama.data.video import HEAD_BYTES, container_of
from mm_llama.data.video_limits import Budget, ClipError, Limits, named

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE = 16_000
MAX_BYTES = 4_000_000_000
MAX_SECONDS = 12 * 3600.0
MAX_WALL_SECONDS = 1200.0
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".mp4", ".webm", ".mkv")

_SOUND = Wanted("recording", "a path, bytes or (samples, rate)", EXPECTED, SOUND_SUFFIXES)
# Raw samples by their common names: numpy's name, and what one is divided by.
PCM = {
    "s16le": ("<i2", 32_768.0),
    "s32le": ("<i4", 2_147_483_648.0),
    "f32le": ("<f4", 1.0),
    "u8": ("u1", 128.0),
}


@dataclass(frozen=True)
class Sound:
    """Samples of one channel, float32[T] with full scale at 1, and what the file was."""

    samples: Tensor
    rate: int  # samples a second
    container: str = ""
    codec: str = ""
    source_rate: int = 0
    channels: int = 1

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @property
    def silent(self) -> bool:
        """Whether no sample reaches a ten-thousandth of full scale: nothing was recorded."""
        return bool(self.samples.abs().max() < 1e-4)


def open_sound(
    source: Any,
    *,
    rate: int = RATE,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
    max_wall_seconds: float = MAX_WALL_SECONDS,
) -> Sound:
    """Return a recording whole, at `rate` samples a second.

    `source` is a path, the bytes of a file, a `Sound`, or (samples, rate) with float[T] or float[C, T]. Raises
    ValueError, naming the file, for what holds no sound, is damaged, has samples that are not numbers, or is over a
    limit; FileNotFoundError for no file at all.
    """
    import numpy as np

    _check_rate("rate", rate)
    if isinstance(source, Sound):
        return source if source.rate == rate else open_sound((source.samples, source.rate), rate=rate)
    if isinstance(source, tuple):
        samples, given = _given(source, max_seconds)
        blocks = np.concatenate([np.zeros(0, np.float32), *_resampled([samples], given, rate)])
        return Sound(torch.from_numpy(blocks), rate, source_rate=given)
    with _reader(source, rate, max_bytes, max_seconds, max_wall_seconds) as (about, parts):
        samples = np.concatenate([np.zeros(0, np.float32), *parts])
        return Sound(torch.from_numpy(samples), rate, **about)


def sound_blocks(
    source: str | Path | bytes | Member,
    *,
    rate: int = RATE,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
    max_wall_seconds: float = MAX_WALL_SECONDS,
) -> Iterator[Tensor]:
    """Yield float32[n] blocks of a file, which side by side are `open_sound`'s samples; raises as it does."""
    _check_rate("rate", rate)
    with _reader(source, rate, max_bytes, max_seconds, max_wall_seconds) as (_, parts):
        for part in parts:
            yield torch.from_numpy(part)


def pcm_blocks(
    file: BinaryIO, *, rate: int, channels: int = 1, form: str = "s16le", to: int = RATE, block: int = 4096
) -> Iterator[Tensor]:
    """Yield float32[n] blocks at `to` samples a second from a stream of raw interleaved samples, as they come.

    `form` is a key of PCM; `block` is how many samples of each channel are waited for. Raises ValueError for a stream
    that ends within a sample, holds no sample, or has one that is not a number.
    """
    import numpy as np

    if form not in PCM:
        raise ValueError(f"raw samples are {', '.join(PCM)}, not {form!r}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"raw samples have 1 to {MAX_CHANNELS} channels, not {channels}")
    _check_rate("the rate of raw samples", rate)
    name, scale = PCM[form]
    width = np.dtype(name).itemsize * channels

    def parts() -> Iterator[NDArray[np.float32]]:
        left, count = b"", 0
        while data := file.read(block * width - len(left)):
            data = left + data
            whole = len(data) // width * width
            left = data[whole:]
            if not whole:
                continue
            values = np.frombuffer(data[:whole], name).astype(np.float32).reshape(-1, channels)
            mono = ((values - 128.0 if form == "u8" else values) / scale).mean(1, dtype=np.float32)
            check_finite(mono, count, rate)
            count += len(mono)
            yield mono
        if left:
            raise ClipError(f"ends within a sample: {len(left)} bytes are left of {width}")
        if not count:
            raise ClipError("holds no samples")

    with named("the stream of raw samples"):
        for part in _resampled(parts(), rate, to):
            yield torch.from_numpy(part)


def sound_key(source: Any, *, max_bytes: int = MAX_BYTES) -> str:
    """Content identity "sha256:...": of the file's bytes, or of samples and their rate."""
    if isinstance(source, Sound):
        source = (source.samples, source.rate)
    if isinstance(source, tuple):
        samples, rate = _given(source, MAX_SECONDS)
        return "sha256:" + hashlib.sha256(f"sound {rate} ".encode() + samples.tobytes()).hexdigest()
    with opened(source, _SOUND, max_bytes) as (_, file):
        return "sha256:" + digest_of(file)


# --- files


@contextlib.contextmanager
def _reader(
    source: Any, rate: int, max_bytes: int, max_seconds: float, max_wall_seconds: float
) -> Iterator[tuple[dict[str, Any], Iterator[NDArray[np.float32]]]]:
    """Yield (what the file is, its samples at `rate` in blocks)."""
    with opened(source, _SOUND, max_bytes) as (name, file), named(name):
        head = file.read(HEAD_BYTES)
        container = (
            container_of(head) or kind_of(head) or HEADERLESS.get(Path(name).suffix, "no known format")
        )
        if container not in DEMUXERS:
            raise ValueError(f"{name} holds {container}; {EXPECTED}")
        budget = Budget(Limits(max_seconds=max_seconds, max_wall_seconds=max_wall_seconds))
        if container == "WAV":
            check_wav(head, file)
        recording = Recording(file, container, budget)
        with contextlib.closing(recording):
            yield recording.about, _resampled(recording.blocks(), recording.rate, rate)


def _resampled(blocks: Iterable[NDArray[np.float32]], rate: int, to: int) -> Iterator[NDArray[np.float32]]:
    """Yield the blocks at another rate: the same samples, however they are cut."""
    import numpy as np

    if rate == to:
        yield from blocks
        return
    try:
        import soxr
    except ImportError:
        raise ValueError(
            f'sound of {rate:,} samples a second cannot be read at {to:,}: pip install "mm_llama[speech]"'
        ) from None
    stream = soxr.ResampleStream(rate, to, 1, dtype="float32", quality="HQ")
    for block in blocks:
        made = stream.resample_chunk(np.ascontiguousarray(block))
        if len(made):
            yield made
    made = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    if len(made):
        yield made


# --- checks


def _given(source: tuple[Any, ...], max_seconds: float) -> tuple[NDArray[np.float32], int]:
    """Return float32[T] and the rate of (samples, rate)."""
    import numpy as np

    if len(source) != 2:
        raise ValueError(f"sound as a tuple is (samples, rate), not {len(source)} things")
    samples, rate = source
    _check_rate("the rate of given samples", rate)
    found = np.asarray(samples.detach().cpu() if isinstance(samples, Tensor) else samples)
    if found.ndim not in (1, 2) or found.dtype.kind != "f" or not found.size:
        raise ValueError(
            f"given samples are float[T] or float[C, T] with full scale at 1, not {found.dtype}{list(found.shape)}"
        )
    mono = np.atleast_2d(found).mean(0, dtype=np.float32)
    if len(mono) > max_seconds * rate:
        raise ValueError(f"given samples last more than {max_seconds:,.0f} s, the limit (max_seconds)")
    with named("sound given as samples"):
        check_finite(mono, 0, rate)
    return mono, int(rate)


def _check_rate(what: str, rate: Any) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int) or not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{what} is {rate!r}, expected a whole number from {RATES[0]:,} to {RATES[1]:,}")
