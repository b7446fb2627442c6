"""What the acoustic model and the vocoder learn from: recordings with their phones, lengths and pitch. No core is run.

Shapes: B utterances, P phones, F frames, n mels, T samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_llama.batch import Batch
from mm_llama.model import MultimodalLlama
from mm_llama.stages.steps import StepOutput
from mm_llama.voice.prosody import measured
from mm_llama.voice.recorded import Recorded, recorded
from mm_llama.voice.spectra import spectral_distance

ACOUSTIC, VOCODER = "tts_acoustic", "tts_vocoder"


class Acoustic:
    """Mean distance of log-mels in one frame, of phones with the prosody that they were said with.

    In training pitch and power of each phone are told with so much `noise`, normally distributed and in the model's own
    scale: what it will be told by a prosody model is a little wrong too, and what is around a phone tells it better.
    """

    def __init__(self, mel: nn.Module, noise: float = 0.0) -> None:
        if noise < 0:
            raise ValueError(f"noise={noise} is a deviation, expected 0 or more")
        self.mel: Any = mel
        self.noise = noise

    def __call__(self, model: MultimodalLlama, batch: Batch) -> StepOutput:
        """Return the distance, summed over frames."""
        found, truths = self._spoken(model, batch, self.noise)
        losses = [(one - truth).abs().mean(-1).sum() for one, truth in zip(found, truths, strict=True)]
        return StepOutput(torch.stack(losses).sum(), sum(map(len, truths)))

    def count(self, batch: Batch) -> int:
        """Return the number of frames."""
        return sum(sum(labels["frames"]) for labels in labels_of(batch))

    def evaluate(self, model: MultimodalLlama, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean distance in one frame."""
        total, count = 0.0, 0
        for batch in batches:
            with torch.inference_mode():
                found, truths = self._spoken(model, batch)
            total += sum(
                float((one - truth).abs().mean(-1).sum()) for one, truth in zip(found, truths, strict=True)
            )
            count += sum(map(len, truths))
        return {"mel_distance": total / max(1, count)}

    def _spoken(
        self, model: MultimodalLlama, batch: Batch, noise: float = 0.0
    ) -> tuple[list[Tensor], list[Tensor]]:
        adapter = model.spoken(ACOUSTIC).adapter
        utterances, truths = [], []
        for one in recorded_rows(batch, self.mel):
            mel = self.mel(one.samples)
            phones_P, frames_P, prosody_P3 = measured(one, mel)
            if noise:
                wrong_P3 = noise * torch.randn_like(prosody_P3)
                wrong_P3[:, 0] *= prosody_P3[:, 1]  # where there is no voice there is no pitch
                wrong_P3[:, 1] = 0
                prosody_P3 = prosody_P3 + wrong_P3
            utterances.append((phones_P, frames_P, prosody_P3))
            truths.append(mel)
        return list(adapter(utterances)), truths


class Vocode:
    """Multi-resolution distance of spectra between recordings and what the vocoder makes of their log-mels.

    Of each recording a piece of `frames` is taken at random, whose first `warm` frames and last ones, where the vocoder
    lacks what stands around it, do not count. Of `predicted` of the recordings, a share, the log-mels are those that
    the attached acoustic model makes of their phones and prosody: the vocoder gets to know what it will be given.
    """

    def __init__(self, mel: nn.Module, frames: int = 48, warm: int = 8, predicted: float = 0.0) -> None:
        if not 0 <= warm < frames:
            raise ValueError(f"warm={warm} frames of a piece of frames={frames} leave none that count")
        if not 0 <= predicted <= 1:
            raise ValueError(f"predicted={predicted} is a share of recordings, expected 0 to 1")
        self.mel: Any = mel
        self.frames, self.warm, self.predicted = frames, warm, predicted

    def __call__(self, model: MultimodalLlama, batch: Batch) -> StepOutput:
        """Return the distance, summed over recordings."""
        adapter = model.spoken(VOCODER).adapter
        hop, cold = adapter.hop, adapter.frames_ahead + adapter.size // (2 * adapter.hop)
        mels, truths = [], []
        for one in recorded_rows(batch, self.mel):
            mel = self._mel(model, one)
            count = min(self.frames, len(mel))
            start = int(torch.randint(0, len(mel) - count + 1, ()))
            mels.append(F.pad(mel[start : start + count], (0, 0, 0, self.frames - count), value=-1.5))
            piece = one.samples[start * hop : (start + count) * hop]
            truths.append(F.pad(piece, (0, self.frames * hop - len(piece))))
        inner = slice(self.warm * hop, (self.frames - cold) * hop)
        found_BT = torch.stack(adapter(mels))[:, inner]
        loss = spectral_distance(found_BT, torch.stack(truths)[:, inner])
        return StepOutput(loss * len(mels), len(mels))

    def _mel(self, model: MultimodalLlama, one: Recorded) -> Tensor:
        mel: Tensor = self.mel(one.samples)
        if self.predicted and float(torch.rand(())) < self.predicted:
            with torch.no_grad():
                (mel,) = model.spoken(ACOUSTIC).adapter([measured(one, mel)])
        return mel

    def count(self, batch: Batch) -> int:
        """Return the number of recordings."""
        return batch.num_samples

    def evaluate(self, model: MultimodalLlama, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean distance over whole recordings."""
        adapter, found = model.spoken(VOCODER).adapter, []
        for batch in batches:
            for one in recorded_rows(batch, self.mel):
                with torch.inference_mode():
                    (samples,) = adapter([self.mel(one.samples)])
                    found.append(float(spectral_distance(samples[None], one.samples[None, : len(samples)])))
        return {"stft_distance": sum(found) / max(1, len(found))}


def labels_of(batch: Batch) -> Sequence[Mapping[str, Any]]:
    """Return the labels of each row. Raises ValueError, naming the row, where one of a voice is missing."""
    for labels, source in zip(batch.labels, batch.sources, strict=True):
        if missing := sorted({"phones", "frames", "f0", "audio"} - set(labels)):
            raise ValueError(
                f"{source}: the row's labels have no {missing[0]!r}; a voice needs phones, frames, f0, audio"
            )
    return batch.labels


def recorded_rows(batch: Batch, mel: Any) -> list[Recorded]:
    """Return the recording of each row, on the device of the batch."""
    device = batch.tokens_BS.device
    mel.to(device)
    return [
        recorded(labels, source, mel.rate, mel.hop).to(device)
        for labels, source in zip(labels_of(batch), batch.sources, strict=True)
    ]
