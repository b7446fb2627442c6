"""A Conformer over log-mels (paper section 8.1.1: 24 layers of 1536 on stacks of 4 frames; arXiv 2005.08100).

Each layer: half a feed-forward, rotary self-attention, a convolution module, half a feed-forward, a norm. Norms are
LayerNorm throughout, in the convolution module too: batch statistics would let one recording change another.

With `chunk` > 0 a frame sees its own chunk and `left_chunks` before it (-1: all), and convolutions look back alone:
then `ConformerStream` gives, chunk by chunk, what the whole recording gives at once.

Shapes: B recordings, A mel frames, n mels, T stacked frames (A // stack), E width, H heads, d head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.identity import Digest, identity_of
from encoders.log_mel import LogMel


class Conformer(nn.Module):
    """Log-mels float[B, A, n] to frames float[B, T, E], one for each `stack` mel frames; a shorter rest is left off."""

    def __init__(
        self,
        num_mels: int = 80,
        stack: int = 4,
        width: int = 1536,
        num_layers: int = 24,
        num_heads: int = 24,
        ffn_width: int = 4096,
        kernel: int = 7,
        chunk: int = 0,
        left_chunks: int = -1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if width % num_heads or (width // num_heads) % 2:
            raise ValueError(f"a width of {width} does not give {num_heads} heads of an even width")
        if not chunk and kernel % 2 == 0:
            raise ValueError(f"a kernel of {kernel} has no middle; it is odd where frames look both ways")
        if chunk < 0 or left_chunks < -1 or (left_chunks >= 0 and not chunk):
            raise ValueError(
                f"chunk={chunk}, left_chunks={left_chunks}: frames a chunk, and chunks looked back (-1: all)"
            )
        self.num_mels, self.stack, self.dim, self.chunk, self.left_chunks = (
            num_mels,
            stack,
            width,
            chunk,
            left_chunks,
        )
        # Without a floor that depends on the loudest frame, so that a frame never depends on later ones.
        self.mels = LogMel(num_mels, dynamic_range=None)
        self.settings = {
            "num_mels": num_mels,
            "stack": stack,
            "num_heads": num_heads,
            "chunk": chunk,
            "left_chunks": left_chunks,
        }
        self.projection = nn.Linear(num_mels * stack, width)
        self.layers: Any = nn.ModuleList(
            ConformerLayer(width, num_heads, ffn_width, kernel, causal=bool(chunk)) for _ in range(num_layers)
        )
        self.init_weights(seed)
        self._digest = Digest(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return self._digest.of(self)

    @property
    def identity(self) -> str:
        """SHA-256 of the weights and of all else that changes features."""
        return identity_of(self.digest, kind="conformer", **self.settings)

    def preprocess(self, samples_T: Tensor) -> Tensor:
        """Return log-mels float32[A, n] of 16 kHz samples float[T]."""
        mels: Tensor = self.mels(samples_T)
        return mels

    def init_weights(self, seed: int) -> None:
        """Draw matrices with 1/sqrt(fan-in), those that end a branch also by 1/sqrt(layers); biases zero, norms one."""
        if self.projection.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim == 1:
                    weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                    continue
                std = 1 / math.sqrt(weight[0].numel())
                if name.endswith(("o.weight", "down.weight", "output.weight")):
                    std /= math.sqrt(len(self.layers))
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    def num_frames(self, num_mel_frames: int | Tensor) -> Any:
        """Return how many frames come of so many mel frames."""
        return num_mel_frames // self.stack

    def stacked(self, mels_BAn: Tensor) -> Tensor:
        """Lay each `stack` mel frames side by side: float[B, T, stack * n]."""
        if mels_BAn.ndim != 3 or mels_BAn.shape[-1] != self.num_mels:
            raise ValueError(
                f"the Conformer takes log-mels [B, A, {self.num_mels}], but these are {list(mels_BAn.shape)}"
            )
        T = mels_BAn.shape[1] // self.stack
        return mels_BAn[:, : T * self.stack].unflatten(1, (T, self.stack)).flatten(2)

    def forward(self, mels_BAn: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return float[B, T, E]; of int64 `lengths_B` mel frames; frames past them are zero and seen by none."""
        return self.frames(self.stacked(mels_BAn), None if lengths_B is None else self.num_frames(lengths_B))

    def frames(self, stacked_BTm: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return float[B, T, E] of stacked frames, of which int64 `lengths_B` are real in each recording."""
        x = self.projection(stacked_BTm)
        T, device = x.shape[1], x.device
        if not T:
            return x
        real_BT = None if lengths_B is None else torch.arange(T, device=device) < lengths_B[:, None]
        seen = chunk_mask(T, self.chunk, self.left_chunks, device) if self.chunk else None
        mask = seen
        if real_BT is not None:
            # A frame that is not there sees itself: a row with nothing to see has no softmax.
            itself_TT = torch.eye(T, dtype=torch.bool, device=device)
            mask = real_BT[:, None, None] & (seen if seen is not None else True) | itself_TT
        rope = rotary(torch.arange(T, device=device), x.shape[2] // self.layers[0].attention.num_heads)
        for layer in self.layers:
            x = layer(x, rope, mask, real_BT)
        return x if real_BT is None else x * real_BT[..., None]


class ConformerLayer(nn.Module):
    """One layer; every branch behind a norm and a residual, a norm at its end."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.first = FeedForward(width, ffn_width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = RotaryAttention(width, num_heads)
        self.convolution = ConvolutionModule(width, kernel, causal)
        self.second = FeedForward(width, ffn_width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x_BTE: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        real_BT: Tensor | None = None,
        past: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Map float[B, T, E]; `past` holds, and gets, what a stream has to know of earlier frames."""
        x = x_BTE + 0.5 * self.first(x_BTE)
        x = x + self.attention(self.attention_norm(x), rope, mask, past)
        x = x + self.convolution(x, real_BT, past)
        x = x + 0.5 * self.second(x)
        return self.norm(x)


class FeedForward(nn.Module):
    """`down(silu(up(norm x)))`."""

    def __init__(self, width: int, ffn_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, ffn_width)
        self.down = nn.Linear(ffn_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map float[..., E]."""
        out: Tensor = self.down(F.silu(self.up(self.norm(x))))
        return out


class RotaryAttention(nn.Module):
    """Self-attention with rotary positions on queries and keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.o = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self,
        x_BTE: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Map float[B, T, E]; bool `mask` is True where a frame sees another."""
        q, k, v = (
            part(x_BTE).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        q, k = rotated(q, rope), rotated(k, rope)
        if past is not None:
            k, v = (torch.cat((past[name], part), dim=2) for name, part in (("keys", k), ("values", v)))
            past["keys"], past["values"] = k, v
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        merged: Tensor = self.o(out.transpose(1, 2).flatten(2))
        return merged


class ConvolutionModule(nn.Module):
    """Norm, gated pointwise map, depthwise convolution over time, norm, SiLU, pointwise map."""

    def __init__(self, width: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.kernel, self.causal = kernel, causal
        self.norm = nn.LayerNorm(width)
        self.gated = nn.Linear(width, 2 * width, bias=False)
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width, bias=False)
        self.depthwise_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self, x_BTE: Tensor, real_BT: Tensor | None = None, past: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Map float[B, T, E]; before the first and after the last real frame there is silence, zeros."""
        x = F.glu(self.gated(self.norm(x_BTE)), dim=-1)
        if real_BT is not None:
            x = x * real_BT[..., None]
        x_BET = x.transpose(1, 2)
        if past is not None:
            x_BET = torch.cat((past["frames"], x_BET), dim=2)
            past["frames"] = x_BET[..., -(self.kernel - 1) :] if self.kernel > 1 else x_BET[..., :0]
        elif self.causal:
            x_BET = F.pad(x_BET, (self.kernel - 1, 0))
        else:
            x_BET = F.pad(x_BET, (self.kernel // 2, self.kernel // 2))
        x = self.depthwise(x_BET).transpose(1, 2)
        out: Tensor = self.output(F.silu(self.depthwise_norm(x)))
        return out


class ConformerStream:
    """Frames of one recording as its log-mels come; together they are those of the whole.

    What is held of the past is bounded where `left_chunks` is: keys and values of so many chunks.
    """

    def __init__(self, conformer: Conformer) -> None:
        if not conformer.chunk:
            raise ValueError("this Conformer sees whole recordings; one that streams has chunk above 0")
        self.conformer = conformer
        weight = conformer.projection.weight
        layer = conformer.layers[0]
        heads, width = layer.attention.num_heads, weight.shape[0]
        self._mels = weight.new_zeros(1, 0, conformer.num_mels)
        self._seen = 0  # frames given so far
        self._past = [
            {
                "keys": weight.new_zeros(1, heads, 0, width // heads),
                "values": weight.new_zeros(1, heads, 0, width // heads),
                "frames": weight.new_zeros(1, width, layer.convolution.kernel - 1),
            }
            for layer in conformer.layers
        ]

    def push(self, mels_An: Tensor) -> Tensor:
        """Take log-mels float[A, n] and return the frames that they complete, whole chunks: float[T, E]."""
        self._mels = torch.cat((self._mels, mels_An[None].to(self._mels)), dim=1)
        step = self.conformer.chunk * self.conformer.stack
        return self._run(self._mels.shape[1] // step * step)

    def finish(self) -> Tensor:
        """Return what is left: the frames of the last chunk, which need not be full."""
        return self._run(self._mels.shape[1])

    def _run(self, num_mels: int) -> Tensor:
        ready, self._mels = self._mels[:, :num_mels], self._mels[:, num_mels:]
        stacked = self.conformer.stacked(ready)
        chunks = stacked.split(self.conformer.chunk, dim=1) if stacked.shape[1] else []
        made = [self._chunk(chunk) for chunk in chunks]
        return torch.cat(made) if made else stacked.new_zeros(0, self.conformer.dim)

    def _chunk(self, stacked_1Tm: Tensor) -> Tensor:
        x = self.conformer.projection(stacked_1Tm)
        T = x.shape[1]
        heads = self.conformer.layers[0].attention.num_heads
        rope = rotary(torch.arange(self._seen, self._seen + T, device=x.device), x.shape[2] // heads)
        self._seen += T
        for layer, past in zip(self.conformer.layers, self._past, strict=True):
            if self.conformer.left_chunks >= 0:
                most = self.conformer.left_chunks * self.conformer.chunk
                for name in ("keys", "values"):
                    past[name] = past[name][:, :, max(0, past[name].shape[2] - most) :]
            x = layer(x, rope, None, None, past)
        return x[0]


def chunk_mask(num_frames: int, chunk: int, left_chunks: int, device: torch.device) -> Tensor:
    """Return bool[T, T]: a frame sees its own chunk and `left_chunks` chunks before it (-1: all before it)."""
    number = torch.arange(num_frames, device=device) // chunk
    seen_TT = number[None] <= number[:, None]
    return seen_TT if left_chunks < 0 else seen_TT & (number[None] >= number[:, None] - left_chunks)


def rotary(positions_T: Tensor, head_dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, float32[T, d], of pairs (i, i + d/2)."""
    exponents = torch.arange(0, head_dim, 2, device=positions_T.device).float() / head_dim
    angles = positions_T[:, None].float() / base**exponents
    return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()


def rotated(x_BHTd: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn float[B, H, T, d] by its positions, in float32."""
    cos, sin = rope
    first, second = x_BHTd.float().chunk(2, dim=-1)
    return (x_BHTd.float() * cos + torch.cat((-second, first), -1) * sin).to(x_BHTd.dtype)
