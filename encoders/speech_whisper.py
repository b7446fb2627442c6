"""Whisper's encoder (arXiv 2212.04356), on recordings as long as they are: nothing is padded to 30 seconds.

Weights come from a CTranslate2 `model.bin` or a folder of the Hugging Face layout (safetensors).

Shapes: M recordings, A mel frames, n mels, T frames (A / 2, rounded up), E width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.ctranslate2_file import read_ctranslate2
from encoders.identity import Digest, identity_of
from encoders.log_mel import LogMel
from encoders.weight_files import read_tensors

_LAYER_CT2 = {
    "self_attention/layer_norm/gamma": "attention_norm.weight",
    "self_attention/layer_norm/beta": "attention_norm.bias",
    "self_attention/linear_1/weight": "o.weight",
    "self_attention/linear_1/bias": "o.bias",
    "ffn/layer_norm/gamma": "feed_forward_norm.weight",
    "ffn/layer_norm/beta": "feed_forward_norm.bias",
    "ffn/linear_0/weight": "up.weight",
    "ffn/linear_0/bias": "up.bias",
    "ffn/linear_1/weight": "down.weight",
    "ffn/linear_1/bias": "down.bias",
}
_OUTER_CT2 = {
    "layer_norm/gamma": "norm.weight",
    "layer_norm/beta": "norm.bias",
    "position_encodings/encodings": "positions",
    **{f"conv{i}/{part}": f"conv{i}.{part}" for i in (1, 2) for part in ("weight", "bias")},
}
_LAYER_HF = {
    "self_attn_layer_norm": "attention_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "o",
    "final_layer_norm": "feed_forward_norm",
    "fc1": "up",
    "fc2": "down",
}


class WhisperEncoder(nn.Module):
    """Log-mels float[M, A, n] to features float[M, T, E], one every 20 ms.

    `weights` None draws them from `seed`; a `model.bin` that comes in parts is given as a list of them. What goes in is
    what `preprocess` makes of 16 kHz samples.
    """

    def __init__(
        self,
        num_mels: int = 80,
        dim: int = 384,
        num_layers: int = 4,
        num_heads: int = 6,
        max_frames: int = 1500,
        weights: str | Path | Sequence[str | Path] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"a width of {dim} does not give {num_heads} heads")
        self.dim, self.num_mels, self.max_frames = dim, num_mels, max_frames
        self.mels = LogMel(num_mels)
        self.conv1 = nn.Conv1d(num_mels, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.positions: Any
        self.register_buffer("positions", _sinusoids(max_frames, dim))
        self.layers: Any = nn.ModuleList(WhisperLayer(dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        if weights is not None:
            self._load(
                [Path(weights)] if isinstance(weights, str | Path) else [Path(part) for part in weights]
            )
        else:
            self._draw(seed)
        self._digest = Digest(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return self._digest.of(self)

    @property
    def identity(self) -> str:
        """SHA-256 of the weights and of all else that changes features."""
        return identity_of(self.digest, kind="whisper", num_mels=self.num_mels)

    def preprocess(self, samples_T: Tensor) -> Tensor:
        """Return log-mels float32[A, n] of 16 kHz samples float[T]."""
        mels: Tensor = self.mels(samples_T)
        return mels

    def num_frames(self, num_mel_frames: int | Tensor) -> Any:
        """Return how many frames come of so many mel frames."""
        return (num_mel_frames + 1) // 2

    def forward(self, mels_MAn: Tensor, lengths_M: Tensor | None = None) -> Tensor:
        """Return float[M, T, E]; `lengths_M` int64 mel frames are real, what lies past them changes nothing.

        Frames past a recording's end are zero. Raises ValueError for more than `max_frames` frames: cut the recording.
        """
        if mels_MAn.ndim != 3 or mels_MAn.shape[-1] != self.num_mels:
            raise ValueError(
                f"Whisper takes log-mels [M, A, {self.num_mels}], but these are {list(mels_MAn.shape)}"
            )
        A = mels_MAn.shape[1]
        if self.num_frames(A) > self.max_frames:
            raise ValueError(
                f"a recording of {A / 100:.1f} s is longer than the {self.max_frames / 50:g} s that Whisper's "
                "positions reach: give it in parts"
            )
        x_MnA = mels_MAn.to(self.conv1.weight.dtype).transpose(1, 2)
        real_MA = None
        if lengths_M is not None:
            real_MA = torch.arange(A, device=x_MnA.device) < lengths_M[:, None]
            x_MnA = x_MnA * real_MA[:, None]
        x_MEA = F.gelu(self.conv1(x_MnA))
        if real_MA is not None:  # past the end there is silence for the next convolution too
            x_MEA = x_MEA * real_MA[:, None]
        x = F.gelu(self.conv2(x_MEA)).transpose(1, 2)
        x = x + self.positions[: x.shape[1]].to(x.dtype)
        real_MT, mask = None, None
        if lengths_M is not None:
            T = torch.arange(x.shape[1], device=x.device)
            real_MT = T < self.num_frames(lengths_M)[:, None]
            mask = real_MT[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        return x if real_MT is None else x * real_MT[..., None]

    def _draw(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.is_meta:
                    continue
                if weight.ndim > 1:
                    weight.copy_(
                        torch.randn(weight.shape, generator=generator) / math.sqrt(weight[0].numel())
                    )
                else:
                    weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)

    def _load(self, parts: Sequence[Path]) -> None:
        path = parts[0]
        read = _from_folder(path) if path.is_dir() else _from_ctranslate2(parts)
        heads = read.pop("num_heads", None)
        if heads is not None and int(heads) != self.layers[0].num_heads:
            raise ValueError(f"{path} is of {int(heads)} heads, not num_heads={self.layers[0].num_heads}")
        own = self.state_dict()
        wrong = [
            f"{name} ({'missing' if name not in read else list(read[name].shape)})"
            for name, tensor in own.items()
            if name not in read or read[name].shape != tensor.shape
        ]
        unknown = sorted(read.keys() - own.keys())
        if wrong or unknown:
            raise ValueError(
                f"{path} does not hold an encoder of num_mels={self.num_mels}, dim={self.dim}, "
                f"num_layers={len(self.layers)}: {', '.join([*wrong, *unknown][:4])}"
            )
        self.load_state_dict({name: tensor.float() for name, tensor in read.items()})


class WhisperLayer(nn.Module):
    """Self-attention and a feed-forward, each behind a norm and a residual; keys have no bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.q, self.v, self.o = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_MTE: Tensor, mask: Tensor | None) -> Tensor:
        """Map float[M, T, E]; bool `mask` [M, 1, 1, T] is True for frames that are seen."""
        normed = self.attention_norm(x_MTE)
        q, k, v = (
            part(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x_MTE + self.o(out.transpose(1, 2).flatten(2))
        fed: Tensor = x + self.down(F.gelu(self.up(self.feed_forward_norm(x))))
        return fed


def _sinusoids(count: int, dim: int) -> Tensor:
    """Return Whisper's positions, float32[count, dim]: sines, then cosines."""
    rates = torch.exp(-math.log(10_000) / (dim // 2 - 1) * torch.arange(dim // 2))
    angles = torch.arange(count)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def _from_ctranslate2(parts: Sequence[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in read_ctranslate2(parts, "encoder/").items():
        layer, _, inner = name.partition("/")
        if name in _OUTER_CT2:
            state[_OUTER_CT2[name]] = tensor
        elif layer.startswith("layer_") and inner in _LAYER_CT2:
            state[f"layers.{layer.removeprefix('layer_')}.{_LAYER_CT2[inner]}"] = tensor
        elif layer.startswith("layer_") and inner.startswith("self_attention/linear_0/"):
            # Queries, keys and values of one product; keys have a bias of zeros there.
            part = inner.rpartition("/")[2]
            for which, piece in zip("qkv", tensor.chunk(3), strict=True):
                if (which, part) != ("k", "bias"):
                    state[f"layers.{layer.removeprefix('layer_')}.{which}.{part}"] = piece
                elif piece.any():
                    raise ValueError(f"{parts[0]}: keys have a bias in {name}, which Whisper's have not")
        else:
            state[name] = tensor
    return state


def _from_folder(path: Path) -> dict[str, Tensor]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{path} holds no *.safetensors: save the model in that form")
    state: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_tensors(file).items():
            _, found, inner = f".{name}".partition(".encoder.")
            if found:
                state[_own_name(inner)] = tensor
    return state


def _own_name(inner: str) -> str:
    if inner.startswith("layers."):
        _, number, rest = inner.split(".", 2)
        part, _, kind = rest.rpartition(".")
        return f"layers.{number}.{_LAYER_HF.get(part, part)}.{kind}"
    return {"embed_positions.weight": "positions"}.get(inner, inner.replace("layer_norm.", "norm."))
