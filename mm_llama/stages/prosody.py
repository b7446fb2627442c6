"""What the prosody model learns from: phones of recordings, how they were said, and what the core thinks of their text.

Shapes: P phones, S core positions, D core width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_llama.batch import Batch
from mm_llama.core.chat import ChatFormat
from mm_llama.model import MultimodalLlama
from mm_llama.stages.normalization import answered_rows
from mm_llama.stages.steps import StepOutput
from mm_llama.stages.voice import labels_of, recorded_rows
from mm_llama.voice.predicted import Given, given, prosody_model_of
from mm_llama.voice.prosody import features_of, measured


class Prosody:
    """Smooth absolute distance of length, pitch (where there is a voice) and power, and whether there is a voice.

    `noise` is what is added to the features that are given as known: what is predicted later is not as true.
    """

    def __init__(self, mel: nn.Module, noise: float = 0.3) -> None:
        self.mel: Any = mel
        self.noise = noise
        self.chat: ChatFormat | None = None

    def meet(self, model: MultimodalLlama, chat: ChatFormat) -> None:
        """Be told, before anything else, with whom and in which words."""
        prosody_model_of(model)
        self.chat = chat

    def __call__(self, model: MultimodalLlama, batch: Batch) -> StepOutput:
        """Return the loss of all phones."""
        adapter = prosody_model_of(model).adapter
        asked, truths = self.read(model, batch)
        known = [truth + self.noise * torch.randn_like(truth) for truth in truths]
        found = adapter(asked.phones, known, asked.states, asked.owners, asked.styles)
        losses = [feature_losses(one, truth) for one, truth in zip(found, truths, strict=True)]
        return StepOutput(torch.stack(losses).sum(), sum(map(len, truths)))

    def count(self, batch: Batch) -> int:
        """Return the number of phones."""
        return sum(len(labels["frames"]) for labels in labels_of(batch))

    def evaluate(self, model: MultimodalLlama, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the root mean square errors of what is predicted with nothing known, and the share of voices right.

        Each about one where nothing was learned; pitch where there is a voice.
        """
        adapter = prosody_model_of(model).adapter
        squares, counts = torch.zeros(3, dtype=torch.double), torch.zeros(3, dtype=torch.double)
        right, total = 0, 0
        for batch in batches:
            with torch.inference_mode():
                asked, truths = self.read(model, batch)
                predicted = adapter.predict(asked.phones, asked.states, asked.owners, asked.styles)
                for one, truth in zip(predicted, truths, strict=True):
                    voiced = truth[:, 2] > 0
                    off = (one - truth)[:, (0, 1, 3)].square().double().cpu()
                    squares += torch.stack((off[:, 0].sum(), off[voiced.cpu(), 1].sum(), off[:, 2].sum()))
                    counts += torch.tensor([len(off), int(voiced.sum()), len(off)], dtype=torch.double)
                    right, total = right + int(((one[:, 2] > 0) == voiced).sum()), total + len(off)
        length, pitch, power = (squares / counts.clamp_min(1)).sqrt().tolist()
        return {"length": length, "pitch": pitch, "power": power, "voiced": right / max(1, total)}

    def read(self, model: MultimodalLlama, batch: Batch) -> tuple[Given, list[Tensor]]:
        """Return what the prosody model is given of a batch, and the true features float32[P, 4] of each row."""
        if self.chat is None:
            raise ValueError("the step was not told of its model and tokenizer: call `meet` first")
        truths = [features_of(measured(one, self.mel(one.samples))) for one in recorded_rows(batch, self.mel)]
        rows = answered_rows(batch, self.chat)
        spoken = [labels["phones"] for labels in labels_of(batch)]
        styles = [labels.get("style", 0) for labels in labels_of(batch)]
        return given(model, batch.tokens_BS, rows, spoken, self.chat.tokenizer, styles), truths


def feature_losses(found_P4: Tensor, truth_P4: Tensor) -> Tensor:
    """Return the loss of one utterance, summed over its phones."""
    voiced_P = truth_P4[:, 2]
    off_P4 = F.smooth_l1_loss(found_P4, truth_P4, reduction="none", beta=0.5)
    voice_P = F.binary_cross_entropy_with_logits(found_P4[:, 2], voiced_P, reduction="none")
    return (off_P4[:, 0] + off_P4[:, 1] * voiced_P + 0.5 * voice_P + off_P4[:, 3]).sum()
