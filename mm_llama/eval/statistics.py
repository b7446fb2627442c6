"""How sure an accuracy is: intervals for one score, and tests for two scores on the same questions.

The half-width of the paper ("The Llama 3 Herd of Models", section 5.1: 1.96 * sqrt(S * (1 - S) / N)) is what
tables print. It collapses at 0 % and 100 %, so the Wilson interval stands beside it. Two models that answer
the same questions are compared in pairs: McNemar's exact test, and a bootstrap of the difference that can
resample whole pictures, because questions about one picture are not independent. Two settings that were trained from
the same seeds are compared in pairs of runs: an exact test over the signs of the differences.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.96
ENOUGH_SEEDS = 6  # the fewest pairs that can show a difference at 5 %: 2 / 2**6
EXACT_SEEDS = 16


@dataclass(frozen=True)
class Accuracy:
    """A count of right answers among `total`, with its intervals."""

    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total:
            raise ValueError(f"an accuracy needs 0 <= correct <= total, got {self.correct} of {self.total}")

    @property
    def score(self) -> float:
        """Share of right answers; 0.0 when nothing was asked."""
        return self.correct / self.total if self.total else 0.0

    @property
    def half_width(self) -> float:
        """Half-width of the paper's 95 % interval."""
        return half_width(self.score, self.total)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval (low, high)."""
        return wilson_interval(self.correct, self.total)

    def to_json(self) -> dict[str, float | int | list[float]]:
        """Plain numbers for a JSON file: correct, total, accuracy, half_width_95, wilson_95."""
        return {
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.score,
            "half_width_95": self.half_width,
            "wilson_95": list(self.interval),
        }

    def __str__(self) -> str:
        return f"{100 * self.score:.1f} ± {100 * self.half_width:.1f} %" if self.total else "none asked"


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of `ours` minus accuracy of `theirs` on the same questions, with a 95 % bootstrap interval."""

    difference: float
    low: float
    high: float
    only_ours: int
    only_theirs: int
    p_value: float

    def to_json(self) -> dict[str, float | int]:
        """Plain numbers for a JSON file; `p_value` is McNemar's exact two-sided one."""
        return {
            "difference": self.difference,
            "low_95": self.low,
            "high_95": self.high,
            "only_ours_right": self.only_ours,
            "only_theirs_right": self.only_theirs,
            "mcnemar_p": self.p_value,
        }


@dataclass(frozen=True)
class PairedSeeds:
    """Ours minus theirs over runs of the same seeds: mean, standard deviation, exact p-value, 95 % interval.

    `low` and `high` are None below `ENOUGH_SEEDS`, where a bootstrap of so few values says too much.
    """

    num: int
    difference: float
    deviation: float | None
    p_value: float
    smallest_p: float
    low: float | None
    high: float | None


def half_width(score: float, num: int) -> float:
    """Half-width of the paper's 95 % interval of a score S on N questions: 1.96 * sqrt(S * (1 - S) / N)."""
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"a score lies between 0 and 1, got {score}")
    return Z_95 * math.sqrt(score * (1.0 - score) / num) if num else 0.0


def wilson_interval(correct: int, total: int, *, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion; (0, 1) when nothing was asked."""
    if not 0 <= correct <= total:
        raise ValueError(f"a proportion needs 0 <= correct <= total, got {correct} of {total}")
    if total == 0:
        return 0.0, 1.0
    score, shrink = correct / total, 1.0 + z * z / total
    centre = (score + z * z / (2 * total)) / shrink
    spread = z / shrink * math.sqrt(score * (1.0 - score) / total + z * z / (4.0 * total * total))
    # At 0 and N right answers the ends are exactly 0 and 1; floating point would miss them by one rounding.
    low = 0.0 if correct == 0 else centre - spread
    high = 1.0 if correct == total else centre + spread
    return low, high


def mcnemar_exact(only_ours: int, only_theirs: int) -> float:
    """Two-sided exact p-value of McNemar's test from the counts of questions only one side got right."""
    if only_ours < 0 or only_theirs < 0:
        raise ValueError(f"counts cannot be negative, got {only_ours} and {only_theirs}")
    num, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    # Binomial(n, 1/2) lower tail in whole numbers: no rounding, and no overflow for thousands of questions.
    term = tail = 1
    for drawn in range(fewer):
        term = term * (num - drawn) // (drawn + 1)
        tail += term
    return 1.0 if 2 * tail >= 1 << num else _ratio(2 * tail, num)


def paired_difference(
    ours: Sequence[bool],
    theirs: Sequence[bool],
    *,
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two sides on the same questions: bootstrap interval of the difference and McNemar's exact test.

    `ours[i]` and `theirs[i]` say whether each side answered question i right. With `clusters` (the picture of
    each question), whole clusters are resampled, so that questions sharing a picture do not count as
    independent; McNemar's test treats every question as its own. ValueError when lengths differ or nothing
    was asked.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"paired answers need equal, non-zero lengths, got {len(ours)} and {len(theirs)}")
    if clusters is not None and len(clusters) != len(ours):
        raise ValueError(f"one cluster per question is needed, got {len(clusters)} for {len(ours)} questions")
    gains = np.asarray(ours, dtype=np.int64) - np.asarray(theirs, dtype=np.int64)
    if clusters is None:
        group_of = np.arange(len(gains))
    else:
        order: dict[Hashable, int] = {}
        group_of = np.asarray([order.setdefault(cluster, len(order)) for cluster in clusters])
    gain_by_group = np.bincount(group_of, weights=gains)
    size_by_group = np.bincount(group_of)
    low, high = bootstrap_95(gain_by_group, size_by_group, num_resamples, seed)
    only_ours, only_theirs = int((gains > 0).sum()), int((gains < 0).sum())
    return PairedDifference(
        difference=float(gains.mean()),
        low=low,
        high=high,
        only_ours=only_ours,
        only_theirs=only_theirs,
        p_value=mcnemar_exact(only_ours, only_theirs),
    )


def paired_seeds(
    ours: Sequence[float], theirs: Sequence[float], *, num_resamples: int = 10_000, seed: int = 0
) -> PairedSeeds:
    """Compare a metric of two settings over runs of the same seeds: `ours[i]` and `theirs[i]` share seed i.

    The p-value is that of the exact two-sided test in which each difference might as well have had the other sign
    (Fisher's; drawn at random from 17 pairs on). With n pairs it cannot fall below 2 / 2**n, which `smallest_p` says.
    ValueError when lengths differ or nothing was measured.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"paired runs need equal, non-zero lengths, got {len(ours)} and {len(theirs)}")
    gains = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    num = len(gains)
    if num <= EXACT_SEEDS:
        signs = 1 - 2 * (np.arange(2**num)[:, None] >> np.arange(num) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], size=(2**EXACT_SEEDS, num))
        signs[0] = 1
    sums = np.abs(signs @ gains)
    # The order of summation leaves roundings of the last place between sums that are equal.
    as_far = sums >= sums[0] - 1e-12 * np.abs(gains).sum()
    low, high = (
        bootstrap_95(gains, np.ones(num), num_resamples, seed) if num >= ENOUGH_SEEDS else (None, None)
    )
    return PairedSeeds(
        num=num,
        difference=float(gains.mean()),
        deviation=float(gains.std(ddof=1)) if num > 1 else None,
        p_value=float(as_far.mean()),
        smallest_p=min(1.0, 2.0 ** (1 - num)),
        low=low,
        high=high,
    )


def bootstrap_95(gains: np.ndarray, sizes: np.ndarray, num_resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean gain; `gains[i]` is the sum of a group of `sizes[i]`."""
    generator = np.random.default_rng(seed)
    resampled = np.empty(num_resamples)
    for index in range(num_resamples):
        drawn = generator.integers(len(sizes), size=len(sizes))
        resampled[index] = gains[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def _ratio(numerator: int, log2_denominator: int) -> float:
    """numerator / 2**log2_denominator, without overflow on the way; 0.0 when it is too small to hold."""
    excess = max(numerator.bit_length() - 64, 0)
    return math.ldexp(float(numerator >> excess), excess - log2_denominator)
