"""A tiny random core with the real image adapter, and endless seeded batches: exact, seconds, nothing fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.image import ImageAdapter
from mm_llama.batch import Batch, Media
from mm_llama.core.digest import digest_tensors
from mm_llama.core.llama import Llama, LlamaConfig
from mm_llama.modality import CrossAttended
from mm_llama.model import MultimodalLlama

CONFIG = LlamaConfig(dim=32, num_layers=4, num_heads=4, num_kv_heads=2, ffn_dim=48, vocab_size=67)
ADAPTER = {"encoder_dim": 12, "dim": 32, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}


class PatchEncoder(nn.Module):
    """Pixels to features, with what a careless loop disturbs: batch statistics and dropout."""

    dim = 12

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, self.dim, kernel_size=4, stride=4)
        self.norm = nn.BatchNorm2d(self.dim)
        self.dropout = nn.Dropout(0.2)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    @property
    def digest(self) -> str:
        return digest_tensors(self.state_dict())

    def forward(self, pixels_M3HW: Tensor) -> Tensor:
        return self.dropout(self.norm(self.patches(pixels_M3HW))).flatten(2).transpose(1, 2)


def make_model(
    seed: int = 0,
    gate: float = 0.7,
    dtype: torch.dtype = torch.float32,
    vocab_size: int = CONFIG.vocab_size,
    **adapter: Any,
) -> MultimodalLlama:
    core = Llama(replace(CONFIG, vocab_size=vocab_size))
    core.init_weights(seed)
    core.digest = digest_tensors(core.state_dict())
    image = ImageAdapter(**(ADAPTER | {"ffn_dim": 40, "every": 2, "gate_init": gate, "seed": seed} | adapter))
    model = MultimodalLlama(core.to(dtype), {"image": CrossAttended(PatchEncoder(seed), image)})
    return model.requires_grad_(False).eval()


def make_batch(seed: int, rows: int = 4, media: bool = True) -> Batch:
    """Ragged rows with no, one or two pictures (shared between rows too); the last few tokens are targets."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    lengths = [integer(7, 13) for _ in range(rows)]
    tokens = torch.zeros(rows, max(lengths), dtype=torch.long)
    targets = torch.zeros(rows, max(lengths), dtype=torch.bool)
    placeholders: list[tuple[int, int, int]] = []
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(1, CONFIG.vocab_size, (length,), generator=generator)
        targets[row, length - integer(1, 4) : length] = True
        for position in ([], [1], [0, 3])[(row + seed) % 3]:
            tokens[row, position] = 0
            placeholders.append((row, position, integer(0, 3)))
    items = [torch.randn(3, 8, 8, generator=generator) for _ in range(3)]
    batch = Batch(
        tokens, torch.tensor(lengths), targets, sources=[f"rows{seed}.jsonl:{i + 1}" for i in range(rows)]
    )
    if media and placeholders:
        columns = torch.tensor(placeholders).T
        batch.media["image"] = Media(items, columns[0], columns[1], columns[2])
    return batch


class SeededLoader:
    """Endless batches, a function of (seed, index); `fail_at` raises when that batch is asked for."""

    def __init__(self, seed: int = 0, fail_at: int | None = None, media: bool = True) -> None:
        self.seed, self.fail_at, self.media, self.index = seed, fail_at, media, 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self.index == self.fail_at:
                raise OSError("the disk went away")
            self.index += 1
            yield make_batch(100 * self.seed + self.index, media=self.media)

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index, "epoch": self.index // 5}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.index = state["index"]


@pytest.fixture
def tiny_model() -> Callable[..., MultimodalLlama]:
    """`tiny_model(seed, gate, dtype, vocab_size, **adapter arguments)`."""
    return make_model


@pytest.fixture
def tiny_batch() -> Callable[..., Batch]:
    """`tiny_batch(seed, rows, media)`."""
    return make_batch


@pytest.fixture
def tiny_loader() -> Callable[..., SeededLoader]:
    """`tiny_loader(seed, fail_at, media)`."""
    return SeededLoader
