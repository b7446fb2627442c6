"""A source whose recordings are played at other speeds and with noise beneath them, the same at every reading."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mm_llama.core.messages import MediaPart, Message
from mm_llama.data.augment import change_speed, mix
from mm_llama.data.recordings import Recordings
from mm_llama.data.sound import RATE, open_sound
from mm_llama.data.sources import Row, Source


class Augmented:
    """Each row of a source `copies` times, with one of `speeds` and, where a folder of `noise` is given, a noise.

    What is drawn for a row depends on the seed, the row and the copy alone: features of the changed recordings can be
    kept as those of any others. `snr_db` are the softest and the loudest noise, as ratios to the speech in decibels.
    """

    def __init__(
        self,
        source: Source,
        speeds: Sequence[float] = (0.9, 1.0, 1.1),
        noise: str | Path | Sequence[str | Path] | None = None,
        snr_db: Sequence[float] = (5.0, 20.0),
        copies: int = 1,
        seed: int = 0,
    ) -> None:
        if copies < 1 or not speeds or any(not 0.25 <= speed <= 4 for speed in speeds):
            raise ValueError(f"copies={copies} is at least 1, speeds={list(speeds)} are from 0.25 to 4")
        if len(snr_db) != 2 or snr_db[0] > snr_db[1]:
            raise ValueError(f"snr_db={list(snr_db)} must be the least and the greatest ratio in decibels")
        self.source, self.speeds, self.copies, self.seed = source, tuple(speeds), copies, seed
        self.noise = None if noise is None else Recordings(noise)
        self.snr_db = (float(snr_db[0]), float(snr_db[1]))
        under = self.noise.digest if self.noise else ""
        said = f"augmented {self.speeds} {under} {self.snr_db} {copies} {seed} {source.digest}"
        self.digest = f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"

    def __len__(self) -> int:
        return len(self.source) * self.copies

    def name_of(self, index: int) -> str:
        """Return "file:line" of the row that is changed."""
        return self.source.name_of(index % len(self.source))

    def row(self, index: int) -> Row:
        """Return a row with its recordings changed."""
        row = self.source.row(index % len(self.source))
        said = f"{self.seed} {index}"
        drawn = int.from_bytes(hashlib.sha256(said.encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(drawn)
        return replace(row, messages=tuple(self._changed(message, generator) for message in row.messages))

    def _changed(self, message: Message, generator: torch.Generator) -> Message:
        parts = tuple(
            replace(part, source=(self._heard(part, generator), RATE))
            if isinstance(part, MediaPart) and part.kind == "speech"
            else part
            for part in message.parts
        )
        return replace(message, parts=parts)

    def _heard(self, part: MediaPart, generator: torch.Generator) -> torch.Tensor:
        def draw(count: int) -> int:
            return int(torch.randint(0, count, (), generator=generator))

        samples = change_speed(open_sound(part.source).samples, self.speeds[draw(len(self.speeds))])
        if self.noise is not None:
            (under,) = self.noise.row(draw(len(self.noise))).messages[0].parts
            assert isinstance(under, MediaPart)
            least, most = self.snr_db
            snr_db = least + (most - least) * float(torch.rand((), generator=generator))
            samples = mix(samples, open_sound(under.source).samples, snr_db, generator=generator)
        return samples
