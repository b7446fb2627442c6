"""Recordings through PyAV: a forced demuxer over a guarded file, samples as they are decoded, channels averaged.

Shapes: n samples of a block, C channels.
"""

from __future__ import annotations

import importlib.util
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from mm_llama.data.guarded_av import open_container
from mm_llama.data.video_limits import DAMAGED, Budget, ClipError, damage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_CHANNELS = 16
RATES = (2_000, 768_000)  # lowest and highest that a file may claim
EXPECTED = "expected WAV, FLAC, Ogg, Opus, MP3, AAC, M4A, G.722 or a clip with sound"
# What a file begins like -> FFmpeg's demuxer. It is forced: nothing is guessed from the bytes.
DEMUXERS = {
    "WAV": "wav", "FLAC": "flac", "Ogg": "ogg", "MP3": "mp3", "AAC": "aac",
    "mp4": "mov", "matroska": "matroska", "avi": "avi", "G.722": "g722",
}  # fmt: skip
# What has no header to be known by, by the end of a file's name: any bytes of it are sound.
HEADERLESS = {".g722": "G.722"}
_WHITELIST = "wav,flac,ogg,mp3,aac,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,g722"
_CODECS = (
    "flac", "vorbis", "opus", "libopus", "mp3", "mp3float", "mp2", "mp2float", "aac", "alac", "ac3", "eac3",
    "adpcm_ima_wav", "adpcm_ms", "adpcm_ima_qt", "wavpack", "gsm_ms", "g722",
)  # fmt: skip
# Containers whose headers state a length that can be held against what comes out.
_STATED = ("WAV", "FLAC", "mp4", "matroska", "avi")


class Recording:
    """The sound stream of an opened file: what it is, and its samples as they are decoded, channels averaged."""

    def __init__(self, file: BinaryIO, container: str, budget: Budget) -> None:
        if importlib.util.find_spec("av") is None:
            raise ValueError('sound cannot be read, PyAV is not installed: pip install "mm_llama[speech]"')
        self._container, self._budget = container, budget
        self._av: Any = open_container(file, DEMUXERS[container], _WHITELIST, budget)
        try:
            with damage("its header does not parse"):
                self._choose_stream()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the container; the file stays open."""
        self._av.close()

    def _choose_stream(self) -> None:
        from av.stream import Discard

        self._stream = self._av.streams.best("audio")
        if self._stream is None:
            raise ClipError(f"holds no sound; {EXPECTED}")
        self._codec = self._stream.codec_context
        name = self._codec.codec.name if self._codec is not None else "unknown"
        if name not in _CODECS and not name.startswith("pcm_"):
            raise ClipError("has a codec that is not read here; write it again as WAV, FLAC or Opus")
        for stream in self._av.streams:
            if stream.index != self._stream.index:
                stream.discard = Discard.all
        self.rate, channels = int(self._codec.sample_rate), int(self._codec.channels)
        if not RATES[0] <= self.rate <= RATES[1]:
            raise ClipError(
                f"says that it has {self.rate:,} samples a second, expected {RATES[0]:,} to {RATES[1]:,}"
            )
        if not 1 <= channels <= MAX_CHANNELS:
            raise ClipError(f"says that it has {channels} channels, expected 1 to {MAX_CHANNELS}")
        self.about = {
            "container": self._container,
            "codec": name,
            "source_rate": self.rate,
            "channels": channels,
        }

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield float32[n] at the file's own rate."""
        import av
        import numpy as np

        planar = av.AudioResampler(format="fltp")
        most, count = self._budget.limits.max_seconds * self.rate, 0
        for frame in self._frames():
            if frame.sample_rate != self.rate:
                raise ClipError(
                    f"changes from {self.rate:,} to {frame.sample_rate:,} samples a second on the way, at "
                    f"{count / self.rate:.2f} s; write it again at one rate"
                )
            # Counted before anything is converted: small files can unfold to very much.
            count += frame.samples
            if count > most:
                raise ClipError(
                    f"lasts more than {self._budget.limits.max_seconds:,.0f} s, the limit (max_seconds); cut it"
                )
            with damage("its samples do not convert"):
                parts = [part.to_ndarray() for part in planar.resample(frame)]
            for part_Cn in parts:
                with np.errstate(all="ignore"):  # samples that are not numbers are told of next
                    mono = part_Cn.mean(0, dtype=np.float32)
                check_finite(mono, count - frame.samples, self.rate)
                yield mono
        if not count:
            raise ClipError(f"holds no samples; {EXPECTED}")
        self._check_end(count / self.rate)

    def _frames(self) -> Iterator[Any]:
        """Yield decoded frames; what does not decode is damage."""
        packets = self._av.demux(self._stream)
        while True:
            self._budget.check()
            with damage("its sound does not decode"):
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            if packet is None:
                return
            yield from frames

    def _check_end(self, seconds: float) -> None:
        declared = None
        if self._stream.duration is not None:
            declared = float(self._stream.duration * self._stream.time_base)
        elif self._av.duration is not None:
            declared = self._av.duration / 1_000_000
        if declared is None or self._container not in _STATED:
            return
        if seconds < declared - max(0.5, declared / 50):
            raise ClipError(
                f"{DAMAGED}its header says that it lasts {declared:,.1f} s, but it ends at {seconds:,.1f} s"
            )


def check_wav(head: bytes, file: BinaryIO) -> None:
    """Hold what the header says against the file: FFmpeg takes a WAV that was cut short for a short one."""
    at, bytes_a_second = 12, 0
    while at + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, at)
        if name == b"fmt " and size >= 16 and at + 20 <= len(head):
            bytes_a_second = struct.unpack_from("<I", head, at + 16)[0]
        if name == b"data":
            there = file.seek(0, os.SEEK_END) - at - 8
            # Programs that write to a pipe do not know the size yet, and leave one of these.
            if size not in (0, 0xFFFFFFFF, 0x7FFFFFFF) and there < size and bytes_a_second:
                raise ClipError(
                    f"{DAMAGED}its header says that it lasts {size / bytes_a_second:,.1f} s, but it ends at "
                    f"{there / bytes_a_second:,.1f} s"
                )
            return
        at += 8 + size + size % 2


def check_finite(mono: NDArray[np.float32], before: int, rate: int) -> None:
    """Raise ClipError, with the time, where one of float32[n] is not a number; `before` samples came earlier."""
    import numpy as np

    wrong = ~np.isfinite(mono)
    if wrong.any():
        raise ClipError(
            f"holds a sample that is not a number, at {(before + int(wrong.argmax())) / rate:.3f} s"
        )
