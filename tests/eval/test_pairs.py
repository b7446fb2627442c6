"""Right against wrong pictures: scores equal whole-row likelihoods, wrong pictures are truly other ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_llama.core.chat import ChatFormat
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.data.sources import ChatRows, Row
from mm_llama.eval.pairs import (
    Caption,
    PairsResult,
    draw_wrong,
    evaluate_pairs,
    generate_captions,
    read_captions,
)
from mm_llama.model import MultimodalLlama

LoadMedia = dict[str, Callable[..., torch.Tensor]]
NAMES = ["a frog", "A frog", "two red apples", "a ship at sea", "the letter b"]


@pytest.fixture(scope="module")
def captions(pictures: list[Path], chat: ChatFormat) -> list[Caption]:
    rows: list[list[dict[str, Any]]] = []
    for name, picture in zip(NAMES, pictures, strict=True):
        content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": "Describe it."}]
        rows.append([{"role": "user", "content": content}, {"role": "assistant", "content": name}])
    source = ChatRows(rows)
    return read_captions([source.row(index) for index in range(len(source))], chat)


def test_wrong_pictures_have_another_caption_and_are_drawn_by_the_seed(captions: list[Caption]) -> None:
    drawn = draw_wrong(captions, num_wrong=3, seed=4)
    for caption, others in zip(captions, drawn, strict=True):
        assert len(set(others)) == 3
        assert all(captions[other].text.casefold() != caption.text.casefold() for other in others)
    assert drawn == draw_wrong(captions, num_wrong=3, seed=4)
    assert any(drawn != draw_wrong(captions, num_wrong=3, seed=seed) for seed in range(5, 9))


def test_equal_captions_groups_and_pictures_are_each_enough_to_be_no_wrong_picture(
    captions: list[Caption],
) -> None:
    """Captions 0 and 1 differ in case only; with groups of their own the caption alone must keep them apart."""
    apart = [replace(caption, group=str(number)) for number, caption in enumerate(captions)]
    assert draw_wrong([apart[0], *apart[2:]], num_wrong=3)[0] != []
    with pytest.raises(ValueError, match="only 3 pictures of other captions for 4"):
        draw_wrong(apart, num_wrong=4)
    grouped = [*apart[1:4], replace(apart[4], group="1")]
    with pytest.raises(ValueError, match="only 2 pictures of other captions for 3"):
        draw_wrong(grouped, num_wrong=3)
    twin = replace(apart[2].sample, media=[replace(apart[2].picture, key=apart[1].picture.key)])
    with pytest.raises(ValueError, match="only 2 pictures of other captions for 3"):
        draw_wrong([apart[1], replace(apart[2], sample=twin), *apart[3:]], num_wrong=3)


def test_too_few_other_pictures_are_named(captions: list[Caption]) -> None:
    with pytest.raises(ValueError, match="rows:1: only 3 pictures of other captions for 4"):
        draw_wrong(captions, num_wrong=4)


def test_scores_equal_each_row_alone(
    model: MultimodalLlama, captions: list[Caption], load_media: LoadMedia
) -> None:
    from mm_llama.batch import Media

    result = evaluate_pairs(model, captions, load_media=load_media, num_wrong=2, batch_size=2)
    drawn = draw_wrong(captions, num_wrong=2)
    for index, caption in enumerate(captions):
        expected = []
        for shown in (index, *drawn[index]):
            item = load_media["image"](captions[shown].picture)
            place = torch.tensor([caption.picture.position])
            media = {"image": Media([item], torch.tensor([0]), place, torch.tensor([0]))}
            row = torch.tensor([caption.sample.tokens])
            log_p = model(row, media=model.attach(media))[0].log_softmax(-1)
            targets = [i for i, target in enumerate(caption.sample.targets) if target]
            expected.append(sum(float(log_p[i - 1, caption.sample.tokens[i]]) for i in targets))
        assert [result.right[index], *result.wrong[index]] == pytest.approx(expected, abs=2e-4)
        assert result.wrong_captions[index] == [captions[other].text for other in drawn[index]]
    assert len({round(score, 3) for score in result.wrong[0]}) == 2, "the picture must matter"


def test_accuracy_counts_pairs_and_a_tie_is_no_win(captions: list[Caption]) -> None:
    result = PairsResult(
        captions[:3], [-1.0, -5.0, -2.0], [[-2.0, -1.0], [-4.0, -6.0], [-3.0, -9.0]], [["x", "y"]] * 3
    )
    assert (result.accuracy.correct, result.accuracy.total) == (4, 6)
    found = result.to_json()
    assert found["beats_all"]["correct"] == 1
    low, high = found["pairs"]["bootstrap_95_by_caption"]
    assert 0.5 <= low < 4 / 6 < high <= 1.0
    assert found["captions"][1]["log_p_wrong"] == [-4.0, -6.0]


def test_generated_captions_equal_one_picture_at_a_time(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    captions: list[Caption],
    load_media: LoadMedia,
) -> None:
    def write(some: list[Caption]) -> list[str]:
        return generate_captions(model, tokenizer, chat, some, load_media=load_media, max_new_tokens=6)

    together = write(captions)
    assert together == [write([caption])[0] for caption in captions]
    assert len(set(together)) > 1


def test_a_row_without_one_picture_is_refused(chat: ChatFormat) -> None:
    rows: list[Row] = [
        ChatRows([[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]]).row(0)
    ]
    with pytest.raises(ValueError, match="rows:1: a captioned row shows one picture, this one 0"):
        read_captions(rows, chat)
