"""Engines of others in place of prosody model, acoustic model and vocoder: what is written is still read by our own.

An engine is anything with these methods (`mm_llama.data.text_to_speech.Hibari` is one). It is given a whole sentence,
so sound begins when that is written.

Shapes: T samples, P phones, F frames.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch
from torch import Tensor

from mm_llama.voice.prosody import features_of, prosody_of
from mm_llama.voice.uttering import Said
from mm_llama.voice.wording import Word

FRAME = 0.0125  # seconds


class Engine(Protocol):
    """Phones of a text, and phones spoken: samples float32[T], frames of 12.5 ms of each phone and of the silence
    before and behind, and the pitch of each frame in Hz, near zero where there is no voice."""

    rate: int

    def phones(self, text: str) -> str:
        """Return the phones of a text, words apart."""
        ...

    def teach(self, phones: str) -> Any:
        """Return phones spoken, with `samples`, `frames` and `f0_F`."""
        ...


class EngineSentence:
    """One sentence for an engine, to be told its words; as `mm_llama.voice.uttering.Sentence`."""

    num_samples = 0

    def __init__(self, engine: Engine, seconds: dict[str, float]) -> None:
        self.engine, self.seconds = engine, seconds
        self.words: list[str] = []

    def push(self, word: Word) -> Tensor:
        """Return no samples: an engine waits for the end of the sentence."""
        self.words.append(word.text)
        return torch.zeros(0)

    def finish(self) -> Said | None:
        """Return the sentence with its samples; None when nothing of it can be said."""
        words, began = " ".join(self.words), time.perf_counter()
        phones = self.engine.phones(words) if words else ""
        if not phones.strip():
            return None
        spoken = self.engine.teach(phones)
        frames_P = torch.tensor(spoken.frames)
        f0_F = spoken.f0_F[: int(frames_P.sum())]
        f0_F = torch.nn.functional.pad(f0_F, (0, int(frames_P.sum()) - len(f0_F)))
        prosody_P3 = prosody_of(frames_P, torch.where(f0_F >= 40, f0_F, 0.0), torch.zeros(len(f0_F), 1))
        features_P4 = features_of((frames_P, frames_P, prosody_P3))
        self.seconds["engine"] += time.perf_counter() - began
        return Said(words, phones, features_P4, frames_P, spoken.samples)
