"""Packing: rows hold whole documents, in one order; nothing is lost, and little of a batch is padding."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm_llama.batch import Batch, restarting
from mm_llama.data.collate import collate
from mm_llama.data.loader import Loader
from mm_llama.data.mix import Mixture
from mm_llama.data.packing import collate_packed, cut, evened, first_fit_decreasing, waste
from mm_llama.data.samples import Sample
from tests.data.test_collate import load, sample
from tests.data.test_loader import LENGTHS, pixels, rows, same, sources_of, take

LIMIT = 100


def documents(lengths: list[int]) -> list[tuple[int, int, str]]:
    return [(length, index, f"d{index}") for index, length in enumerate(lengths)]


def test_the_longest_goes_first_and_each_where_it_first_fits():
    bins = first_fit_decreasing(documents([3, 6, 4, 5, 2]), 8)
    assert [[what for _, _, what in found] for found in bins] == [["d1", "d4"], ["d3", "d0"], ["d2"]]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120))
def test_bins_hold_everything_once_within_their_capacity(lengths, capacity):
    bins = first_fit_decreasing(documents(lengths), capacity)
    assert sorted(document for found in bins for document in found) == sorted(documents(lengths))
    loads = [sum(length for length, _, _ in found) for found in bins]
    assert all(0 < load <= capacity for load in loads)
    # First fit leaves no two bins that one could have held.
    assert all(one + other > capacity for i, one in enumerate(loads) for other in loads[:i])
    assert bins == first_fit_decreasing(reversed(documents(lengths)), capacity)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 120))
def test_evened_bins_hold_the_same_and_none_is_longer_than_the_longest_was(lengths, capacity):
    bins = first_fit_decreasing(documents(lengths), capacity)
    even = evened(bins)
    assert sorted(document for found in even for document in found) == sorted(documents(lengths))
    loads, before = ([sum(length for length, _, _ in found) for found in some] for some in (even, bins))
    assert len(loads) == len(before) and 0 < max(loads) <= max(before)
    if even is not bins:
        assert max(loads) - min(loads) <= max(lengths)


def test_a_last_row_that_is_half_empty_shares_with_the_full_ones():
    bins = first_fit_decreasing(documents([4, 4, 4, 4, 4, 4]), 20)
    assert [len(found) for found in bins] == [5, 1]
    assert [len(found) for found in evened(bins)] == [3, 3]
    tight = first_fit_decreasing(documents([3, 3, 2, 2, 2]), 6)
    assert [len(found) for found in tight] == [2, 3] and evened(
        tight
    ) is tight  # the least full first would give 7


def test_a_document_that_no_row_holds_is_an_error():
    with pytest.raises(ValueError, match="a document of 9 tokens does not fit in a row of 8"):
        first_fit_decreasing(documents([3, 9]), 8)


def test_packed_rows_keep_the_order_of_their_documents_and_batches_are_of_equal_size():
    lengths = [7, 1, 6, 2, 5, 3, 8, 4, 4]
    batches = cut(documents(lengths), batch_size=4, pack_tokens=8)
    assert batches == [(("d0", "d1"), ("d2", "d3")), (("d4", "d5"), ("d6",), ("d7", "d8"))]
    assert cut(documents(lengths), batch_size=4, batch_tokens=16, pack_tokens=8) == [
        (("d0", "d1"),),
        (("d2", "d3"), ("d4", "d5")),
        (("d6",), ("d7", "d8")),
    ]
    assert cut([], batch_size=4, pack_tokens=8) == []


def test_waste_is_the_share_of_positions_without_a_token():
    lengths = [1, 9, 2, 8]
    assert waste(lengths, 2) == pytest.approx(1 - 20 / 34)
    assert waste(lengths, 2, bucket_batches=2) == pytest.approx(1 - 20 / 22)
    assert waste(lengths, 2, bucket_batches=2, pack_tokens=10) == 0
    assert waste(lengths, 2, batch_tokens=10) == 0  # one row a batch
    assert waste([], 2) == 1


def test_a_packed_batch_holds_documents_end_to_end():
    packed = collate_packed(
        [
            [sample(3, (0, "red"), source="f:1"), sample(4, (1, "blue"), (2, "red"), source="f:2")],
            [sample(2, source="f:3")],
        ],
        {"image": load},
    )
    assert packed.tokens_BS.tolist() == [[1, 2, 3, 1, 2, 3, 4], [1, 2, 0, 0, 0, 0, 0]]
    assert packed.documents_BS.tolist() == [[0, 0, 0, 1, 1, 1, 1], [2, 2, -1, -1, -1, -1, -1]]
    assert packed.positions_BS[0].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert packed.positions_BS[1, :2].tolist() == [0, 1]
    assert packed.targets_BS.nonzero().tolist() == [[0, 2], [0, 6], [1, 1]]
    assert packed.lengths_B.tolist() == [7, 2]
    assert packed.sources == ["f:1", "f:2", "f:3"] and packed.num_samples == 3
    assert packed.source_of(0, 5) == "f:2" and packed.source_of(1, 0) == "f:3"
    media = packed.media["image"]
    assert len(media.items) == 2  # shown by two documents of a row, held once
    assert (media.rows_M.tolist(), media.positions_M.tolist()) == ([0, 0, 0], [0, 4, 5])
    assert media.items_M.tolist() == [0, 1, 0]


def test_packing_leaves_its_samples_as_they_are():
    one = sample(3, (0, "red"))
    before = Sample(list(one.tokens), list(one.targets), list(one.media), one.source)
    collate_packed([[one, one]], {"image": load})
    assert one == before


def test_positions_of_unpacked_rows_are_the_cores_own():
    batch = collate([sample(3), sample(2)], {})
    assert batch.positions_BS is None and batch.num_samples == 2


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4))
def test_positions_begin_anew_with_every_document(lengths):
    S, number = max(map(sum, lengths)), 0
    documents_BS = torch.full((len(lengths), S), -1)
    expected = []
    for row, parts in enumerate(lengths):
        end = 0
        for length in parts:
            documents_BS[row, end : end + length] = number
            end, number = end + length, number + 1
        expected.append([position for length in parts for position in range(length)])
    got = restarting(documents_BS)
    assert [row[: len(wanted)].tolist() for row, wanted in zip(got, expected, strict=True)] == expected


def loader_of(chat, source, **options) -> Loader:
    options = {"batch_size": 3, "bucket_batches": 4, "pack": True, "pack_tokens": LIMIT} | options
    return Loader(Mixture([source], seed=5), chat, **options)


def unpacked(batch: Batch) -> dict[str, list[int]]:
    """Tokens of each document by its source."""
    assert batch.documents_BS is not None
    return {
        source: batch.tokens_BS[batch.documents_BS == number].tolist()
        for number, source in enumerate(batch.sources)
    }


@given(
    batch_size=st.integers(1, 5),
    bucket_batches=st.integers(1, 6),
    pack_tokens=st.integers(70, 300),
    rows_of_tokens=st.integers(0, 3),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_epoch_holds_every_document_whole_and_once_within_the_limits(
    chat, batch_size, bucket_batches, pack_tokens, rows_of_tokens
):
    limits = {"pack_tokens": pack_tokens, "batch_tokens": rows_of_tokens * pack_tokens}
    sizes = {"batch_size": batch_size, "bucket_batches": bucket_batches}
    batches = list(loader_of(chat, rows(LENGTHS), **sizes, **limits).epoch())
    plain = list(Loader(Mixture([rows(LENGTHS)], seed=5), chat, batch_size=1).epoch())
    whole = {batch.sources[0]: batch.tokens_BS[0].tolist() for batch in plain}
    assert sorted(sources_of(batches)) == sorted(whole)
    for batch in batches:
        assert batch.tokens_BS.shape[0] <= batch_size and batch.tokens_BS.shape[1] <= pack_tokens
        assert not limits["batch_tokens"] or batch.tokens_BS.numel() <= limits["batch_tokens"]
        for source, tokens in unpacked(batch).items():
            assert tokens == whole[source]


def test_packing_leaves_less_padding_than_sorting_by_length(chat):
    lengths = [1, 200, 3, 90, 5, 20, 7, 150, 2, 60, 1, 4] * 8

    def padding(bucket_batches: int = 8, **options) -> float:
        loader = loader_of(chat, rows(lengths), batch_size=4, bucket_batches=bucket_batches, **options)
        batches = list(loader.epoch())
        tokens = sum(int(batch.lengths_B.sum()) for batch in batches)
        return 1 - tokens / sum(batch.tokens_BS.numel() for batch in batches)

    packed, bucketed, plain = padding(pack_tokens=300), padding(pack=False), padding(1, pack=False)
    assert packed < 0.5 * bucketed < 0.25 * plain, (packed, bucketed, plain)


@pytest.mark.parametrize(
    "options",
    [
        {"pack": False, "pack_tokens": 0},
        {"pack": False, "pack_tokens": 0, "bucket_batches": 1},
        {"pack": False, "pack_tokens": 0, "batch_tokens": 150},
        {"pack_tokens": 130},
        {"pack_tokens": 90, "batch_tokens": 200},
    ],
)
def test_waste_foretells_the_padding_of_an_epoch(chat, options):
    options = {"batch_size": 3, "bucket_batches": 4} | options
    batches = list(loader_of(chat, rows(LENGTHS), **options).epoch())
    ordered = Loader(Mixture([rows(LENGTHS)], seed=5), chat, batch_size=1, bucket_batches=1).epoch()
    lengths = [int(batch.lengths_B[0]) for batch in ordered]
    tokens, positions = sum(lengths), sum(batch.tokens_BS.numel() for batch in batches)
    options.pop("pack", None)
    assert waste(lengths, options.pop("batch_size"), **options) == pytest.approx(1 - tokens / positions)


@given(stop=st.integers(0, 20))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_resumed_packing_loader_goes_on_exactly_where_it_was_saved(chat, stop):
    whole = loader_of(chat, rows(LENGTHS), batch_size=2, bucket_batches=6)
    batches = take(whole, 24)
    first, second = (loader_of(chat, rows(LENGTHS), batch_size=2, bucket_batches=6) for _ in range(2))
    before = take(first, stop)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    after = take(second, 24 - stop)
    assert same(before + after, batches)
    assert all(
        torch.equal(a.documents_BS, b.documents_BS) for a, b in zip(before + after, batches, strict=True)
    )
    assert second.num_samples == whole.num_samples == len(sources_of(batches)) > 37


@pytest.mark.parametrize("num_workers", [1, 2])
def test_packed_batches_with_media_do_not_depend_on_workers(chat, chat_file, picture, row, num_workers):
    from mm_llama.data.sources import JsonlChat

    names = [picture(f"images/{level}.png", level) for level in range(5)]
    source = JsonlChat(chat_file([row("x" * (i % 6 + 1), *names[i % 5 : i % 5 + i % 3]) for i in range(20)]))

    def make(workers: int) -> Loader:
        return Loader(
            Mixture([source], seed=4),
            chat,
            {"image": pixels},
            batch_size=2,
            bucket_batches=4,
            pack=True,
            pack_tokens=150,
            num_workers=workers,
        )

    alone, helped = make(0), make(num_workers)
    assert same(take(helped, 9), take(alone, 9)) and helped.state_dict() == alone.state_dict()
    batch = take(alone, 1)[0]
    assert len(batch.media["image"].items) < len(batch.media["image"].items_M)


def test_other_packing_is_another_order_and_refused(chat):
    state = loader_of(chat, rows(LENGTHS)).state_dict()
    with pytest.raises(ValueError, match="saved with pack_tokens=100 and now it is 101"):
        loader_of(chat, rows(LENGTHS), pack_tokens=101).load_state_dict(state)
    with pytest.raises(ValueError, match="saved with pack_tokens=100 and now it is 0"):
        loader_of(chat, rows(LENGTHS), pack=False).load_state_dict(state)
    # States from before packing existed were of rows that are not packed.
    before = loader_of(chat, rows(LENGTHS), pack=False).state_dict()
    del before["order"]["pack_tokens"]
    loader_of(chat, rows(LENGTHS), pack=False).load_state_dict(before)
    with pytest.raises(ValueError, match="saved with pack_tokens=0 and now it is 100"):
        loader_of(chat, rows(LENGTHS)).load_state_dict(before)


def test_a_document_longer_than_a_row_is_an_error_or_skipped_and_counted(chat):
    source = rows([5, LIMIT, 5])
    with pytest.raises(
        ValueError, match=r"rows:2: the row has \d+ tokens and the limit is 100.*loader.pack_tokens"
    ):
        take(loader_of(chat, source), 1)
    loader = loader_of(chat, source, on_too_long="skip")
    assert sorted(sources_of(list(loader.epoch()))) == ["rows:1", "rows:3"]
    assert loader.skipped == {"too_long": 1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_document_is_left_out_of_its_row_and_counted(
    chat, chat_file, picture, row, tmp_path, num_workers
):
    from mm_llama.data.sources import JsonlChat

    names = [picture(f"{level}.png", level) for level in range(6)]
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    source = JsonlChat(chat_file([row("yes", name) for name in names]))

    def make(**options) -> Loader:
        return Loader(
            Mixture([source], shuffle=False),
            chat,
            {"image": pixels},
            batch_size=6,
            pack=True,
            pack_tokens=400,
            num_workers=num_workers,
            **options,
        )

    with pytest.raises(ValueError, match=r"rows\.jsonl:4: image: "):
        list(make().epoch())
    loader = make(on_error="skip")
    (batch,) = loader.epoch()
    assert [source.rsplit(":", 1)[1] for source in batch.sources] == ["1", "2", "3", "5", "6"]
    assert batch.num_samples == 5 and len(batch.media["image"].items) == 5
    assert loader.skipped == {"bad_image": 1}


def test_impossible_packing_is_named(chat):
    with pytest.raises(ValueError, match="loader.pack_tokens must be at least 1, got 0"):
        loader_of(chat, rows([1]), pack_tokens=0)
    with pytest.raises(ValueError, match="loader.pack_tokens=100 .* do not fit in .* loader.batch_tokens=90"):
        loader_of(chat, rows([1]), batch_tokens=90)
    loader_of(chat, rows([1]), pack=False, batch_tokens=90)
