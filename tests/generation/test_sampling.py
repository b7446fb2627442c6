import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_llama.generation.sampling import Sampler, Sampling, draw, greedy, probabilities


def oracle(logits, temperature, top_k, top_p):
    """Temperature, top-k, top-p, one token at a time in plain Python."""
    best = max(logits)
    weights = [math.exp((logit - best) / temperature) for logit in logits]
    ranked = sorted(range(len(logits)), key=lambda token: (-weights[token], token))
    if top_k:
        ranked = ranked[:top_k]
    total = math.fsum(weights[token] for token in ranked)
    kept, before = {}, 0.0
    for token in ranked:
        if top_p < 1 and before > top_p:
            break
        kept[token] = weights[token]
        before += weights[token] / total
    total = math.fsum(kept.values())
    return [kept.get(token, 0.0) / total for token in range(len(logits))]


logit_rows = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=12)


@settings(deadline=None)
@given(logit_rows, st.sampled_from([0.1, 0.6, 1.0, 3.0]), st.integers(0, 13), st.integers(1, 997))
def test_probabilities_equal_a_plain_loop(row, temperature, top_k, thousandths):
    # Thousandths that are prime to the powers of two: no running sum falls exactly on the bound.
    top_p = thousandths / 997
    got = probabilities(torch.tensor([row]), temperature=temperature, top_k=top_k, top_p=top_p)
    assert got.dtype == torch.float64
    torch.testing.assert_close(
        got[0], torch.tensor(oracle(row, temperature, top_k, top_p), dtype=torch.float64)
    )


def test_top_p_keeps_the_token_that_crosses_the_bound_and_one_that_starts_exactly_on_it():
    # Quarters are exact, so the bounds are met exactly.
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]])

    def num_kept(top_p):
        return int((probabilities(logits, top_p=top_p)[0] > 0).sum())

    assert [num_kept(top_p) for top_p in (1e-9, 0.24, 0.25, 0.26, 0.5, 0.74, 0.75, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]


def test_top_p_equals_the_published_reference_rule():
    torch.manual_seed(0)
    logits = torch.randn(64, 50) * 3
    for top_p in (0.05, 0.3, 0.9, 0.999):
        weights = torch.softmax(logits.double(), -1)
        ranked, order = weights.sort(-1, descending=True)
        ranked[ranked.cumsum(-1) - ranked > top_p] = 0.0
        ranked /= ranked.sum(-1, keepdim=True)
        expected = torch.zeros_like(weights).scatter(-1, order, ranked)
        torch.testing.assert_close(probabilities(logits, top_p=top_p), expected)


@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
def test_a_nucleus_of_many_tokens_is_found_in_a_large_vocabulary(spread):
    # Flat rows need more ranks than the short list holds, peaked ones few: alone and in one batch.
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(2)) * torch.tensor(
        [[spread], [6.0]]
    )
    got = probabilities(logits, top_p=0.73)
    for row in range(2):
        expected = torch.tensor(oracle(logits[row].tolist(), 1.0, 0, 0.73), dtype=torch.float64)
        torch.testing.assert_close(got[row], expected)
        assert torch.equal(got[row] > 0, expected > 0)
        torch.testing.assert_close(probabilities(logits[row : row + 1], top_p=0.73)[0], got[row])


def test_top_k_keeps_exactly_k_of_equal_tokens_lowest_ids_first():
    got = probabilities(torch.zeros(1, 6), top_k=2)
    assert got.tolist() == [[0.5, 0.5, 0, 0, 0, 0]]


def test_top_k_beyond_the_vocabulary_and_neutral_values_keep_the_plain_softmax():
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(probabilities(logits, top_k=9, top_p=1.0), torch.softmax(logits.double(), -1))


def test_top_p_is_taken_of_what_top_k_left():
    # Of the two that top-k leaves the first holds 4/7, more than 0.55; of all three it holds only 0.4.
    logits = torch.tensor([[0.4, 0.3, 0.3]]).log()
    assert (probabilities(logits, top_k=2, top_p=0.55)[0] > 0).tolist() == [True, False, False]


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-3])
def test_a_tiny_temperature_is_greedy_and_stays_finite(temperature):
    got = probabilities(torch.tensor([[1.0, 3.0, 2.0]]), temperature=temperature)
    assert got.tolist() == [[0.0, 1.0, 0.0]]


def test_a_huge_temperature_is_uniform():
    got = probabilities(torch.tensor([[1.0, 3.0, 2.0]]), temperature=1e30)
    torch.testing.assert_close(got, torch.full((1, 3), 1 / 3, dtype=torch.float64))


def test_greedy_takes_the_lowest_of_equal_tokens():
    assert greedy(torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 0.0]])).tolist() == [1, 0]


def test_draw_never_takes_a_token_of_probability_zero():
    row = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    aims = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(row.expand(4, -1).contiguous(), aims).tolist() == [1, 1, 3, 3]


@settings(deadline=None)
@given(logit_rows, st.floats(0, 1, exclude_max=True))
def test_draw_stays_inside_the_kept_set(row, uniform):
    kept = probabilities(torch.tensor([row]), top_p=0.7)
    token = draw(kept, torch.tensor([uniform], dtype=torch.float64)).item()
    assert kept[0, token] > 0


def test_drawn_frequencies_follow_the_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -3.0]])
    sampler = Sampler(Sampling(temperature=1.3, top_p=0.95, seed=5), 1)
    num_draws = 4000
    counts = torch.bincount(torch.cat([sampler(logits, [0]) for _ in range(num_draws)]), minlength=5)
    expected = probabilities(logits, temperature=1.3, top_p=0.95)[0] * num_draws
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum().item()
    assert kept.sum() == 4 and chi_square < 16.27  # 99.9 % point for three degrees of freedom


def test_the_same_seed_repeats_and_another_differs():
    logits = torch.zeros(1, 1000)

    def tokens(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), 1)
        return [sampler(logits, [0]).item() for _ in range(20)]

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


def test_each_row_has_its_own_stream_that_no_neighbour_moves():
    logits = torch.zeros(3, 1000)
    sampling = Sampling(temperature=1.0, seed=11)
    whole = Sampler(sampling, 3)
    together = torch.stack([whole(logits, [0, 1, 2]) for _ in range(10)], 1)
    assert len({tuple(row) for row in together.tolist()}) == 3
    leaving = Sampler(sampling, 3)
    first = [leaving(logits, [0, 1, 2]) for _ in range(4)]
    rest = [leaving(logits[:1], [2]).item() for _ in range(6)]
    assert [step[2].item() for step in first] + rest == together[2].tolist()
    alone = Sampler(replace(sampling, row=2), 1)
    assert [alone(logits[:1], [0]).item() for _ in range(10)] == together[2].tolist()


def test_seed_and_row_do_not_run_into_each_other():
    logits = torch.zeros(1, 100_000)

    def first(seed, row):
        return Sampler(Sampling(temperature=1.0, seed=seed, row=row), 1)(logits, [0]).item()

    assert len({first(seed, row) for seed in range(5) for row in range(5)}) == 25


def test_greedy_sampling_ignores_seed_and_filters():
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(Sampling(temperature=0, top_k=3, top_p=0.2, seed=9), 2)
    assert torch.equal(sampler(logits, [0, 1]), logits.argmax(-1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected a finite number of at least 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_p": 0}, "top_p is 0, expected a number above 0 and up to 1"),
        ({"top_p": 1.0001}, "top_p is 1.0001"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"top_k": -1}, "top_k is -1, expected a whole number of at least 0"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"row": -1}, "row is -1"),
    ],
)
def test_impossible_values_name_the_parameter(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling(**wrong)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(broken, temperature):
    logits = torch.full((1, 4), broken)
    with pytest.raises(ValueError, match="logits are not finite"):
        Sampler(Sampling(temperature=temperature), 1)(logits, [0])
