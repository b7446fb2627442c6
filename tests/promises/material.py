"""What the promise tests share: an adapter whose every branch has its say, features, placements."""

from __future__ import annotations

import torch

from adapters.image import ImageAdapter
from mm_llama.batch import Media
from mm_llama.core.llama import LlamaConfig

WIDTH, TOKENS = 24, 9
CONFIG = LlamaConfig(
    dim=64, num_layers=6, num_heads=4, num_kv_heads=2, ffn_dim=160, vocab_size=300, max_context=256
)


def make_adapter(dtype: torch.dtype = torch.float32) -> ImageAdapter:
    """An adapter whose every branch has its say."""
    adapter = ImageAdapter(
        encoder_dim=WIDTH,
        dim=CONFIG.dim,
        num_layers=CONFIG.num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        ffn_dim=160,
        layers=[1, 3, 4],
        num_positions=TOKENS,
        gate_init=0.7,
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return adapter.to(dtype)


def features(count: int, seed: int = 0, tokens: int = TOKENS) -> list[torch.Tensor]:
    """Random picture features float[N, E]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, WIDTH, generator=generator) for _ in range(count)]


def pictures(placements: list[tuple[int, int, int]], items: list[torch.Tensor]) -> dict[str, Media]:
    """Media of a batch from (row, position, item) triples."""
    rows, positions, shown = (torch.tensor(column) for column in zip(*placements, strict=True))
    return {"image": Media(items, rows, positions, shown, encoded=True)}


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids int64[rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CONFIG.vocab_size, (rows, length), generator=generator)
