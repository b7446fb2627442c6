"""Layers of our own image tower: a pre-norm block, gated or not, and its parts (paper section 7.2).

They compute in the dtype of what enters, so float32 masters serve bfloat16 compute; norms and softmax are float32
inside either way.

Shapes: B sequences, S tokens of a sequence, W width, H heads, d head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and a residual; gates, at zero, make it an exact identity."""

    def __init__(
        self, width: int, num_heads: int, mlp_width: int, norm_eps: float, *, gated: bool = False
    ) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(width, norm_eps)
        self.attention = SelfAttention(width, num_heads)
        self.feed_forward_norm = LayerNorm(width, norm_eps)
        self.feed_forward = FeedForward(width, mlp_width)
        self.attention_gate = nn.Parameter(torch.zeros(1)) if gated else None
        self.feed_forward_gate = nn.Parameter(torch.zeros(1)) if gated else None

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map float[B, S, W] to float[B, S, W]; every token of a sequence sees every other."""
        attended = self.attention(self.attention_norm(x_BSW))
        x_BSW = x_BSW + _opened(self.attention_gate, attended)
        fed = self.feed_forward(self.feed_forward_norm(x_BSW))
        return x_BSW + _opened(self.feed_forward_gate, fed)

    def init_weights(self, generator: torch.Generator, num_blocks: int) -> None:
        """Draw maps as 1/sqrt(fan-in), residual outputs 1/sqrt(2 blocks) of that; biases and gates 0, norms 1."""
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim == 2:
                    std = 1 / math.sqrt(weight.shape[1])
                    if name.endswith(("out.weight", "down.weight")):
                        std /= math.sqrt(2 * num_blocks)
                    weight.copy_(torch.randn(weight.shape, generator=generator) * std)
                else:
                    weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, without mask: what is absent is not in the sequence."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map float[B, S, W] to float[B, S, W]."""
        qkv_BSW = self.qkv(x_BSW).unflatten(-1, (3, self.num_heads, -1))
        q_BHSd, k_BHSd, v_BHSd = qkv_BSW.permute(2, 0, 3, 1, 4)
        out_BHSd = F.scaled_dot_product_attention(q_BHSd, k_BHSd, v_BHSd)
        return self.out(out_BHSd.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """`down(gelu(up x))`."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden_width)
        self.down = Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map float[..., W] to float[..., W]."""
        return self.down(F.gelu(self.up(x)))


class Linear(nn.Linear):
    """Affine map in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Map float[..., in] to float[..., out]."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.Module):
    """Layer norm with float32 internals."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of float[..., W]; the result has the dtype of `x`."""
        normed = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)


def resize_table(table_PW: Tensor, side: int) -> Tensor:
    """Return the positions float[P, W] of a square grid on one of `side` x `side`, bicubic, not antialiased.

    A table of that size comes back as it is. Raises ValueError when the table is no square grid.
    """
    old = math.isqrt(len(table_PW))
    if old * old != len(table_PW):
        raise ValueError(f"a table of {len(table_PW)} positions is no square grid of patches")
    if old == side:
        return table_PW
    map_1Whw = table_PW.detach().float().T.reshape(1, -1, old, old)
    resized = F.interpolate(map_1Whw, size=(side, side), mode="bicubic", align_corners=False, antialias=False)
    return resized.flatten(2)[0].T.to(table_PW.dtype).contiguous()


def _opened(gate: Tensor | None, branch: Tensor) -> Tensor:
    return branch if gate is None else torch.tanh(gate).to(branch.dtype) * branch
