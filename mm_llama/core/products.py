"""Matrix products as this processor does them best: what decoding spends most of its time on.

Shapes: Y outputs, X inputs.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Rows longer than this are read as fast by the plain product.
_LONGEST_ROW = 2048


def linear(x: Tensor, weight_YX: Tensor) -> Tensor:
    """Map float[..., X] to float[..., Y], as `torch.nn.functional.linear` does, but for the order of a sum.

    A single row in float32 is cut in halves where that is faster: the product of a matrix with one vector comes from
    the BLAS on one thread and slowly there, its product with two does not.
    """
    if (
        not torch.compiler.is_compiling()
        and x.numel() == x.shape[-1] <= _LONGEST_ROW
        and x.dtype == weight_YX.dtype == torch.float32
        and x.is_cpu
        and halves_pay()
        and all(type(part) in (Tensor, torch.nn.Parameter) for part in (x, weight_YX))
        and weight_YX.is_contiguous()
        and weight_YX.ndim == 2
        and x.shape[-1] == weight_YX.shape[1]
        and not x.shape[-1] % 2
        and not torch.is_autocast_enabled("cpu")
    ):
        Y, X = weight_YX.shape
        halves_2h = x.reshape(2, X // 2)
        both_Y4 = torch.mm(weight_YX.view(2 * Y, X // 2), halves_2h.t()).view(Y, 4)
        # Of each row's two halves times both of x: the first with the first, the second with the second.
        return (both_Y4[:, 0] + both_Y4[:, 3]).view(*x.shape[:-1], Y)
    return F.linear(x, weight_YX)


def likeliest(logits: Tensor) -> Tensor:
    """Return the index of the largest of float[..., V], the lowest among equals: int64[...].

    On a CPU by vector instructions, which torch's own search does without: 5 microseconds for 49,152 rather than 120.
    """
    if logits.is_cpu and logits.dtype == torch.float32 and not torch.compiler.is_compiling():
        return torch.from_numpy(np.asarray(logits.detach().numpy().argmax(-1)))
    return logits.argmax(-1)


@cache
def halves_pay() -> bool:
    """Say whether this is an AMD processor: measured there, 1.5 to 3 times faster for rows of up to 2048."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text("utf-8", "replace")[:4096]
    except OSError:
        return "AuthenticAMD" in platform.processor()
