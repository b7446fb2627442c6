"""Attention from one sequence to another that is aligned with it: how far two places are apart is a learned bias.

Shapes: B rows, N places that look, S places that are looked at, W width, D width of what is looked at, H heads.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_llama.core.layers import RMSNorm


class RelativeAttention(nn.Module):
    """Multi-head attention of float[B, N, W] to float[B, S, D]; from `reach` places away on, a place is far.

    What looks may see nothing at all: there is a place of its own to look at, which holds nothing.
    """

    def __init__(self, width: int, dim: int, num_heads: int, reach: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        if width % num_heads or reach < 1:
            raise ValueError(
                f"a width of {width} does not give {num_heads} heads, or reach={reach} is not at least 1"
            )
        self.num_heads, self.reach = num_heads, reach
        self.query_norm = RMSNorm(width, norm_eps)
        self.norm = RMSNorm(dim, norm_eps)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(dim, width, bias=False)
        self.v = nn.Linear(dim, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.distance = nn.Parameter(torch.zeros(num_heads, 2 * reach + 1))

    def forward(self, x_BNW: Tensor, seen_BSD: Tensor, apart_BNS: Tensor, unseen_BNS: Tensor) -> Tensor:
        """Return float[B, N, W], to be added; int64 `apart` is how far behind a place another is, bool `unseen`."""
        return self.look(x_BNW, self.keys(seen_BSD.to(x_BNW.dtype)), apart_BNS, unseen_BNS)

    def keys(self, seen_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is looked at as keys and values float[B, H, S, W / H]: they can be kept and added to."""
        normed_BSD = self.norm(seen_BSD)
        k, v = (
            part(normed_BSD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.k, self.v)
        )
        return k, v

    def look(
        self, x_BNW: Tensor, keys: tuple[Tensor, Tensor], apart_BNS: Tensor, unseen_BNS: Tensor
    ) -> Tensor:
        """Return what `forward` does, of keys and values."""
        k, v = keys
        q = self.q(self.query_norm(x_BNW)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        bias_HBNS = self.distance[:, apart_BNS.clamp(-self.reach, self.reach) + self.reach]
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + bias_HBNS.transpose(0, 1)
        scores = F.pad(scores.masked_fill(unseen_BNS[:, None], -torch.inf), (1, 0))
        weights = scores.softmax(-1)[..., 1:]
        return cast(Tensor, self.o((weights @ v).transpose(1, 2).flatten(2)))
