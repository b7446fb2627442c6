"""Mixtures: every row once an epoch, shares kept at every point, order from (seed, epoch, index) alone."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_llama.data.mix import Mixture, Place
from mm_llama.data.order import permutation
from mm_llama.data.sources import ChatRows


def source(size: int, name: str = "s") -> ChatRows:
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}
    return ChatRows([[question, answer]] * size, name=name)


SOURCES = {size: source(size, f"s{size}") for size in range(1, 13)}


def epoch(mixture: Mixture, number: int) -> list[Place]:
    return [mixture.place(number, index) for index in range(len(mixture))]


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4), seed=st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_without_weights_every_row_of_every_source_comes_once_an_epoch(sizes, seed):
    mixture = Mixture([SOURCES[size] for size in sizes], seed=seed)
    expected = sorted(Place(s, row) for s, size in enumerate(sizes) for row in range(size))
    for number in range(3):
        assert sorted(epoch(mixture, number)) == expected


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    data=st.data(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_with_weights_every_prefix_keeps_each_source_within_one_of_its_share(sizes, data, seed):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    mixture = Mixture([SOURCES[size] for size in sizes], weights, seed=seed, epoch_size=7)
    taken = Counter()
    for t in range(1, 120):
        taken[mixture.place(*divmod(t - 1, 7)).source] += 1
        for s, weight in enumerate(weights):
            assert abs(taken[s] - weight * t / sum(weights)) < 1


@given(sizes=st.lists(st.integers(1, 12), min_size=2, max_size=3), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_with_weights_each_source_runs_through_its_own_shuffles(sizes, seed):
    mixture = Mixture(
        [SOURCES[size] for size in sizes], [1.5, 0.5, 2][: len(sizes)], seed=seed, epoch_size=50
    )
    rows = {s: [] for s in range(len(sizes))}
    for number in range(4):
        for place in epoch(mixture, number):
            rows[place.source].append(place.row)
    for s, size in enumerate(sizes):
        for start in range(0, len(rows[s]) - size + 1, size):
            assert sorted(rows[s][start : start + size]) == list(range(size))


def test_weights_are_exact_decimals_and_give_whole_shares_a_period():
    assert Mixture([SOURCES[2], SOURCES[3]], [0.7, 0.3]).counts == [7, 3]
    assert Mixture([SOURCES[2], SOURCES[3]], [30, 10]).counts == [3, 1]
    assert Mixture([SOURCES[2], SOURCES[3], SOURCES[4]], [0.1, 0.2, 0.3]).counts == [1, 2, 3]


def test_weights_without_a_short_period_are_rounded_to_a_ten_thousandth():
    counts = Mixture([SOURCES[2], SOURCES[3]], [1, 3.14159]).counts
    assert counts == [2415, 7585]


def test_order_depends_on_seed_and_epoch_only():
    sources = [SOURCES[12], SOURCES[7]]
    first, again = Mixture(sources, seed=3), Mixture([source(12, "s12"), source(7, "s7")], seed=3)
    orders = {number: epoch(first, number) for number in (2, 0, 1)}
    assert {number: epoch(again, number) for number in (0, 1, 2)} == orders
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert epoch(Mixture(sources, seed=4), 0) != orders[0]


def test_the_shuffle_is_this_one_for_ever():
    """A golden order: saved positions of old runs stay valid."""
    assert permutation(10, 5, 0, 1).tolist() == [7, 1, 3, 6, 8, 9, 2, 0, 5, 4]


def test_without_shuffle_rows_come_as_they_stand():
    mixture = Mixture([SOURCES[2], SOURCES[3]], shuffle=False)
    assert epoch(mixture, 1) == [Place(0, 0), Place(0, 1), Place(1, 0), Place(1, 1), Place(1, 2)]
    weighted = Mixture([SOURCES[2], SOURCES[3]], [1, 1], shuffle=False, epoch_size=6)
    assert [place.row for place in epoch(weighted, 0) if place.source == 1] == [0, 1, 2]


def test_rows_and_names_are_those_of_the_source():
    mixture = Mixture([SOURCES[2], SOURCES[3]])
    assert mixture.row(Place(1, 2)).source == mixture.name_of(Place(1, 2)) == "s3:3"


def test_the_digest_follows_data_weights_and_seed():
    def digest(*sizes: int, **options: object) -> str:
        return Mixture([SOURCES[size] for size in sizes], **options).digest

    assert digest(2, 3) == digest(2, 3)
    others = {digest(2, 4), digest(3, 2), digest(2, 3, seed=1), digest(2, 3, weights=[1, 2]), digest(2, 3)}
    assert len(others | {digest(2, 3, shuffle=False), digest(2, 3, weights=[1, 2], epoch_size=4)}) == 7


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"weights": [1]}, r"2 sources need as many weights, got 1 \(data.weights\)"),
        ({"weights": [1, 0]}, "weight 1 must be a positive number, got 0"),
        ({"weights": [1, float("nan")]}, "weight 1 must be a positive number, got nan"),
        ({"weights": [1, float("inf")]}, "weight 1 must be a positive number, got inf"),
        ({"weights": [1, 1e-7]}, "weight 1e-07 is below one 10000th of the mixture"),
        ({"seed": -1}, "the data seed must not be negative, got -1"),
        ({"epoch_size": 3}, "epoch_size needs weights"),
    ],
)
def test_impossible_mixtures_are_named(options, what):
    with pytest.raises(ValueError, match=what):
        Mixture([SOURCES[2], SOURCES[3]], **options)


def test_a_mixture_of_nothing_is_named():
    with pytest.raises(ValueError, match="at least one source"):
        Mixture([])


def test_a_place_outside_the_epoch_is_refused():
    with pytest.raises(IndexError, match="no sample 2 in epoch 0 of 2"):
        Mixture([SOURCES[2]]).place(0, 2)
