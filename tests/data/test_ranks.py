"""An epoch over ranks and workers: each row once, nobody waits for a batch that another lacks, any place resumed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm_llama.batch import Batch
from mm_llama.data.formats import Formatted
from mm_llama.data.loader import Loader
from mm_llama.data.mix import Mixture
from mm_llama.data.order import BlockShuffle
from mm_llama.data.shards import Shards
from mm_llama.data.sources import ChatRows

LENGTHS = [(7 * i) % 23 + 1 for i in range(61)]


def rows(count: int, name: str = "rows") -> ChatRows:
    question = {"role": "user", "content": "?"}
    return ChatRows(
        [[question, {"role": "assistant", "content": "x" * length}] for length in LENGTHS[:count]], name=name
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """61 rows in 7 shards of unlike size."""
    import io
    import tarfile

    folder = tmp_path_factory.mktemp("shards")
    done = 0
    for number, count in enumerate((1, 20, 5, 13, 2, 11, 9)):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for length in LENGTHS[done : done + count]:
                content = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x" * length}]
                data = json.dumps({"messages": content}).encode()
                info = tarfile.TarInfo(f"{done:03d}.json")
                info.size, done = len(data), done + 1
                tar.addfile(info, io.BytesIO(data))
    return Shards(folder)


def names(batches: list[Batch]) -> list[str]:
    return [source for batch in batches for source in batch.sources]


def take(loader: Loader, count: int) -> list[list[str]]:
    stream = iter(loader)
    return [list(next(stream).sources) for _ in range(count)]


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one window a batch": {"bucket_batches": 1},
    "by tokens": {"batch_tokens": 300},
    "packed": {"pack": True, "pack_tokens": 150},
}


@pytest.fixture
def make(chat: Any, shards: Shards) -> Callable[..., Loader]:
    def build(
        rank: int = 0, world_size: int = 1, workers: int = 0, buffer: int = 0, **options: Any
    ) -> Loader:
        mixture = Mixture([shards, rows(10, "more")], seed=3, buffer=buffer)
        settings = {"batch_size": 4, "bucket_batches": 3} | options
        return Loader(mixture, chat, num_workers=workers, rank=rank, world_size=world_size, **settings)

    return build


def combinations() -> Iterator[Any]:
    for layout, buffer, world_size in product(LAYOUTS, (0, 16), (1, 2, 3, 7)):
        yield pytest.param(layout, buffer, world_size, 0, id=f"{layout}-buffer {buffer}-{world_size} ranks")
    for world_size, workers in product((1, 2, 3), (1, 2)):
        yield pytest.param("plain", 16, world_size, workers, id=f"{world_size} ranks-{workers} workers")


@pytest.mark.parametrize(("layout", "buffer", "world_size", "workers"), list(combinations()))
def test_every_row_comes_once_an_epoch_on_one_rank(make, shards, layout, buffer, world_size, workers):
    loaders = [make(rank, world_size, workers, buffer, **LAYOUTS[layout]) for rank in range(world_size)]
    every = sorted([shards.name_of(index) for index in range(61)] + [f"more:{i + 1}" for i in range(10)])
    orders = []
    for number in (0, 1):
        epochs = [list(loader.epoch(number)) for loader in loaders]
        assert sorted(name for batches in epochs for name in names(batches)) == every
        sizes = [len(names(batches)) for batches in epochs]
        assert max(sizes) - min(sizes) <= 1
        if layout in ("plain", "one window a batch"):
            assert len({len(batches) for batches in epochs}) == 1
            assert all(len(batch.sources) <= 4 for batches in epochs for batch in batches)
        orders.append([names(batches) for batches in epochs])
    assert orders[0] != orders[1]


@given(
    size=st.integers(1, 61),
    world_size=st.integers(1, 9),
    batch_size=st.integers(1, 6),
    window=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranks_have_as_many_batches_whatever_the_numbers(chat, size, world_size, batch_size, window):
    def loader(rank: int) -> Loader:
        options = {"batch_size": batch_size, "bucket_batches": window, "rank": rank, "world_size": world_size}
        return Loader(Mixture([rows(size)], seed=1), chat, **options)

    if world_size > size:
        with pytest.raises(ValueError, match=rf"has no part of {size} rows"):
            loader(0)
        return
    epochs = [list(loader(rank).epoch()) for rank in range(world_size)]
    assert sorted(sum(map(names, epochs), [])) == sorted(f"rows:{i + 1}" for i in range(size))
    counts = {len(batches) for batches in epochs}
    # Batches of one row cannot be shared out evenly where the rows cannot.
    assert max(counts) - min(counts) <= (1 if batch_size == 1 and size % world_size else 0)


@pytest.mark.parametrize("buffer", [0, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_place_is_resumed_with_any_number_of_workers(make, layout, buffer):
    drawn = random.Random(0)
    for world_size, rank in ((1, 0), (3, 0), (3, 2)):
        whole = take(make(rank, world_size, 0, buffer, **LAYOUTS[layout]), 24)
        for stop in (0, *sorted(drawn.sample(range(1, 20), 3))):
            workers = drawn.choice((0, 2)) if stop > 12 else 0
            first = make(rank, world_size, workers, buffer, **LAYOUTS[layout])
            before = take(first, stop)
            second = make(rank, world_size, 0, buffer, **LAYOUTS[layout])
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            assert before + take(second, 24 - stop) == whole


def test_another_rank_split_or_buffer_cannot_go_on_from_a_state(make):
    state = make(1, 3).state_dict()
    with pytest.raises(ValueError, match="saved with rank=1 and now it is 0"):
        make(0, 3).load_state_dict(state)
    with pytest.raises(ValueError, match="saved with world_size=3 and now it is 2"):
        make(1, 2).load_state_dict(state)
    with pytest.raises(ValueError, match="saved with mixture="):
        make(1, 3, buffer=16).load_state_dict(state)
    # States from before there were ranks are of the only one.
    old = make().state_dict()
    for key in ("rank", "world_size"):
        del old["order"][key]
    make().load_state_dict(
        {key: value for key, value in old.items() if not key.startswith("skip")} | {"skipped": {}}
    )


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_ranks_that_do_not_exist_are_refused(make, rank, world_size):
    with pytest.raises(ValueError, match=r"rank|world_size"):
        make(rank, world_size)


def test_rows_that_are_skipped_are_missed_by_no_rank_and_counted_by_one(chat, chat_file, row):
    from mm_llama.data.sources import JsonlChat

    lines = [json.dumps(row("x" * (i % 9 + 1))) for i in range(40)]
    for bad in (3, 17, 18, 31):
        lines[bad] = lines[bad][:-4]
    source = JsonlChat(chat_file(lines))
    loaders = [
        Loader(Mixture([source], seed=2), chat, batch_size=3, bucket_batches=2, on_error="skip", rank=r, world_size=3)
        for r in range(3)
    ]  # fmt: skip
    for number in (0, 1, 2):  # met in every epoch, counted once
        epochs = [list(loader.epoch(number)) for loader in loaders]
        assert len({len(batches) for batches in epochs}) == 1
        seen = sorted(int(name.rpartition(":")[2]) - 1 for name in sum(map(names, epochs), []))
        assert seen == [index for index in range(40) if index not in (3, 17, 18, 31)]
    met = [{(place, row) for place, row in loader.state_dict()["skipped_rows"]} for loader in loaders]
    assert set.union(*met) == {(0, bad) for bad in (3, 17, 18, 31)}
    assert [loader.skipped.total() for loader in loaders] == [len(one) for one in met]


# --- the bounded shuffle


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(sum),
    buffer=st.integers(1, 40),
    cycle=st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_a_bounded_shuffle_holds_every_row_once_and_wants_few_places_at_a_time(sizes, buffer, cycle):
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    shuffle = BlockShuffle(ends, buffer, 7, 0)
    order = [shuffle.row(cycle, index) for index in range(ends[-1])]
    assert sorted(order) == list(range(ends[-1]))
    # The rows of a window are the next ones of the blocks, in whatever order: a block is gone through once.
    blocks = {row: number for number, end in enumerate(ends) for row in range(end - sizes[number], end)}
    read: list[int] = []
    for start in range(0, len(order), buffer):
        held: dict[int, list[int]] = {}
        for row in sorted(order[start : start + buffer]):
            held.setdefault(blocks[row], []).append(row)
        for wanted in held.values():
            assert wanted == list(range(wanted[0], wanted[0] + len(wanted)))
        inner = [block for block, wanted in held.items() if len(wanted) == sizes[block]]
        assert len(held) - len(inner) <= 2  # only the first and the last block of a window may be parts
        read += held
    fresh = BlockShuffle(ends, buffer, 7, 0)
    places = list(range(len(order)))
    random.Random(0).shuffle(places)
    assert [fresh.row(cycle, place) for place in places] == [order[place] for place in places]


def test_the_bounded_shuffle_is_this_one_for_ever():
    """A golden order: saved positions of old runs stay valid."""
    shuffle = BlockShuffle([3, 5, 10], 4, 5, 0)
    assert [shuffle.row(1, index) for index in range(10)] == GOLDEN


GOLDEN = [5, 3, 6, 4, 8, 0, 9, 7, 2, 1]


def test_every_cycle_goes_through_the_blocks_in_another_order():
    shuffle = BlockShuffle([5 * number for number in range(1, 9)], 1, 5, 0)
    cycles = [[shuffle.row(cycle, index) for index in range(40)] for cycle in (0, 1, 2, 0)]
    assert cycles[0] == cycles[3] and len({tuple(order) for order in cycles}) == 3
    for order in cycles:  # with a buffer of one row, nothing but the blocks is shuffled
        assert all(order[i : i + 5] == list(range(order[i], order[i] + 5)) for i in range(0, 40, 5))


def test_blocks_of_a_wrapped_source_are_those_of_what_is_in_it(shards):
    assert Formatted(shards, task="caption").blocks == shards.blocks == [1, 21, 26, 39, 41, 52, 61]


def test_with_weights_each_source_goes_through_its_own_blocks(shards):
    mixture = Mixture([shards, rows(10, "more")], [3, 1], seed=3, buffer=8)
    places = [mixture.place(*divmod(index, len(mixture))) for index in range(4 * 61 * 2)]
    for number, size in ((0, 61), (1, 10)):
        drawn = [place.row for place in places if place.source == number]
        for start in range(0, len(drawn) - size, size):
            assert sorted(drawn[start : start + size]) == list(range(size))


def test_with_a_buffer_the_shards_of_a_window_are_fetched_before_its_rows_are_read(chat, shards, monkeypatch):
    fetched: list[list[int]] = []
    ahead = Shards.read_ahead

    def noted(self, wanted):
        fetched.append(list(wanted))
        ahead(self, wanted)

    monkeypatch.setattr(Shards, "read_ahead", noted)
    for source in (shards, Formatted(shards, task="plain")):
        fetched.clear()
        loader = Loader(Mixture([source], seed=1, buffer=16), chat, batch_size=4, bucket_batches=2)
        first = next(iter(loader))
        assert len(fetched) == 1 and len(fetched[0]) == 8
        assert {shards.name_of(row) for row in fetched[0]} >= set(first.sources)
    fetched.clear()
    next(iter(Loader(Mixture([shards], seed=1), chat, batch_size=4)))
    assert fetched == []
    shards.read_ahead(range(len(shards)))
    Shards.read_ahead(_Gone(shards), [0])  # a hint, so nothing is raised here


class _Gone:
    """Shards whose files are no longer there."""

    def __init__(self, shards: Shards) -> None:
        self.files = ["/gone"]
        self._starts, self._place = shards._starts, shards._place


def test_a_negative_buffer_is_refused():
    with pytest.raises(ValueError, match=r"loader\.shuffle_buffer must be at least 0, got -1"):
        Mixture([rows(3)], buffer=-1)
