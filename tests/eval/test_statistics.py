"""Intervals and paired tests against closed forms, exact fractions and published worked values."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_llama.eval.statistics import (
    Accuracy,
    half_width,
    mcnemar_exact,
    paired_difference,
    paired_seeds,
    wilson_interval,
)


def test_half_width_is_the_papers_formula() -> None:
    assert half_width(0.5, 100) == pytest.approx(0.098)
    assert half_width(0.88, 9673) == pytest.approx(1.96 * math.sqrt(0.88 * 0.12 / 9673))
    assert half_width(1.0, 50) == 0.0


def test_half_width_rejects_a_percentage() -> None:
    with pytest.raises(ValueError, match="between 0 and 1, got 88"):
        half_width(88, 10)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(counts: tuple[int, int]) -> None:
    """Both ends p satisfy (S - p)^2 = z^2 p (1 - p) / N, and they bracket the score."""
    correct, total = counts
    score = correct / total
    low, high = wilson_interval(correct, total)
    assert 0.0 <= low <= score <= high <= 1.0
    for end in (low, high):
        assert (score - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / total, abs=1e-12)


def test_wilson_matches_a_published_worked_value() -> None:
    """Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    low, high = wilson_interval(81, 263, z=1.959964)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = wilson_interval(0, 20, z=1.959964)
    assert (low, round(high, 4)) == (0.0, 0.1611)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_exact_binomial_sum(ours: int, theirs: int) -> None:
    num = ours + theirs
    tail = sum(math.comb(num, k) for k in range(min(ours, theirs) + 1))
    expected = min(Fraction(1), Fraction(2 * tail, 2**num))
    assert mcnemar_exact(ours, theirs) == pytest.approx(float(expected), rel=1e-12)
    assert mcnemar_exact(ours, theirs) == mcnemar_exact(theirs, ours)


def test_mcnemar_survives_thousands_of_questions() -> None:
    assert mcnemar_exact(9000, 10) == 0.0
    assert mcnemar_exact(3000, 3000) == 1.0
    assert 0.0 < mcnemar_exact(3100, 2900) < 0.02


def test_bootstrap_interval_agrees_with_the_normal_approximation() -> None:
    """Of 1,000 questions 150 are only ours and 100 only theirs: .05 with error sqrt((.25 - .05^2) / 1000)."""
    ours = [True] * 150 + [False] * 100 + [True] * 750
    theirs = [False] * 150 + [True] * 100 + [True] * 750
    result = paired_difference(ours, theirs, num_resamples=4000, seed=1)
    error = math.sqrt((0.25 - 0.05**2) / 1000)
    assert result.difference == pytest.approx(0.05)
    assert result.low == pytest.approx(0.05 - 1.96 * error, abs=0.003)
    assert result.high == pytest.approx(0.05 + 1.96 * error, abs=0.003)
    assert (result.only_ours, result.only_theirs) == (150, 100)


def test_clustered_bootstrap_is_wider_when_questions_of_a_picture_agree() -> None:
    """Ten copies of each answer carry the information of one: the interval widens by about sqrt(10)."""
    ours = [index % 10 < 6 for index in range(100)]
    theirs = [index % 10 < 3 for index in range(100)]
    repeated_ours = [answer for answer in ours for _ in range(10)]
    repeated_theirs = [answer for answer in theirs for _ in range(10)]
    pictures = [index for index in range(100) for _ in range(10)]
    naive = paired_difference(repeated_ours, repeated_theirs, num_resamples=3000)
    honest = paired_difference(repeated_ours, repeated_theirs, clusters=pictures, num_resamples=3000)
    assert (honest.high - honest.low) / (naive.high - naive.low) == pytest.approx(math.sqrt(10), rel=0.1)


def test_paired_difference_is_seeded() -> None:
    ours, theirs = [True, False, True, True] * 20, [True, True, False, False] * 20
    assert paired_difference(ours, theirs, seed=3) == paired_difference(ours, theirs, seed=3)


def test_paired_difference_names_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_difference([True, False], [True, False, True])
    with pytest.raises(ValueError, match="got 1 for 2 questions"):
        paired_difference([True, False], [True, True], clusters=["a"])


def test_accuracy_prints_and_serialises() -> None:
    accuracy = Accuracy(88, 100)
    assert str(accuracy) == "88.0 ± 6.4 %"
    assert accuracy.to_json()["wilson_95"] == list(wilson_interval(88, 100))
    with pytest.raises(ValueError, match="3 of 2"):
        Accuracy(3, 2)


def brute_force(gains: list[float]) -> float:
    """Share of all sign flips whose sum is at least as far from zero."""
    sums = [
        abs(sum(sign * gain for sign, gain in zip(signs, gains, strict=True)))
        for signs in product((1, -1), repeat=len(gains))
    ]
    return sum(total >= abs(sum(gains)) - 1e-12 for total in sums) / len(sums)


@pytest.mark.parametrize("num", [1, 2, 5, 6, 9])
def test_the_test_over_seeds_is_the_share_of_all_sign_flips(num: int) -> None:
    rng = np.random.default_rng(num)
    ours, theirs = rng.normal(0.1, 1, num).tolist(), rng.normal(0, 1, num).tolist()
    found = paired_seeds(ours, theirs)
    gains = [one - other for one, other in zip(ours, theirs, strict=True)]
    assert found.p_value == pytest.approx(brute_force(gains))
    assert found.difference == pytest.approx(sum(gains) / num) and found.num == num
    assert found.smallest_p == (1.0 if num == 1 else 2 / 2**num) <= found.p_value
    assert (found.low is None) == (num < 6) and (found.deviation is None) == (num == 1)


def test_seeds_that_all_agree_are_as_sure_as_their_number_allows() -> None:
    assert paired_seeds([2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6]).p_value == 2 / 64
    assert paired_seeds([1.0] * 6, [1.0] * 6).p_value == 1.0
    # The signs of more pairs than can be gone through are drawn; what they agree on stays as unlikely as can be drawn.
    many = paired_seeds([1.0] * 20, [0.0] * 20)
    assert 0 < many.p_value <= 3 / 2**16 and (many.low, many.high) == (1.0, 1.0)


def test_an_interval_over_seeds_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        gains = rng.normal(0.3, 1, 12)
        found = paired_seeds(gains.tolist(), [0.0] * 12, num_resamples=400, seed=trial)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.3 <= found.high
    assert 170 <= covered <= 198


def test_seeds_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="paired runs need equal, non-zero lengths, got 1 and 2"):
        paired_seeds([1.0], [1.0, 2.0])
