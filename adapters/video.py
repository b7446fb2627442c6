"""The video adapter (paper section 7.2): a temporal aggregator over frame features, and cross-attention over what it
gives, before every fourth image cross-attention block.

The aggregator is a perceiver resampler: a group of consecutive frames (32 in the paper) becomes the tokens of one
effective frame, read by learned latents. What the paper leaves open is an argument here.

Beside it, where asked for, a second one reads how much each place of the picture moves and nothing of what is there.
It generalises to things and backgrounds never seen from some hundred clips; features alone are learned by heart.

Shapes: M clips, F frames, g frames of a group, N tokens of a frame, E encoder width, W aggregator width, L latents,
D core width, K KV heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.cross_attention import (
    GatedCrossAttention,
    cross_attention_layers,
    init_block,
    keys_values_by_layer,
)
from mm_llama.core.layers import FeedForward, Linear, RMSNorm, attend, merge_heads, split_heads


class VideoAdapter(nn.Module):
    """Aggregates clips float[M, F, N, E] to tokens float[M, N', D] and holds one gated block per chosen layer."""

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
        image_every: int | None = None,
        image_layers: Sequence[int] | None = None,
        every: int = 4,
        num_latents: int = 64,
        aggregator_dim: int = 2048,
        aggregator_layers: int = 3,
        aggregator_heads: int = 16,
        frames_per_group: int = 32,
        max_groups: int = 2,
        num_positions: int = 0,
        content_focus: float = 0.0,
        motion_latents: int = 0,
        motion_dim: int = 128,
        gate_init: float = 0.0,
        branch_scale: float = 1.0,
        train_placeholder: bool = True,
        seed: int = 0,
    ) -> None:
        """`image_every` or `image_layers` says where the image blocks stand, as in `ImageAdapter`; a video block runs
        before every `every`-th of them. The other arguments but `seed`: `Aggregator`, `GatedCrossAttention`.
        `aggregator_layers` and `aggregator_heads` are those of both resamplers.
        """
        super().__init__()
        self.encoder_dim, self.dim = encoder_dim, dim
        head_dim = head_dim or dim // num_heads
        image = cross_attention_layers(num_layers, image_every, image_layers)
        self.layers = image[every - 1 :: every]
        if not self.layers:
            raise ValueError(
                f"there are {len(image)} image cross-attention blocks, so none is the {every}th: set "
                f"modality.video.adapter.every to at most {len(image)}"
            )
        self.aggregator = Aggregator(
            encoder_dim,
            dim,
            width=aggregator_dim,
            num_layers=aggregator_layers,
            num_heads=aggregator_heads,
            num_latents=num_latents,
            frames_per_group=frames_per_group,
            max_groups=max_groups,
            num_positions=num_positions,
            content_focus=content_focus,
            motion_latents=motion_latents,
            motion_dim=motion_dim,
            norm_eps=norm_eps,
        )
        self.blocks: Any = nn.ModuleList(
            GatedCrossAttention(dim, num_heads, num_kv_heads, head_dim, ffn_dim, norm_eps, branch_scale)
            for _ in self.layers
        )
        placeholder = torch.zeros(dim)
        if train_placeholder:
            self.placeholder = nn.Parameter(placeholder)
        else:
            self.register_buffer("placeholder", placeholder)
        self.init_weights(seed, gate_init)

    def init_weights(self, seed: int, gate_init: float = 0.0) -> None:
        """Draw every weight from the seed; gates as told (0: nothing is heard until they open)."""
        if self.placeholder.is_meta:
            return
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.placeholder.copy_(torch.randn(self.placeholder.shape, generator=generator) * 0.02)
            self.aggregator.init_weights(generator)
            for block in self.blocks:
                init_block(block, len(self.blocks), generator)
                for name, gate in block.named_parameters():
                    if name.endswith("gate"):
                        gate.fill_(gate_init)

    def project(self, features_MFNE: Tensor) -> Tensor:
        """Map frame features float[M, F, N, E] to media tokens float[M, groups * L, D]."""
        if features_MFNE.ndim != 4 or features_MFNE.shape[-1] != self.encoder_dim:
            raise ValueError(
                f"the video adapter expects clips of frame features [M, F, N, {self.encoder_dim}] (the image "
                f"encoder's width), but these are {list(features_MFNE.shape)}"
            )
        return self.aggregator(features_MFNE)

    def keys_values(self, media_MND: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return {layer: (keys, values)}, float[M, K, N, d] each: computed once per clip, shared by all its rows."""
        return keys_values_by_layer(self.layers, self.blocks, media_MND)

    def block(self, layer: int) -> GatedCrossAttention | None:
        """Return the block that runs before the given self-attention layer, if there is one."""
        return self.blocks[self.layers.index(layer)] if layer in self.layers else None


class Aggregator(nn.Module):
    """Every `frames_per_group` consecutive frames become one effective frame: the tokens that latents read of them.

    `num_latents` read the features themselves; with `content_focus` k > 0 they look first at what moves: every place
    and time counts in proportion to how much it does, to the power k. `motion_latents` > 0 read motion alone
    (`motion_of`): where and when the features differ from their mean over the group, and nothing of what they are.
    Either number of latents may be 0. `max_groups` effective frames have a table of positions, read like that of the
    frames in a group.
    """

    def __init__(
        self,
        encoder_dim: int,
        dim: int,
        *,
        width: int,
        num_layers: int,
        num_heads: int,
        num_latents: int,
        frames_per_group: int = 32,
        max_groups: int = 2,
        num_positions: int = 0,
        content_focus: float = 0.0,
        motion_latents: int = 0,
        motion_dim: int = 128,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.frames_per_group, self.max_groups, self.content_focus = (
            frames_per_group,
            max_groups,
            content_focus,
        )
        tables = (frames_per_group, num_positions)
        if not num_latents and not motion_latents:
            raise ValueError(
                "the aggregator reads nothing: set modality.video.adapter.num_latents or motion_latents above 0"
            )
        if content_focus < 0:
            raise ValueError(
                f"modality.video.adapter.content_focus is {content_focus}, expected 0 (off) or a power above it"
            )
        self.content = (
            Resampler(encoder_dim, dim, width, num_layers, num_heads, num_latents, *tables, norm_eps)
            if num_latents
            else None
        )
        self.motion = (
            Resampler(2, dim, motion_dim, num_layers, num_heads, motion_latents, *tables, norm_eps)
            if motion_latents
            else None
        )
        self.group_positions = nn.Parameter(torch.zeros(max_groups, dim))

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw every weight; tables of effective frames 0.02, the rest as `Resampler` does."""
        self.group_positions.copy_(torch.randn(self.group_positions.shape, generator=generator) * 0.02)
        if self.content is not None:
            self.content.init_weights(generator)
        if self.motion is not None:
            # Beside two numbers of motion a loud place is heard at once: directions are learned in half the steps.
            self.motion.init_weights(generator, position_scale=2.0)

    def forward(self, features_MFNE: Tensor) -> Tensor:
        """Map float[M, F, N, E] to float[M, groups * L, D]; groups are as equal as they can be."""
        num_frames = features_MFNE.shape[1]
        groups = -(-num_frames // self.frames_per_group)
        if not num_frames or groups > self.max_groups:
            raise ValueError(
                f"a clip of {num_frames} frames makes {groups} groups of {self.frames_per_group}, but the video "
                f"adapter has positions for {self.max_groups}: set modality.video.num_frames to at most "
                f"{self.max_groups * self.frames_per_group}, or raise modality.video.adapter.max_groups"
            )
        parts = features_MFNE.split(-(-num_frames // groups), dim=1)
        positions = at_times(self.group_positions, len(parts))
        aggregated = [
            self.group(part) + position.to(part.dtype)
            for part, position in zip(parts, positions, strict=True)
        ]
        return torch.cat(aggregated, dim=1)

    def group(self, features_MgNE: Tensor) -> Tensor:
        """Read one group of frames: float[M, g, N, E] to float[M, L, D], motion last."""
        parts = []
        if self.content is not None:
            focus_MT = focus_on(features_MgNE, self.content_focus) if self.content_focus else None
            parts.append(self.content(features_MgNE, focus_MT))
        if self.motion is not None:
            parts.append(self.motion(motion_of(features_MgNE)))
        return torch.cat(parts, dim=1)

    def fit_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Return a stored table of positions in time at this aggregator's length; anything else as it is."""
        table = dict(self.named_parameters()).get(name)
        in_time = name.endswith(("frame_positions", "group_positions"))
        if table is None or not in_time or tensor.ndim != 2 or tensor.shape[1] != table.shape[1]:
            return tensor
        return at_times(tensor, len(table))


class Resampler(nn.Module):
    """Learned latents that read all tokens of a group of frames (perceiver resampler).

    A frame's position in its group is a learned table read at the frame's relative time, so that 8 frames of a clip
    lie where 8 of its 32 would. `num_positions` > 0 adds learned positions of a frame's tokens, for encoders whose
    features carry none.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        width: int,
        num_layers: int,
        num_heads: int,
        num_latents: int,
        num_frames: int,
        num_positions: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(
                f"the aggregator is {width} wide, which aggregator_heads={num_heads} does not divide"
            )
        self.projection = Linear(in_dim, width, bias=True)
        self.positions = nn.Parameter(torch.zeros(num_positions, width)) if num_positions else None
        self.frame_positions = nn.Parameter(torch.zeros(num_frames, width))
        self.latents = nn.Parameter(torch.zeros(num_latents, width))
        self.norm = RMSNorm(width, norm_eps)
        self.layers: Any = nn.ModuleList(
            ResamplerLayer(width, num_heads, norm_eps) for _ in range(num_layers)
        )
        self.output_norm = RMSNorm(width, norm_eps)
        self.output = Linear(width, dim)

    def init_weights(self, generator: torch.Generator, position_scale: float = 0.7) -> None:
        """Draw projections with 1/sqrt(fan-in), latents with 0.5 (tokens have unit scale), norms at one.

        Places of a square grid and times begin as sines and cosines of `position_scale`: neighbours begin alike.
        """
        depth = max(1, len(self.layers))
        for name, weight in self.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif weight.ndim == 1:
                weight.zero_()
            elif name in ("positions", "frame_positions", "latents"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
            else:
                std = 1 / math.sqrt(weight.shape[1])
                if name.endswith(("o.weight", "down.weight")):
                    std /= math.sqrt(2 * depth)
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)
        width = self.frame_positions.shape[1]
        if width % 4 == 0:
            self.frame_positions.copy_(position_scale * waves(len(self.frame_positions), width, 8.0))
        side = 0 if self.positions is None else math.isqrt(len(self.positions))
        if self.positions is not None and width % 4 == 0 and side * side == len(self.positions):
            line = waves(side, width // 2, 4.0)
            grid = torch.cat((line[:, None].expand(-1, side, -1), line.expand(side, -1, -1)), dim=-1)
            self.positions.copy_(position_scale * grid.flatten(0, 1))

    def forward(self, tokens_MgNE: Tensor, focus_MT: Tensor | None = None) -> Tensor:
        """Map float[M, g, N, E] to float[M, L, D]; `focus_MT` [M, g * N] is added to the scores of the tokens."""
        M, g, N, _ = tokens_MgNE.shape
        tokens = self.projection(tokens_MgNE)
        if self.positions is not None:
            if len(self.positions) != N:
                raise ValueError(
                    f"a frame gives {N} tokens, but the video adapter has {len(self.positions)} positions: set "
                    "modality.video.adapter.num_positions to the encoder's number of tokens"
                )
            tokens = tokens + self.positions.to(tokens.dtype)
        tokens = tokens + at_times(self.frame_positions, g).to(tokens.dtype)[:, None]
        tokens_MTW = self.norm(tokens).flatten(1, 2)
        latents_MLW = self.latents.to(tokens.dtype).expand(M, -1, -1)
        # The latents, which are read beside the tokens, have nothing added.
        added_M1X = None if focus_MT is None else F.pad(focus_MT, (0, len(self.latents)))[:, None]
        for layer in self.layers:
            latents_MLW = layer(latents_MLW, tokens_MTW, added_M1X)
        return self.output(self.output_norm(latents_MLW))


class ResamplerLayer(nn.Module):
    """Latents attend to the tokens and to themselves, then a feed-forward; both behind a norm and a residual."""

    def __init__(self, width: int, num_heads: int, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = RMSNorm(width, norm_eps)
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.o = Linear(width, width)
        self.feed_forward_norm = RMSNorm(width, norm_eps)
        self.feed_forward = FeedForward(width, 8 * width // 3)

    def forward(self, latents_MLW: Tensor, tokens_MTW: Tensor, added_M1X: Tensor | None = None) -> Tensor:
        """Map the latents float[M, L, W], given the tokens float[M, T, W]; X = T + L places are read.

        `added_M1X` is added to their scores.
        """
        normed = self.attention_norm(latents_MLW)
        read = torch.cat((tokens_MTW, normed), dim=1)
        q, k, v = (split_heads(part, self.num_heads) for part in (self.q(normed), self.k(read), self.v(read)))
        latents_MLW = latents_MLW + self.o(merge_heads(attend(q, k, v, None, added_M1X)))
        return latents_MLW + self.feed_forward(self.feed_forward_norm(latents_MLW))


def motion_of(features_MgNE: Tensor) -> Tensor:
    """Return how much each place moves at each time, and the same times -1 at the start to 1 at the end.

    float[M, g, N, 2]; the first is the root mean square over the channels of how the features differ from their mean
    over the g frames, in units of its mean over the clip: zero in a still clip. Its average over places tells where
    something is, that of the second which way it goes: a linear read, learned in half the steps.
    """
    features = features_MgNE.float()
    moved = (features - features.mean(1, keepdim=True)).pow(2).mean(-1)
    amount_MgN = (moved / (moved.mean((1, 2), keepdim=True) + 1e-6)).sqrt()
    g = features.shape[1]
    times_g1 = ((torch.arange(g, device=features.device) + 0.5) / g * 2 - 1)[:, None]
    return torch.stack((amount_MgN, amount_MgN * times_g1), dim=-1).to(features_MgNE.dtype)


def focus_on(features_MgNE: Tensor, power: float) -> Tensor:
    """Return what makes attention count places and times by how much they move, float32[M, g * N], to add to scores.

    Weights are `(amount + 0.1) ** power` over their mean, with the amount of `motion_of`: in a still clip all count
    alike.
    """
    amount_MgN = motion_of(features_MgNE.float())[..., 0]
    weights_MT = ((amount_MgN + 0.1) ** power).flatten(1)
    return (weights_MT / weights_MT.mean(1, keepdim=True)).log()


def waves(count: int, width: int, fastest: float) -> Tensor:
    """Return sines and cosines over `count` places, float32[count, width].

    The slowest makes half a turn over all places, the fastest not quite `fastest` / 2 turns; the others lie between
    them evenly in the logarithm.
    """
    turns = 0.5 * fastest ** (torch.arange(width // 2) / (width // 2))
    angles = 2 * math.pi * (torch.arange(count) / count)[:, None] * turns
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def at_times(table_tX: Tensor, count: int) -> Tensor:
    """Read a table of positions at the centres of `count` equal parts of it, float[count, X]; exact at full length."""
    size = len(table_tX)
    if count == size:
        return table_tX
    return F.interpolate(table_tX.T[None], size=count, mode="linear", align_corners=False)[0].T
