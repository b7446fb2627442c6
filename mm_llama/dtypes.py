"""What models compute in: the names of dtypes, and which one suits a device."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(name: str, device: str = "cpu") -> torch.dtype:
    """Return the dtype of a name, or for "auto" bfloat16 where the device computes in it, else float32."""
    check_device(device)
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"dtype is {name!r}, expected one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Without the instructions, bfloat16 on a CPU is emulated and many times slower than float32.
    fast = torch.device(device).type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def check_device(device: str) -> None:
    """Raise ValueError for a device that torch does not know or that is not here."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device is {device!r}, expected cpu, cuda or cuda:N") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no GPU here (`mm-llama doctor` says more)")


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, as configs write it."""
    return str(dtype).removeprefix("torch.")
