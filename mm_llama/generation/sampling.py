"""Choosing the next token: greedy, temperature, top-k, top-p, each row with a random stream of its own.

The distribution is the model's own: nothing is penalised or forbidden unless asked. Every row draws one
uniform number per token from a generator seeded by (seed, row number), so what a row says depends neither on
the rows beside it nor on when they finish: a batch gives what its rows give one at a time.

Shapes: `B` rows, `V` vocabulary, `R` ranks.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_llama.core.products import likeliest

_NUCLEUS = 1024


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the default is greedy.

    `top_k` 0 and `top_p` 1 keep every token. `row` numbers the first row of the batch: `replace(s, row=3)`
    repeats alone what row 3 of a batch drew with `s`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    row: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"temperature is {self.temperature}, expected a finite number of at least 0 "
                "(0 always takes the likeliest token)"
            )
        if self.top_k != int(self.top_k) or self.top_k < 0:
            raise ValueError(
                f"top_k is {self.top_k}, expected a whole number of at least 0 (0 keeps every token)"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_p is {self.top_p}, expected a number above 0 and up to 1 (1 keeps every token)"
            )
        if self.row != int(self.row) or self.row < 0:
            raise ValueError(f"row is {self.row}, expected a whole number of at least 0")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


class Sampler:
    """Draws one token for each row of a batch; holds the rows' random streams."""

    def __init__(self, sampling: Sampling, num_rows: int) -> None:
        self.sampling = sampling
        self._streams = [_stream(sampling.seed, sampling.row + row) for row in range(num_rows)]

    def __call__(self, logits_BV: Tensor, rows: list[int]) -> Tensor:
        """Next token of each row: logits float[B, V] of the named rows of the batch -> int64[B]."""
        _refuse_broken(logits_BV)
        if self.sampling.is_greedy:
            return greedy(logits_BV)
        # Drawn on the CPU whatever the device: the same seed then means the same numbers everywhere.
        uniforms = [torch.rand((), generator=self._streams[row], dtype=torch.float64) for row in rows]
        probabilities_BV = probabilities(
            logits_BV,
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k,
            top_p=self.sampling.top_p,
        )
        return draw(probabilities_BV, torch.stack(uniforms).to(logits_BV.device))


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token, the lowest id among equals: float[..., V] -> int64[...]."""
    return likeliest(logits)


def probabilities(logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """What is sampled from: float[..., V] logits -> float64[..., V] that sum to 1.

    Temperature first, then the `top_k` likeliest, then, of what is left and renormalised, the tokens in order
    of probability while the sum of those *before* a token is at most `top_p` (the rule of Meta's reference).
    Equal tokens are ranked by id. `temperature` must be above 0: greedy choice is `greedy`.
    """
    # Differences to the maximum, in float64: any temperature above 0 then gives numbers and no overflow.
    logits = logits.double()
    weights = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, -1)
    num_tokens = weights.shape[-1]
    if 0 < top_k < num_tokens:
        ranked = weights.topk(top_k).values
        weights = _keep(weights, ranked, torch.full_like(ranked[..., :1], top_k, dtype=torch.long))
    if top_p < 1:
        # The nucleus is nearly always small; sorting a whole vocabulary would cost a third of a step.
        ranked = weights.topk(min(_NUCLEUS, num_tokens)).values
        counts = _nucleus(ranked, top_p)
        if ranked.shape[-1] < num_tokens and bool((counts == ranked.shape[-1]).any()):
            ranked = weights.sort(dim=-1, descending=True).values
            counts = _nucleus(ranked, top_p)
        weights = _keep(weights, ranked, counts)
    return weights


def draw(probabilities_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token at which the running sum passes each uniform number of [0, 1): -> int64[B]."""
    # In order of id, not of rank: rounding that swaps two ranks then moves no boundary by more than rounding.
    sums_BV = probabilities_BV.cumsum(-1)
    aims_B1 = uniforms_B[:, None].to(sums_BV.dtype) * sums_BV[:, -1:]
    return torch.searchsorted(sums_BV, aims_B1, right=True)[:, 0]


def _nucleus(ranked: Tensor, top_p: float) -> Tensor:
    """How many of the falling probabilities float64[..., R] lie in the nucleus: int64[..., 1]."""
    before = ranked.cumsum(-1) - ranked
    return (before <= top_p).sum(-1, keepdim=True)


def _keep(weights: Tensor, ranked: Tensor, counts: Tensor) -> Tensor:
    """Keep the `counts` likeliest tokens, lowest ids first among equals, and renormalise."""
    least = ranked.gather(-1, counts - 1)
    above = weights > least
    equal = weights == least
    room = counts - above.sum(-1, keepdim=True)
    kept = weights.masked_fill(~(above | (equal & (equal.cumsum(-1) <= room))), 0)
    return kept / kept.sum(-1, keepdim=True)


def _stream(seed: int, row: int) -> torch.Generator:
    # A digest keeps (seed, row) apart from (seed + 1, row - 1).
    digest = hashlib.sha256(f"{seed}/{row}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _refuse_broken(logits_BV: Tensor) -> None:
    best_B = logits_BV.amax(-1)
    if not bool(torch.isfinite(best_B).all()):
        raise ValueError(
            "the model's logits are not finite (NaN or infinity), so no token can be chosen: "
            "the weights are damaged, or the number format is too small for them (try dtype=float32)"
        )
