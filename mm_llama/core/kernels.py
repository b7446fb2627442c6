"""Weights held for inference alone, in the layout that a processor's own kernels read fastest.

`blocked` is oneDNN's layout: the same numbers and the same sums as the plain product, which rearranges the whole
weight at every call. `int8` has half the bytes and other numbers: whole ones from -127 to 127, a scale for each row.

Shapes: Y outputs, X inputs, R rows of the input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Callable[[Tensor], Tensor]

# Up to so many rows the product with whole numbers is faster than one with what they stand for.
_FEW_ROWS = 8
_ROWS_AT_ONCE = 2048


class Blocked:
    """The product with bfloat16[Y, X] on a CPU, from oneDNN's layout."""

    def __init__(self, weight_YX: Tensor) -> None:
        self.shape = tuple(weight_YX.shape)
        # The layout is the same whatever number of rows is announced.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_YX.detach(), 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Map bfloat16[..., X] to bfloat16[..., Y]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return product

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads of the weight."""
        return 2 * self.shape[0] * self.shape[1]


class Int8:
    """The product with bfloat16[Y, X] rounded to int8, each row by a scale of its own; sums are float32."""

    def __init__(self, weight_YX: Tensor) -> None:
        # Some rows at a time: float32 copies of a whole head would be the most memory that a process ever holds.
        parts = [_rounded(part.float()) for part in weight_YX.detach().split(_ROWS_AT_ONCE)]
        self.weight_YX, self.scale_Y = (torch.cat(column) for column in zip(*parts, strict=True))

    def __call__(self, x: Tensor) -> Tensor:
        """Map bfloat16[..., X] to bfloat16[..., Y]."""
        X = x.shape[-1]
        if x.is_cpu and x.numel() <= _FEW_ROWS * X:
            rows_RX = x.reshape(-1, X)
            product = torch._weight_int8pack_mm(rows_RX, self.weight_YX, self.scale_Y)
            return product.view(*x.shape[:-1], -1)
        return F.linear(x, self.weight_YX.to(x.dtype)) * self.scale_Y

    @property
    def nbytes(self) -> int:
        """Bytes that one product of few rows reads of the weight."""
        return self.weight_YX.nbytes + self.scale_Y.nbytes


def _rounded(weight_YX: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8[Y, X] and bfloat16[Y] of float32[Y, X] rows."""
    # The scale is rounded before it is used, so that its own rounding is no error of the whole row.
    scale_Y = (weight_YX.abs().amax(1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
    return (weight_YX / scale_Y.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale_Y


FORMS: dict[str, Callable[[Tensor], Blocked | Int8]] = {"blocked": Blocked, "int8": Int8}


def blocks_pay(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Say whether the blocked layout is of use: in bfloat16, on a CPU that has instructions for it."""
    return (
        dtype == torch.bfloat16
        and torch.device(device).type == "cpu"
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and torch.cpu._is_avx512_bf16_supported()
    )
