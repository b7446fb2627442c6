"""The image adapter (paper section 7.2): a projection of image features and cross-attention blocks over them.

It owns everything that joins pictures to the core: the projection, the blocks, and the embedding of the picture
placeholder, so the core's own tables never grow.

Shapes: M pictures, N image tokens, E encoder width, D core width, K KV heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.cross_attention import (
    GatedCrossAttention,
    cross_attention_layers,
    init_block,
    keys_values_by_layer,
)
from adapters.positions import grid_of, resize_positions
from mm_llama.core.layers import Linear, RMSNorm


class ImageAdapter(nn.Module):
    """Projects features float[M, N, E] and holds one gated block per cross-attended layer."""

    def __init__(
        self,
        encoder_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        ffn_dim: int,
        norm_eps: float = 1e-5,
        every: int | None = None,
        layers: Sequence[int] | None = None,
        num_positions: int = 0,
        num_prefix: int = 0,
        grid: Sequence[int] | None = None,
        feature_norm: bool = True,
        gate_init: float = 0.0,
        branch_scale: float = 1.0,
        train_placeholder: bool = True,
        num_reserved: int = 0,
        seed: int = 0,
    ) -> None:
        """`num_positions` > 0 adds that many learned position embeddings to the projected tokens; `feature_norm`
        norms them afterwards. Both off gives the released Llama 3.2 layout, a plain projection with bias.

        The first `num_prefix` positions are of class tokens or registers, the rest a `grid` of (rows, columns),
        default square: a table trained at another resolution is resized over it (`fit_tensor`).

        `train_placeholder` False keeps the placeholder embedding a constant: nothing below the lowest block then
        needs a backward pass. `num_reserved` rows stand beside it unused in released checkpoints, and are kept.
        """
        super().__init__()
        self.encoder_dim, self.dim = encoder_dim, dim
        head_dim = head_dim or dim // num_heads
        self.layers = cross_attention_layers(num_layers, every, layers)
        self.projection = Linear(encoder_dim, dim, bias=True)
        self.positions = nn.Parameter(torch.zeros(num_positions, dim)) if num_positions else None
        self.num_prefix, self.grid = num_prefix, grid
        self.feature_norm = RMSNorm(dim, norm_eps) if feature_norm else None
        self.blocks: Any = nn.ModuleList(
            GatedCrossAttention(dim, num_heads, num_kv_heads, head_dim, ffn_dim, norm_eps, branch_scale)
            for _ in self.layers
        )
        placeholder = torch.zeros(dim)
        if train_placeholder:
            self.placeholder = nn.Parameter(placeholder)
        else:
            self.register_buffer("placeholder", placeholder)
        self.register_buffer("reserved", torch.zeros(num_reserved, dim) if num_reserved else None)
        if not self.placeholder.is_meta:
            self.init_weights(seed, gate_init)

    def init_weights(self, seed: int, gate_init: float = 0.0) -> None:
        """Draw every weight from the seed: projections 1/sqrt(fan-in), the rest 0.02, gates as told."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            weight = self.projection.weight
            weight.copy_(torch.randn(weight.shape, generator=generator) / self.encoder_dim**0.5)
            self.projection.bias.zero_()
            if self.positions is not None:
                self.positions.copy_(torch.randn(self.positions.shape, generator=generator) * 0.02)
            self.placeholder.copy_(torch.randn(self.placeholder.shape, generator=generator) * 0.02)
            for block in self.blocks:
                init_block(block, len(self.blocks), generator)
                for name, gate in block.named_parameters():
                    if name.endswith("gate"):
                        gate.fill_(gate_init)

    def project(self, features_MNE: Tensor) -> Tensor:
        """Map encoder features float[M, N, E] to media tokens float[M, N, D]."""
        if features_MNE.shape[-1] != self.encoder_dim:
            raise ValueError(
                f"the image adapter expects features of width {self.encoder_dim} (modality.image.encoder), "
                f"but these have {features_MNE.shape[-1]}"
            )
        media = self.projection(features_MNE)
        if self.positions is not None:
            N = media.shape[1]
            if len(self.positions) < N:
                raise ValueError(
                    f"a picture gives {N} tokens, but the image adapter has {len(self.positions)} positions: "
                    "set modality.image.adapter.num_positions to the encoder's number of tokens"
                )
            media = media + self.positions[:N].to(media.dtype)
        return media if self.feature_norm is None else self.feature_norm(media)

    def keys_values(self, media_MND: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return {layer: (keys, values)}, float[M, K, N, d] each: computed once per picture, shared by all its rows."""
        return keys_values_by_layer(self.layers, self.blocks, media_MND)

    def block(self, layer: int) -> GatedCrossAttention | None:
        """Return the block that runs before the given self-attention layer, if there is one."""
        return self.blocks[self.layers.index(layer)] if layer in self.layers else None

    def fit_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Return a saved tensor as this adapter can hold it: a position table resized to the grid here.

        Everything else, and a table of equal size, comes back as it is (paper section 7.4: annealing at a higher
        resolution goes on from the same weights).
        """
        own = self.positions
        if name.rpartition(".")[2] != "positions" or own is None or len(tensor) == len(own):
            return tensor
        return resize_positions(tensor, grid_of(len(own), self.num_prefix, self.grid), self.num_prefix)
