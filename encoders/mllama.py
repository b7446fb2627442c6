"""The image tower of the released Llama 3.2 Vision models (section 7.2 of "The Llama 3 Herd of Models").

Shapes: M media items, r c rows and columns of tiles, s tile side, n tokens of a tile, N = r * c * n, E features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from encoders.mllama_layers import TileBlock, TileEmbedding

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class MllamaTower(nn.Module):
    """Tiles of a picture -> features float[M, N, E]; the defaults are the 11B model's numbers."""

    def __init__(
        self,
        *,
        tile_size: int = 560,
        patch_size: int = 14,
        max_tiles: int = 4,
        width: int = 1280,
        num_layers: int = 32,
        num_global_layers: int = 8,
        num_heads: int = 16,
        ffn_dim: int = 5120,
        taps: Sequence[int] = (3, 7, 15, 23, 30),
        norm_eps: float = 1e-5,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        drop_absent: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokens_per_tile = (tile_size // patch_size) ** 2 + 1
        num_tilings = sum(
            1 for r in range(1, max_tiles + 1) for c in range(1, max_tiles + 1) if r * c <= max_tiles
        )
        self.patch = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(self.tokens_per_tile, width))
        self.position_gate = nn.Parameter(torch.zeros(1))
        self.tile_positions = nn.Parameter(
            torch.zeros(num_tilings + 1, max_tiles * self.tokens_per_tile * width)
        )
        self.pre_tile = TileEmbedding(num_tilings, max_tiles, width)
        self.post_tile = TileEmbedding(num_tilings, max_tiles, width)
        self.norm_pre = nn.LayerNorm(width)
        self.norm_post = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            TileBlock(width, num_heads, ffn_dim, norm_eps, gated=False) for _ in range(num_layers)
        )
        self.global_layers = nn.ModuleList(
            TileBlock(width, num_heads, ffn_dim, norm_eps, gated=True) for _ in range(num_global_layers)
        )
        self.dim = width * (1 + len(taps))
