"""A recording with what was said in it, phone by phone: the labels of a row, read.

Shapes: P phones, F frames, T samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mm_llama.voice.phones import numbers


@dataclass(frozen=True)
class Recorded:
    """Samples float32[T], phones int64[P] and the frames of each int64[P], F0 float32[F] in Hz (0 without voice)."""

    samples: Tensor
    phones_P: Tensor
    frames_P: Tensor
    f0_F: Tensor

    def to(self, device: torch.device | str) -> Recorded:
        """Move every tensor."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


def recorded(labels: Mapping[str, Any], source: str, rate: int, hop: int) -> Recorded:
    """Read a row's labels and its recording.

    Raises ValueError, naming the row, for another rate, phones that are none, or lengths that do not fit each other;
    FileNotFoundError without the file.
    """
    import soundfile

    try:
        samples, found = soundfile.read(labels["audio"], dtype="float32", always_2d=True)
        phones = numbers(labels["phones"])
    except (ValueError, soundfile.LibsndfileError) as error:
        raise ValueError(f"{source}: {error}") from error
    frames, f0 = list(labels["frames"]), list(labels["f0"])
    if found != rate:
        raise ValueError(f"{source}: {labels['audio']} has {found:,} samples a second, this voice {rate:,}")
    if len(frames) != len(phones):
        raise ValueError(
            f"{source}: {len(frames)} lengths do not fit {len(phones)} phones, silence around them counted"
        )
    if min(frames) < 1 or sum(frames) != len(f0) or abs(sum(frames) - len(samples) // hop) > 1:
        raise ValueError(
            f"{source}: phones of {sum(frames)} frames (each at least one) and pitch of {len(f0)} do not fit a "
            f"recording of {len(samples) // hop}"
        )
    whole = torch.from_numpy(samples.mean(axis=1))
    missing = max(0, sum(frames) * hop - len(whole))
    return Recorded(
        torch.nn.functional.pad(whole, (0, missing))[: sum(frames) * hop],
        torch.tensor(phones),
        torch.tensor(frames),
        torch.tensor(f0, dtype=torch.float32),
    )
