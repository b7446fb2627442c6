"""Prosody measured: how far predicted lengths, pitch and power are from the true ones, and which of two is nearer.

Nothing is given as known: each phone follows from what was predicted before it, as in use.

Shapes: U utterances, P phones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mm_llama.core.chat import ChatFormat
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.data.sources import Source, evenly
from mm_llama.eval.normalization import text_of
from mm_llama.model import MultimodalLlama
from mm_llama.voice.predicted import given, prosody_model_of
from mm_llama.voice.prosody import F0_SCALE, LENGTH_SCALE, POWER_SCALE, features_of, measured
from mm_llama.voice.recorded import recorded
from mm_llama.voice.tagging import written_rows

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[str, int, int], None]  # side, done, all
# Feature: its place, what one of it is in the unit that is told, and that unit.
FEATURES = {
    "length": (0, 1 / LENGTH_SCALE, "log frames"),
    "pitch": (1, 12 / math.log(2) / F0_SCALE, "semitones"),
    "power": (3, 40 / POWER_SCALE, "dB"),  # a log-mel counts four powers of ten, of power
}
BATCH = 16
FLIPS = 10_000


@dataclass
class ProsodyResult:
    """Predicted and true features float[P, 4] of every utterance, in order."""

    found: list[Tensor]
    truths: list[Tensor]

    def pairs(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Return (predicted, true) of a feature by utterance, in its unit; pitch where there is a voice."""
        place, unit, _ = FEATURES[name]
        kept = [
            truth[:, 2] > 0 if name == "pitch" else torch.ones(len(truth), dtype=torch.bool)
            for truth in self.truths
        ]
        return [
            (one[keep, place] * unit, truth[keep, place] * unit)
            for one, truth, keep in zip(self.found, self.truths, kept, strict=True)
        ]

    def squares(self, name: str) -> np.ndarray[Any, Any]:
        """Return float64[U]: the mean squared error of each utterance, 0 for one that has nothing to compare."""
        return np.array(
            [float((one - other).square().mean()) if len(one) else 0.0 for one, other in self.pairs(name)]
        )

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        found: dict[str, Any] = {"utterances": len(self.truths), "phones": sum(map(len, self.truths))}
        for name, (_, _, unit) in FEATURES.items():
            one, other = (torch.cat(parts).double() for parts in zip(*self.pairs(name), strict=True))
            found[name] = {
                "rmse": float((one - other).square().mean().sqrt()),
                "correlation": float(torch.corrcoef(torch.stack((one, other)))[0, 1]),
                "deviation": float(other.std()),
                "unit": unit,
            }
        right = sum(
            int(((a[:, 2] > 0) == (b[:, 2] > 0)).sum()) for a, b in zip(self.found, self.truths, strict=True)
        )
        return found | {"voiced": right / max(1, found["phones"])}


def paired_p(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], seed: int = 0) -> float:
    """Return how likely a mean difference at least as large is by chance, two-sided: signs of differences are drawn."""
    differences = ours - theirs
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(FLIPS, len(differences)))
    drawn = np.abs((signs * differences).mean(axis=1))
    return float((1 + (drawn >= abs(differences.mean())).sum()) / (1 + FLIPS))


def compared(ours: ProsodyResult, theirs: ProsodyResult) -> dict[str, Any]:
    """Return by feature the share by which our squared error is smaller, and how likely that is by chance."""
    found = {}
    for name in FEATURES:
        mine, other = ours.squares(name), theirs.squares(name)
        found[name] = {"less": float(1 - mine.mean() / other.mean()), "p": paired_p(mine, other)}
    return found


def table_of(results: Sequence[tuple[str, ProsodyResult]]) -> Table:
    """Return results as a table to print; the second is compared with the first."""
    from rich.table import Table

    table = Table(
        "", *(f"{name} ({unit}): RMSE, correlation" for name, (_, _, unit) in FEATURES.items()), "voiced"
    )
    for name, result in results:
        numbers = result.to_json()
        cells = [f"{numbers[one]['rmse']:.3f}, {numbers[one]['correlation']:.3f}" for one in FEATURES]
        table.add_row(name, *cells, f"{100 * numbers['voiced']:.1f} %")
    truth = results[0][1].to_json()
    table.add_row("deviation of the truth", *(f"{truth[one]['deviation']:.3f}" for one in FEATURES), "")
    return table


def evaluate_prosody(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    source: Source,
    mel: Any,
    *,
    style: int | str | None = None,
    limit: int = 0,
    progress: Progress | None = None,
) -> ProsodyResult:
    """Predict the prosody of every row of a voice, or of `limit` rows at even strides; `mel` makes its log-mels.

    `style` is that of all; None: of each the one that its row names, else the first. Raises ValueError without a
    prosody model, for a style that it does not have, and for rows that are no recordings.
    """
    adapter = prosody_model_of(model).adapter
    rows = [source.row(index) for index in evenly(len(source), limit)]
    result = ProsodyResult([], [])
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        tokens_BS, texts = written_rows([text_of(row) for row in part], chat)
        spoken, styles = list[str](), list[int | str]()
        for row in part:
            labels = row.extra.get("labels") or {}
            take = recorded(labels, row.source, mel.rate, mel.hop)
            result.truths.append(features_of(measured(take, mel(take.samples))))
            spoken.append(labels["phones"])
            styles.append(labels.get("style", 0) if style is None else style)
        with torch.inference_mode():
            asked = given(model, tokens_BS.to(model.device), texts, spoken, tokenizer, styles)
            found = adapter.predict(asked.phones, asked.states, asked.owners, asked.styles)
            result.found += [one.cpu() for one in found]
        if progress is not None:
            progress("utterances", len(result.found), len(rows))
    return result
