"""Layers of the released Llama 3.2 image tower: block, attention, tables of tile embeddings (paper section 7.2).

Shapes: B pictures, S tokens of a picture, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TileEmbedding(nn.Module):
    """One gated vector per tiling and tile: a table of `num_tilings` + 1 rows of `max_tiles` vectors each."""

    def __init__(self, num_tilings: int, max_tiles: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_tilings + 1, max_tiles * width))
        self.gate = nn.Parameter(torch.zeros(1))


class TileAttention(nn.Module):
    """Multi-head attention without bias."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)


class TileBlock(nn.Module):
    """Pre-norm attention and feed-forward; `gated` ones scale both branches by a tanh."""

    attention_gate: nn.Parameter | None
    feed_forward_gate: nn.Parameter | None

    def __init__(self, width: int, num_heads: int, ffn_dim: int, norm_eps: float, gated: bool) -> None:
        super().__init__()
        self.attention = TileAttention(width, num_heads)
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        self.feed_forward_norm = nn.LayerNorm(width, eps=norm_eps)
        self.up = nn.Linear(width, ffn_dim)
        self.down = nn.Linear(ffn_dim, width)
        if gated:
            self.attention_gate = nn.Parameter(torch.zeros(1))
            self.feed_forward_gate = nn.Parameter(torch.zeros(1))
        else:
            self.register_parameter("attention_gate", None)
            self.register_parameter("feed_forward_gate", None)

    def forward(self, states_BSE: Tensor) -> Tensor:
        """Skeleton: filled in next."""
        raise NotImplementedError
