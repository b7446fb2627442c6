"""What the aligner learns from: recordings whose phones and lengths are known, changed so that any voice is heard.

Shapes: F frames, n mels, P phones, T samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_llama.batch import Batch
from mm_llama.data.augment import change_speed, mix, spec_augment
from mm_llama.data.sound import open_sound
from mm_llama.model import MultimodalLlama
from mm_llama.stages.steps import StepOutput
from mm_llama.stages.voice import labels_of
from mm_llama.voice.aligning import align
from mm_llama.voice.recorded import Recorded, recorded

ALIGNER = "tts_aligner"
SNR = 10, 50  # dB of white noise beneath what is learned from
NEAR = 2  # frames: a boundary is found where it is no further off


class Aligning:
    """Cross-entropy of the phone of each frame.

    In training a piece of `frames` of each recording is heard faster and higher or slower and lower (`speeds`), with
    white noise of 10 to 50 dB below it, with another slope of its spectrum (`slope`, a deviation) and with up to `band`
    mels missing: of one teacher the aligner is to learn what phones are, and not what the teacher is.
    """

    def __init__(
        self,
        rate: int = 24_000,
        hop: int = 300,
        frames: int = 240,
        speeds: tuple[float, float] = (0.8, 1.25),
        slope: float = 0.3,
        band: int = 12,
    ) -> None:
        if not 0.5 <= speeds[0] <= speeds[1] <= 2:
            raise ValueError(f"speeds={tuple(speeds)} are the least and the greatest, expected 0.5 to 2")
        self.rate, self.hop, self.frames = rate, hop, frames
        self.speeds, self.slope, self.band = speeds, slope, band

    def __call__(self, model: MultimodalLlama, batch: Batch) -> StepOutput:
        """Return the cross-entropy, summed over the frames of the pieces."""
        adapter = model.spoken(ALIGNER).adapter
        device, mels, truths = batch.tokens_BS.device, [], []
        for one in self._recorded(batch):
            owner_F = torch.repeat_interleave(one.phones_P, one.frames_P)
            count = min(self.frames, len(owner_F))
            start = int(torch.randint(0, len(owner_F) - count + 1, ()))
            owner_F = owner_F[start : start + count]
            samples_T = one.samples[start * self.hop : (start + count) * self.hop]
            mel_Fn = self._varied(adapter, samples_T, device)
            # Changed speed changes the number of frames: each is of the phone that was there.
            places_F = (torch.arange(len(mel_Fn)) + 0.5) * count / len(mel_Fn)
            mels.append(mel_Fn)
            truths.append(owner_F[places_F.long().clamp_max(count - 1)].to(device))
        losses, right, pieces = [], 0.0, self._pieces(batch)
        for logs_FN, truth_F, count in zip(adapter(mels), truths, pieces, strict=True):
            # Each counts as many frames as it was cut with, whatever its speed was changed to.
            losses.append(F.nll_loss(logs_FN, truth_F) * count)
            right += float((logs_FN.detach().argmax(-1) == truth_F).float().mean()) * count
        return StepOutput(torch.stack(losses).sum(), sum(pieces), {"accuracy": right / sum(pieces)})

    def count(self, batch: Batch) -> int:
        """Return the number of frames of the pieces that are cut."""
        return sum(self._pieces(batch))

    def _pieces(self, batch: Batch) -> list[int]:
        return [min(self.frames, sum(labels["frames"])) for labels in labels_of(batch)]

    def evaluate(self, model: MultimodalLlama, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the shares of frames whose phone is heard and of boundaries found within 25 ms; their mean error."""
        adapter, right, frames = model.spoken(ALIGNER).adapter, 0, 0
        errors: list[Tensor] = []
        for batch in batches:
            for one in self._recorded(batch):
                with torch.inference_mode():
                    heard_T = self._heard(adapter, one.samples).to(batch.tokens_BS.device)
                    (logs_FN,) = adapter([adapter.features(heard_T)])
                owner_F = torch.repeat_interleave(one.phones_P, one.frames_P)
                logs_FN = logs_FN[: len(owner_F)].cpu()
                right += int((logs_FN.argmax(-1) == owner_F[: len(logs_FN)]).sum())
                frames += len(logs_FN)
                found_P, _ = align(logs_FN, one.phones_P)
                errors.append((found_P.cumsum(0) - one.frames_P.cumsum(0))[:-1].abs())
        off = torch.cat(errors) if errors else torch.zeros(1)
        return {
            "accuracy": right / max(1, frames),
            "near": float((off <= NEAR).float().mean()),
            "boundary_seconds": float(off.float().mean()) * self.hop / self.rate,
        }

    def _recorded(self, batch: Batch) -> list[Recorded]:
        pairs = zip(labels_of(batch), batch.sources, strict=True)
        return [recorded(labels, source, self.rate, self.hop) for labels, source in pairs]

    def _heard(self, adapter: Any, samples_T: Tensor) -> Tensor:
        return open_sound((samples_T, self.rate), rate=adapter.rate).samples

    def _varied(self, adapter: Any, samples_T: Tensor, device: torch.device) -> Tensor:
        heard_T = change_speed(self._heard(adapter, samples_T), _uniform(*self.speeds))
        noise_T = torch.randn_like(heard_T)
        noisy_T = mix(heard_T, noise_T, _uniform(*SNR), generator=None)
        mel_Fn: Tensor = adapter.features(noisy_T.to(device))
        tilt_n = torch.linspace(-1, 1, mel_Fn.shape[1], device=device)
        mel_Fn = mel_Fn + self.slope * float(torch.randn(())) * tilt_n
        return spec_augment(mel_Fn, generator=None, time_masks=0, mel_masks=1, mel_width=self.band)


def _uniform(least: float, most: float) -> float:
    return float(torch.empty(()).uniform_(least, most))
