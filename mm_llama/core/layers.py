"""Layers that the core and the adapters share (paper section 3.2; Llama 3 fact: every linear layer is bias-free).

Shapes: B batch, S query positions, T key positions, D width, H heads, K KV heads, d head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Above this many scores per head the fused kernel wins; below it, explicit products are faster on a CPU
# (its backward above all) and give the same bits whatever the batch holds.
_FUSED_SCORES = 512 * 512


class Linear(nn.Linear):
    """Bias-free linear map that computes in its input's dtype, so float32 masters serve bfloat16 compute."""

    def __init__(self, in_dim: int, out_dim: int, bias: bool = False) -> None:
        super().__init__(in_dim, out_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map float[..., in] to float[..., out] in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm with float32 internals."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of float[..., dim]; the result has the dtype of `x`."""
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight.to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU: `down(silu(gate x) * up x)`."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = Linear(dim, hidden_dim)
        self.up = Linear(dim, hidden_dim)
        self.down = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map float[..., D] to float[..., D]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


def attend(q_BHSd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, mask_BST: Tensor | None) -> Tensor:
    """Grouped-query attention; returns float[B, H, S, d].

    `mask_BST` is bool, True where a query may see a key (first axis 1 or B); None lets every query see every
    key. A query must see at least one key: rows with nothing to see are the caller's to leave out. Softmax is
    float32 whatever the dtype.
    """
    B, H, S, d = q_BHSd.shape
    K, T = k_BKTd.shape[1], k_BKTd.shape[2]
    if q_BHSd.is_cuda or S * T > _FUSED_SCORES:
        mask = None if mask_BST is None else mask_BST[:, None]
        return F.scaled_dot_product_attention(q_BHSd, k_BKTd, v_BKTd, attn_mask=mask, enable_gqa=K != H)
    # Queries of the heads that share a KV head lie side by side, so no key is copied.
    q = (q_BHSd * (1.0 / math.sqrt(d))).reshape(B, K, (H // K) * S, d)
    scores = torch.matmul(q, k_BKTd.transpose(-1, -2)).float()
    if mask_BST is not None:
        scores = scores.view(B, K, H // K, S, T).masked_fill(~mask_BST[:, None, None], float("-inf"))
    weights = torch.softmax(scores, dim=-1).to(v_BKTd.dtype).view(B, K, (H // K) * S, T)
    return torch.matmul(weights, v_BKTd).view(B, H, S, d)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape float[B, S, H*d] to float[B, H, S, d]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x_BHSd: Tensor) -> Tensor:
    """Reshape float[B, H, S, d] to float[B, S, H*d]."""
    return x_BHSd.transpose(1, 2).flatten(2)
