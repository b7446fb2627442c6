"""Content digests of tensors: what `frozen means checked` and `adapters compose` compare."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return "sha256:<hex>" over sorted names, dtypes, shapes and raw bytes; order of the mapping is irrelevant."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        update_digest(total, name, tensors[name])
    return f"sha256:{total.hexdigest()}"


def update_digest(total: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Feed one named tensor into a running hash; names must come in sorted order."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    total.update(f"{name}\0{dtype}\0{tuple(tensor.shape)}\0".encode())
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    total.update(raw.data)
