"""Rows in words: the same at every reading, in every wording, with options, OCR and places; errors name the row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mm_llama.build import build
from mm_llama.core.chat import ChatFormat, MediaPart, Text
from mm_llama.data.formats import LETTERS, TEMPLATES, Formatted, Grounded, Part, WithOcr, text_of
from mm_llama.data.loader import Loader
from mm_llama.data.mix import Mixture
from mm_llama.data.places import Box, boxes_of, overlap
from mm_llama.data.sources import JsonlChat, Row

PAPER_SHORT = "Answer the question using a single word or phrase. {question}"
PAPER_CHOICE = (
    "Select the correct answer from the following options: {question}. "
    "Answer with the correct option letter and nothing else."
)


@pytest.fixture
def source(chat_file: Callable[..., Path], picture: Callable[..., str]) -> Callable[..., JsonlChat]:
    """`source(extra, ...)`: one row for each extra, with a picture, the question "What is it?" and an answer."""

    def make(*extras: dict[str, Any], answer: str = "red", question: str = "What is it?") -> JsonlChat:
        rows = []
        for extra in extras:
            content = [{"type": "image", "path": picture("a.png", 7)}, {"type": "text", "text": question}]
            turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            rows.append({"messages": turns, "extra": extra})
        return JsonlChat(chat_file(rows, f"rows{len(rows)}.jsonl"))

    return make


def said(row: Row) -> list[str]:
    return [text_of(message) for message in row.messages]


# --- wordings ---


def test_the_papers_wordings_are_the_first_of_their_tasks() -> None:
    assert TEMPLATES["short_answer"][0] == PAPER_SHORT and TEMPLATES["multiple_choice"][0] == PAPER_CHOICE


@pytest.mark.parametrize("task", ["plain", "short_answer", "caption"])
def test_each_row_has_one_of_the_wordings_and_all_are_used(
    source: Callable[..., JsonlChat], task: str
) -> None:
    rows = source(*[{}] * 60)
    formatted = Formatted(rows, task, seed=3)
    assert len(formatted) == 60 and formatted.name_of(7) == rows.name_of(7)
    wordings = [template.replace("{question}", "What is it?") for template in TEMPLATES[task]]
    found = Counter()
    for index in range(60):
        row = formatted.row(index)
        assert [type(part) for part in row.messages[0].parts] == [MediaPart, Text]
        assert row.messages[1] == rows.row(index).messages[1]
        assert row.extra["template"] in TEMPLATES[task] and row.source == rows.name_of(index)
        found[said(row)[0]] += 1
    assert set(found) == set(wordings)
    assert min(found.values()) >= 60 / len(wordings) / 3


def test_wordings_depend_on_seed_and_index_alone(source: Callable[..., JsonlChat]) -> None:
    rows = source(*[{}] * 40)

    def words(seed: int, order: range) -> dict[int, str]:
        formatted = Formatted(rows, seed=seed)
        return {index: said(formatted.row(index))[0] for index in order}

    first = words(0, range(40))
    assert words(0, range(39, -1, -1)) == first
    assert words(1, range(40)) != first
    # What stands here stays so: runs that were begun with it must meet the same words.
    assert [TEMPLATES["short_answer"].index(Formatted(rows).row(i).extra["template"]) for i in range(12)] == [
        1,
        0,
        2,
        1,
        1,
        1,
        1,
        0,
        1,
        2,
        1,
        0,
    ]


def test_a_resumed_loader_meets_the_same_words(source: Callable[..., JsonlChat], chat: ChatFormat) -> None:
    rows = source(*[{"boxes": [{"label": "cat", "box": [0, 0, 0.5, 1]}]}] * 11)

    def loader() -> Loader:
        sources = [Formatted(rows, seed=2), Grounded(rows, seed=2)]
        return Loader(
            Mixture(sources, seed=4),
            chat,
            {"image": lambda ref: ref_features()},
            batch_size=3,
            encoded=("image",),
        )

    def ref_features() -> Any:
        import torch

        return torch.zeros(1, 2)

    whole = loader()
    stream = iter(whole)
    batches = [next(stream).tokens_BS.tolist() for _ in range(9)]
    part = loader()
    stream = iter(part)
    for _ in range(4):
        next(stream)
    state = part.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    stream = iter(resumed)
    assert [next(stream).tokens_BS.tolist() for _ in range(5)] == batches[4:]


def test_the_rows_own_question_is_asked_where_it_has_one(source: Callable[..., JsonlChat]) -> None:
    row = Formatted(source({"question": "Which colour?"}), "short_answer", [PAPER_SHORT]).row(0)
    assert said(row)[0] == "Answer the question using a single word or phrase. Which colour?"


def test_every_turn_of_a_conversation_is_put_into_words(chat_file: Callable[..., Path]) -> None:
    turns = []
    for number in range(2):
        turns += [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "a"}]
    rows = JsonlChat(chat_file([{"messages": turns, "extra": {"question": "not this"}}]))
    assert said(Formatted(rows, templates=["{question} In short."]).row(0)) == [
        "0? In short.",
        "a",
        "1? In short.",
        "a",
    ]
    for task in ("caption", "multiple_choice"):
        with pytest.raises(
            ValueError, match=rf"jsonl:1: {task} takes rows with one user message, this one has 2"
        ):
            Formatted(rows, task).row(0)


def test_braces_in_texts_are_left_alone(source: Callable[..., JsonlChat]) -> None:
    rows = source({"question": "{answer} {question} {0}?"})
    assert said(Formatted(rows, templates=["{x} {question}"]).row(0))[0] == "{x} {answer} {question} {0}?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "shrt_answer"}, r"no task 'shrt_answer' \(did you mean 'short_answer'\?\)"),
        ({"templates": ["What?"]}, r"a template must contain '\{question\}', not 'What\?' \(templates\)"),
        ({"choices": ["a", "b"]}, r"choices belong to task=multiple_choice"),
        ({"task": "multiple_choice", "choices": ["a", "b"], "num_choices": 3}, r"2 choices, num_choices=3"),
        ({"task": "multiple_choice", "choices": ["a", "b"], "num_choices": 1}, r"num_choices=1"),
    ],
)
def test_impossible_formats_are_named(
    source: Callable[..., JsonlChat], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Formatted(source({}), **options)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"question": 3}, r"rows1\.jsonl:1: extra\.question must be a text, not 3"),
        ({"question": " "}, r"rows1\.jsonl:1: there is no question: neither"),
    ],
)
def test_a_row_without_a_question_is_named(
    source: Callable[..., JsonlChat], extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Formatted(source(extra, question=" ")).row(0)


# --- multiple choice ---


def test_options_of_the_row_are_lettered_and_the_letter_is_the_answer(
    source: Callable[..., JsonlChat],
) -> None:
    rows = source({"options": ["blue", "red", "green"]})
    row = Formatted(rows, "multiple_choice", [PAPER_CHOICE]).row(0)
    assert said(row) == [
        "Select the correct answer from the following options: What is it?\nA. blue\nB. red\nC. green. "
        "Answer with the correct option letter and nothing else.",
        "B",
    ]
    assert row.extra["options"] == ["blue", "red", "green"] and row.extra["answer_text"] == "red"


def test_drawn_options_hold_the_answer_once_at_any_place(source: Callable[..., JsonlChat]) -> None:
    choices = ["red", "blue", "green", "grey", "teal", "pink"]
    formatted = Formatted(source(*[{}] * 80), "multiple_choice", choices=choices, num_choices=4)
    letters, others = Counter(), Counter()
    for index in range(80):
        row = formatted.row(index)
        options = row.extra["options"]
        assert len(options) == len(set(options)) == 4 and set(options) <= set(choices)
        assert options[LETTERS.index(said(row)[1])] == "red"
        assert all(
            f"\n{letter}. {option}" in said(row)[0] for letter, option in zip("ABCD", options, strict=True)
        )
        assert formatted.row(index) == row
        letters[said(row)[1]] += 1
        others.update(options)
    assert set(letters) == set("ABCD") and min(letters.values()) >= 8
    assert others["red"] == 80 and min(others[choice] for choice in choices) >= 25


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {},
            r"rows1\.jsonl:1: extra\.options must be a list of 2 to 26 different texts, not None; or give choices",
        ),
        ({"options": ["red"]}, r"not \['red'\]"),
        ({"options": ["red", "red"]}, r"2 to 26 different texts"),
        ({"options": ["red", 3]}, r"2 to 26 different texts"),
        ({"options": "red"}, r"2 to 26 different texts"),
        (
            {"options": ["blue", "green"]},
            r"jsonl:1: the answer 'red' is not among extra\.options \['blue', 'green'\]",
        ),
    ],
)
def test_wrong_options_are_named(
    source: Callable[..., JsonlChat], extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Formatted(source(extra), "multiple_choice").row(0)


# --- OCR ---


def test_read_text_follows_the_caption(source: Callable[..., JsonlChat]) -> None:
    rows = source({"ocr": "STOP"}, {"ocr": [" a ", "", "b"]}, {}, {"ocr": []}, {"ocr": " "})
    answers = [said(WithOcr(rows).row(index))[1] for index in range(5)]
    assert answers == ["red Text in the picture: STOP", "red Text in the picture: a b", "red", "red", "red"]
    assert WithOcr(rows).row(2) == rows.row(2)
    assert said(WithOcr(rows, joiner="\n\n").row(0))[1] == "red\n\nSTOP"
    other = source({"text": "EXIT"})
    assert said(WithOcr(other, key="text").row(0))[1] == "red Text in the picture: EXIT"
    assert said(Formatted(WithOcr(rows), "caption", ["Describe."]).row(0)) == ["Describe.", answers[0]]


@pytest.mark.parametrize("ocr", [3, {"text": "a"}, ["a", 2]])
def test_ocr_that_is_no_text_is_named(source: Callable[..., JsonlChat], ocr: Any) -> None:
    with pytest.raises(
        ValueError, match=r"rows1\.jsonl:1: extra\.ocr must be a text or a list of texts, not "
    ):
        WithOcr(source({"ocr": ocr})).row(0)


# --- places ---


def test_boxes_are_shares_of_the_picture(source: Callable[..., JsonlChat]) -> None:
    entries = [
        {"label": "cat", "box": [0.1, 0.25, 0.5, 1]},
        {"label": " dog ", "box": [20, 30, 100, 60], "size": [200, 120]},
    ]
    assert boxes_of(source({"boxes": entries}).row(0)) == [
        Box("cat", 0.1, 0.25, 0.5, 1.0),
        Box("dog", 0.1, 0.25, 0.5, 0.5),
    ]
    whole = source({"boxes": [{"label": "sky", "box": [0, 0, 640, 480]}], "size": [640, 480]})
    assert boxes_of(whole.row(0)) == [Box("sky", 0.0, 0.0, 1.0, 1.0)]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, r"extra\.boxes must be a list of boxes, not None"),
        ({"boxes": []}, r"extra\.boxes must be a list of boxes, not \[\]"),
        ({"boxes": [[0, 0, 1, 1]]}, r"extra\.boxes\[0\] must be an object with label, box"),
        (
            {"boxes": [{"label": "a", "bx": [0, 0, 1, 1]}]},
            r"extra\.boxes\[0\] must be an object with label, box",
        ),
        ({"boxes": [{"label": "a", "box": [0, 0, 1, 1], "x": 1}]}, r"extra\.boxes\[0\] must be an object"),
        ({"boxes": [{"label": "", "box": [0, 0, 1, 1]}]}, r"extra\.boxes\[0\]\.label must be a text, not ''"),
        ({"boxes": [{"label": "a", "box": [0, 0, 1]}]}, r"extra\.boxes\[0\]\.box must be 4 numbers"),
        ({"boxes": [{"label": "a", "box": [0, 0, 1, "1"]}]}, r"extra\.boxes\[0\]\.box must be 4 numbers"),
        ({"boxes": [{"label": "a", "box": [0, 0, True, 1]}]}, r"extra\.boxes\[0\]\.box must be 4 numbers"),
        ({"boxes": [{"label": "a", "box": [0, 0, 1, 1], "size": [0, 5]}]}, r"\[0\]\.size must be positive"),
        (
            {"boxes": [{"label": "a", "box": [0, 0, 20, 10]}]},
            r"\[0\]\.box \[0, 0, 20, 10\] is no .* for want of a size",
        ),
        ({"boxes": [{"label": "a", "box": [0.5, 0, 0.4, 1]}]}, r"minima must be below maxima"),
        ({"boxes": [{"label": "a", "box": [-0.1, 0, 0.4, 1]}]}, r"inside the picture"),
        ({"boxes": [{"label": "a", "box": [0, 0, 9, 13]}], "size": [12, 12]}, r"\(in \[12, 12\] pixels\)"),
    ],
)
def test_wrong_boxes_are_named(source: Callable[..., JsonlChat], extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"rows1\.jsonl:1: .*" + message):
        Grounded(source(extra)).row(0)


CAT_AND_DOG = {
    "boxes": [
        {"label": "cat", "box": [0.1, 0.2004, 0.5, 0.75]},
        {"label": "dog", "box": [0.5, 0.5, 0.6, 1]},
        {"label": "dog", "box": [0, 0, 1 / 3, 0.3]},
    ]
}
CAT = "[0.100, 0.200, 0.500, 0.750]"
DOGS = ("[0.500, 0.500, 0.600, 1.000]", "[0.000, 0.000, 0.333, 0.300]")


def test_places_are_asked_both_ways_and_no_answer_is_given_away(source: Callable[..., JsonlChat]) -> None:
    rows = source(*[CAT_AND_DOG] * 60)
    grounded = Grounded(rows, turns=0)
    seen = Counter()
    for index in range(60):
        row = grounded.row(index)
        texts = said(row)
        assert [message.role for message in row.messages] == ["user", "assistant"] * 2
        assert [len(message.parts) for message in row.messages] == [2, 1, 1, 1]  # the picture comes once
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            if answer in ("cat", "dog"):
                (place,) = re.findall(r"\[.*\]", question)
                assert place in ((CAT,) if answer == "cat" else DOGS)
            else:
                assert answer == (CAT if "cat" in question else " and ".join(DOGS))
            seen[answer] += 1
        # One turn is of the cat, the other of the dogs: neither's name stands beside its place before it is asked.
        assert sum("cat" in text or CAT in text for text in texts[:2]) in (0, 2)
        assert grounded.row(index) == row
    assert set(seen) == {"cat", "dog", CAT, " and ".join(DOGS)} and min(seen.values()) >= 15


def test_one_direction_one_turn_and_other_words(source: Callable[..., JsonlChat]) -> None:
    rows = source(*[CAT_AND_DOG] * 30)
    where = [said(Grounded(rows, "where", seed=1).row(index)) for index in range(30)]
    assert {len(texts) for texts in where} == {2}
    assert {texts[1] for texts in where} == {CAT, " and ".join(DOGS)}
    what = [
        said(Grounded(rows, "what", decimals=1, form="<{xmin}|{ymin}|{xmax}|{ymax}>").row(i))
        for i in range(30)
    ]
    assert {texts[1] for texts in what} == {"cat", "dog"}
    places = {re.findall(r"<.*>", texts[0])[0] for texts in what}
    assert places == {"<0.1|0.2|0.5|0.8>", "<0.5|0.5|0.6|1.0>", "<0.0|0.0|0.3|0.3>"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "up"}, r"direction must be where, what or both, not 'up'"),
        ({"turns": -1}, r"turns must not be negative"),
        ({"decimals": 0}, r"decimals 1 to 6"),
        ({"where": ["Where?"]}, r"every template of where must contain '\{label\}'"),
        ({"what": []}, r"every template of what must contain '\{box\}'"),
        ({"form": "{xmin}"}, r"form must contain \{xmin\}, \{ymin\}, \{xmax\} and \{ymax\}"),
    ],
)
def test_impossible_grounding_is_named(
    source: Callable[..., JsonlChat], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Grounded(source(CAT_AND_DOG), **options)


def test_places_need_one_picture(chat_file: Callable[..., Path], row: Callable[..., dict[str, Any]]) -> None:
    rows = JsonlChat(chat_file([row("a") | {"extra": CAT_AND_DOG}]))
    with pytest.raises(
        ValueError, match=r"rows\.jsonl:1: places need a row with one picture, this one has 0 media"
    ):
        Grounded(rows).row(0)


def test_overlap_is_intersection_over_union() -> None:
    one = Box("a", 0, 0, 0.5, 0.5)
    assert overlap(one, one) == 1 and overlap(one, Box("b", 0.5, 0, 1, 0.5)) == 0
    assert overlap(one, Box("b", 0.25, 0.25, 0.75, 0.75)) == pytest.approx(1 / 7)


# --- parts of sources, digests, conf ---


def test_a_part_is_seeded_and_grows_by_adding(source: Callable[..., JsonlChat]) -> None:
    rows = source(*[{"id": number} for number in range(50)])
    small, large, other = Part(rows, 0.2), Part(rows, 0.6), Part(rows, 0.2, seed=1)
    assert (len(small), len(large), len(Part(rows)), len(Part(rows, 0.001))) == (10, 30, 50, 1)
    assert set(small.rows) < set(large.rows) and small.rows == sorted(small.rows) != other.rows
    assert small.row(3) == rows.row(small.rows[3]) and small.name_of(3) == rows.name_of(small.rows[3])
    for share in (0, 1.5, -1):
        with pytest.raises(ValueError, match="share must lie above 0 and not above 1"):
            Part(rows, share)


def test_every_option_is_in_the_digest(source: Callable[..., JsonlChat]) -> None:
    rows, other = source({}), source({}, {})
    mc = "multiple_choice"
    made = [
        Formatted(rows),
        Formatted(other),
        Formatted(rows, seed=1),
        Formatted(rows, "plain"),
        Formatted(rows, templates=["{question}!"]),
        Formatted(rows, mc),
        Formatted(rows, mc, choices=["a", "b", "c"], num_choices=3),
        Formatted(rows, mc, choices=["a", "b", "c"], num_choices=2),
        WithOcr(rows),
        WithOcr(rows, joiner=" "),
        WithOcr(rows, key="text"),
        Grounded(rows),
        Grounded(rows, "where"),
        Grounded(rows, turns=2),
        Grounded(rows, decimals=2),
        Grounded(rows, where=["{label}?"]),
        Grounded(rows, what=["{box}?"]),
        Grounded(rows, form="{xmin} {ymin} {xmax} {ymax}"),
        Grounded(rows, joiner="; "),
        Grounded(rows, seed=1),
        Part(rows),
        Part(rows, 0.5),
        Part(rows, seed=1),
    ]
    assert len({one.digest for one in made}) == len(made)
    assert Formatted(rows).digest == made[0].digest and Grounded(rows).digest == made[11].digest


def test_conf_nests_them_over_any_source_and_they_render(
    source: Callable[..., JsonlChat], chat: ChatFormat
) -> None:
    from mm_llama.data.samples import make_sample

    rows = source({"ocr": "STOP"})
    node = {
        "_target_": "mm_llama.data.formats.Formatted",
        "task": "caption",
        "source": {
            "_target_": "mm_llama.data.formats.WithOcr",
            "source": {"_target_": "mm_llama.data.sources.JsonlChat", "path": str(rows.path)},
        },
    }
    built = build(node)
    assert isinstance(built, Formatted) and said(built.row(0))[1] == "red Text in the picture: STOP"
    sample = make_sample(built.row(0), chat)
    answer = bytes(
        token for token, target in zip(sample.tokens, sample.targets, strict=True) if target and token < 256
    )
    assert b"red Text in the picture: STOP" in answer and len(sample.media) == 1


def test_the_recorded_formats_of_easy_vqa_build(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    from mm_llama.build import compose_config, resolve

    asset_dir("easy_vqa")
    rows = {}
    for name in ("easy_vqa_short", "easy_vqa_choice", "easy_vqa_part"):
        data = resolve(compose_config("train", ["stage=none", f"data={name}"]))["data"]
        for node in (data["train"][0]["source"], data["eval"][0]):
            inner = node.get("source", node)
            inner["out"] = str(tmp_path)
            source = build(node)
            rows[name, inner["split"]] = (
                [source.row(index) for index in range(0, len(source), 997)],
                len(source),
            )
    short, _ = rows["easy_vqa_short", "holdout"]
    assert {row.extra["template"] for row in short} == {PAPER_SHORT}
    assert len({row.extra["template"] for row in rows["easy_vqa_short", "train"][0]}) == 4
    for row in rows["easy_vqa_choice", "train"][0] + rows["easy_vqa_choice", "holdout"][0]:
        assert said(row)[1] in "ABCD" and row.extra["answer"] in row.extra["options"]
    assert rows["easy_vqa_part", "train"][1] == round(rows["easy_vqa_short", "train"][1] / 2)
    assert rows["easy_vqa_part", "holdout"][1] == rows["easy_vqa_short", "holdout"][1]
