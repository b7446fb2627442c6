"""What this machine can do at best, measured now, and how much of it something needs: the denominators of speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.inference_mode()
def gemm_flops(dtype: torch.dtype, side: int = 1536, seconds: float = 1.0) -> float:
    """Return floating-point operations a second of the best of many square matrix products."""
    left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: left @ right, seconds)


@torch.inference_mode()
def read_bandwidth(num_bytes: int, seconds: float = 1.0) -> float:
    """Return bytes a second of the best of many passes over memory of that size, as a product with a vector reads it.

    What fits a cache is read at the cache's speed, so the size should be that of the weights in question.
    """
    columns = 2048
    matrix = torch.randn(max(1, num_bytes // (4 * columns)), columns)
    vector = torch.randn(columns)
    return matrix.nbytes / _best(lambda: matrix @ vector, seconds)


@torch.inference_mode()
def flops_of(call: Callable[[], Any]) -> int:
    """Count the floating-point operations of the matrix products in a call; attention is counted whole."""
    # The fused attention kernels of a CPU are not counted, its products are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _best(call: Callable[[], Any], seconds: float) -> float:
    call()
    best, until = float("inf"), time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        call()
        ended = time.perf_counter()
        best = min(best, ended - began)
        if ended >= until:
            return best
