"""Gated cross-attention blocks, which bring media into a frozen core (paper section 7.2; Llama 3.2 block layout).

A block works on the positions that see media and on no others: the caller gathers them, so absent media is
not computed and everything else stays as it was, to the bit.

Shapes: T gathered text positions, G groups that share visible media, L positions of a group, M media items,
N media tokens, D core width, H heads, K KV heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mm_llama.core.fan_out import fan_out
from mm_llama.core.layers import FeedForward, Linear, RMSNorm, attend, merge_heads, split_heads, together

Ragged = tuple[Tensor, Tensor]


class GatedCrossAttention(nn.Module):
    """`h = x + tanh(a) * attention(norm x)`, then `h + tanh(f) * feed_forward(norm h)`; gates open from zero."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        ffn_dim: int,
        norm_eps: float = 1e-5,
        branch_scale: float = 1.0,
    ) -> None:
        """`branch_scale` multiplies both branches, a constant. A core whose residual stream is far above 1 (RMS 8 to
        20 in the upper layers of SmolLM2-135M) hardly hears a block of unit scale, and learns that much slower.
        """
        super().__init__()
        self.branch_scale = branch_scale
        self.attention_norm = RMSNorm(dim, norm_eps)
        self.attention = CrossAttention(dim, num_heads, num_kv_heads, head_dim, norm_eps)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        # A width of 0 leaves the feed-forward branch out: cheaper, for small experiments.
        self.feed_forward_norm = RMSNorm(dim, norm_eps) if ffn_dim else None
        self.feed_forward = FeedForward(dim, ffn_dim) if ffn_dim else None
        self.feed_forward_gate = nn.Parameter(torch.zeros(1)) if ffn_dim else None

    def keys_values(self, media_MND: Tensor, values_MND: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return this block's keys and values of every medium, float[M, K, N, d] each; computed once per medium.

        `values_MND`: the same media for the values, when keys and values are to read aliases of their own.
        """
        return self.attention.keys_values(media_MND, media_MND if values_MND is None else values_MND)

    def forward(
        self,
        x_TD: Tensor,
        keys_GKNd: Tensor,
        values_GKNd: Tensor,
        ragged: Ragged | None,
        mask_GLN: Tensor | None,
    ) -> Tensor:
        """Return the new states of the gathered positions, float[T, D].

        `ragged` is None when the T positions are G equally long groups in order; otherwise (int64[G, L], int64[T]):
        which of the T each group's queries are (padding repeats one), and where in G * L each of the T is read
        back. `mask_GLN` bool[G, 1, N] hides padding media tokens.
        """
        attended = self.attention(self.attention_norm(x_TD), keys_GKNd, values_GKNd, ragged, mask_GLN)
        x_TD = x_TD + self.opening(self.attention_gate, x_TD.dtype) * attended
        if self.feed_forward is None:
            return x_TD
        assert self.feed_forward_norm is not None and self.feed_forward_gate is not None
        fed = self.feed_forward(self.feed_forward_norm(x_TD))
        return x_TD + self.opening(self.feed_forward_gate, x_TD.dtype) * fed

    def opening(self, gate: Tensor, dtype: torch.dtype) -> Tensor:
        """Return how far a branch is open: tanh of its gate, times the branch scale."""
        opening = torch.tanh(gate)
        return (opening if self.branch_scale == 1 else self.branch_scale * opening).to(dtype)


class CrossAttention(nn.Module):
    """Grouped-query attention from text to media, with RMS-normed queries and keys and no positions."""

    products = (("q",), ("k", "v"), ("o",))

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.q = Linear(dim, num_heads * head_dim)
        self.k = Linear(dim, num_kv_heads * head_dim)
        self.v = Linear(dim, num_kv_heads * head_dim)
        self.o = Linear(num_heads * head_dim, dim)
        self.q_norm = RMSNorm(head_dim, norm_eps)
        self.k_norm = RMSNorm(head_dim, norm_eps)

    def keys_values(self, media_MND: Tensor, values_MND: Tensor) -> tuple[Tensor, Tensor]:
        """Return normed keys and values, float[M, K, N, d] each."""
        both = together(media_MND, (self.k, self.v)) if media_MND is values_MND else None
        keys, values = (self.k(media_MND), self.v(values_MND)) if both is None else both.chunk(2, dim=-1)
        keys_MKNd = self.k_norm(split_heads(keys, self.num_kv_heads))
        return keys_MKNd, split_heads(values, self.num_kv_heads)

    def forward(
        self,
        x_TD: Tensor,
        keys_GKNd: Tensor,
        values_GKNd: Tensor,
        ragged: Ragged | None,
        mask_GLN: Tensor | None,
    ) -> Tensor:
        """Attend from each group's positions to its media; arguments as in `GatedCrossAttention.forward`."""
        q_TD = self.q(x_TD)
        groups = len(keys_GKNd)
        q_GLD = q_TD.view(groups, -1, q_TD.shape[-1]) if ragged is None else q_TD[ragged[0]]
        q_GHLd = self.q_norm(split_heads(q_GLD, self.num_heads))
        out_GLD = merge_heads(attend(q_GHLd, keys_GKNd, values_GKNd, mask_GLN))
        out_TD = out_GLD.flatten(0, 1)
        return self.o(out_TD if ragged is None else out_TD.index_select(0, ragged[1]))


def keys_values_by_layer(
    layers: Sequence[int], blocks: Iterable[GatedCrossAttention], media_MND: Tensor
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return {layer: (keys, values)} of the blocks before these layers, float[M, K, N, d] each.

    All of them read the same media tokens, so the gradients of those are summed in float32.
    """
    aliases = iter(fan_out(media_MND, 2 * len(layers)))
    return {
        layer: block.keys_values(next(aliases), next(aliases))
        for layer, block in zip(layers, blocks, strict=True)
    }


def cross_attention_layers(num_layers: int, every: int | None, layers: Sequence[int] | None) -> list[int]:
    """Return the self-attention layers before which a block runs.

    `every` N gives N-1, 2N-1, ... (the released schedule: before layers 3, 7, 11, ... for N = 4); `layers` lists
    them. Exactly one of the two.
    """
    if (every is None) == (layers is None):
        raise ValueError(
            f"cross-attention needs exactly one of `every` (got {every}) and `layers` (got {layers}): a block before "
            "every N-th layer, or an explicit list of layers"
        )
    chosen = (
        list(layers)
        if layers is not None
        else list(range(int(every or 0) - 1, num_layers, int(every or 0) or 1))
    )
    if not chosen or sorted(set(chosen)) != chosen or not 0 <= chosen[0] <= chosen[-1] < num_layers:
        raise ValueError(
            f"cross-attention layers {chosen} must rise, without repeats, from 0 to {num_layers - 1} "
            f"(the core has {num_layers} layers)"
        )
    return chosen


def init_block(block: GatedCrossAttention, num_blocks: int, generator: torch.Generator) -> None:
    """Draw a block's weights: 1/sqrt(fan-in), residual outputs scaled by 1/sqrt(2 blocks); gates at zero."""
    with torch.no_grad():
        for name, weight in block.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0.0 if name.endswith("gate") else 1.0)
                continue
            std = 1 / math.sqrt(weight.shape[1])
            if name.endswith(("o.weight", "down.weight")):
                std /= math.sqrt(2 * num_blocks)
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
