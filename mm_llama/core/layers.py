"""Layers that the core and the adapters share (paper section 3.2; Llama 3 fact: every linear layer is bias-free).

Shapes: B batch, S query positions, T key positions, D width, H heads, K KV heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_llama.core.kernels import FORMS, Kernel
from mm_llama.core.products import linear

# Above this many scores per head the fused kernel wins; below it, explicit products are faster on a CPU
# (its backward above all) and give the same bits whatever the batch holds.
_FUSED_SCORES = 512 * 512
# A single query sees few keys fastest by the fused kernel, which uses one thread for each KV head; more of them (those
# of all heads and rows together) are read by all threads in explicit products.
_FEW_KEYS = 2048

Rope = tuple[Tensor, Tensor]  # cosines and signed sines of `rotate`


class Linear(nn.Linear):
    """Bias-free linear map that computes in its input's dtype, so float32 masters serve bfloat16 compute."""

    _joined: Tensor | None = None  # of the first of several maps: all their weights (`joined`)
    _held: tuple[Kernel, int, int] | None = (
        None  # the product that gives this map's outputs, and where (`hold`)
    )

    def __init__(self, in_dim: int, out_dim: int, bias: bool = False) -> None:
        super().__init__(in_dim, out_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map float[..., in] to float[..., out] in the dtype of `x`."""
        if self._held is not None:
            kernel, first, end = self._held
            return _held_product(kernel, x)[..., first:end]
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if weight.dtype != x.dtype:
            weight = weight.to(x.dtype)
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        return linear(x, weight) if bias is None else F.linear(x, weight, bias)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if self._held is not None:
            raise ValueError(
                "this model's weights are held for inference as they are: load it anew elsewhere"
            )
        # What is moved or cast is no longer a part of the joined weights, which would stay behind in memory.
        self._joined = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_joined"}


def together(x: Tensor, maps: Sequence[Linear]) -> Tensor | None:
    """Return the outputs of bias-free maps of one input side by side, float[..., sum of outs], by one product.

    None where each is to be called by itself (`joined` says when).
    """
    held = maps[0]._held
    if held is not None:
        alone = any(part._forward_hooks or part._forward_pre_hooks for part in maps)
        return None if alone else _held_product(held[0], x)
    weight = joined(maps)
    return None if weight is None else linear(x, weight.to(x.dtype))


def hold(maps: Sequence[Linear], form: str) -> None:
    """Hold the weights of bias-free maps of one input as one product of that form (`FORMS`), for inference alone.

    What they were is let go: in their place stand empty ones of their shape, without a value.
    """
    kernel = FORMS[form](
        torch.cat([part.weight.detach() for part in maps]) if len(maps) > 1 else maps[0].weight
    )
    first = 0
    for part in maps:
        end = first + part.out_features
        part._joined, part._held = None, (kernel, first, end)
        part.weight = nn.Parameter(part.weight.to("meta"), requires_grad=False)
        first = end


def hold_products(module: nn.Module, form: str) -> None:
    """Hold the maps of all attention and feed-forward layers in a module, those of one input together."""
    for layer in module.modules():
        for names in getattr(layer, "products", ()):
            hold([getattr(layer, name) for name in names], form)


def _held_product(kernel: Kernel, x: Tensor) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError('weights held for inference give no gradients: load the model with weights="plain"')
    return kernel(x)


def joined(maps: Sequence[Linear]) -> Tensor | None:
    """Return the weights of bias-free maps of one input as one matrix, float[sum of outs, in]; None while they train.

    The maps' own weights become views of it, so nothing is held twice, and names, values and digests stay. Weights
    that are moved, cast or replaced are joined anew. None too where a map is of another class or has a hook on it,
    under `torch.compile`, and where processes work together: sharding has a layout of its own for weights.
    """
    if torch.compiler.is_compiling():
        return None
    training = torch.is_grad_enabled()
    whole = maps[0]._joined
    place = -1 if whole is None else whole.data_ptr()
    for part in maps:
        weight = part.weight
        if (training and weight.requires_grad) or part._forward_hooks or part._forward_pre_hooks:
            return None
        if place != weight.data_ptr():
            return _join(maps)
        place += weight.nbytes
    return whole


def _join(maps: Sequence[Linear]) -> Tensor | None:
    weights = [part.weight for part in maps]
    first = weights[0]
    alike = all(
        type(part) is Linear
        and part.bias is None
        and type(weight) is nn.Parameter
        and (weight.dtype, weight.device, weight.shape[1]) == (first.dtype, first.device, first.shape[1])
        and not (weight.is_meta or weight.is_inference() or part._forward_hooks or part._forward_pre_hooks)
        for part, weight in zip(maps, weights, strict=True)
    )
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if not (alike and alone) or (torch.is_grad_enabled() and any(w.requires_grad for w in weights)):
        return None
    # Not an inference tensor, whose views could never be trained again.
    with torch.inference_mode(False), torch.no_grad():
        whole = torch.cat([weight.data for weight in weights])
        for weight, view in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
            weight.data = view
    maps[0]._joined = whole
    return whole


class RMSNorm(nn.Module):
    """Root-mean-square norm with float32 internals."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of float[..., dim]; the result has the dtype of `x`."""
        if x.dtype == self.weight.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # The weight apart: that function would round after it, where Llama rounds before it.
        return F.rms_norm(x, self.weight.shape, None, self.eps) * self.weight.to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU: `down(silu(gate x) * up x)`."""

    products = (("gate", "up"), ("down",))

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = Linear(dim, hidden_dim)
        self.up = Linear(dim, hidden_dim)
        self.down = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map float[..., D] to float[..., D]."""
        both = together(x, (self.gate, self.up))
        if both is None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        gate, up = both.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def attend(
    q_BHSd: Tensor,
    k_BKTd: Tensor,
    v_BKTd: Tensor,
    mask_BST: Tensor | None,
    added_BST: Tensor | None = None,
) -> Tensor:
    """Grouped-query attention; returns float[B, H, S, d].

    `mask_BST` is bool, True where a query may see a key (first axis 1 or B); None lets every query see every
    key. A query must see at least one key: rows with nothing to see are the caller's to leave out. `added_BST`
    float32 is added to the scores of all heads (first axis B, second 1 or S). Softmax is float32 whatever the dtype;
    only the fused kernel, on a GPU and for very many scores, rounds `added_BST` to it.
    """
    B, H, S, d = q_BHSd.shape
    K, T = k_BKTd.shape[1], k_BKTd.shape[2]
    if S == 1 and B * K * T <= _FEW_KEYS and added_BST is None and not q_BHSd.is_cuda:
        # The heads that share a KV head are queries of one head here: no key is copied.
        mask = None if mask_BST is None else mask_BST[:, None]
        out = F.scaled_dot_product_attention(q_BHSd.view(B, K, H // K, d), k_BKTd, v_BKTd, attn_mask=mask)
        return out.view(B, H, 1, d)
    if q_BHSd.is_cuda or S * T > _FUSED_SCORES:
        mask = None if mask_BST is None else mask_BST[:, None]
        if added_BST is not None:
            added = added_BST[:, None].to(q_BHSd.dtype)
            mask = added if mask is None else added.masked_fill(~mask, float("-inf"))
        return F.scaled_dot_product_attention(q_BHSd, k_BKTd, v_BKTd, attn_mask=mask, enable_gqa=K != H)
    # Queries of the heads that share a KV head lie side by side, so no key is copied.
    q = (q_BHSd * (1.0 / math.sqrt(d))).reshape(B, K, (H // K) * S, d)
    if S == 1:  # keys first: products of many rows with a few columns are the faster ones
        scores = torch.matmul(k_BKTd, q.transpose(-1, -2)).transpose(-1, -2).float()
    else:
        scores = torch.matmul(q, k_BKTd.transpose(-1, -2)).float()
    scores = scores.view(B, K, H // K, S, T)
    if added_BST is not None:
        scores = scores + added_BST[:, None, None]
    if mask_BST is not None:
        scores = scores.masked_fill(~mask_BST[:, None, None], float("-inf"))
    weights = torch.softmax(scores, dim=-1).to(v_BKTd.dtype).view(B, K, (H // K) * S, T)
    return torch.matmul(weights, v_BKTd).view(B, H, S, d)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape float[B, S, H*d] to float[B, H, S, d]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x_BHSd: Tensor) -> Tensor:
    """Reshape float[B, H, S, d] to float[B, S, H*d]."""
    return x_BHSd.transpose(1, 2).flatten(2)


def rotate(x_BHSd: Tensor, rope: Rope) -> Tensor:
    """Apply rotary positions to float[B, H, S, d] in float32; pairs are (i, i + d/2), the first has minus the sine."""
    cos, sin = rope
    x = x_BHSd.float()
    swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, swapped, sin).to(x_BHSd.dtype)
