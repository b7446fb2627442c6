"""Log-mel spectrograms: what speech encoders read. 10 ms frames of 25 ms windows, on torchaudio's mel filters.

Shapes: B recordings, T samples, A frames, n mels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class LogMel(nn.Module):
    """Samples float[B, T] or [T] at `rate` to float32[B, A, n] or [A, n]; A = T // hop.

    As Whisper has it (arXiv 2212.04356, section 2.2; slaney mels, log10, `(x + 4) / 4`): frames are centred on
    multiples of the hop, with the recording mirrored at its ends, and what lies more than `dynamic_range` (in powers of
    ten) below the loudest value of the recording is raised to that. `dynamic_range` None leaves this out: then no
    frame depends on samples outside its window, as streaming needs.
    """

    def __init__(
        self,
        num_mels: int = 80,
        rate: int = 16_000,
        window: int = 400,
        hop: int = 160,
        dynamic_range: float | None = 8.0,
    ) -> None:
        super().__init__()
        self.num_mels, self.rate, self.hop, self.size = num_mels, rate, hop, window
        self.dynamic_range = dynamic_range
        self.window: Tensor
        self.filters: Tensor
        with torch.device("cpu"):  # also where a model is built without memory: they are constants
            self.register_buffer("window", torch.hann_window(window), persistent=False)
            self.register_buffer("filters", _filters(num_mels, rate, window), persistent=False)

    def forward(self, samples_BT: Tensor) -> Tensor:
        """Return the frames of recordings of one length. Raises ValueError where there is less than half a window."""
        if samples_BT.shape[-1] <= self.size // 2:
            raise ValueError(
                f"a recording of {samples_BT.shape[-1]} samples is shorter than half a window of {self.size}: "
                "there is no frame of it"
            )
        # In float32 whatever the model computes in: a power spectrum spans ten powers of ten and more.
        spectrum = torch.stft(
            samples_BT.float(),
            self.size,
            self.hop,
            window=self.window.float(),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power_FA = spectrum[..., :-1].abs().square()  # frame A would be centred past the last sample
        mels_An = (power_FA.transpose(-1, -2) @ self.filters.float()).clamp_min(1e-10).log10()
        if self.dynamic_range is not None:
            mels_An = torch.maximum(mels_An, mels_An.amax((-2, -1), keepdim=True) - self.dynamic_range)
        return (mels_An + 4) / 4


def _filters(num_mels: int, rate: int, window: int) -> Tensor:
    """Return float32[window // 2 + 1, n] triangles of equal area, from 0 to half the rate."""
    try:
        from torchaudio.functional import melscale_fbanks
    except ImportError:
        raise ValueError(
            'mel filters come from torchaudio, which is not installed: pip install "mm_llama[speech]"'
        ) from None
    made: Any = melscale_fbanks(
        window // 2 + 1, 0.0, rate / 2, num_mels, rate, norm="slaney", mel_scale="slaney"
    )
    filters: Tensor = made
    return filters
