"""A voice measured: what recognisers hear of it, clean and in noise, how far its spectra are, how fast it is.

Held-out recordings are spoken again: through the vocoder from their own log-mels, through acoustic model and vocoder
from their own phones and prosody, and through every part from the text alone. What each part loses is so seen by
itself; the teacher's recordings go through the same recognisers.

Shapes: T samples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mm_llama.data.augment import mix
from mm_llama.data.sound import open_sound
from mm_llama.data.sources import Source, evenly
from mm_llama.eval.normalization import text_of
from mm_llama.eval.perceptual import measures
from mm_llama.eval.speech_scores import ErrorRate, align, error_rate
from mm_llama.eval.vqa_result import write_text
from mm_llama.model import MultimodalLlama
from mm_llama.voice.prosody import measured
from mm_llama.voice.recorded import recorded
from mm_llama.voice.spectra import mel_cepstral_distortion, spectral_distance

if TYPE_CHECKING:
    from rich.table import Table

    from mm_llama.voice.speak import Speaker

Judge = Callable[[Sequence[Tensor]], list[str]]  # recordings float32[T] at 16 kHz to what is heard
Progress = Callable[[str, int, int], None]  # side, done, all
SIDES = {
    "teacher": "teacher's recording",
    "vocoder": "vocoder, from its log-mels",
    "voice": "acoustic model and vocoder, from its prosody",
    "own": "every part, from the text",
}
# Distances to the teacher's recording, of sides that keep its time: what they are called, and how many digits are told.
DISTANCES = {
    "stft_distance": ("STFT distance", 3),
    "mel_cepstral_distortion": ("MCD, dB", 2),
    "pesq": ("PESQ", 2),
    "stoi": ("STOI", 3),
}
LISTENER = 16_000  # samples a second that a judge hears


@dataclass
class TTSResult:
    """What each judge heard of each side, clean and in noise, with distances and times."""

    texts: list[str]
    seconds: float  # of the teacher's sound
    noise: float | None  # dB of speech over noise
    judges: list[str]
    heard: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # of a judge and a side
    in_noise: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    distances: dict[str, dict[str, float]] = field(default_factory=dict)  # of a side, means over recordings
    computed: dict[str, float] = field(default_factory=dict)  # seconds of a side, all recordings one by one
    spoken: dict[str, float] = field(default_factory=dict)  # seconds of sound that a side made
    parts: dict[str, float] = field(default_factory=dict)  # seconds of the parts of the whole voice

    def errors(self, side: str, noisy: bool = False, judge: str = "") -> ErrorRate:
        """Return a side's word errors as a judge hears it, the first one by default."""
        heard = (self.in_noise if noisy else self.heard)[judge or self.judges[0], side]
        return error_rate([align(text, found) for text, found in zip(self.texts, heard, strict=True)])

    @property
    def sides(self) -> list[str]:
        """Return the sides that were heard, in order."""
        return [side for side in SIDES if (self.judges[0], side) in self.heard]

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        sides: dict[str, dict[str, Any]] = {}
        for side in self.sides:
            found: dict[str, Any] = {}
            for judge in self.judges:
                found[judge] = {"clean": self.errors(side, judge=judge).to_json()}
                if self.in_noise:
                    found[judge]["noise"] = self.errors(side, noisy=True, judge=judge).to_json()
            found |= self.distances.get(side, {})
            if side in self.computed:
                found["real_time_factor"] = self.computed[side] / self.spoken[side]
            sides[side] = found
        return {
            "recordings": len(self.texts),
            "seconds": self.seconds,
            "noise_db": self.noise,
            "judges": self.judges,
            "sides": sides,
            "parts": {name: seconds / self.spoken["own"] for name, seconds in self.parts.items()},
        }

    def table(self) -> Table:
        """Return the numbers as a table to print."""
        from rich.table import Table

        columns = []
        for judge in self.judges:
            columns.append(f"words wrong, {judge}")
            columns += [] if self.noise is None else [f"at {self.noise:g} dB"]
        known = [name for name in DISTANCES if any(name in found for found in self.distances.values())]
        table = Table("spoken by", *columns, *(DISTANCES[name][0] for name in known), "real-time factor")
        for side in self.sides:
            row = [SIDES[side]]
            for judge in self.judges:
                row.append(str(self.errors(side, judge=judge)))
                row += [] if self.noise is None else [str(self.errors(side, noisy=True, judge=judge))]
            for name in known:
                value = self.distances.get(side, {}).get(name)
                row.append("" if value is None else f"{value:.{DISTANCES[name][1]}f}")
            row.append(f"{self.computed[side] / self.spoken[side]:.3f}" if side in self.computed else "")
            table.add_row(*row)
        return table

    def write(self, path: Path, answers: Path) -> None:
        """Write the numbers as JSON and what was heard of every text as JSONL beside it."""
        write_text(path, json.dumps(self.to_json(), indent=2) + "\n")
        rows = []
        for row, text in enumerate(self.texts):
            one: dict[str, Any] = {"said": text}
            for name, told in (("heard", self.heard), ("in_noise", self.in_noise)):
                if told:
                    one[name] = {
                        judge: {side: told[judge, side][row] for side in self.sides} for judge in self.judges
                    }
            rows.append(one)
        write_text(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def evaluate_tts(
    model: MultimodalLlama,
    source: Source,
    mel: Any,
    judges: Mapping[str, Judge],
    *,
    speaker: Speaker | None = None,
    noise: float | None = 3.0,
    limit: int = 0,
    sides: Sequence[str] = (),
    progress: Progress | None = None,
    on_sound: Callable[[str, str, Tensor], None] | None = None,
) -> TTSResult:
    """Speak rows with `labels` of a voice again and let judges write down what is heard.

    `mel` makes the voice's log-mels of samples; with `speaker` the texts are spoken by every part as well; `noise` adds
    white noise, that many dB below the speech; `limit` rows at even strides. `on_sound(text, side, samples)` is told
    every sound. `sides` names those that are measured (default: all that the attached parts can be). Raises ValueError
    for an unknown side, without a vocoder, and for rows that are no recordings.
    """
    if unknown := sorted(set(sides) - set(SIDES)):
        raise ValueError(f"there is no side {unknown[0]!r}; sides are {', '.join(SIDES)}")
    vocoder = model.spoken("tts_vocoder").adapter
    acoustic: Any = model.spoken("tts_acoustic").adapter if "tts_acoustic" in model.modality else None
    rows = [source.row(index) for index in evenly(len(source), limit)]
    result = TTSResult([text_of(row) for row in rows], 0.0, noise, list(judges))
    compared = measures()
    for number, row in enumerate(rows):
        one = recorded(row.extra.get("labels") or {}, row.source, mel.rate, mel.hop)
        mels = mel(one.samples)
        result.seconds += len(one.samples) / mel.rate
        found = {}
        for side in sides or SIDES:
            began = time.perf_counter()
            with torch.inference_mode():
                if side == "teacher":
                    found[side] = one.samples
                    continue
                if side == "vocoder":
                    (samples,) = vocoder([mels])
                elif side == "voice" and acoustic is not None:
                    (samples,) = vocoder(acoustic([measured(one, mels)]))
                elif side == "own" and speaker is not None:
                    samples = torch.cat([part.samples for part in speaker.say(text_of(row))])
                else:
                    continue
            result.computed[side] = result.computed.get(side, 0.0) + time.perf_counter() - began
            result.spoken[side] = result.spoken.get(side, 0.0) + len(samples) / mel.rate
            found[side] = samples
        for side, samples in found.items():
            heard = open_sound((samples, mel.rate), rate=LISTENER).samples
            noisy = None if noise is None else with_noise(heard, noise, seed=number)
            for name, judge in judges.items():
                result.heard.setdefault((name, side), []).extend(judge([heard]))
                if noisy is not None:
                    result.in_noise.setdefault((name, side), []).extend(judge([noisy]))
            if side in ("vocoder", "voice"):
                truth = one.samples[: len(samples)]
                far = {
                    "stft_distance": float(spectral_distance(samples[None], truth[None])),
                    "mel_cepstral_distortion": float(mel_cepstral_distortion(mel(samples), mel(truth))),
                }
                plain = open_sound((truth, mel.rate), rate=LISTENER).samples
                far |= {name: measure(plain, heard) for name, measure in compared.items()}
                told = result.distances.setdefault(side, {})
                for name, value in far.items():
                    told[name] = told.get(name, 0.0) + value / len(rows)
            if on_sound is not None:
                on_sound(text_of(row), side, samples)
        if progress is not None:
            progress("recordings", number + 1, len(rows))
    if speaker is not None:
        result.parts = dict(speaker.seconds)
    return result


def with_noise(samples_T: Tensor, decibels: float, seed: int) -> Tensor:
    """Return samples with white noise that many dB below them; the same noise for the same seed and length."""
    generator = torch.Generator().manual_seed(seed)
    return mix(samples_T, torch.randn(len(samples_T), generator=generator), decibels, generator=generator)
