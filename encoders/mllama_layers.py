"""Layers of the released Llama 3.2 image tower: blocks whose padding is counted, not repeated (paper section 7.2).

The released tower runs every picture as four tiles, each padded to a multiple of eight tokens. Its mask closes a
pair of tokens only when both are padding: real tokens see the padding, the padding sees real tokens. Padding tokens
that start alike therefore stay alike, so one of them is computed, and its key counts as many times as it occurs.

Shapes: M media items, S tokens of a picture (R real ones, then padding), W width, H heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """Which tokens of a sequence are real (the first R), and how often each token of the rest occurs."""

    num_real: int
    bias_S: (
        Tensor  # log of the occurrences: added to a key's score, it makes softmax count the key that often
    )

    @staticmethod
    def of(num_real: int, padding: list[tuple[int, int]], like: Tensor) -> Layout:
        """Return the layout of `num_real` tokens and then, per (tokens, occurrences), so many padding tokens."""
        counts = [torch.full((tokens,), occurrences) for tokens, occurrences in [(num_real, 1), *padding]]
        bias_S = torch.cat(counts).double().log()
        return Layout(num_real, bias_S.to(like.dtype).to(like.device))


class TileTable(nn.Module):
    """A gated table of one row per tiling (row 0 belongs to none) with one vector per tile."""

    def __init__(self, num_tilings: int, max_tiles: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tilings + 1, max_tiles * width))
        self.gate = nn.Parameter(torch.empty(1))


class TileAttention(nn.Module):
    """Bias-free multi-head attention: real tokens see all tokens, padding sees real ones."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, states_MSW: Tensor, layout: Layout, keep_padding: bool) -> Tensor:
        """Map float[M, S, W] to float[M, S, W], or to float[M, R, W] when the padding is not asked for."""
        R = layout.num_real
        q = self._heads(self.q(states_MSW if keep_padding else states_MSW[:, :R]))
        k, v = self._heads(self.k(states_MSW)), self._heads(self.v(states_MSW))
        attended = F.scaled_dot_product_attention(
            q[:, :, :R], k, v, attn_mask=layout.bias_S.view(1, 1, 1, -1)
        )
        if keep_padding:
            padding = F.scaled_dot_product_attention(q[:, :, R:], k[:, :, :R], v[:, :, :R])
            attended = torch.cat([attended, padding], dim=2)
        merged: Tensor = self.o(attended.transpose(1, 2).flatten(2))
        return merged

    def _heads(self, x_MSW: Tensor) -> Tensor:
        return x_MSW.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TileBlock(nn.Module):
    """Pre-norm attention and feed-forward; a gated one scales both branches by the tanh of a scalar."""

    def __init__(self, width: int, num_heads: int, ffn_dim: int, norm_eps: float, gated: bool) -> None:
        super().__init__()
        self.attention = TileAttention(width, num_heads)
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        self.feed_forward_norm = nn.LayerNorm(width, eps=norm_eps)
        self.up = nn.Linear(width, ffn_dim)
        self.down = nn.Linear(ffn_dim, width)
        self.attention_gate = nn.Parameter(torch.empty(1)) if gated else None
        self.feed_forward_gate = nn.Parameter(torch.empty(1)) if gated else None

    def forward(self, states_MSW: Tensor, layout: Layout, keep_padding: bool = True) -> Tensor:
        """Map float[M, S, W] to float[M, S, W], or to the real tokens float[M, R, W] alone."""
        attended = self.attention(self.attention_norm(states_MSW), layout, keep_padding)
        kept = states_MSW if keep_padding else states_MSW[:, : layout.num_real]
        kept = kept + _gated(attended, self.attention_gate)
        fed = self.down(F.gelu(self.up(self.feed_forward_norm(kept))))
        return kept + _gated(fed, self.feed_forward_gate)


def _gated(branch: Tensor, gate: Tensor | None) -> Tensor:
    return branch if gate is None else branch * gate.tanh()
