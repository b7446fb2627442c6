"""Our own image tower: a plain pre-norm vision transformer over pictures cut into tiles (section 7.2 of "The Llama 3
Herd of Models").

Only tiles that exist are in the tensor, so none is padding, none is computed in vain, and no mask is needed. The
trunk sees one tile at a time: it can be pre-trained on pictures of one tile. What goes across tiles (their places
and the gated global layers) is a part of its own that starts as an exact identity.

Shapes: M pictures, r c rows and columns of tiles, s tile side, R = M r c tiles, S tokens of a tile, P patches of a
tile, W width, N tokens of a picture, E feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from encoders.identity import Digest, identity_of
from encoders.image_vit_layers import Block, LayerNorm, Linear, resize_table
from encoders.image_vit_weights import read_weights
from encoders.tiles import MEAN, STD, cut_tiles


class TileViT(nn.Module):
    """Tiles float[M, r, c, 3, s, s] -> features float[M, N, E]; the defaults are ViT-H/14, the paper's.

    A token per patch, N = r c (s / patch_size)^2, tiles and patches row by row; with `class_token` each tile begins
    with one more (the paper's 2,308 tokens of four 336 px tiles). E is `width` times the depths that come out:
    `layers` (outputs of these layers of the trunk, from 0, ascending) and, last, the final one, after the trunk's
    norm and the global layers.

    `max_tiles` > 1 adds learned embeddings of a tile's row and column, zero at first; `num_global_layers` adds
    layers in which all tokens of a picture see each other, closed by tanh gates at zero. Both are `across`, the
    rest is `trunk`: a checkpoint of a trunk alone loads into a tower with more tiles and layers.

    `weights` is a safetensors file of this tower, a run or checkpoint folder of a stage that trained it,
    or (`weights_format`) a file with timm's names (`timm`) or the exported DINOv2-style encoder (`dinov2_onnx`). A
    position table of another tile size is interpolated to `tile_size`, bicubic without antialiasing; one of
    equal size is taken as it is. Without `weights` everything is drawn from `seed`.

    `mean` and `std` scale pixels; they default to those of the released model. `dim`, when given, is checked
    against E. Nothing here freezes anything.
    """

    def __init__(
        self,
        *,
        tile_size: int = 224,
        patch_size: int = 14,
        width: int = 1280,
        num_layers: int = 32,
        num_heads: int = 16,
        mlp_width: int = 5120,
        class_token: bool = False,
        layers: Sequence[int] = (),
        max_tiles: int = 1,
        num_global_layers: int = 0,
        norm_eps: float = 1e-6,
        weights: str | Path | None = None,
        weights_format: str = "own",
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        seed: int = 0,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(tile_size, patch_size, width, num_heads, max_tiles)
        self.tile_size, self.patch_size, self.max_tiles = tile_size, patch_size, max_tiles
        self.layers = _check_layers(layers, num_layers)
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        sizes: dict[str, Any] = {"width": width, "num_heads": num_heads, "mlp_width": mlp_width}
        self.trunk = Trunk(
            patch_size, tile_size // patch_size, num_layers, class_token, norm_eps=norm_eps, **sizes
        )
        self.across: AcrossTiles | None = None
        if max_tiles > 1 or num_global_layers:
            self.across = AcrossTiles(max_tiles, num_global_layers, norm_eps=norm_eps, **sizes)
        self.dim = width * (len(self.layers) + 1)
        if dim is not None and dim != self.dim:
            raise ValueError(
                f"modality.image.encoder.dim says {dim}, but layers {list(self.layers)} and the final one, of width "
                f"{width}, give {self.dim}"
            )
        if not self.trunk.positions.is_meta:
            self.init_weights(seed)
        if weights is not None:
            read_weights(self, Path(weights), weights_format)
        self._digest = Digest(self, self.as_stored())

    def init_weights(self, seed: int) -> None:
        """Draw every weight from the seed; tile embeddings and gates are zero."""
        generator = torch.Generator().manual_seed(seed)
        self.trunk.init_weights(generator)
        if self.across is not None:
            self.across.init_weights(generator)

    def forward(self, tiles_Mrc3ss: Tensor) -> Tensor:
        """Features float[M, N, E] of pictures cut into equally many rows and columns of tiles.

        Raises ValueError for another tile size or more tiles than `max_tiles`.
        """
        shape = tuple(tiles_Mrc3ss.shape)
        s = self.tile_size
        if len(shape) != 6 or shape[3:] != (3, s, s) or shape[1] * shape[2] > self.max_tiles:
            raise ValueError(
                f"the image tower expects tiles float[M, r, c, 3, {s}, {s}] (modality.image.encoder.tile_size), at "
                f"most {self.max_tiles} a picture (max_tiles), but got {shape}"
            )
        M, r, c = shape[:3]
        x_RSW = self.trunk.embed(tiles_Mrc3ss)
        places_R1W = None if self.across is None else self.across.places(M, r, c)
        if places_R1W is not None:
            x_RSW = x_RSW + places_R1W.to(x_RSW.dtype)
        final_RSW, taps = self.trunk(x_RSW, self.layers)
        final, *taps = (rearrange(x, "(M R) S W -> M (R S) W", M=M) for x in (final_RSW, *taps))
        if self.across is not None:
            final = self.across(final)
        return torch.cat([*taps, final], dim=-1)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Tiles float32[r, c, 3, s, s] of one RGB picture, its proportions kept; `max_tiles` 1 makes it one tile."""
        return cut_tiles(
            image, tile_size=self.tile_size, max_tiles=self.max_tiles, mean=self.mean, std=self.std
        )

    def resize_positions(self, tile_size: int) -> None:
        """Take tiles of another size from now on: the position table is interpolated as on loading."""
        _check_sizes(tile_size, self.patch_size, 1, 1, self.max_tiles)
        self.tile_size = tile_size
        self.trunk.resize(tile_size // self.patch_size)

    @property
    def tokens_per_tile(self) -> int:
        """Tokens that one tile gives."""
        return len(self.trunk.positions) + (self.trunk.class_token is not None)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights; a position table counts as it was stored, so it is the same at every tile size."""
        return self._digest.of(self, self.as_stored())

    @property
    def identity(self) -> str:
        """SHA-256 of the weights and of every setting that changes features."""
        return identity_of(
            self.digest,
            tower="TileViT",
            tile_size=self.tile_size,
            patch_size=self.patch_size,
            max_tiles=self.max_tiles,
            layers=self.layers,
            num_heads=self.trunk.num_heads,
            norm_eps=self.trunk.norm.eps,
            mean=self.mean,
            std=self.std,
        )

    def as_stored(self) -> dict[str, Tensor]:
        """Return, by name, the tensors that were resized on loading, as they were before."""
        return {"trunk.positions": self.trunk.stored_positions()}


class Trunk(nn.Module):
    """The transformer that sees one tile at a time; what contrastive pre-training makes."""

    def __init__(
        self,
        patch_size: int,
        side: int,
        num_layers: int,
        class_token: bool,
        *,
        width: int,
        num_heads: int,
        mlp_width: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.patch_size, self.side, self.num_heads = patch_size, side, num_heads
        self.patches = Linear(3 * patch_size**2, width)
        self.class_token = nn.Parameter(torch.zeros(width)) if class_token else None
        self.positions = nn.Parameter(torch.zeros(side**2, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_width, norm_eps) for _ in range(num_layers))
        self.norm = LayerNorm(width, norm_eps)
        self._resized: tuple[Tensor, Tensor] | None = (
            None  # the position table as stored, and as it was resized
        )

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw maps as 1/sqrt(fan-in), tables 0.02."""
        with torch.no_grad():
            weight = self.patches.weight
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
            self.patches.bias.zero_()
            for table in (self.positions, self.class_token):
                if table is not None:
                    table.copy_(torch.randn(table.shape, generator=generator) * 0.02)
        for block in self.blocks:
            block.init_weights(generator, len(self.blocks))  # type: ignore[operator]

    def embed(self, tiles_Mrc3ss: Tensor) -> Tensor:
        """Return the patches of every tile with their positions, the class token first: float[R, S, W]."""
        p = self.patch_size
        pixels_RPC = rearrange(tiles_Mrc3ss, "M r c C (h a) (w b) -> (M r c) (h w) (C a b)", a=p, b=p)
        x_RPW = self.patches(pixels_RPC)
        x_RPW = x_RPW + self.positions.to(x_RPW.dtype)
        if self.class_token is None:
            return x_RPW
        return torch.cat([self.class_token.to(x_RPW.dtype).expand(len(x_RPW), 1, -1), x_RPW], dim=1)

    def forward(self, x_RSW: Tensor, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return the normed final states float[R, S, W], and the outputs of `layers`."""
        taps = []
        for number, block in enumerate(self.blocks):
            x_RSW = block(x_RSW)
            if number in layers:
                taps.append(x_RSW)
        return self.norm(x_RSW), taps

    def resize(self, side: int) -> None:
        """Interpolate the position table to `side` x `side` patches; nothing happens at equal size."""
        if side == self.side:
            return
        stored, self.side = self.stored_positions().detach().clone(), side
        # A copy: training must not change the table that tells whether it did.
        resized = self._resize(stored).to(self.positions, copy=True)
        self.positions = nn.Parameter(resized, self.positions.requires_grad)

    def fit_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Return a saved tensor as this trunk can hold it: a position table of another tile size, resized."""
        if name == "positions" and tensor.ndim == 2 and len(tensor) != len(self.positions):
            return self._resize(tensor)
        return tensor

    def stored_positions(self) -> Tensor:
        """Return the position table as it was loaded, before it was resized; since it changed, as it is."""
        if self._resized is not None:
            stored, resized = self._resized
            if resized.shape == self.positions.shape and torch.equal(resized, self.positions.to(resized)):
                return stored
        return self.positions

    def _resize(self, stored_PW: Tensor) -> Tensor:
        resized_PW = resize_table(stored_PW, self.side)
        self._resized = (stored_PW, resized_PW)
        return resized_PW


class AcrossTiles(nn.Module):
    """What joins the tiles of a picture: their places in its grid, and gated layers over all of its tokens."""

    def __init__(
        self,
        max_tiles: int,
        num_layers: int,
        *,
        width: int,
        num_heads: int,
        mlp_width: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(max_tiles, width)) if max_tiles > 1 else None
        self.columns = nn.Parameter(torch.zeros(max_tiles, width)) if max_tiles > 1 else None
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_width, norm_eps, gated=True) for _ in range(num_layers)
        )

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the layers; places and gates are zero, so nothing changes until they are trained."""
        with torch.no_grad():
            for table in (self.rows, self.columns):
                if table is not None:
                    table.zero_()
        for block in self.blocks:
            block.init_weights(generator, len(self.blocks))  # type: ignore[operator]

    def places(self, M: int, r: int, c: int) -> Tensor | None:
        """Return what is added to every token of a tile for its row and column, float[R, 1, W]; None: nothing."""
        if self.rows is None or self.columns is None:
            return None
        places_rcW = self.rows[:r, None] + self.columns[:c]
        return places_rcW.flatten(0, 1).repeat(M, 1)[:, None]

    def forward(self, x_MNW: Tensor) -> Tensor:
        """Let all tokens of a picture see each other: float[M, N, W] to float[M, N, W]."""
        for block in self.blocks:
            x_MNW = block(x_MNW)
        return x_MNW


def _check_sizes(tile_size: int, patch_size: int, width: int, num_heads: int, max_tiles: int) -> None:
    if tile_size < 1 or patch_size < 1 or tile_size % patch_size:
        raise ValueError(
            f"modality.image.encoder.tile_size is {tile_size}, which is no multiple of patch_size={patch_size}"
        )
    if width % num_heads:
        raise ValueError(
            f"modality.image.encoder.width is {width}, which num_heads={num_heads} does not divide"
        )
    if max_tiles < 1:
        raise ValueError(f"modality.image.encoder.max_tiles must be at least 1, got {max_tiles}")


def _check_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    chosen = tuple(int(layer) for layer in layers)
    if sorted(set(chosen)) != list(chosen) or any(not 0 <= layer < num_layers for layer in chosen):
        raise ValueError(
            f"modality.image.encoder.layers must ascend without repeats from 0 to {num_layers - 1}, got {list(chosen)}"
        )
    return chosen
