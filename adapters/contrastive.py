"""What joins pictures and text while an image encoder is pre-trained (paper section 7.2: contrastively, as MetaCLIP).

It is left behind afterwards: only the encoder goes on. The text side is a small transformer over the core's frozen
token embeddings, so the encoder meets the words of the core it will serve.

Shapes: M pictures, B captions, S their tokens, N image tokens, E encoder width, D core width, W text width, J width
in which pictures and captions meet.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_llama.core.layers import FeedForward, Linear, RMSNorm, attend, merge_heads, split_heads

LOSSES = ("softmax", "sigmoid")
POOLS = ("attention", "mean")
MAX_SCALE = 100.0


class ContrastiveAdapter(nn.Module):
    """Pictures and captions as unit vectors of one space, and how sharply their products are read.

    `loss` says which loss the scale is for: `softmax` (CLIP, arXiv 2103.00020: scale from 1/0.07, at most 100) or
    `sigmoid` (SigLIP, arXiv 2303.15343: scale from 10, and a bias from -10). `pool` turns the tokens of a picture into
    one vector: `attention` by a learned query, or their `mean`. Captions are read `causal`ly or in both directions, and
    pooled at their last token; `max_tokens` is the longest.
    """

    def __init__(
        self,
        encoder_dim: int,
        dim: int,
        joint_dim: int = 512,
        loss: str = "softmax",
        pool: str = "attention",
        pool_heads: int = 8,
        text_width: int = 512,
        text_layers: int = 12,
        text_heads: int = 8,
        text_ffn_dim: int = 1408,
        max_tokens: int = 77,
        causal: bool = True,
        norm_eps: float = 1e-5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for key, value, known in (("loss", loss, LOSSES), ("pool", pool, POOLS)):
            if value not in known:
                raise ValueError(f"modality.image.adapter.{key} must be {' or '.join(known)}, not {value!r}")
        self.encoder_dim, self.dim, self.loss, self.max_tokens = encoder_dim, dim, loss, max_tokens
        self.pool = AttentionPool(encoder_dim, pool_heads) if pool == "attention" else None
        self.picture_projection = Linear(encoder_dim, joint_dim)
        self.text = TextTransformer(
            dim, text_width, text_layers, text_heads, text_ffn_dim, max_tokens, causal, norm_eps
        )
        self.text_projection = Linear(text_width, joint_dim)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1)) if loss == "sigmoid" else None
        if not self.log_scale.is_meta:
            self.init_weights(seed)

    def init_weights(self, seed: int) -> None:
        """Draw weights from the seed: maps 1/sqrt(fan-in), residual outputs 1/sqrt(2 layers) of that, the rest 0.02."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.endswith("norm.weight"):
                    weight.fill_(1.0)
                    continue
                std = 0.02
                if name.endswith(".weight"):
                    std = 1 / math.sqrt(weight.shape[1])
                    if name.endswith((".o.weight", ".down.weight")):
                        std /= math.sqrt(2 * len(self.text.layers))
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)
            self.log_scale.fill_(math.log(10.0 if self.loss == "sigmoid" else 1 / 0.07))
            if self.bias is not None:
                self.bias.fill_(-10.0)

    @property
    def scale(self) -> Tensor:
        """Return float32[1], what products of unit vectors are multiplied by."""
        return self.log_scale.float().clamp(max=math.log(MAX_SCALE)).exp()

    def pictures(self, features_MNE: Tensor) -> Tensor:
        """Return unit vectors float32[M, J] of encoder features float[M, N, E]."""
        if features_MNE.shape[-1] != self.encoder_dim:
            raise ValueError(
                f"the contrastive adapter expects features of width {self.encoder_dim} (modality.image.encoder), but "
                f"these have {features_MNE.shape[-1]}"
            )
        pooled_ME = features_MNE.mean(1) if self.pool is None else self.pool(features_MNE)
        return F.normalize(self.picture_projection(pooled_ME).float(), dim=-1)

    def captions(self, embeddings_BSD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return unit vectors float32[B, J] of captions: the core's embeddings float[B, S, D], padded on the right.

        Raises ValueError when S is more than `max_tokens`.
        """
        states_BSW = self.text(embeddings_BSD, lengths_B)
        last_BW = states_BSW[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B - 1]
        return F.normalize(self.text_projection(last_BW).float(), dim=-1)

    def project(self, features_MNE: Tensor) -> Tensor:
        """Refuse: nothing here joins pictures to the core."""
        raise ValueError(
            "this run pre-trained an encoder against captions and holds no adapter for the core: train one on its "
            "encoder with `mm-llama train stage=image_pretrain 'stage.init={image.encoder: RUN}'` and attach that run"
        )


class AttentionPool(nn.Module):
    """One vector of a picture's tokens: a learned query attends to them."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(
                f"features of width {width} are not divisible by modality.image.adapter.pool_heads={num_heads}"
            )
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.zeros(width))
        # Without bias: one on the keys would shift all scores alike and never train.
        self.k = Linear(width, width)
        self.v = Linear(width, width)

    def forward(self, x_MNE: Tensor) -> Tensor:
        """Map float[M, N, E] to float[M, E]."""
        query_M1E = self.query.to(x_MNE.dtype).expand(len(x_MNE), 1, -1)
        q, k, v = (split_heads(x, self.num_heads) for x in (query_M1E, self.k(x_MNE), self.v(x_MNE)))
        return merge_heads(attend(q, k, v, None))[:, 0]


class TextTransformer(nn.Module):
    """A small pre-norm transformer over token embeddings, with learned positions."""

    def __init__(
        self,
        dim: int,
        width: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        max_tokens: int,
        causal: bool,
        norm_eps: float,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(
                f"modality.image.adapter.text_width is {width}, which text_heads={num_heads} does not divide"
            )
        self.causal = causal
        self.embedding_norm = RMSNorm(dim, norm_eps)
        self.projection = Linear(dim, width)
        self.positions = nn.Parameter(torch.zeros(max_tokens, width))
        self.layers = nn.ModuleList(TextLayer(width, num_heads, ffn_dim, norm_eps) for _ in range(num_layers))
        self.norm = RMSNorm(width, norm_eps)

    def forward(self, embeddings_BSD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return states float[B, S, W]; what stands past a row's length is not seen by what stands before it."""
        S = embeddings_BSD.shape[1]
        if len(self.positions) < S:
            raise ValueError(
                f"a caption has {S} tokens, but modality.image.adapter.max_tokens is {len(self.positions)}"
            )
        x_BSW = self.projection(self.embedding_norm(embeddings_BSD))
        x_BSW = x_BSW + self.positions[:S].to(x_BSW.dtype)
        places_S = torch.arange(S, device=x_BSW.device)
        if self.causal:
            mask_BST = (places_S[:, None] >= places_S)[None]
        else:
            mask_BST = (places_S < lengths_B[:, None])[:, None].expand(-1, S, -1)
        for layer in self.layers:
            x_BSW = layer(x_BSW, mask_BST)
        return self.norm(x_BSW)


class TextLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm and a residual."""

    def __init__(self, width: int, num_heads: int, ffn_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = RMSNorm(width, norm_eps)
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.o = Linear(width, width)
        self.feed_forward_norm = RMSNorm(width, norm_eps)
        self.feed_forward = FeedForward(width, ffn_dim)

    def forward(self, x_BSW: Tensor, mask_BST: Tensor) -> Tensor:
        """Map float[B, S, W] to float[B, S, W]; `mask_BST` bool, True where a token sees another."""
        normed = self.attention_norm(x_BSW)
        q, k, v = (split_heads(map_(normed), self.num_heads) for map_ in (self.q, self.k, self.v))
        x_BSW = x_BSW + self.o(merge_heads(attend(q, k, v, mask_BST)))
        return x_BSW + self.feed_forward(self.feed_forward_norm(x_BSW))
