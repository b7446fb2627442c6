"""A voice measured: what a recogniser hears of it, clean and in noise, how far its spectra are, how fast it is.

Held-out recordings are spoken again from their own phones and prosody, so that what acoustic model and vocoder lose is
seen by itself; the teacher's recordings go through the same recogniser.

Shapes: T samples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mm_llama.data.augment import mix
from mm_llama.data.sound import open_sound
from mm_llama.data.sources import Source, evenly
from mm_llama.eval.normalization import text_of
from mm_llama.eval.speech_scores import ErrorRate, align, error_rate
from mm_llama.eval.vqa_result import write_text
from mm_llama.model import MultimodalLlama
from mm_llama.voice.prosody import measured
from mm_llama.voice.recorded import recorded
from mm_llama.voice.spectra import spectral_distance

if TYPE_CHECKING:
    from rich.table import Table

Judge = Callable[[Sequence[Tensor]], list[str]]  # recordings float32[T] at 16 kHz to what is heard
Progress = Callable[[str, int, int], None]  # side, done, all
SIDES = {
    "teacher": "teacher's recording",
    "vocoder": "vocoder, from its log-mels",
    "voice": "acoustic model and vocoder, from its prosody",
}
LISTENER = 16_000  # samples a second that a judge hears


@dataclass
class VoiceResult:
    """What was heard of each side, clean and in noise, with distances and times."""

    texts: list[str]
    seconds: float  # of sound
    noise: float | None  # dB of speech over noise
    heard: dict[str, list[str]] = field(default_factory=dict)
    in_noise: dict[str, list[str]] = field(default_factory=dict)
    distance: dict[str, float] = field(default_factory=dict)  # multi-resolution, mean over recordings
    computed: dict[str, float] = field(default_factory=dict)  # seconds, all recordings one by one

    def errors(self, side: str, noisy: bool = False) -> ErrorRate:
        """Return a side's word errors."""
        heard = (self.in_noise if noisy else self.heard)[side]
        return error_rate([align(text, found) for text, found in zip(self.texts, heard, strict=True)])

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        sides: dict[str, dict[str, Any]] = {}
        for side in self.heard:
            sides[side] = {"clean": self.errors(side).to_json()}
            if self.in_noise:
                sides[side]["noise"] = self.errors(side, noisy=True).to_json()
            if side in self.distance:
                sides[side]["stft_distance"] = self.distance[side]
                sides[side]["real_time_factor"] = self.computed[side] / self.seconds
        return {
            "recordings": len(self.texts),
            "seconds": self.seconds,
            "noise_db": self.noise,
            "sides": sides,
        }

    def table(self) -> Table:
        """Return the numbers as a table to print."""
        from rich.table import Table

        noise = [] if self.noise is None else [f"words wrong at {self.noise:g} dB"]
        table = Table("spoken by", "words wrong", *noise, "STFT distance", "real-time factor")
        for side in self.heard:
            row = [SIDES[side], str(self.errors(side))]
            row += [] if self.noise is None else [str(self.errors(side, noisy=True))]
            if side in self.distance:
                row += [f"{self.distance[side]:.3f}", f"{self.computed[side] / self.seconds:.3f}"]
            table.add_row(*row)
        return table

    def write(self, path: Path, answers: Path) -> None:
        """Write the numbers as JSON and what was heard of every text as JSONL beside it."""
        write_text(path, json.dumps(self.to_json(), indent=2) + "\n")
        rows = [
            {"said": text, "heard": {side: found[row] for side, found in self.heard.items()}}
            | (
                {"in_noise": {side: found[row] for side, found in self.in_noise.items()}}
                if self.in_noise
                else {}
            )
            for row, text in enumerate(self.texts)
        ]
        write_text(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def evaluate_voice(
    model: MultimodalLlama,
    source: Source,
    mel: Any,
    judge: Judge,
    *,
    noise: float | None = 3.0,
    limit: int = 0,
    progress: Progress | None = None,
) -> VoiceResult:
    """Speak rows with `labels` of a voice again and let `judge` write down what is heard.

    `mel` makes the voice's log-mels of samples; `noise` adds white noise, that many dB below the speech; `limit` rows
    at even strides. Raises ValueError without a vocoder, and for rows that are no recordings.
    """
    vocoder = model.spoken("tts_vocoder").adapter
    acoustic: Any = model.spoken("tts_acoustic").adapter if "tts_acoustic" in model.modality else None
    rows = [source.row(index) for index in evenly(len(source), limit)]
    result = VoiceResult([text_of(row) for row in rows], 0.0, noise)
    sides = ["teacher", "vocoder", *(["voice"] if acoustic is not None else [])]
    for number, row in enumerate(rows):
        one = recorded(row.extra.get("labels") or {}, row.source, mel.rate, mel.hop)
        mels = mel(one.samples)
        result.seconds += len(one.samples) / mel.rate
        for side in sides:
            began = time.perf_counter()
            with torch.inference_mode():
                if side == "teacher":
                    samples = one.samples
                elif side == "vocoder":
                    (samples,) = vocoder([mels])
                else:
                    (samples,) = vocoder(acoustic([measured(one, mels)]))
            if side != "teacher":
                result.computed[side] = result.computed.get(side, 0.0) + time.perf_counter() - began
                far = float(spectral_distance(samples[None], one.samples[None, : len(samples)]))
                result.distance[side] = result.distance.get(side, 0.0) + far / len(rows)
            heard = open_sound((samples, mel.rate), rate=LISTENER).samples
            result.heard.setdefault(side, []).extend(judge([heard]))
            if noise is not None:
                noisy = with_noise(heard, noise, seed=number)
                result.in_noise.setdefault(side, []).extend(judge([noisy]))
        if progress is not None:
            progress("recordings", number + 1, len(rows))
    return result


def with_noise(samples_T: Tensor, decibels: float, seed: int) -> Tensor:
    """Return samples with white noise that many dB below them; the same noise for the same seed and length."""
    generator = torch.Generator().manual_seed(seed)
    return mix(samples_T, torch.randn(len(samples_T), generator=generator), decibels, generator=generator)
