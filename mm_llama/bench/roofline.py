"""What this machine can do at best, measured now, and how much of it something needs: the denominators of speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.inference_mode()
def gemm_flops(
    dtype: torch.dtype, side: int = 1536, seconds: float = 1.0, device: torch.device | str = "cpu"
) -> float:
    """Return floating-point operations a second of the best of many square matrix products."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best([lambda: left @ right], seconds, torch.device(device))


@torch.inference_mode()
def read_bandwidth(num_bytes: int, seconds: float = 1.0, device: torch.device | str = "cpu") -> float:
    """Return bytes a second of the best of many passes over memory of that size: a sum, or a product with a vector.

    What fits a cache is read at the cache's speed, so the size should be that of the weights in question.
    """
    columns = 2048
    matrix = torch.randn(max(1, num_bytes // (4 * columns)), columns, device=device)
    vector = torch.randn(columns, device=device)
    passes: list[Callable[[], Any]] = [lambda: matrix @ vector, matrix.sum, matrix.amax]
    return matrix.nbytes / _best(passes, seconds, torch.device(device))


def flops_of(call: Callable[[], Any], training: bool = False) -> int:
    """Count the floating-point operations of the matrix products in a call; attention is counted whole.

    With `training` gradients are taken in it, and the products of the backward pass are counted too.
    """
    # The fused attention kernels of a CPU are not counted, its products are.
    with (
        torch.inference_mode(not training),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        call()
    return int(counter.get_total_flops())


def _best(calls: Sequence[Callable[[], Any]], seconds: float, device: torch.device) -> float:
    best = float("inf")
    for call in calls:
        call()
        until = time.perf_counter() + seconds / len(calls)
        while True:
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            ended = time.perf_counter()
            best = min(best, ended - began)
            if ended >= until:
                break
    return best
