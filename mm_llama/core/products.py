"""Matrix products as this processor does them best: what decoding spends most of its time on.

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows longer than this are read as fast by the plain product.
_LONGEST_ROW = 2048


def linear(x: Tensor, weight_NK: Tensor) -> Tensor:
    """Map float[..., K] to float[..., N], as `torch.nn.functional.linear` does, but for the order of a sum.

    A single row in float32 is cut in halves where that is faster: the product of a matrix with one vector comes from
    the BLAS on one thread and slowly there, its product with two does not.
    """
    if (
        not torch.compiler.is_compiling()
        and x.numel() == x.shape[-1] <= _LONGEST_ROW
        and x.dtype == weight_NK.dtype == torch.float32
        and x.is_cpu
        and halves_pay()
        and type(weight_NK) in (Tensor, torch.nn.Parameter)
        and weight_NK.is_contiguous()
        and not x.shape[-1] % 2
    ):
        N, K = weight_NK.shape
        halves_2k = x.reshape(2, K // 2)
        both_N4 = torch.mm(weight_NK.view(2 * N, K // 2), halves_2k.t()).view(N, 4)
        # Of each row's two halves times both of x: the first with the first, the second with the second.
        return (both_N4[:, 0] + both_N4[:, 3]).view(*x.shape[:-1], N)
    return F.linear(x, weight_NK)


@cache
def halves_pay() -> bool:
    """Say whether this is an AMD processor: measured there, 1.5 to 3 times faster for rows of up to 2048."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text("utf-8", "replace")[:4096]
    except OSError:
        return "AuthenticAMD" in platform.processor()
