"""How far two sounds are apart, by their spectra at several resolutions.

Shapes: B signals, T samples.
"""

from __future__ import annotations

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
