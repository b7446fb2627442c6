"""The self-attention cache. A slot is a position, so ragged rows, chunked prefill and decoding are one rule:
write at your own positions, see the slots at or before them.

A right-padded row leaves garbage in slots past its length; each is overwritten by the token that gets that
position before any later position may see it.

Shapes: B batch, S new positions, T slots in use, K KV heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mm_llama.core.llama import LlamaConfig


class KVCache:
    """Preallocated keys and values, float[layers, B, K, length, d] each."""

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if length > config.max_context:
            raise ValueError(
                f"a cache of {length} positions was asked for, but the core's context is {config.max_context} "
                "(core.max_context); shorten the prompt or ask for fewer new tokens"
            )
        shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def length(self) -> int:
        """Number of slots per row."""
        return self.keys.shape[3]

    def slots(self, positions_BS: Tensor) -> Slots:
        """Plan one forward pass that writes int64[B, S] `positions_BS`."""
        # Read back at once: one number after another would wait for a GPU as often.
        rows = positions_BS.tolist()
        end = max(map(max, rows)) + 1
        if end > self.length:
            raise ValueError(f"position {end - 1} does not fit a cache of {self.length} slots")
        first = rows[0]
        start = first[0]
        aligned = first[-1] - start == len(first) - 1 and all(row == first for row in rows)
        return Slots(self, positions_BS, end, start if aligned else None)

    def select(self, rows: Tensor) -> KVCache:
        """Return a cache that holds the given rows (int64) only, copied."""
        kept = object.__new__(KVCache)
        kept.keys, kept.values = self.keys[:, rows], self.values[:, rows]
        return kept


@dataclass
class Slots:
    """Where one forward pass writes, and what it sees."""

    cache: KVCache
    positions_BS: Tensor
    end: int
    start: int | None  # of the common contiguous range; None when rows differ
    rows_B1: Tensor | None = None  # the same in every layer

    def mask(self) -> Tensor | None:
        """Return bool[B or 1, S, T]; None when the one new position sees every slot in use."""
        positions = self.positions_BS if self.start is None else self.positions_BS[:1]
        if self.start is not None and positions.shape[1] == 1:
            return None
        return torch.arange(self.end, device=positions.device) <= positions[:, :, None]

    def write(self, layer: int, k_BKSd: Tensor, v_BKSd: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values and return all that are in use, float[B, K, T, d]."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        if self.start is not None:
            length = self.end - self.start
            keys.narrow(2, self.start, length).copy_(k_BKSd)
            values.narrow(2, self.start, length).copy_(v_BKSd)
        else:
            if self.rows_B1 is None:
                self.rows_B1 = torch.arange(len(keys), device=keys.device)[:, None]
            keys[self.rows_B1, :, self.positions_BS] = k_BKSd.transpose(1, 2)
            values[self.rows_B1, :, self.positions_BS] = v_BKSd.transpose(1, 2)
        return keys.narrow(2, 0, self.end), values.narrow(2, 0, self.end)
