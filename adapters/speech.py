"""The speech adapter (paper section 8.1.2): a strided convolution, a rotary layer, a map to the width of the core.

What comes out stands in the token stream between two spans of own token embeddings (the paper's two special tokens; a
small core needs more of them to be told what to do). At the paper's rate every frame of 80 ms is one embedding. A small
core that was never finetuned on text cannot read that: it copies one embedding for one token and nothing else, so with
`emit="tokens"` a readout over pieces of the core's own vocabulary says where tokens are (connectionist temporal
classification, Graves et al. 2006), and each run of frames becomes one embedding, the mean of the table's by what the
readout believes.

Shapes: M recordings, T encoder frames, E encoder width, W adapter width, F frames of the adapter, D core width, V rows
of the core's embedding table, P pieces, n embeddings of a recording.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_llama.core.layers import (
    FeedForward,
    Linear,
    RMSNorm,
    Rope,
    attend,
    merge_heads,
    rotate,
    split_heads,
)

EMIT = ("frames", "tokens")


@dataclass
class Heard:
    """What the adapter makes of recordings before anything enters the core.

    Of a frame, the readout gives the blank and every piece a score, and `normaliser` is the logarithm of the sum of
    their exponentials: a score less it is a log-probability. There are none without a readout.
    """

    states_MFD: Tensor  # in the core's width
    lengths_M: Tensor  # int64, frames of each that are real
    blank_MF: Tensor | None = None  # float32
    scores_MFP: Tensor | None = None
    normaliser_MF: Tensor | None = None  # float32

    def log_probabilities(self) -> list[Tensor]:
        """Return float32[F, 1 + P] of each recording, its real frames: of the blank, then of every piece.

        Raises ValueError for an adapter without a readout.
        """
        if self.scores_MFP is None or self.blank_MF is None or self.normaliser_MF is None:
            raise ValueError("this adapter has no readout (num_pieces is 0), so no pieces to tell")
        return [
            torch.cat((self.blank_MF[row, :count, None], self.scores_MFP[row, :count].float()), dim=-1)
            - self.normaliser_MF[row, :count, None]
            for row, count in enumerate(self.lengths_M.tolist())
        ]

    def best(self) -> Tensor:
        """Return int64[M, F]: the likeliest piece of each frame plus one, 0 for the blank."""
        scores_MFP, blank_MF = self.scores_MFP, self.blank_MF
        if scores_MFP is None or blank_MF is None:
            raise ValueError("this adapter has no readout (num_pieces is 0), so no pieces to tell")
        value, piece = scores_MFP.detach().max(-1)
        return torch.where(blank_MF.detach() >= value.float(), 0, piece + 1)

    def spelled(self, respell: Callable[[list[int]], list[int]]) -> list[list[int]]:
        """Return the likeliest pieces of each recording as what `respell` makes of them."""
        return [respell([piece for piece, _, _ in spans]) for spans in self.best_pieces()]

    def best_pieces(self) -> list[list[tuple[int, int, int]]]:
        """Return (piece, first frame, end frame) of each run of frames that hears one, by recording.

        Raises ValueError for an adapter without a readout.
        """
        best_MF = self.best().cpu()
        return [
            [(piece - 1, first, end) for piece, first, end in runs(best_F[:count]) if piece]
            for best_F, count in zip(best_MF, self.lengths_M.tolist(), strict=True)
        ]


class SpeechAdapter(nn.Module):
    """Features float[T, E] of recordings to embeddings float[n, D]; `stack` encoder frames are laid side by side first.

    Of a paper-size Conformer (40 ms) the defaults make 80 ms; Whisper's frames of 20 ms need `stack` 2 for that.
    """

    def __init__(
        self,
        encoder_dim: int,
        dim: int,
        width: int = 3072,
        num_layers: int = 1,
        num_heads: int = 24,
        ffn_width: int = 4096,
        stack: int = 1,
        kernel: int = 3,
        stride: int = 2,
        emit: str = "frames",
        num_pieces: int = 0,
        sharpen: float = 1.0,
        num_begin: int = 1,
        num_end: int = 1,
        spell: bool = False,
        norm_eps: float = 1e-5,
        seed: int = 0,
    ) -> None:
        """`num_pieces` > 0 adds the readout, over the table's first so many rows; 0 leaves it out.

        What stands for a token is the table's mean by probabilities to the power of `sharpen`: with 1 by what is
        believed; the higher, the closer to the likeliest token's own embedding, which alone a small core copies surely.
        With `spell` what was read enters a loaded model as text, in the core's own tokens, not as means of pieces.
        """
        super().__init__()
        if emit not in EMIT:
            raise ValueError(f"emit is {emit!r}, expected one of {', '.join(EMIT)}")
        if emit == "tokens" and not num_pieces:
            raise ValueError("emit=tokens needs a readout to find tokens with: set num_pieces")
        if width % num_heads or (width // num_heads) % 2:
            raise ValueError(f"a width of {width} does not give {num_heads} heads of an even width")
        if min(stack, kernel, stride, num_layers) < 1 or kernel % 2 == 0 or min(num_begin, num_end) < 0:
            raise ValueError(
                f"stack={stack}, stride={stride}, num_layers={num_layers} are at least 1, kernel={kernel} is odd, "
                f"num_begin={num_begin} and num_end={num_end} are not below 0"
            )
        self.encoder_dim, self.dim, self.stack, self.stride = encoder_dim, dim, stack, stride
        if sharpen <= 0:
            raise ValueError(f"sharpen is {sharpen}, expected a power above 0")
        self.emit, self.num_pieces, self.sharpen = emit, num_pieces, sharpen
        # Whoever has a tokenizer at hand sets what reads recordings in the core's own tokens: the likeliest pieces
        # (`mm_llama.build.load_model`), or a search (`mm_llama.generation.beam.listen_by`).
        self.spell = spell
        self.read: Callable[[Heard], list[list[int]]] | None = None
        self.norm = RMSNorm(encoder_dim * stack, norm_eps)
        self.convolution = nn.Conv1d(encoder_dim * stack, width, kernel, stride, padding=kernel // 2)
        self.layers: Any = nn.ModuleList(
            SpeechLayer(width, num_heads, ffn_width, norm_eps) for _ in range(num_layers)
        )
        self.output_norm = RMSNorm(width, norm_eps)
        self.output = Linear(width, dim, bias=True)
        self.blank = Linear(width, 1, bias=True) if num_pieces else None
        self.sharpness = nn.Parameter(torch.zeros(())) if num_pieces else None  # of the readout, a logarithm
        self.begin = nn.Parameter(torch.zeros(num_begin, dim))
        self.end = nn.Parameter(torch.zeros(num_end, dim))
        if not self.output.weight.is_meta:
            self.init_weights(seed)

    def init_weights(self, seed: int) -> None:
        """Draw matrices with 1/sqrt(fan-in), those that end a branch also by 1/sqrt(2 layers); own tokens with 0.1."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name in ("begin", "end"):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
                elif weight.ndim > 1:
                    std = 1 / math.sqrt(weight[0].numel())
                    if name.endswith((".o.weight", ".down.weight")):
                        std /= math.sqrt(2 * len(self.layers))
                    weight.copy_(torch.randn(weight.shape, generator=generator) * std)
                elif name != "sharpness":
                    weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)

    def num_frames(self, num_encoder_frames: Any) -> Any:
        """Return how many frames the adapter makes of so many encoder frames; a rest of the last stack is dropped."""
        return -(-(num_encoder_frames // self.stack) // self.stride)

    def num_positions(self, num_encoder_frames: int) -> int:
        """Return how many positions of a row that takes, its own tokens included; with emit=tokens, at most."""
        return len(self.begin) + int(self.num_frames(num_encoder_frames)) + len(self.end)

    def forward(self, features: Sequence[Tensor], table_VD: Tensor) -> list[Tensor]:
        """Return each recording's embeddings float[n, D], own tokens around them. `table_VD` is the core's table."""
        return self.embeddings(self.hear(features, table_VD), table_VD)

    def hear(self, features: Sequence[Tensor], table_VD: Tensor) -> Heard:
        """Run recordings, each float[T, E], together; what one gives does not depend on the others."""
        for item in features:
            if item.ndim != 2 or item.shape[1] != self.encoder_dim:
                raise ValueError(
                    f"the speech adapter expects features [T, {self.encoder_dim}] (modality.speech.encoder), but "
                    f"these are {list(item.shape)}"
                )
            if len(item) < self.stack:
                raise ValueError(f"a recording of {len(item)} encoder frames is too short to be heard")
        counts = [len(item) // self.stack for item in features]
        stacked = [
            item[: count * self.stack].unflatten(0, (count, self.stack)).flatten(1)
            for item, count in zip(features, counts, strict=True)
        ]
        x_MTE = self.norm(nn.utils.rnn.pad_sequence(stacked, batch_first=True))
        device = x_MTE.device
        ragged = len(set(counts)) > 1
        if ragged:
            real_MT = (
                torch.arange(x_MTE.shape[1], device=device) < torch.tensor(counts, device=device)[:, None]
            )
            x_MTE = x_MTE * real_MT[..., None]
        weight, bias = self.convolution.weight.to(x_MTE.dtype), self.convolution.bias
        assert bias is not None
        x_MWF = F.conv1d(
            x_MTE.transpose(1, 2), weight, bias.to(x_MTE.dtype), self.stride, self.convolution.padding
        )
        x = F.gelu(x_MWF).transpose(1, 2)
        lengths_M = torch.tensor([-(-count // self.stride) for count in counts], device=device)
        mask = None
        if ragged:
            frames_F = torch.arange(x.shape[1], device=device)
            mask = (frames_F < lengths_M[:, None])[:, None]
        rope = _rope(x.shape[1], self.layers[0].head_dim, device)
        for layer in self.layers:
            x = layer(x, rope, mask)
        x = self.output_norm(x)
        states_MFD = self.output(x)
        if self.blank is None or self.sharpness is None:
            return Heard(states_MFD, lengths_M)
        # The states are made sharper, not the scores, of which there are many times more.
        sharp_MFD = states_MFD * self.sharpness.exp().to(states_MFD.dtype)
        scores_MFP = sharp_MFD @ table_VD[: self.num_pieces].to(states_MFD.dtype).T
        blank_MF = self.blank(x)[..., 0].float()
        normaliser_MF = torch.logaddexp(log_sum_exp(scores_MFP), blank_MF)
        return Heard(states_MFD, lengths_M, blank_MF, scores_MFP, normaliser_MF)

    def embeddings(self, heard: Heard, table_VD: Tensor) -> list[Tensor]:
        """Return what enters the core, float[n, D] each."""
        if self.read is not None:
            return self.spelled(self.read(heard), table_VD)
        return self._between_own(
            self._frames(heard) if self.emit == "frames" else self._tokens(heard, table_VD), table_VD.dtype
        )

    def spelled(self, tokens: Sequence[Sequence[int]], table_VD: Tensor) -> list[Tensor]:
        """Return what enters the core when these tokens were said, float[n, D] each: the table's own rows."""
        inner = [table_VD[torch.tensor(row, dtype=torch.long, device=table_VD.device)] for row in tokens]
        return self._between_own(inner, table_VD.dtype)

    def _between_own(self, inner: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        return [torch.cat((self.begin.to(dtype), part.to(dtype), self.end.to(dtype))) for part in inner]

    def _frames(self, heard: Heard) -> list[Tensor]:
        return [
            states[:count] for states, count in zip(heard.states_MFD, heard.lengths_M.tolist(), strict=True)
        ]

    def _tokens(self, heard: Heard, table_VD: Tensor) -> list[Tensor]:
        """One embedding for each run of frames with one best piece: the mean of the table by what the readout believes.

        Frames of a run count by how sure they are that there is a piece at all. Which frames form a run is decided, not
        learned; what a run means has a gradient.
        """
        assert heard.scores_MFP is not None and heard.normaliser_MF is not None
        pieces_PD = table_VD[: self.num_pieces]
        found = []
        for row, spans in enumerate(heard.best_pieces()):
            if not spans:
                found.append(pieces_PD.new_zeros(0, self.dim))
                continue
            logs = heard.scores_MFP[row].float() - heard.normaliser_MF[row, :, None]
            parts = torch.stack([logs[first:end].logsumexp(0) for _, first, end in spans])
            found.append((self.sharpen * parts).softmax(-1).to(pieces_PD.dtype) @ pieces_PD)
        return found


def runs(best_F: Tensor) -> list[tuple[int, int, int]]:
    """Return (value, first, end) of each run of equal values of int64[F]."""
    if not len(best_F):
        return []
    values, counts = torch.unique_consecutive(best_F, return_counts=True)
    ends = counts.cumsum(0).tolist()
    return list(zip(values.tolist(), [0, *ends[:-1]], ends, strict=True))


def log_sum_exp(scores: Tensor) -> Tensor:
    """Return float32[...] of scores [..., P]: as `torch.logsumexp` in float32, in fewer passes over memory."""
    found: Tensor = _LogSumExp.apply(scores)
    return found


class _LogSumExp(torch.autograd.Function):
    """A few rows at a time, so that what is computed of them in float32 stays in the cache."""

    ROWS = 32

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        rows = scores.flatten(0, -2).split(_LogSumExp.ROWS)
        found = torch.cat([part.float().logsumexp(-1) for part in rows]).view(scores.shape[:-1])
        ctx.save_for_backward(scores, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        scores, found = ctx.saved_tensors
        made = torch.empty_like(scores)
        parts = (
            scores.flatten(0, -2),
            found.flatten(),
            gradients[0].flatten(),
            made.flatten(0, -2),
        )
        for rows, sums, gradient, out in zip(*(part.split(_LogSumExp.ROWS) for part in parts), strict=True):
            out.copy_((rows.float() - sums[:, None]).exp_().mul_(gradient[:, None]))
        return made


class SpeechLayer(nn.Module):
    """Rotary self-attention and SwiGLU, each behind an RMSNorm and a residual; every frame sees every other."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, norm_eps: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.attention_norm = RMSNorm(width, norm_eps)
        self.q, self.k, self.v, self.o = (Linear(width, width) for _ in range(4))
        self.feed_forward_norm = RMSNorm(width, norm_eps)
        self.feed_forward = FeedForward(width, ffn_width)

    def forward(self, x_MFW: Tensor, rope: Rope, mask: Tensor | None) -> Tensor:
        """Map float[M, F, W]; bool `mask` [M, 1, F] is True for frames that are seen."""
        normed = self.attention_norm(x_MFW)
        q, k, v = (split_heads(part(normed), self.num_heads) for part in (self.q, self.k, self.v))
        seen = attend(rotate(q, rope), rotate(k, rope), v, mask)
        x = x_MFW + self.o(merge_heads(seen))
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


def _rope(num_frames: int, head_dim: int, device: torch.device, base: float = 10_000.0) -> Rope:
    """Return cosines and signed sines, float32[1, 1, F, d], as `rotate` takes them."""
    exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    angles = torch.arange(num_frames, device=device)[None, None, :, None].float() / base**exponents
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
