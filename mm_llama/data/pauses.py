"""Long recordings cut where nobody speaks: every sample lies in exactly one piece, and silence is said to be silence.

Loudness against the quiet of the last half minute tells speech from pauses, block by block, so hours need the memory of
one piece; where noise is as loud as speech, a network does (`mm_llama.data.voice_activity`). No piece is longer than it
may be: where nobody pauses for so long, it ends at the quietest place of its last part.

Shapes: n samples.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_llama.data.sound import RATE
from mm_llama.data.voice_activity import WINDOW, VoiceActivity

FRAME = RATE // 100
# In decibels: speech is so much above the quiet, never below the one level of full scale, and always above the other:
# where it is never quiet, the quiet is no measure.
ABOVE_QUIET, LEAST_LEVEL, SURE_LEVEL = 9.0, -55.0, -38.0
QUIET_FRAMES = 3000  # the quiet is what a tenth of the last half minute lies below
EDGE = 0.2  # seconds of pause that stay on either side of speech
SPOKEN = 0.5  # the network's probability from which a window is speech


@dataclass(frozen=True)
class Piece:
    """Samples float32[n] of a recording from `start` seconds on; `silent` where nobody speaks."""

    start: float
    samples: Tensor
    silent: bool

    @property
    def end(self) -> float:
        """Where it ends, in seconds of the recording."""
        return self.start + len(self.samples) / RATE


class Cutter:
    """Pieces of a stream of 16 kHz samples: `push` as they come, then `finish`."""

    def __init__(
        self,
        max_seconds: float = 15.0,
        pause: float = 0.5,
        least: float = 1.0,
        voice: VoiceActivity | None = None,
    ) -> None:
        """A pause of `pause` seconds ends a piece of at least `least` seconds; none is longer than `max_seconds`.

        `voice`, fresh for this recording, tells speech from pauses in place of loudness.
        """
        if not 0 < 2 * EDGE <= pause <= least < max_seconds:
            raise ValueError(
                f"pause={pause}, least={least}, max_seconds={max_seconds}: expected {2 * EDGE} <= pause <= least < "
                "max_seconds"
            )
        self.most = int(max_seconds * 100)
        self.pause, self.least = int(pause * 100), int(least * 100)
        self.voice = voice
        self._unit = FRAME if voice is None else math.lcm(FRAME, WINDOW)  # samples that are judged at once
        self._rest = torch.zeros(0)  # samples that fill no frame yet
        self._samples = torch.zeros(0)
        self._levels: list[float] = []
        self._speech: list[bool] = []
        self._lately: deque[float] = deque(maxlen=QUIET_FRAMES)
        self._seen, self._quiet = 0, 0.0  # frames, and the level that a tenth of the last ones lies below
        self._start = 0  # samples of the recording before these

    def push(self, block_n: Tensor) -> list[Piece]:
        """Take samples and return the pieces that end with them."""
        samples = torch.cat((self._rest, block_n.float()))
        whole = len(samples) // self._unit * self._unit
        self._rest = samples[whole:]
        return self._judge(samples[:whole])

    def _judge(self, samples: Tensor) -> list[Piece]:
        levels = _levels(samples)
        self._samples = torch.cat((self._samples, samples))
        spoken = None if self.voice is None else self._spoken(samples)
        found = []
        for number, level in enumerate(levels):
            self._levels.append(level)
            self._lately.append(level)
            self._speech.append(level > self._threshold() if spoken is None else spoken[number])
            if (cut := self._cut()) is not None:
                found.append(self._take(*cut))
        return found

    def _spoken(self, samples: Tensor) -> list[bool]:
        """Say of each frame whether the window that its middle lies in is speech."""
        assert self.voice is not None
        spare = -len(samples) % WINDOW
        likely = self.voice.push(torch.nn.functional.pad(samples, (0, spare)))
        middles = torch.arange(len(samples) // FRAME) * FRAME + FRAME // 2
        said: list[bool] = (likely[middles // WINDOW] > SPOKEN).tolist()
        return said

    def finish(self) -> list[Piece]:
        """Return what is left: mostly one piece."""
        whole = len(self._rest) // FRAME * FRAME
        rest, self._rest = self._rest, self._rest[:0]
        found = self._judge(rest[:whole])
        self._samples = torch.cat((self._samples, rest[whole:]))
        if len(self._samples):
            found.append(self._take(len(self._samples), not any(self._speech)))
        return found

    @property
    def open(self) -> Piece:
        """What has come and belongs to no finished piece yet."""
        return Piece(self._start / RATE, torch.cat((self._samples, self._rest)), not any(self._speech))

    def _threshold(self) -> float:
        # Sorted now and then: it changes slowly.
        if self._seen % 50 == 0:
            ordered = sorted(self._lately)
            self._quiet = ordered[len(ordered) // 10]
        self._seen += 1
        return min(max(self._quiet + ABOVE_QUIET, LEAST_LEVEL), SURE_LEVEL)

    def _cut(self) -> tuple[int, bool] | None:
        """Say at which sample the first piece ends now, and whether it is silent; None where it goes on."""
        count = len(self._levels)
        still = next((n for n, speech in enumerate(reversed(self._speech)) if speech), count)
        edge = int(EDGE * 100)
        if still == count:
            # Only quiet so far: given out by the second, all but what may be the breath before a word.
            return ((count - edge) * FRAME, True) if count >= self.least + edge else None
        if still >= self.pause and count - still + edge >= self.least:
            return (count - still + edge) * FRAME, False
        if count < self.most:
            return None
        first = count * 6 // 10
        windows = [sum(self._levels[n - 5 : n + 6]) for n in range(first, count - 5)]
        return (first + min(range(len(windows)), key=windows.__getitem__)) * FRAME, False

    def _take(self, num_samples: int, silent: bool) -> Piece:
        piece = Piece(self._start / RATE, self._samples[:num_samples], silent)
        self._samples = self._samples[num_samples:]
        frames = num_samples // FRAME
        self._levels, self._speech = self._levels[frames:], self._speech[frames:]
        self._start += num_samples
        return piece


def cut(
    blocks: Iterable[Tensor], max_seconds: float = 15.0, voice: VoiceActivity | None = None
) -> Iterator[Piece]:
    """Yield the pieces of a recording that comes in blocks of 16 kHz samples; side by side they are the recording."""
    cutter = Cutter(max_seconds, voice=voice)
    for block in blocks:
        yield from cutter.push(block)
    yield from cutter.finish()


def _levels(samples: Tensor) -> list[float]:
    """Return the level of each frame in decibels of full scale."""
    power = samples.view(-1, FRAME).square().mean(1)
    levels: list[float] = (10 * power.clamp_min(1e-10).log10()).tolist()
    return levels
