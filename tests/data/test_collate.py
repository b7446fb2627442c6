"""Collation: right padding, every medium once, kinds that are absent are no keys."""

import pytest
import torch

from mm_llama.data.collate import collate
from mm_llama.data.samples import MediaRef, Sample


def sample(num_tokens: int, *media: tuple[int, str], kind: str = "image", source: str = "f:1") -> Sample:
    """Tokens 1, 2, 3, ...; the last one is the target; media are (position, key)."""
    refs = [MediaRef(kind, position, f"{key}.png", key) for position, key in media]
    targets = [False] * (num_tokens - 1) + [True]
    return Sample(list(range(1, num_tokens + 1)), targets, refs, source)


def load(ref: MediaRef) -> torch.Tensor:
    level = {"red": 1.0, "blue": 2.0, "wide": 3.0}[ref.key]
    return torch.full((3, 2, 5 if ref.key == "wide" else 2), level)


def test_rows_are_padded_on_the_right_with_zeros_and_no_target():
    batch = collate([sample(2, source="f:1"), sample(4, source="f:2")], {})
    assert batch.tokens_BS.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert batch.targets_BS.tolist() == [[False, True, False, False], [False, False, False, True]]
    assert batch.lengths_B.tolist() == [2, 4]
    assert batch.tokens_BS.dtype == batch.lengths_B.dtype == torch.int64
    assert batch.sources == ["f:1", "f:2"]


def test_text_batches_have_no_media_at_all():
    assert collate([sample(3)], {"image": load}).media == {}


def test_rows_with_none_one_and_several_pictures_share_items_by_key():
    batch = collate(
        [sample(3), sample(5, (0, "blue")), sample(6, (1, "red"), (2, "blue"), (4, "red"))], {"image": load}
    )
    media = batch.media["image"]
    assert [item.flatten()[0].item() for item in media.items] == [2.0, 1.0]
    assert media.rows_M.tolist() == [1, 2, 2, 2]
    assert media.positions_M.tolist() == [0, 1, 2, 4]
    assert media.items_M.tolist() == [0, 1, 0, 1]
    assert media.rows_M.dtype == media.positions_M.dtype == media.items_M.dtype == torch.int64
    assert media.encoded is False


def test_a_shared_picture_is_loaded_once():
    calls = []
    collate([sample(2, (0, "red"))] * 5, {"image": lambda ref: calls.append(ref.key) or load(ref)})
    assert calls == ["red"]


def test_pictures_of_different_sizes_and_features_stand_side_by_side():
    rows = [sample(3, (0, "red")), sample(3, (0, "wide"))]
    assert [tuple(item.shape) for item in collate(rows, {"image": load}).media["image"].items] == [
        (3, 2, 2),
        (3, 2, 5),
    ]
    media = collate(rows, {"image": lambda ref: torch.ones(49, 8)}, encoded={"image"}).media["image"]
    assert media.encoded is True and media.items[0].shape == (49, 8)


def test_each_kind_keeps_its_own_items():
    batch = collate(
        [sample(3, (0, "red")), sample(3, (1, "red"), kind="audio")],
        {"image": load, "audio": lambda ref: torch.zeros(7)},
        encoded={"audio"},
    )
    assert sorted(batch.media) == ["audio", "image"]
    assert batch.media["audio"].rows_M.tolist() == [1] and batch.media["audio"].encoded
    assert batch.media["image"].rows_M.tolist() == [0] and not batch.media["image"].encoded


def test_a_medium_that_cannot_be_loaded_is_named_with_its_row():
    def broken(ref: MediaRef) -> torch.Tensor:
        raise ValueError(f"{ref.source} is damaged")

    def absent(ref: MediaRef) -> torch.Tensor:
        raise KeyError("no cached features for red")

    rows = [sample(3), sample(3, (0, "red"), source="g.jsonl:7")]
    with pytest.raises(ValueError, match=r"g\.jsonl:7: image: red\.png is damaged"):
        collate(rows, {"image": broken})
    with pytest.raises(ValueError, match=r"g\.jsonl:7: image: no cached features for red$"):
        collate(rows, {"image": absent})
    with pytest.raises(
        ValueError, match=r"g\.jsonl:7: no reader for image media here; this run reads \['audio'\]"
    ):
        collate(rows, {"audio": load})


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        collate([], {})
