"""Any timm model as an image encoder with several layers out (section 7.2 of "The Llama 3 Herd of Models").

Contrastively trained encoders lose localisation in their last layers, so the features of several depths are
put beside each other on the channel axis. Vision transformers (tokens) and convolutional networks (maps of
different strides) come out alike: one row-major grid of N tokens of width E.

Shapes: M media items, h w pixel height and width, N media tokens of one picture, E encoder width.
"""

import math
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from encoders.identity import digest_state
from encoders.timm_weights import READERS, load_timm

_INTERPOLATION = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class TimmImage(nn.Module):
    """A timm model whose chosen layers become picture features float[M, N, E].

    `layers` are indices into the model's own list of taps (blocks of a transformer, stages of a
    convolutional network; negative from the end), ascending. `final` adds what the model itself ends with,
    after its last norm or head convolution; it is on when no layers are given. `norm` applies the last norm
    to the intermediate layers too. Parts of the model behind the last tap are removed, so every parameter
    kept has an effect.

    Maps of unequal size meet on `grid` (default: that of the last tap): a finer map is averaged down
    exactly, or, with `reduce="space_to_depth"`, its cells are stacked on the channel axis; a coarser one is
    interpolated. Prefix tokens (class token, registers) are left out unless `keep_prefix`.

    `balance` divides each map by its root mean square over the picture: layers of one network differ tenfold in
    scale, and beside a loud one a quiet one is not heard.

    `weights` is a file, "pretrained" (timm downloads) or None (random by `seed`). `weights_format` says
    whose names the file uses: "timm", "efficientnet_lite0", "dinov2_onnx". `mean` and `std` default to
    those of the weights. `dim`, when given, is checked against the width that the chosen layers have.

    `resize_mode`: "squash" ignores the picture's proportions, "pad" fits it in the middle of `pad_value`
    (0..1, default `mean`), "crop" takes the middle, `crop_fraction` of the largest part that fits.

    Nothing here freezes anything: gradients flow, and a frozen encoder is put into `eval()` by its owner.
    """

    def __init__(
        self,
        name: str,
        *,
        layers: Sequence[int] | None = None,
        final: bool | None = None,
        norm: bool = False,
        image_size: int | Sequence[int] = 224,
        grid: int | Sequence[int] | None = None,
        reduce: str = "average",
        balance: bool = False,
        keep_prefix: bool = False,
        weights: str | Path | None = None,
        weights_format: str = "timm",
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str = "bicubic",
        resize_mode: str = "squash",
        pad_value: Sequence[float] | None = None,
        crop_fraction: float = 0.875,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        _one_of("weights_format", weights_format, ["timm", *READERS])
        _one_of("reduce", reduce, ["average", "space_to_depth"])
        _one_of("interpolation", interpolation, list(_INTERPOLATION))
        _one_of("resize_mode", resize_mode, ["squash", "pad", "crop"])
        self.name = name
        self.image_size = _height_width("image_size", image_size)
        self.final = final if final is not None else not layers
        self.norm = norm
        self.reduce = reduce
        self.balance = balance
        self.keep_prefix = keep_prefix
        self.model: Any
        self.model, reader, tables = load_timm(name, weights, weights_format, self.image_size, seed)
        settings = self.model.pretrained_cfg
        self.mean = tuple(float(v) for v in (mean or (reader.MEAN if reader else settings["mean"])))
        self.std = tuple(float(v) for v in (std or (reader.STD if reader else settings["std"])))
        self.interpolation = interpolation
        self.resize_mode = resize_mode
        self.pad_value = tuple(pad_value) if pad_value is not None else self.mean
        self.crop_fraction = crop_fraction

        self.layers = _layer_indices(name, layers, len(self.model.feature_info))
        if not self.layers and not self.final:
            raise ValueError(f"{name}: no layers are given and final is off, so there is nothing to return")
        self._prune()
        self.num_prefix = int(getattr(self.model, "num_prefix_tokens", 0)) if keep_prefix else 0
        if keep_prefix and not self.num_prefix:
            raise ValueError(
                f"{name} has no prefix tokens (class token or registers): set keep_prefix: false"
            )
        self.grid, self.dim = self._probe(None if grid is None else _height_width("grid", grid))
        if dim is not None and dim != self.dim:
            raise ValueError(
                f"{name}: dim says {dim}, but layers {self._taps()} have width {self.dim} together"
            )
        loaded = self.model.state_dict()
        # (as the weights hold it, as it was resized for image_size)
        self._tables = {key: (table, loaded[key].clone()) for key, table in tables.items() if key in loaded}
        self._digest: tuple[object, str] | None = None
        if not any(p.is_meta for p in self.parameters()):
            self.digest  # noqa: B018  now, while the weights are as their file holds them

    def forward(self, pixels_M3hw: Tensor) -> Tensor:
        """Features float[M, N, E] of pixels float[M, 3, h, w]; prefix tokens, then the grid row by row."""
        if pixels_M3hw.ndim != 4 or tuple(pixels_M3hw.shape[1:]) != (3, *self.image_size):
            raise ValueError(
                f"{self.name} expects pixels float[M, 3, {self.image_size[0]}, {self.image_size[1]}] "
                f"(image_size), but got {tuple(pixels_M3hw.shape)}"
            )
        pixels_M3hw = pixels_M3hw.to(next(self.parameters()).dtype)
        if pixels_M3hw.device.type == "cpu":
            # Convolutions pass the layout on; on a CPU batches run up to twice as fast in this one.
            pixels_M3hw = pixels_M3hw.contiguous(memory_format=torch.channels_last)
        return self._features(self._tapped(pixels_M3hw), self.grid)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Pixels float32[3, h, w] of one RGB picture: resized, scaled to 0..1, then (x - mean) / std."""
        if not isinstance(image, Image.Image) or image.mode != "RGB":
            found = f"mode {image.mode}" if isinstance(image, Image.Image) else type(image).__name__
            raise ValueError(f"preprocess expects a PIL picture in RGB, but got {found}")
        height, width = self.image_size
        resample = _INTERPOLATION[self.interpolation]
        if self.resize_mode == "crop":
            box = _centre_box(image.width, image.height, width, height, self.crop_fraction)
            image = image.resize((width, height), resample, box=box)
        elif self.resize_mode == "pad":
            scale = min(width / image.width, height / image.height)
            inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            fill = tuple(round(255 * v) for v in self.pad_value)
            padded = Image.new("RGB", (width, height), (fill[0], fill[1], fill[2]))
            padded.paste(image.resize(inner, resample), ((width - inner[0]) // 2, (height - inner[1]) // 2))
            image = padded
        else:
            image = image.resize((width, height), resample)
        pixels_3hw = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (pixels_3hw - mean[:, None, None]) / std[:, None, None]

    @property
    def num_tokens(self) -> int:
        """N: tokens of one picture, prefix tokens included."""
        return self.grid[0] * self.grid[1] + self.num_prefix

    @property
    def digest(self) -> str:
        """SHA-256 of the weights as loaded; computed again only when training or loading has changed them.

        Position tables count as the weights hold them, not as resized for `image_size`: one set of weights has one
        digest at every resolution.
        """
        # Changes in place raise a tensor's version; a cast does not, so the digest survives it.
        key = tuple((id(p), p._version) for p in self.parameters())
        if self._digest is None or self._digest[0] != key:
            state = self.model.state_dict()
            for name, (table, resized) in self._tables.items():
                if torch.equal(state[name].to(resized), resized):
                    state[name] = table
            self._digest = (key, digest_state(state))
        return self._digest[1]

    @property
    def identity(self) -> str:
        """SHA-256 of the weights and of every setting that changes features: the key for cached ones."""
        settings = [
            (self.digest, self.name, self.layers, self.final, self.norm, self.grid, self.reduce),
            (self.keep_prefix, self.image_size, self.mean, self.std, self.interpolation),
            (self.resize_mode, self.pad_value, self.crop_fraction, self.balance),
        ]
        return "sha256:" + sha256(repr(settings).encode()).hexdigest()

    def fit_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """A saved tensor as this encoder holds it: position embeddings of another picture size are resized."""
        own = self.model.state_dict().get("pos_embed")
        if name.rpartition(".")[2] != "pos_embed" or own is None or tensor.shape == own.shape:
            return tensor
        prefixes = 0 if getattr(self.model, "no_embed_class", False) else self.model.num_prefix_tokens
        return _resize_table(tensor, self.model.patch_embed.grid_size, prefixes, self.name)

    def _features(self, taps: list[tuple[Tensor, Tensor | None]], grid: tuple[int, int]) -> Tensor:
        maps = [_to_grid(map_MEhw, grid, self.reduce, self.name) for map_MEhw, _ in taps]
        if self.balance:
            maps = [_unit_scale(map_MEhw) for map_MEhw in maps]
        features_MNE = rearrange(torch.cat(maps, dim=1), "M E h w -> M (h w) E")
        if self.num_prefix:
            prefix_MNE = torch.cat([prefix for _, prefix in taps if prefix is not None], dim=-1)
            features_MNE = torch.cat([prefix_MNE, features_MNE], dim=1)
        return features_MNE

    def _tapped(self, pixels_M3hw: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """(map [M, E, h, w], prefix tokens [M, n, E] or None) of each tap, shallow to deep."""
        if not self.layers:
            return [self._split_final(self.model.forward_features(pixels_M3hw), pixels_M3hw)]
        options: dict[str, Any] = {"indices": list(self.layers), "output_fmt": "NCHW"}
        if self.norm:
            options["norm"] = True
        if self.keep_prefix:
            options["return_prefix_tokens"] = True
        if not self.final:
            taken = self.model.forward_intermediates(pixels_M3hw, intermediates_only=True, **options)
            return [tap if self.keep_prefix else (tap, None) for tap in taken]
        final, taken = self.model.forward_intermediates(pixels_M3hw, **options)
        taps = [tap if self.keep_prefix else (tap, None) for tap in taken]
        return [*taps, self._split_final(final, pixels_M3hw)]

    def _split_final(self, final: Tensor, pixels_M3hw: Tensor) -> tuple[Tensor, Tensor | None]:
        if final.ndim == 4:
            if str(getattr(self.model, "output_fmt", "NCHW")) == "NHWC":
                final = rearrange(final, "M h w E -> M E h w")
            return final, None
        num_prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        rows, columns = self.model.patch_embed.dynamic_feat_size(tuple(pixels_M3hw.shape[-2:]))
        map_MEhw = rearrange(final[:, num_prefix:], "M (h w) E -> M E h w", h=rows, w=columns)
        return map_MEhw, final[:, :num_prefix] if self.num_prefix else None

    def _prune(self) -> None:
        """Drop what lies behind the last tap: dead weights would be hashed, moved and never trained."""
        if self.final:
            self.model.reset_classifier(0, "")
        else:
            self.model.prune_intermediate_layers(list(self.layers), prune_norm=not self.norm, prune_head=True)

    def _probe(self, grid: tuple[int, int] | None) -> tuple[tuple[int, int], int]:
        """Grid and width by one pass without data: right for any model and any choice of layers.

        The pass also shows which parameters take no part (norms inside a head); their modules are dropped.
        """
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        empty = {f"encoder.model.{key}": torch.empty_like(value, device="meta") for key, value in tensors}
        names = [key for key, _ in self.model.named_parameters()]
        leaves = [empty[f"encoder.model.{key}"].requires_grad_() for key in names]
        pixels_13hw = torch.empty(1, 3, *self.image_size, device="meta", dtype=torch.float32)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.enable_grad():
                grid, features = torch.func.functional_call(_Probe(self, grid), empty, (pixels_13hw,))
        except (AssertionError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.name} gives no features of layers {self._taps()} at image_size {self.image_size}: "
                f"{error}"
            ) from error
        finally:
            self.model.train(was_training)
        gradients = torch.autograd.grad(features.sum(), leaves, allow_unused=True)
        used = [key for key, gradient in zip(names, gradients, strict=True) if gradient is not None]
        _drop_unused(self.model, "", used)
        return grid, features.shape[-1]

    def _taps(self) -> list[int | str]:
        return [*self.layers, *(["final"] if self.final else [])]


class _Probe(nn.Module):
    """Grid and features of an encoder; a module because functional_call runs `forward` only."""

    def __init__(self, encoder: TimmImage, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.wanted_grid = grid

    def forward(self, pixels_M3hw: Tensor) -> tuple[tuple[int, int], Tensor]:
        taps = self.encoder._tapped(pixels_M3hw)
        grid = self.wanted_grid or (taps[-1][0].shape[-2], taps[-1][0].shape[-1])
        return grid, self.encoder._features(taps, grid)


def _drop_unused(module: nn.Module, prefix: str, used: list[str]) -> None:
    """Replace each submodule that has parameters, none of them in `used`, by one that has none."""
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}."
        if any(key.startswith(path) for key in used):
            _drop_unused(child, path, used)
        elif any(True for _ in child.parameters()):
            setattr(module, name, nn.Identity())


def _to_grid(map_MEhw: Tensor, grid: tuple[int, int], reduce: str, name: str) -> Tensor:
    """The map resampled to `grid`; space_to_depth multiplies its channels by the cells that meet in one."""
    size = (map_MEhw.shape[-2], map_MEhw.shape[-1])
    if size == grid:
        return map_MEhw
    if size[0] < grid[0] or size[1] < grid[1]:
        return F.interpolate(map_MEhw, size=grid, mode="bilinear", align_corners=False)
    divides = size[0] % grid[0] == 0 and size[1] % grid[1] == 0
    if reduce == "space_to_depth":
        if not divides:
            raise ValueError(
                f"{name}: a {size[0]}x{size[1]} map cannot be stacked onto grid {grid}; use reduce: average"
            )
        return rearrange(map_MEhw, "M E (h a) (w b) -> M (a b E) h w", h=grid[0], w=grid[1])
    if divides:
        return F.avg_pool2d(map_MEhw, (size[0] // grid[0], size[1] // grid[1]))
    return F.adaptive_avg_pool2d(map_MEhw, grid)


def _resize_table(table_1NE: Tensor, grid: tuple[int, int], prefixes: int, name: str) -> Tensor:
    """A position table of a grid of the same proportions, resized as timm resizes one when it loads weights."""
    inner = max(0, table_1NE.shape[1] - prefixes)
    scale = math.sqrt(inner / (grid[0] * grid[1]))
    old = (round(grid[0] * scale), round(grid[1] * scale))
    if not inner or old[0] * old[1] != inner:
        raise ValueError(
            f"{name}: a saved table of {table_1NE.shape[1]} positions is no grid of the proportions {grid[0]}x{grid[1]}"
        )
    resized: Tensor = resample_abs_pos_embed(table_1NE, list(grid), list(old), num_prefix_tokens=prefixes)
    return resized


def _unit_scale(map_MEhw: Tensor) -> Tensor:
    """The map divided by its root mean square over the picture, in float32."""
    scale = map_MEhw.float().pow(2).mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-3)
    return (map_MEhw.float() / scale).to(map_MEhw.dtype)


def _centre_box(
    width: int, height: int, out_width: int, out_height: int, fraction: float
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the central box of the output's shape, `fraction` of the largest one."""
    # Cropping in the source, not after resizing: a 1 x 100,000 picture would otherwise be blown up before
    # it is cut.
    scale = fraction * min(width / out_width, height / out_height)
    box_width, box_height = out_width * scale, out_height * scale
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def _layer_indices(name: str, layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    indices = [int(layer) + count if layer < 0 else int(layer) for layer in layers or ()]
    outside = [layer for layer, index in zip(layers or (), indices, strict=True) if not 0 <= index < count]
    if outside:
        raise ValueError(
            f"{name} has layers 0 to {count - 1} (or -{count} to -1), but layers holds {outside}"
        )
    if sorted(set(indices)) != indices:
        raise ValueError(f"{name}: layers must ascend without repeats, but got {list(layers or ())}")
    return tuple(indices)


def _height_width(key: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < 1 for v in pair):
        raise ValueError(f"{key} must be a positive integer or a pair (height, width), but got {value}")
    return pair[0], pair[1]


def _one_of(key: str, value: str, allowed: list[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(allowed)}, but got {value!r}")
