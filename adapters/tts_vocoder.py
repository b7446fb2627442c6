"""The vocoder: log-mels to samples through an inverse short-time Fourier transform (Vocos, arXiv 2306.00814).

Magnitude and phase of each frame come from blocks of convolutions that look a stated number of frames ahead; the
transform overlaps four frames, so a sample is there two frames after its own.

Shapes: B utterances, F frames, n mels, W width, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from adapters.convolutions import Block, Convolution, Tail, aheads, init_weights, real_steps

LARGEST = 7.0  # of the logarithm of a magnitude


@dataclass
class Waving:
    """What the vocoder keeps of an utterance whose frames come in pieces."""

    input: Tail
    blocks: list[Tail]
    skip: int  # samples before the first frame's middle
    sums_2T: Tensor = field(
        default_factory=lambda: torch.zeros(2, 0)
    )  # of samples and of shares, not all added yet


class Vocoder(nn.Module):
    """Log-mels float[F, n] to samples float32[F * hop]."""

    def __init__(
        self,
        num_mels: int = 80,
        rate: int = 24_000,
        window: int = 1200,
        hop: int = 300,
        width: int = 256,
        hidden: int = 768,
        num_blocks: int = 6,
        kernel: int = 7,
        frames_ahead: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if window % (2 * hop):
            raise ValueError(f"a window of {window} samples is not an even number of hops of {hop}")
        self.num_mels, self.rate, self.size, self.hop = num_mels, rate, window, hop
        first, *rest = aheads(num_blocks + 1, kernel, frames_ahead)
        self.frames_ahead = frames_ahead
        self.input = Convolution(num_mels, width, kernel, first)
        self.blocks: Any = nn.ModuleList(Block(width, hidden, kernel, ahead) for ahead in rest)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, window + 2)
        self.window: Tensor
        with torch.device("cpu"):
            self.register_buffer("window", torch.hann_window(window), persistent=False)
        if not self.output.weight.is_meta:
            init_weights(self, seed)

    def forward(self, mels: Sequence[Tensor]) -> list[Tensor]:
        """Return float32[F * hop] of each; what one gives does not depend on the others."""
        counts = [len(item) for item in mels]
        spectra = self.spectra(mels)
        return [self.samples(spectrum, count) for spectrum, count in zip(spectra, counts, strict=True)]

    def spectra(self, mels: Sequence[Tensor]) -> list[Tensor]:
        """Return complex64[F, bins] of each. Raises ValueError for a log-mel of other sizes."""
        for item in mels:
            if item.ndim != 2 or item.shape[1] != self.num_mels or not len(item):
                raise ValueError(
                    f"the vocoder reads log-mels [frames, {self.num_mels}], but these are {list(item.shape)}"
                )
        counts = [len(item) for item in mels]
        x_BFn = pad_sequence(list(mels), batch_first=True)
        real_BF1 = real_steps(counts, x_BFn.device)
        x_BFW = self.input(x_BFn.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x_BFW = block(x_BFW, real_BF1)
        return [spectrum[:count] for spectrum, count in zip(self._spectrum(x_BFW), counts, strict=True)]

    def start(self) -> Waving:
        """Return what is kept of an utterance of which nothing has come yet."""
        return Waving(Tail(), [Tail() for _ in self.blocks], self.size // 2)

    def more(self, kept: Waving, mel_Fn: Tensor, last: bool = False) -> Tensor:
        """Return float32[t], the samples that the next frames of an utterance complete; `last`: all that are left.

        All parts together are what `forward` gives of the whole.
        """
        x_1FW = self.input.more(mel_Fn.T[None], kept.input, last).transpose(1, 2)
        for block, tail in zip(self.blocks, kept.blocks, strict=True):
            x_1FW = block.more(x_1FW, tail, last)
        sums_2T = kept.sums_2T.to(x_1FW.device)
        if count := x_1FW.shape[1]:
            frames_FT = torch.fft.irfft(self._spectrum(x_1FW)[0], self.size, dim=1) * self.window
            both = (frames_FT, self.window.square().expand(count, -1))
            added_2T = torch.stack([overlap(one, self.hop) for one in both])
            known = sums_2T.shape[1]
            added_2T[:, :known] += sums_2T
            sums_2T = added_2T
        # What no later frame reaches is complete; behind the last frame's middle there is nothing.
        done = sums_2T.shape[1] - (self.size - self.hop - (self.size // 2 if last else 0))
        if done <= 0:
            kept.sums_2T = sums_2T
            return sums_2T.new_zeros(0)
        complete_2T, kept.sums_2T = sums_2T[:, :done], sums_2T[:, done:]
        skipped = min(kept.skip, done)
        kept.skip -= skipped
        return (complete_2T[0] / complete_2T[1].clamp_min(1e-6))[skipped:]

    def _spectrum(self, x_BFW: Tensor) -> Tensor:
        magnitude, phase = self.output(self.norm(x_BFW)).float().chunk(2, dim=-1)
        magnitude = magnitude.clamp_max(LARGEST).exp()
        return torch.complex(magnitude * phase.cos(), magnitude * phase.sin())

    def samples(self, spectrum_FK: Tensor, count: int) -> Tensor:
        """Return float32[count * hop]: frames overlapped and added, each over its own share of windows."""
        frames_FT = torch.fft.irfft(spectrum_FK, self.size, dim=1) * self.window
        added_T = overlap(frames_FT, self.hop)
        shares_T = overlap(self.window.square().expand(len(frames_FT), -1), self.hop)
        half = self.size // 2
        return (added_T / shares_T.clamp_min(1e-6))[half : half + count * self.hop]


def overlap(frames_FT: Tensor, hop: int) -> Tensor:
    """Return float[(F - 1) * hop + T]: frames a hop apart, added."""
    F, T = frames_FT.shape
    parts = frames_FT.view(F, T // hop, hop)
    total = frames_FT.new_zeros(F + T // hop - 1, hop)
    for part in range(T // hop):
        total = total + torch.nn.functional.pad(parts[:, part], (0, 0, part, T // hop - 1 - part))
    return total.flatten()
