"""Promise: media moves no token before it, in its own sample or another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mm_llama.batch import Media
from mm_llama.modality import END, Span, plan, visible_spans
from mm_llama.model import MultimodalLlama
from tests.promises.material import features, pictures, tokens

Make = Callable[..., MultimodalLlama]


@torch.no_grad()
@pytest.mark.parametrize("position", [0, 1, 7, 19])
def test_a_picture_moves_no_earlier_token(make_model: Make, dtype: torch.dtype, position: int) -> None:
    model = make_model(dtype)
    text = tokens(2, 20)
    one = model(text, media=model.attach(pictures([(0, position, 0)], features(1, seed=1))))
    other = model(text, media=model.attach(pictures([(0, position, 0)], features(1, seed=2))))
    assert torch.equal(one[0, :position], other[0, :position])
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0, position], other[0, position])
    assert torch.equal(one[0, :position], model.core(text)[0, :position])


@torch.no_grad()
def test_the_second_of_two_consecutive_pictures_does_not_move_the_first_placeholder(make_model: Make) -> None:
    model = make_model()
    text, items = tokens(1, 12), features(3)
    one = model(text, media=model.attach(pictures([(0, 4, 0), (0, 5, 1)], items)))
    other = model(text, media=model.attach(pictures([(0, 4, 0), (0, 5, 2)], items)))
    assert torch.equal(one[:, :5], other[:, :5]) and not torch.equal(one[:, 5:], other[:, 5:])


@torch.no_grad()
def test_a_picture_is_seen_until_the_next_one_only(make_model: Make) -> None:
    model = make_model()
    text, items = tokens(1, 18), features(3)
    state = model.attach(pictures([(0, 2, 0), (0, 10, 1)], items))
    changed = model.attach(pictures([(0, 2, 0), (0, 10, 2)], items))
    one, other = model(text, media=state), model(text, media=changed)
    assert torch.equal(one[:, :10], other[:, :10]) and not torch.equal(one[:, 10:], other[:, 10:])


@torch.no_grad()
def test_packed_documents_do_not_see_each_others_pictures(make_model: Make) -> None:
    model = make_model()
    first, second = tokens(1, 8, seed=1), tokens(1, 11, seed=2)
    row = torch.cat((first, second), 1)
    documents = torch.tensor([[0] * 8 + [1] * 11])
    positions = torch.cat((torch.arange(8), torch.arange(11)))[None]
    items = features(2)
    state = model.attach(pictures([(0, 2, 0), (0, 8 + 3, 1)], items), documents)
    packed = model(row, positions_BS=positions, documents_BS=documents, media=state)
    alone = [
        model(first, media=model.attach(pictures([(0, 2, 0)], items[:1]))),
        model(second, media=model.attach(pictures([(0, 3, 0)], items[1:]))),
    ]
    assert torch.allclose(packed, torch.cat(alone, 1), atol=2e-6)


@pytest.mark.parametrize(
    ("placed", "expected"),
    [
        ([1], [(1, END, 1)]),
        ([1, 3], [(1, 3, 1), (3, END, 1)]),
        ([1, 2], [(1, END, 2)]),
        ([1, 2, 4], [(1, 4, 2), (4, END, 1)]),
    ],
)
def test_spans_follow_the_released_rule(placed: list[int], expected: list[tuple[int, int, int]]) -> None:
    numbers = torch.arange(len(placed))
    media = Media(
        features(len(placed)), torch.zeros(len(placed), dtype=torch.long), torch.tensor(placed), numbers
    )
    spans = visible_spans(media)
    assert [(span.start, span.end, len(span.items)) for span in spans] == expected
    assert spans[0] == Span(0, *expected[0][:2], tuple(range(expected[0][2])))


def test_of_consecutive_placeholders_each_sees_those_up_to_itself() -> None:
    numbers = torch.arange(3)
    media = Media(features(3), torch.zeros(3, dtype=torch.long), torch.tensor([1, 2, 3]), numbers)
    (found,) = plan(visible_spans(media), torch.arange(6)[None], None)
    assert found.items == ((0, 1, 2),)
    assert found.seen_GL is not None and found.seen_GL.tolist() == [[1, 2, 3, 3, 3]]
    (later,) = plan(visible_spans(media), torch.tensor([[4]]), None)
    assert later.seen_GL is None
    (early,) = plan(visible_spans(media), torch.arange(3)[None], None)
    assert early.items == ((0, 1),)


def test_two_media_at_one_position_are_refused() -> None:
    media = Media(features(2), torch.tensor([0, 0]), torch.tensor([3, 3]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="two media were put at position 3"):
        visible_spans(media)
