"""The step of `stage=speech_pretrain`: hidden spans of log-mels, and the codes that the encoder predicts there.

As in the paper (section 8.2.1; arXiv 2202.01855): spans of 32 mel frames begin at each frame with a chance of 2.5 %,
what is hidden is noise, utterances over 60 s are cropped, and only frames that are hidden whole are predicted.

Shapes: B recordings, A mel frames, T stacked frames, n mels, m = stack * n, C codebooks, X hidden frames, E width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mm_llama.batch import Batch
from mm_llama.data.augment import hide, span_mask, wholly_hidden
from mm_llama.model import MultimodalLlama
from mm_llama.splice import computing_in
from mm_llama.stages.steps import StepOutput

KIND = "speech"


@dataclass
class Drawn:
    """What was drawn for a batch: cropped mels, which of their frames are hidden, which are predicted."""

    mels_BAn: Tensor
    lengths_B: Tensor
    hidden_BA: Tensor
    predicted_BT: Tensor


class PredictCodes:
    """The loss of the codes of hidden frames, averaged over codebooks and summed over frames.

    What is hidden is drawn from torch's global generator, which checkpoints keep. `count` and the call that follows see
    the same draw, so that micro-batches add up to the batch that they are parts of.
    """

    def __init__(
        self,
        probability: float = 0.025,
        span: int = 32,
        noise: float = 0.1,
        max_frames: int = 6000,
        stack: int = 4,
    ) -> None:
        if not 0 < probability < 1 or min(span, max_frames, stack) < 1:
            raise ValueError(
                f"probability={probability} lies between 0 and 1; span={span}, max_frames={max_frames} and "
                f"stack={stack} are at least 1"
            )
        self.probability, self.span, self.noise = probability, span, noise
        self.max_frames, self.stack = max_frames, stack
        self._drawn: dict[int, Drawn] = {}

    @property
    def expected_share(self) -> float:
        """The share of frames that is hidden in a long recording."""
        return float(1 - (1 - self.probability) ** self.span)

    def count(self, batch: Batch) -> int:
        """Return the number of frames to be predicted; draws what is hidden, for the call that follows."""
        drawn = self._drawn[id(batch)] = self.draw(batch)
        return int(drawn.predicted_BT.sum())

    def __call__(self, model: MultimodalLlama, batch: Batch) -> StepOutput:
        """Return the loss of the batch."""
        drawn = self._drawn.pop(id(batch)) if id(batch) in self._drawn else self.draw(batch)
        return self._loss(model, drawn)

    def evaluate(self, model: MultimodalLlama, batches: Iterable[Batch]) -> dict[str, float]:
        """Return loss and share of codes found on recordings held out, with what is hidden drawn the same each time."""
        generator = torch.Generator().manual_seed(0)
        loss, total, right = 0.0, 0, 0.0
        for batch in batches:
            with torch.inference_mode():
                output = self._loss(model, self.draw(batch, generator), generator)
            loss += float(output.loss_sum)
            total += output.num_targets
            right += output.metrics["codes_found"] * output.num_targets
        return {"code_loss": loss / max(1, total), "codes_found": right / max(1, total)}

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> Drawn:
        """Crop, pad and hide. Raises ValueError for a batch without recordings or one that holds features."""
        if KIND not in batch.media or batch.media[KIND].encoded:
            raise ValueError(
                "pre-training needs recordings, and an encoder that trains: name modality.speech.encoder in stage.train"
            )
        generator = torch.default_generator if generator is None else generator
        items = [self._cropped(item, generator) for item in batch.media[KIND].items]
        mels_BAn = nn.utils.rnn.pad_sequence(items, batch_first=True)
        lengths_B = torch.tensor([len(item) for item in items], device=mels_BAn.device)
        hidden_BA = span_mask(
            lengths_B, mels_BAn.shape[1], probability=self.probability, span=self.span, generator=generator
        )
        return Drawn(mels_BAn, lengths_B, hidden_BA, wholly_hidden(hidden_BA, self.stack))

    def _cropped(self, mels_An: Tensor, generator: torch.Generator) -> Tensor:
        spare = len(mels_An) - self.max_frames
        if spare <= 0:
            return mels_An
        start = int(torch.randint(0, spare + 1, (), generator=generator))
        return mels_An[start : start + self.max_frames]

    def _loss(
        self, model: MultimodalLlama, drawn: Drawn, generator: torch.Generator | None = None
    ) -> StepOutput:
        modality = model.modality[KIND]
        encoder, adapter = modality.encoder, modality.adapter
        if encoder.stack != self.stack:
            raise ValueError(
                f"stage.step.stack is {self.stack}, but the encoder stacks {encoder.stack} mel frames: set both alike"
            )
        generator = torch.default_generator if generator is None else generator
        lengths_B = encoder.num_frames(drawn.lengths_B)
        codes_BTC = adapter.quantizer(encoder.stacked(drawn.mels_BAn), lengths_B)
        seen_BAn = hide(drawn.mels_BAn, drawn.hidden_BA, std=self.noise, generator=generator)
        at_BT = drawn.predicted_BT
        with computing_in(model.core.embedding.weight.dtype, encoder):
            frames_BTE = encoder(seen_BAn.to(encoder.projection.weight.dtype), drawn.lengths_B)
            loss, right_C = adapter.predictor(frames_BTE[at_BT], codes_BTC[at_BT])
        num = int(at_BT.sum())
        real = int(drawn.lengths_B.sum())
        return StepOutput(
            loss,
            num,
            {
                "codes_found": float(right_C.float().mean()) / max(1, num),
                "hidden_share": float(drawn.hidden_BA.sum()) / max(1, real),
                "expected_share": self.expected_share,
                "codes_used": codes_used(codes_BTC[at_BT]),
            },
        )


def codes_used(codes_XC: Tensor) -> float:
    """Return the perplexity of int64[X, C] codes, averaged over codebooks: how many are in use, evenly counted."""
    found = []
    for codes_X in codes_XC.unbind(-1):
        _, counts = codes_X.unique(return_counts=True)
        shares = counts.float() / counts.sum().clamp_min(1)
        found.append(float((-(shares * shares.log()).sum()).exp()))
    return sum(found) / max(1, len(found))
