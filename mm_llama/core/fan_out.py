"""Tensors that many readers share: their gradients are summed in float32, whatever the dtype of the computation.

Media tokens feed keys and values of every cross-attention block, and a picture's keys feed every row that shows it.
Autograd would add those gradients one after the other in bfloat16, each time rounding the sum to 8 bits; the paper
accumulates them in FP32 (sections 3.3.2 and 7.3). Forward, nothing is copied or changed.

Shapes: M media items, any shape of indices I.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fan_out(x: Tensor, readers: int) -> tuple[Tensor, ...]:
    """Return `readers` aliases of float[...] `x`, one for each that reads it; their gradients add up in float32.

    The sum is rounded to the dtype of `x` once, at the end. An alias may itself be read several times: then autograd
    adds what belongs to that alias. In float32 and wider, or where no gradient is asked for, aliases are `x` itself.
    """
    if readers < 1:
        raise ValueError(f"fan_out needs at least one reader, got {readers}")
    if not _narrow(x):
        return (x,) * readers
    aliases: tuple[Tensor, ...] = _FanOut.apply(x, readers)
    return aliases


def take(x_MX: Tensor, index_I: Tensor) -> Tensor:
    """Return `x_MX[index_I]`, float[*I, *X]; the gradients of an item that is taken often add up in float32.

    `index_I` int64 counts from 0.
    """
    if not _narrow(x_MX):
        return x_MX[index_I]
    taken: Tensor = _Take.apply(x_MX, index_I)
    return taken


def _narrow(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled() and torch.finfo(x.dtype).bits < 32


class _FanOut(torch.autograd.Function):
    """Many aliases forward, one float32 sum backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, readers: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for _ in range(readers))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        given = [gradient for gradient in gradients if gradient is not None]
        if len(given) < 2:
            return (given[0] if given else None), None
        total = given[0].float()
        for gradient in given[1:]:
            total += gradient
        return total.to(given[0].dtype), None


class _Take(torch.autograd.Function):
    """Indexing forward, a float32 scatter-add backward."""

    @staticmethod
    def forward(ctx: Any, x_MX: Tensor, index_I: Tensor) -> Tensor:
        ctx.save_for_backward(index_I)
        ctx.shape = x_MX.shape
        return x_MX[index_I]

    @staticmethod
    def backward(ctx: Any, gradient_IX: Tensor) -> tuple[Tensor, None]:
        (index_I,) = ctx.saved_tensors
        rows = gradient_IX.reshape(index_I.numel(), *ctx.shape[1:])
        total = torch.zeros(ctx.shape, dtype=torch.float32, device=rows.device)
        total.index_put_((index_I.flatten(),), rows.float(), accumulate=True)
        return total.to(gradient_IX.dtype), None
