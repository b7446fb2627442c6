"""When each phone of a known text is said in a recording, from what an aligner hears in each frame.

Shapes: F frames, N phones of the alphabet, P phones of a text.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The logarithm of how probable it is that a frame is of no phone. `forced_align` needs such frames between two phones
# that are the same; elsewhere no path pays for one.
NOTHING = -12.0


def align(logs_FN: Tensor, phones_P: Tensor) -> tuple[Tensor, float]:
    """Return int64[P], how many frames each phone takes in the best path, and the path's mean log-probability.

    Every phone takes at least one frame, and all frames are shared out. Raises ValueError where there are fewer frames
    than phones, one more for two of a kind side by side.
    """
    from torchaudio.functional import forced_align

    repeated = int((phones_P[1:] == phones_P[:-1]).sum())
    if not len(phones_P) or len(logs_FN) < len(phones_P) + repeated:
        raise ValueError(
            f"{len(logs_FN)} frames are too few for {len(phones_P)} phones, {repeated} of them as the one before"
        )
    logs_FM = torch.nn.functional.pad(logs_FN.detach().float().cpu(), (1, 0), value=NOTHING)
    path_1F, scores_1F = forced_align(logs_FM[None].contiguous(), (phones_P.cpu() + 1)[None].int(), blank=0)
    path_F = path_1F[0]
    # A phone begins where the path changes to it; frames of none belong to the one before.
    begins_F = (path_F != 0) & (path_F != torch.nn.functional.pad(path_F, (1, 0))[:-1])
    owner_F = (begins_F.long().cumsum(0) - 1).clamp_min(0)
    return torch.bincount(owner_F, minlength=len(phones_P)), float(scores_1F.mean())
