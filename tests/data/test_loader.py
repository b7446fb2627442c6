"""The loader: one order whatever the workers, exact resume, buckets by length, skips counted and capped."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm_llama.batch import Batch
from mm_llama.data.decode import open_image
from mm_llama.data.loader import Loader
from mm_llama.data.mix import Mixture
from mm_llama.data.samples import MediaRef
from mm_llama.data.sources import ChatRows, JsonlChat

LENGTHS = [(7 * i) % 23 + 1 for i in range(37)]


def rows(lengths: list[int], name: str = "rows") -> ChatRows:
    return ChatRows(
        [
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x" * length}]
            for length in lengths
        ],
        name=name,
    )


def take(loader: Loader, count: int) -> list[Batch]:
    stream = iter(loader)
    return [next(stream) for _ in range(count)]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        a.sources == b.sources
        and torch.equal(a.tokens_BS, b.tokens_BS)
        and torch.equal(a.targets_BS, b.targets_BS)
        and a.media.keys() == b.media.keys()
        and all(
            all(map(torch.equal, a.media[kind].items, b.media[kind].items))
            and torch.equal(a.media[kind].rows_M, b.media[kind].rows_M)
            and torch.equal(a.media[kind].items_M, b.media[kind].items_M)
            for kind in a.media
        )
        for a, b in zip(left, right, strict=True)
    )


def sources_of(batches: list[Batch]) -> list[str]:
    return [source for batch in batches for source in batch.sources]


def pixels(ref: MediaRef) -> torch.Tensor:
    return torch.from_numpy(np.array(open_image(ref.source))).permute(2, 0, 1).float()


@pytest.fixture
def pictured(chat_file, picture, row) -> JsonlChat:
    """Twenty rows with none, one or two of five pictures."""
    names = [picture(f"images/{level}.png", level) for level in range(5)]
    return JsonlChat(chat_file([row("x" * (i % 6 + 1), *names[i % 5 : i % 5 + i % 3]) for i in range(20)]))


def test_an_epoch_holds_every_row_once_and_the_next_one_follows(chat):
    loader = Loader(Mixture([rows(LENGTHS)], seed=1), chat, batch_size=4, bucket_batches=3)
    batches = take(loader, 20)  # 37 rows: windows of 12, 12, 12 and 1
    first, second = sources_of(batches[:10]), sources_of(batches[10:])
    assert sorted(first) == sorted(second) == sorted(f"rows:{i + 1}" for i in range(37))
    assert first != second
    assert loader.num_batches == 20 and loader.num_samples == 74


def test_buckets_hold_rows_of_like_length(chat):
    def padding(bucket_batches: int) -> float:
        mixture = Mixture([rows(LENGTHS)], seed=1)
        batches = list(Loader(mixture, chat, batch_size=4, bucket_batches=bucket_batches).epoch())
        assert len(sources_of(batches)) == 37
        return sum(int((batch.tokens_BS.shape[1] - batch.lengths_B).sum()) for batch in batches)

    assert padding(9) < 0.3 * padding(1)


def test_the_order_of_batches_is_shuffled_within_a_window(chat):
    batches = list(Loader(Mixture([rows(LENGTHS)], seed=1), chat, batch_size=4, bucket_batches=9).epoch())
    longest = [int(batch.lengths_B.max()) for batch in batches[:9]]
    assert longest != sorted(longest)
    for batch in batches:
        assert batch.lengths_B.tolist() == sorted(batch.lengths_B.tolist())


def test_without_shuffle_and_buckets_rows_keep_their_order(chat):
    mixture = Mixture([rows(LENGTHS)], shuffle=False)
    batches = list(Loader(mixture, chat, batch_size=5, bucket_batches=1).epoch())
    assert sources_of(batches) == [f"rows:{i + 1}" for i in range(37)]
    assert [len(batch.sources) for batch in batches] == [5] * 7 + [2]


@given(batch_size=st.integers(1, 9), batch_tokens=st.integers(60, 400), bucket_batches=st.integers(1, 6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_keep_within_rows_and_padded_positions_and_lose_nothing(
    chat, batch_size, batch_tokens, bucket_batches
):
    loader = Loader(
        Mixture([rows(LENGTHS)], seed=2),
        chat,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        bucket_batches=bucket_batches,
    )
    batches = list(loader.epoch())
    assert sorted(sources_of(batches)) == sorted(f"rows:{i + 1}" for i in range(37))
    for batch in batches:
        assert len(batch.sources) <= batch_size
        assert batch.tokens_BS.numel() <= batch_tokens


@given(stop=st.integers(0, 25), batch_tokens=st.sampled_from([0, 150]), weighted=st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_resumed_loader_goes_on_exactly_where_it_was_saved(chat, stop, batch_tokens, weighted):
    def make() -> Loader:
        sources = [rows(LENGTHS), rows([3, 9, 5], "more")]
        mixture = Mixture(sources, [0.6, 0.4] if weighted else None, seed=5)
        return Loader(mixture, chat, batch_size=3, batch_tokens=batch_tokens, bucket_batches=4)

    whole = take(make(), 30)
    first = make()
    before = take(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    second = make()
    second.load_state_dict(state)
    assert same(before + take(second, 30 - stop), whole)
    assert second.num_batches == 30


@pytest.mark.parametrize("num_workers", [1, 2])
def test_order_media_and_state_do_not_depend_on_workers(chat, pictured, num_workers):
    def make(workers: int) -> Loader:
        return Loader(
            Mixture([pictured], seed=4),
            chat,
            {"image": pixels},
            batch_size=3,
            bucket_batches=2,
            num_workers=workers,
        )

    alone, helped = make(0), make(num_workers)
    before = torch.random.get_rng_state()
    assert same(take(helped, 12), take(alone, 12))
    assert helped.state_dict() == alone.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    # What the workers had fetched ahead is not consumed: the next batch is the same.
    resumed = make(num_workers)
    resumed.load_state_dict(helped.state_dict())
    assert same(take(resumed, 3), take(alone, 3))


def test_going_through_an_epoch_does_not_move_the_loader(chat):
    loader = Loader(Mixture([rows(LENGTHS)], seed=1), chat, batch_size=4)
    first = take(loader, 3)
    state = loader.state_dict()
    assert same(list(loader.epoch()), list(loader.epoch()))
    assert loader.state_dict() == state
    assert not same(take(loader, 3), first)


def test_state_of_other_data_or_batching_is_refused(chat):
    state = Loader(Mixture([rows(LENGTHS)], seed=1), chat, batch_size=4).state_dict()
    other = Loader(Mixture([rows(LENGTHS[:-1])], seed=1), chat, batch_size=4)
    with pytest.raises(ValueError, match="saved with mixture=.*cannot be resumed exactly"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="saved with batch_size=4 and now it is 5"):
        Loader(Mixture([rows(LENGTHS)], seed=1), chat, batch_size=5).load_state_dict(state)


def test_a_row_that_is_too_long_stops_the_stream_at_its_place(chat):
    mixture = Mixture([rows([5, 5, 5, 40, 5])], shuffle=False)
    limit = 5 + max(
        batch.tokens_BS.shape[1] for batch in Loader(Mixture([rows([5])]), chat, batch_size=1).epoch()
    )
    loader = Loader(mixture, chat, batch_size=1, bucket_batches=1, max_tokens=limit)
    stream = iter(loader)
    assert [next(stream).sources for _ in range(3)] == [["rows:1"], ["rows:2"], ["rows:3"]]
    with pytest.raises(ValueError, match=rf"rows:4: the row has \d+ tokens and the limit is {limit}"):
        next(stream)
    assert loader.num_batches == 3


def test_too_long_rows_are_skipped_and_counted_when_asked(chat):
    limit = max(
        batch.tokens_BS.shape[1] for batch in Loader(Mixture([rows([10])]), chat, batch_size=1).epoch()
    )
    loader = Loader(
        Mixture([rows(LENGTHS)], seed=1),
        chat,
        batch_size=4,
        max_tokens=limit,
        on_too_long="skip",
        bucket_batches=2,
    )
    batches = list(loader.epoch())
    expected = [f"rows:{i + 1}" for i, length in enumerate(LENGTHS) if length <= 10]
    assert sorted(sources_of(batches)) == sorted(expected)
    assert loader.skipped == {"too_long": 37 - len(expected)}
    assert loader.skip_examples[0].startswith("too_long: rows:")


def test_a_row_longer_than_a_batch_may_be_is_too_long(chat):
    loader = Loader(Mixture([rows([80])]), chat, batch_size=4, batch_tokens=60)
    with pytest.raises(ValueError, match="rows:1: the row has .* tokens and the limit is 60"):
        take(loader, 1)


@pytest.fixture
def damaged(chat_file, picture, row, tmp_path) -> JsonlChat:
    """Twelve rows: the fourth shows a picture that is cut short, the eighth is not JSON."""
    names = [picture(f"{level}.png", level) for level in range(12)]
    data = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(data[: len(data) // 2])
    lines = [json.dumps(row("yes", name)) for name in names]
    lines[7] = lines[7][:-3]
    return JsonlChat(chat_file(lines))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_picture_is_an_error_by_default_in_any_process(chat, damaged, num_workers):
    loader = Loader(
        Mixture([damaged], shuffle=False),
        chat,
        {"image": pixels},
        batch_size=1,
        bucket_batches=1,
        num_workers=num_workers,
    )
    stream = iter(loader)
    assert [next(stream).sources[0][-1] for _ in range(3)] == ["1", "2", "3"]
    with pytest.raises(ValueError, match=r"^[^\n]*rows\.jsonl:4: image: [^\n]*3\.png[^\n]*$"):
        next(stream)
    assert loader.num_batches == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_rows_are_skipped_counted_and_never_replaced(chat, damaged, num_workers):
    loader = Loader(
        Mixture([damaged], shuffle=False),
        chat,
        {"image": pixels},
        batch_size=2,
        bucket_batches=1,
        on_error="skip",
        num_workers=num_workers,
    )
    seen = [int(source.rsplit(":", 1)[1]) for source in sources_of(list(loader.epoch()))]
    assert seen == [1, 2, 3, 5, 6, 7, 9, 10, 11, 12]
    assert loader.skipped == {"bad_image": 1, "bad_json": 1}
    assert any("rows.jsonl:4: image:" in text for text in loader.skip_examples)
    assert any("rows.jsonl:8: not JSON" in text for text in loader.skip_examples)


def test_skips_are_part_of_the_state_and_counted_once(chat, damaged):
    def make() -> Loader:
        return Loader(Mixture([damaged], seed=1), chat, {"image": pixels}, batch_size=2, on_error="skip")

    whole = make()
    expected = take(whole, 13)
    for stop in range(13):
        first = make()
        take(first, stop)
        second = make()
        second.load_state_dict(first.state_dict())
        assert same(take(second, 13 - stop), expected[stop:])
        assert second.skipped == whole.skipped


def test_more_skips_than_allowed_are_an_error_that_tells_the_causes(chat, damaged):
    loader = Loader(
        Mixture([damaged], shuffle=False),
        chat,
        {"image": pixels},
        batch_size=2,
        on_error="skip",
        max_skipped=1,
    )
    with pytest.raises(
        ValueError, match=r"2 rows skipped \(1 bad_image, 1 bad_json\), more than loader.max_skipped=1"
    ):
        list(loader.epoch())


def test_data_without_a_usable_row_is_an_error_and_no_endless_search(chat):
    loader = Loader(Mixture([rows([9] * 30)]), chat, batch_size=4, max_tokens=3, on_too_long="skip")
    with pytest.raises(ValueError, match="no row of the data can be used"):
        take(loader, 1)


def test_a_picture_without_reader_is_named(chat, pictured):
    with pytest.raises(ValueError, match="no reader for image media here; this run reads text"):
        list(Loader(Mixture([pictured]), chat, batch_size=4).epoch())


def test_waiting_time_is_counted(chat):
    loader = Loader(Mixture([rows(LENGTHS)]), chat, batch_size=4)
    take(loader, 1)
    first = loader.wait_seconds
    take(loader, 1)
    assert 0 < first < loader.wait_seconds


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"batch_size": 0}, "loader.batch_size must be at least 1, got 0"),
        ({"bucket_batches": 0}, "loader.bucket_batches must be at least 1"),
        ({"num_workers": -1}, "loader.num_workers must be at least 0"),
        ({"on_error": "ignore"}, "loader.on_error must be 'error' or 'skip', not 'ignore'"),
        ({"on_too_long": "cut"}, "loader.on_too_long must be 'error' or 'skip', not 'cut'"),
    ],
)
def test_impossible_options_are_named(chat, options, what):
    with pytest.raises(ValueError, match=what):
        Loader(Mixture([rows([1])]), chat, **{"batch_size": 1, **options})
