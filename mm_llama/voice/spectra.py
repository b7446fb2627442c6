"""How far two sounds are apart, by their spectra at several resolutions.

Shapes: B signals, T samples, F frames, n mels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))  # window and hop, in samples


def spectral_distance(found_BT: Tensor, truth_BT: Tensor) -> Tensor:
    """Return the mean over three resolutions of spectral convergence plus the mean distance of log magnitudes.

    Of whole signals (Yamamoto et al. 2020, arXiv 1910.11480, section 2.2).
    """
    distances = []
    for size, hop in RESOLUTIONS:
        window = torch.hann_window(size, device=found_BT.device)
        one, other = (
            torch.stft(part, size, hop, window=window, return_complex=True).abs().square().add(1e-7).sqrt()
            for part in (found_BT, truth_BT)
        )
        convergence = (one - other).norm() / other.norm().clamp_min(1e-5)
        distances.append(convergence + (one.log() - other.log()).abs().mean())
    return torch.stack(distances).mean()


def mel_cepstral_distortion(found_Fn: Tensor, truth_Fn: Tensor, num: int = 13) -> Tensor:
    """Return how far two log-mels are apart in dB, the mean over the frames of both (Kubichek 1993).

    Log-mels are scaled as `encoders.log_mel` has them, four powers of ten to one. Of the cosine series of each frame's
    log spectrum the coefficients 1 to `num` are compared: loudness, which is the first, does not count.
    """
    frames, n = min(len(found_Fn), len(truth_Fn)), truth_Fn.shape[1]
    decibels_Fn = 40.0 * (found_Fn[:frames] - truth_Fn[:frames])
    steps = torch.arange(n, device=truth_Fn.device) + 0.5
    orders = torch.arange(1, num + 1, device=truth_Fn.device)
    series_nk = torch.cos(math.pi / n * steps[:, None] * orders) / n
    return (2 * (decibels_Fn @ series_nk).square().sum(-1)).sqrt().mean()
