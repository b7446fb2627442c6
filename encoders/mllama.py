"""The image tower of the released Llama 3.2 Vision models (section 7.2 of "The Llama 3 Herd of Models").

A ViT over up to four tiles of a picture, eight gated blocks on top, and five inner states beside the last one.
Its numbers are those of the released checkpoints, including a quirk: absent tiles and the tokens that pad a tile
to a multiple of eight are seen by real tokens. They are computed once each and counted (`mllama_layers`), so a
picture of one tile costs half of four, and no token is dropped before the tower has ended.

Shapes: M media items, r c rows and columns of tiles, s tile side, n tokens of a tile (class token first),
N = r * c * n, W width, E features (W times one more than there are taps), t tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from encoders.identity import Digest, identity_of
from encoders.mllama_layers import Layout, TileBlock, TileTable
from encoders.tiles import MEAN, STD, cut_tiles, tilings

_MULTIPLE = 8  # tokens of a tile are padded to a multiple of this


class MllamaTower(nn.Module):
    """Tiles of a picture -> features float[M, N, E]; the defaults are the numbers of the released models.

    `taps` are the blocks whose *input* is a feature: state k's channel d stands at W + d * len(taps) + k, behind the
    W channels of the last state.

    `tile_positions`, `pre_tile.weight` and `post_tile.weight` hold a row per tiling, in the order of
    `encoders.tiles.tilings`, behind a row 0 that belongs to none; a row holds a slot per tile. Slots of absent
    tiles are used as they are but never trained: the original layout has no such numbers.

    `drop_absent` leaves absent tiles out. It is faster for pictures of fewer than `max_tiles` tiles but *changes*
    features: the released weights were trained with them.

    `dim`, when given, is checked against E. Computation takes the parameters' dtype. Nothing here freezes anything:
    gradients flow.
    """

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
        dim: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if tile_size % patch_size:
            raise ValueError(f"tile_size {tile_size} is no multiple of patch_size {patch_size}")
        if width % num_heads:
            raise ValueError(f"width {width} cannot be split into num_heads {num_heads}")
        if sorted(set(taps)) != list(taps) or any(not 0 <= tap < num_layers for tap in taps):
            raise ValueError(f"taps must ascend within 0 to {num_layers - 1}, but got {list(taps)}")
        if num_global_layers < 1:
            raise ValueError(f"num_global_layers must be at least 1, but got {num_global_layers}")
        self.tile_size, self.patch_size, self.max_tiles = tile_size, patch_size, max_tiles
        self.width, self.num_heads, self.ffn_dim, self.norm_eps = width, num_heads, ffn_dim, norm_eps
        self.taps, self.drop_absent = tuple(taps), drop_absent
        self.mean, self.std = tuple(mean), tuple(std)
        self.tokens_per_tile = (tile_size // patch_size) ** 2 + 1
        self.dim = width * (1 + len(self.taps))
        if dim not in (None, self.dim):
            raise ValueError(
                f"dim says {dim}, but width {width} of the last state and {len(self.taps)} taps is {self.dim}"
            )

        num_tilings = len(tilings(max_tiles))
        self.patch = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(self.tokens_per_tile, width))
        self.position_gate = nn.Parameter(torch.empty(1))
        slots = max_tiles * self.tokens_per_tile * width
        self.tile_positions = nn.Parameter(torch.empty(num_tilings + 1, slots))
        self.pre_tile = TileTable(num_tilings, max_tiles, width)
        self.post_tile = TileTable(num_tilings, max_tiles, width)
        self.norm_pre = nn.LayerNorm(width)
        self.norm_post = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            TileBlock(width, num_heads, ffn_dim, norm_eps, gated=False) for _ in range(num_layers)
        )
        self.global_layers = nn.ModuleList(
            TileBlock(width, num_heads, ffn_dim, norm_eps, gated=True) for _ in range(num_global_layers)
        )
        if not self.class_embedding.is_meta:
            self.init_weights(seed)
        self._digest = Digest(self)
        self._alike: dict[int, tuple[object, bool]] = {}

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every weight from the seed: width ** -0.5, down projections 1/sqrt(fan-in), gates 0, absent slots 0."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if "norm" in name:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith(("gate", "bias")):
                weight.zero_()
            else:
                fan_in = self.ffn_dim if name.endswith("down.weight") else self.width
                weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
        for table in self._tables():
            slots = table.view(len(table), self.max_tiles, -1)
            slots[0] = 0
            for row, (rows, columns) in enumerate(tilings(self.max_tiles), start=1):
                slots[row, rows * columns :] = 0

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return float32[r, c, 3, s, s] of one RGB picture: its real tiles, normalised (`encoders.tiles`)."""
        return cut_tiles(
            image, tile_size=self.tile_size, max_tiles=self.max_tiles, mean=self.mean, std=self.std
        )

    def num_tokens(self, rows: int, columns: int) -> int:
        """Return N: the tokens of a picture of so many tiles."""
        return rows * columns * self.tokens_per_tile

    @property
    def digest(self) -> str:
        """SHA-256 of the weights as loaded; ask once before casting them."""
        return self._digest.of(self)

    @property
    def identity(self) -> str:
        """SHA-256 of the weights and of every setting that changes features: the key for cached ones."""
        return identity_of(
            self.digest,
            tower="mllama",
            tile_size=self.tile_size,
            max_tiles=self.max_tiles,
            num_heads=self.num_heads,
            taps=self.taps,
            norm_eps=self.norm_eps,
            mean=self.mean,
            std=self.std,
            drop_absent=self.drop_absent,
        )

    def forward(self, tiles_Mrc3ss: Tensor) -> Tensor:
        """Return features float[M, N, E] of real tiles float[M, r, c, 3, s, s], tile by tile, row by row."""
        M, row, num_real = self._check(tiles_Mrc3ss)
        n, num_absent = self.tokens_per_tile, 0 if self.drop_absent else self.max_tiles - num_real
        # Absent tiles are one another's copies where the tables give them the same vectors, as all released ones do.
        computed = 1 if num_absent > 1 and self._absent_alike(row, num_real) else num_absent
        times = num_absent // computed if computed else 1
        fill = -n % _MULTIPLE

        real, absent = self._embed(tiles_Mrc3ss.flatten(1, 2), row, computed)
        filler_M1W = real.new_zeros(M, 1, self.width)
        states = torch.cat([real.flatten(1, 2), absent.flatten(0, 1).expand(M, -1, -1), filler_M1W], dim=1)
        # Until a tile's embedding tells them apart again, all the filler of a picture is alike.
        N = num_real * n
        layout = Layout.of(N, [(computed * n, times), (1, fill * (num_real + num_absent))], states)
        tapped = []
        for index, layer in enumerate(self.layers):
            if index in self.taps:
                tapped.append(states[:, :N])
            states = layer(states, layout)

        states = self._embed_again(self.norm_post(states), row, num_real, computed)
        layout = Layout.of(N, [(computed * n, times), (num_real, fill), (computed, fill * times)], states)
        for layer in self.global_layers[:-1]:
            states = layer(states, layout)
        final_MNW = self.global_layers[-1](states, layout, keep_padding=False)
        if not tapped:
            return final_MNW
        return torch.cat([final_MNW, torch.stack(tapped, dim=-1).flatten(2)], dim=-1)

    def _embed(self, tiles_Mt3ss: Tensor, row: int, computed: int) -> tuple[Tensor, Tensor]:
        """Return the first states of the real tiles, float[M, t, n, W], and of the absent ones, float[t, n, W]."""
        M, num_real = tiles_Mt3ss.shape[:2]
        patches = self.patch(tiles_Mt3ss.flatten(0, 1).to(self.patch.weight.dtype))
        patches_MtPW = rearrange(patches, "(M t) W h w -> M t (h w) W", M=M)
        # An absent tile holds zeros, and the patch projection has no bias.
        blank_tPW = patches.new_zeros(computed, self.tokens_per_tile - 1, self.width)
        before = self._slots(self.pre_tile.weight, row, num_real, computed)
        place = self._slots(self.tile_positions, row, num_real, computed)
        gate = self.position_gate.tanh()
        first = []
        for patches_, before_t1W, place_tnW in zip((patches_MtPW, blank_tPW), before, place, strict=True):
            embedded = patches_ + before_t1W * self.pre_tile.gate.tanh()
            start = self.class_embedding.expand(*embedded.shape[:-2], 1, -1)
            tokens = torch.cat([start, embedded], dim=-2) + self.positions * (1 - gate)
            first.append(self.norm_pre(tokens + place_tnW * gate))
        return first[0], first[1]

    def _embed_again(self, states_MSW: Tensor, row: int, num_real: int, computed: int) -> Tensor:
        """Add each tile's second embedding to all its tokens; the one filler token becomes one per tile."""
        slots = (
            torch.cat(self._slots(self.post_tile.weight, row, num_real, computed))
            * self.post_tile.gate.tanh()
        )
        tiles, filler = states_MSW[:, :-1], states_MSW[:, -1:]
        tokens = tiles.unflatten(1, (num_real + computed, -1)) + slots
        return torch.cat([tokens.flatten(1, 2), filler + slots.flatten(0, 1)], dim=1)

    def _slots(self, table: Tensor, row: int, num_real: int, computed: int) -> tuple[Tensor, Tensor]:
        """Return the vectors of a tiling's real tiles and of so many absent ones: float[t, 1 or n, W] each."""
        slots = table[row].view(self.max_tiles, -1, self.width)
        return slots[:num_real], slots[num_real : num_real + computed].detach()

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.pre_tile.weight, self.tile_positions, self.post_tile.weight

    def _absent_alike(self, row: int, num_real: int) -> bool:
        """Whether the tables give all absent tiles of a tiling the same vectors; remembered until they change."""
        key = tuple((id(table), table._version) for table in self._tables())
        if row not in self._alike or self._alike[row][0] != key:
            absent = [table[row].view(self.max_tiles, -1)[num_real:] for table in self._tables()]
            self._alike[row] = (key, all(bool((slots == slots[:1]).all()) for slots in absent))
        return self._alike[row][1]

    def _check(self, tiles_Mrc3ss: Tensor) -> tuple[int, int, int]:
        """Return M, the tiling's row in the tables, and the number of tiles."""
        shape, side = tuple(tiles_Mrc3ss.shape), self.tile_size
        if len(shape) != 6 or shape[3:] != (3, side, side):
            raise ValueError(
                f"the image tower expects tiles float[M, r, c, 3, {side}, {side}] (tile_size), but got {shape}"
            )
        tiling = (shape[1], shape[2])
        if tiling not in tilings(self.max_tiles):
            raise ValueError(
                f"the image tower takes at most {self.max_tiles} tiles (max_tiles), but got {tiling[0]} rows of "
                f"{tiling[1]}"
            )
        return shape[0], tilings(self.max_tiles).index(tiling) + 1, tiling[0] * tiling[1]
