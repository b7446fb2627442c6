"""The prosody of phones: mean log F0, whether there is a voice, mean log power, as the acoustic model is given them.

Shapes: P phones, F frames, n mels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm_llama.voice.recorded import Recorded

Utterance = tuple[
    Tensor, Tensor, Tensor
]  # phones int64[P], frames of each int64[P], prosody of each float32[P, 3]

# What is added and multiplied so that each is about zero and about one wide.
F0_CENTER, F0_SCALE = 5.3, 4.0  # of the natural logarithm of Hz
POWER_CENTER, POWER_SCALE = -0.4, 2.5  # of the mean of a log-mel over its mels
VOICED = 0.5  # the least share of a phone's frames that have a voice


def measured(one: Recorded, mel_Fn: Tensor) -> Utterance:
    """Return a recording's phones with the prosody that they were said with."""
    return one.phones_P, one.frames_P, prosody_of(one.frames_P, one.f0_F, mel_Fn)


def prosody_of(frames_P: Tensor, f0_F: Tensor, mel_Fn: Tensor) -> Tensor:
    """Return float32[P, 3] of each phone."""
    owner_F = torch.repeat_interleave(torch.arange(len(frames_P), device=frames_P.device), frames_P)
    voiced_F = (f0_F > 0).float()
    log_F = torch.where(f0_F > 0, f0_F.clamp_min(1).log(), 0.0)
    sums_P3 = torch.zeros(len(frames_P), 3, device=frames_P.device)
    sums_P3.index_add_(0, owner_F, torch.stack((log_F, voiced_F, mel_Fn.mean(-1).float()), dim=1))
    share_P = sums_P3[:, 1] / frames_P
    has_voice_P = share_P >= VOICED
    f0_P = torch.where(has_voice_P, (sums_P3[:, 0] / sums_P3[:, 1].clamp_min(1) - F0_CENTER) * F0_SCALE, 0.0)
    power_P = (sums_P3[:, 2] / frames_P - POWER_CENTER) * POWER_SCALE
    return torch.stack((f0_P, has_voice_P.float(), power_P), dim=1)
