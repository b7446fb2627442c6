"""The Llama 3 text decoder (paper section 3.2): pre-norm, grouped-query attention, RoPE, SwiGLU, no biases.

Exact for Llama 3, 3.1 (scaled RoPE), 3.2 text (factor 32, tied head) and any checkpoint of the architecture.
It knows nothing of media: its one port for them is `between(layer, hidden)`, called before each self-attention
layer. When `between` is None the operations are exactly the text-only ones.

Shapes: B batch, S positions, T positions selected by `at`, D width, H heads, K KV heads, V vocabulary, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mm_llama.core.cache import KVCache, Slots
from mm_llama.core.kernels import FORMS, Kernel
from mm_llama.core.layers import (
    FeedForward,
    Linear,
    RMSNorm,
    Rope,
    attend,
    hold,
    hold_products,
    merge_heads,
    rotate,
    split_heads,
    together,
)
from mm_llama.core.packed import Documents, attend_documents, find_documents
from mm_llama.core.products import linear

Between = Callable[[int, Tensor], Tensor]
Mask = Tensor | Documents | None  # bool[B or 1, S, T] of who sees whom, or the documents of packed rows


@dataclass(frozen=True)
class RopeScaling:
    """The 3.1 frequency scaling: factor 8 for 8B to 405B, 32 for 1B and 3B."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """The numbers of a core; `head_dim` 0 means `dim // num_heads`."""

    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_dim: int
    vocab_size: int
    head_dim: int = 0
    norm_eps: float = 1e-5
    rope_base: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = False
    max_context: int = 8192

    def __post_init__(self) -> None:
        for name in (
            "dim",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "ffn_dim",
            "vocab_size",
            "max_context",
        ):
            if not 1 <= getattr(self, name) < 1 << 31:
                raise ValueError(f"core.{name} is {getattr(self, name)}; expected a whole number from 1 on")
        if not 0 <= self.head_dim < 1 << 20:
            raise ValueError(
                f"core.head_dim is {self.head_dim}; expected a width, or 0 for dim over num_heads"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"core.num_heads is {self.num_heads}, which core.num_kv_heads={self.num_kv_heads} does not divide"
            )
        if not self.head_dim:
            if self.dim % self.num_heads:
                raise ValueError(
                    f"core.dim is {self.dim}, which core.num_heads={self.num_heads} does not divide; set core.head_dim"
                )
            object.__setattr__(self, "head_dim", self.dim // self.num_heads)
        if self.head_dim % 2:
            raise ValueError(f"core.head_dim is {self.head_dim}; rotary positions need an even width")


class Llama(nn.Module):
    """A Llama decoder over token ids, with one optional port between its layers."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.digest = ""
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tied else Linear(config.dim, config.vocab_size)
        self._frequencies: Tensor | None = None
        self._tied_head: Kernel | None = None  # of the embedding, as `hold` was told to hold it

    def init_weights(self, seed: int) -> None:
        """Draw every weight: normal(0, 0.02), residual outputs scaled by 1/sqrt(2 layers), norms around 1."""
        generator = torch.Generator().manual_seed(seed)
        residual = 0.02 / math.sqrt(2 * self.config.num_layers)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim == 1:
                    # Away from 1, so that a norm that is skipped or doubled shows in every comparison.
                    weight.copy_(1 + 0.1 * torch.randn(weight.shape, generator=generator))
                else:
                    std = residual if name.endswith((".o.weight", ".down.weight")) else 0.02
                    weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    def forward(
        self,
        tokens_BS: Tensor,
        *,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        cache: KVCache | None = None,
        between: Between | None = None,
        embeddings_BSD: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Return float32 logits [B, S, V], or [T, V] at the True positions of bool[B, S] `at`.

        `positions_BS` int64 defaults to 0..S-1; with a cache they are also the slots that are written.
        `documents_BS` int64: a position sees only its own document, a run of equal numbers (packed rows; not
        together with a cache).
        `embeddings_BSD` replaces the embedding of `tokens_BS`.
        """
        hidden = self.hidden(
            tokens_BS,
            positions_BS=positions_BS,
            documents_BS=documents_BS,
            cache=cache,
            between=between,
            embeddings_BSD=embeddings_BSD,
        )
        return self.logits(hidden if at is None else hidden[at])

    def hidden(
        self,
        tokens_BS: Tensor,
        *,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        cache: KVCache | None = None,
        between: Between | None = None,
        embeddings_BSD: Tensor | None = None,
        sees_BSS: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """Return the states after the final norm, float[B, S, D]; arguments as in `forward`.

        `sees_BSS` bool says which positions each one sees, in place of all before it and itself: so texts that begin
        alike are run together as a tree. Not together with a cache or documents.
        With `start` > 0, `embeddings_BSD` are the states that enter layer `start`.
        """
        hidden = self.embedding(tokens_BS) if embeddings_BSD is None else embeddings_BSD
        hidden = self.run(
            hidden,
            positions_BS=positions_BS,
            documents_BS=documents_BS,
            cache=cache,
            between=between,
            sees_BSS=sees_BSS,
            start=start,
        )
        return self.norm(hidden)

    def run(
        self,
        hidden_BSD: Tensor,
        *,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        cache: KVCache | None = None,
        between: Between | None = None,
        sees_BSS: Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Run layers start..stop-1 on the states that enter layer `start`; no final norm."""
        B, S, _ = hidden_BSD.shape
        device = hidden_BSD.device
        if positions_BS is None:
            positions_BS = torch.arange(S, device=device).expand(B, S)
        rope = self.rope(positions_BS)
        slots: Slots | None = None
        mask: Mask
        if sees_BSS is not None:
            if cache is not None or documents_BS is not None:
                raise ValueError("sees_BSS stands alone: pass it without a cache and without documents")
            mask = sees_BSS
        elif cache is None:
            mask = causal_mask(S, device) if documents_BS is None else find_documents(documents_BS)
        else:
            if documents_BS is not None:
                raise ValueError("packed documents and a KV cache do not go together: pass one of them")
            slots = cache.slots(positions_BS)
            mask = slots.mask()
        for index in range(start, len(self.layers) if stop is None else stop):
            if between is not None:
                hidden_BSD = between(index, hidden_BSD)
            hidden_BSD = self.layers[index](hidden_BSD, rope, mask, slots, index)
        return hidden_BSD

    def logits(self, hidden: Tensor) -> Tensor:
        """Project float[..., D] to float32 logits [..., V] with the output head or the tied embedding."""
        if self.head is not None:
            logits: Tensor = self.head(hidden)
        elif self._tied_head is not None:
            logits = self._tied_head(hidden)
        else:
            logits = linear(hidden, self.embedding.weight.to(hidden.dtype))
        return logits.float()

    @property
    def held(self) -> bool:
        """Whether `hold` was called."""
        return any(getattr(part, "_held", None) is not None for part in self.modules())

    def hold(self, form: str) -> None:
        """Hold all weights that are multiplied with in a form for inference (`mm_llama.core.kernels.FORMS`).

        They can then be neither trained, moved nor read: what was exact bits stays so in the form `blocked` alone.
        """
        hold_products(self, form)
        if self.head is None:
            self._tied_head = FORMS[form](self.embedding.weight)
        else:
            hold((self.head,), form)

    def rope(self, positions_BS: Tensor) -> Rope:
        """Return cosines and signed sines (`rotate`), float32[B, 1, S, d], in the half-split form."""
        if self._frequencies is None or self._frequencies.device != positions_BS.device:
            self._frequencies = rope_frequencies(self.config).to(positions_BS.device)
        angles = positions_BS[:, None, :, None].float() * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class Layer(nn.Module):
    """One decoder layer: attention and feed-forward, each behind a norm and a residual."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = SelfAttention(config)
        self.feed_forward_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config.dim, config.ffn_dim)

    def forward(self, x_BSD: Tensor, rope: Rope, mask: Mask, slots: Slots | None, index: int) -> Tensor:
        """Map float[B, S, D] to float[B, S, D]; `index` is the layer's place in the cache."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rope, mask, slots, index)
        return x_BSD + self.feed_forward(self.feed_forward_norm(x_BSD))


class SelfAttention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    products = (("q", "k", "v"), ("o",))

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.q = Linear(config.dim, config.num_heads * config.head_dim)
        self.k = Linear(config.dim, config.num_kv_heads * config.head_dim)
        self.v = Linear(config.dim, config.num_kv_heads * config.head_dim)
        self.o = Linear(config.num_heads * config.head_dim, config.dim)

    def forward(self, x_BSD: Tensor, rope: Rope, mask: Mask, slots: Slots | None, index: int) -> Tensor:
        """Attend within each row or document, or to everything the cache holds at earlier positions of the row."""
        H, K = self.num_heads, self.num_kv_heads
        every = together(x_BSD, (self.q, self.k, self.v))
        if every is None:
            q, k = rotate(split_heads(self.q(x_BSD), H), rope), rotate(split_heads(self.k(x_BSD), K), rope)
            v = split_heads(self.v(x_BSD), K)
        else:
            heads = split_heads(every, H + 2 * K)
            q, k = rotate(heads[:, : H + K], rope).split((H, K), dim=1)
            v = heads[:, H + K :]
        if slots is not None:
            k, v = slots.write(index, k, v)
        if isinstance(mask, Documents):
            return self.o(merge_heads(attend_documents(q, k, v, mask)))
        return self.o(merge_heads(attend(q, k, v, mask)))


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Return the float32[d/2] rotary frequencies, scaled by wavelength where the 3.1 rule applies.

    Wavelengths below original/high keep their frequency, those above original/low are divided by the factor,
    those between are blended linearly in original/wavelength.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_base**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_context / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > scaling.original_context / low, frequencies / scaling.factor, blended)
    return torch.where(wavelengths < scaling.original_context / high, frequencies, scaled)


def causal_mask(num_positions: int, device: torch.device) -> Tensor:
    """Return bool[1, S, S]: a position sees itself and earlier ones."""
    return torch.ones(num_positions, num_positions, dtype=torch.bool, device=device).tril()[None]


def count_parameters(config: LlamaConfig) -> int:
    """Count the parameters of a core of these numbers without allocating any."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in Llama(config).parameters())
