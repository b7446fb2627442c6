"""The batched evaluation against one question at a time, its sides, and the files that it writes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_llama.batch import Batch, Media
from mm_llama.core.chat import ChatFormat, MediaPart, Message, Text
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.data.sources import ChatRows
from mm_llama.eval.greedy import answer_greedily, prefill, score_candidates
from mm_llama.eval.statistics import Accuracy
from mm_llama.eval.vqa import evaluate_vqa, read_questions
from mm_llama.eval.vqa_result import Question, majority_answers, normalise
from mm_llama.model import MultimodalLlama

TEXTS = ["what is it?", "is it red?", "how many are there here?", "what is on?"]
LoadMedia = dict[str, Callable[..., torch.Tensor]]


@pytest.fixture(scope="module")
def questions(pictures: list[Path]) -> list[Question]:
    rows: list[list[dict[str, Any]]] = []
    for number, picture in enumerate(pictures):
        for text in TEXTS[: 3 + number % 2]:
            content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": text}]
            answer = {"role": "assistant", "content": "yes" if number % 2 else "No."}
            rows.append([{"role": "user", "content": content}, answer])
    return read_questions(ChatRows(rows))


def one_by_one(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    prompt: tuple[Message, ...],
    load_media: LoadMedia,
    max_new_tokens: int,
) -> tuple[list[int], str]:
    """Greedy answer without a cache, a batch or a shared prefix: the whole row again for every token."""
    rendered = chat.render(prompt, open_assistant=True)
    media = {}
    if rendered.media:
        items = [load_media["image"](item) for item in rendered.media]
        places = torch.tensor([item.position for item in rendered.media])
        media = {"image": Media(items, torch.zeros_like(places), places, torch.arange(len(items)))}
    tokens = list(rendered.tokens)
    new: list[int] = []
    while len(new) < max_new_tokens:
        row = torch.tensor([tokens + new])
        token = int(model(row, media=model.attach(media))[0, -1].argmax())
        if token in chat.stop:
            break
        new.append(token)
    return new, normalise(tokenizer.decode(new))


def test_batched_answers_equal_one_question_at_a_time(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    questions: list[Question],
    load_media: LoadMedia,
) -> None:
    result = evaluate_vqa(
        model, tokenizer, chat, questions, load_media=load_media, batch_size=3, max_new_tokens=4
    )
    expected = [one_by_one(model, tokenizer, chat, q.prompt, load_media, 4)[1] for q in questions]
    assert result.answers["model"] == expected
    assert len(set(expected)) > len(TEXTS), "the pictures must matter, or equality shows nothing"
    text_only = [
        tuple(Message(m.role, tuple(p for p in m.parts if isinstance(p, Text))) for m in q.prompt)
        for q in questions
    ]
    unseen = [one_by_one(model, tokenizer, chat, prompt, load_media, 4)[1] for prompt in text_only]
    assert result.answers["no_picture"] == unseen


def test_wrong_pictures_are_other_pictures_of_the_same_set(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    questions: list[Question],
    load_media: LoadMedia,
) -> None:
    seen: list[str] = []

    def spy(ref: Any) -> torch.Tensor:
        seen.append(ref.source)
        return load_media["image"](ref)

    first = evaluate_vqa(
        model,
        tokenizer,
        chat,
        questions[:3],
        load_media=load_media,
        sides=(),
        max_new_tokens=4,
    )
    assert set(first.answers) == {"model"}
    result = evaluate_vqa(
        model,
        tokenizer,
        chat,
        questions,
        load_media={"image": spy},
        sides=("wrong_picture",),
        max_new_tokens=4,
    )
    # Each picture takes another one's place, so over all questions of one text the shown set is the same.
    assert set(seen) == {question.image for question in questions}
    for text in TEXTS[:3]:
        same = [i for i, question in enumerate(questions) if question.question == text]
        right = [result.answers["model"][i] for i in same]
        wrong = [result.answers["wrong_picture"][i] for i in same]
        assert sorted(right) == sorted(wrong)
        assert right != wrong
    with pytest.raises(ValueError, match="at least two different pictures"):
        evaluate_vqa(model, tokenizer, chat, questions[:1], load_media=load_media, sides=("wrong_picture",))


def test_rows_that_end_early_do_not_disturb_the_others(model: MultimodalLlama) -> None:
    """With many stop tokens rows end at different steps; each equals its own run."""
    tokens = torch.randint(97, 122, (6, 9), generator=torch.Generator().manual_seed(0))
    tokens[3] = tokens[1]
    tokens[5, :-1] = tokens[1, :-1]
    batch = Batch(tokens, torch.full((6,), 9))
    endless = answer_greedily(model, batch, stop=(), max_new_tokens=12)
    stop = {endless[0][2], endless[2][5], endless[4][8]}
    together = answer_greedily(model, batch, stop=stop, max_new_tokens=12)
    for row in range(6):
        alone = Batch(tokens[row : row + 1], torch.tensor([9]))
        assert answer_greedily(model, alone, stop=stop, max_new_tokens=12) == [together[row]]
    assert len({len(row) for row in together}) > 2
    assert not stop & {token for row in together for token in row}


def test_prefill_needs_equal_lengths(model: MultimodalLlama) -> None:
    batch = Batch(torch.ones(2, 4, dtype=torch.long), torch.tensor([4, 3]))
    with pytest.raises(ValueError, match=r"equally long, got lengths \[4, 3\]"):
        prefill(model, batch, num_new=1)


def test_candidate_scores_equal_whole_row_likelihoods(
    model: MultimodalLlama, pictures: list[Path], load_media: LoadMedia
) -> None:
    tokens = torch.randint(97, 122, (4, 7), generator=torch.Generator().manual_seed(1))
    tokens[:, 2] = 0
    tokens[1] = tokens[0]
    parts = [MediaPart("image", str(path)) for path in pictures[:4]]
    media = {
        "image": Media(
            [load_media["image"](part) for part in parts],
            torch.arange(4),
            torch.full((4,), 2),
            torch.arange(4),
        )
    }
    candidates = [[100, 264], [101], [99, 98, 97, 264]]
    scores = score_candidates(model, Batch(tokens, torch.full((4,), 7), media=media), candidates)
    for index, candidate in enumerate(candidates):
        row = torch.cat([tokens, torch.tensor(candidate).expand(4, -1)], dim=1)
        logits = model(row, media=model.attach(media)).log_softmax(-1)
        whole = logits[:, 6:-1].gather(-1, torch.tensor(candidate).expand(4, -1)[..., None]).sum((1, 2))
        torch.testing.assert_close(scores[:, index], whole, atol=2e-5, rtol=0)


def test_likelihood_answers_are_the_likeliest_candidates(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    questions: list[Question],
    load_media: LoadMedia,
) -> None:
    result = evaluate_vqa(
        model, tokenizer, chat, questions, load_media=load_media, candidates=["Yes!", "no"], batch_size=5
    )
    assert result.method == "likelihood"
    assert set(result.answers["model"]) <= {"yes", "no"}


def test_majority_answers_come_from_training_and_fall_back_to_the_type() -> None:
    def ask(question: str, truth: str, kind: str) -> Question:
        return Question(question, truth, kind, (), "rows:1")

    train = [ask("a?", "Red.", "color"), ask("a?", "red", "color"), ask("a?", "blue", "color")]
    train += [ask("b?", "blue", "color")] * 4 + [ask("c?", "two", "count"), ask("c?", "one", "count")]
    asked = [ask("a?", "x", "color"), ask("new?", "x", "color"), ask("c?", "x", "count"), ask("z?", "x", "?")]
    by_question, by_type = majority_answers(train, asked)
    assert by_question == ["red", "blue", "one", ""]
    assert by_type == ["blue", "blue", "one", ""]


def test_answers_are_compared_without_case_and_punctuation() -> None:
    assert normalise(" Yes.\n") == "yes"
    assert normalise("a_blue-ish  square!") == "a blue ish square"
    assert normalise("«Größe»") == "größe"


def test_limit_takes_rows_at_even_strides() -> None:
    rows = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(10)
    ]
    chosen = read_questions(ChatRows(rows), limit=4)
    assert [question.question for question in chosen] == ["q0", "q2", "q5", "q7"]
    assert [question.truth for question in chosen] == ["a0", "a2", "a5", "a7"]
    assert len(read_questions(ChatRows(rows), limit=99)) == 10


def test_unknown_sides_and_empty_sets_are_refused(
    model: MultimodalLlama, tokenizer: Tokenizer, chat: ChatFormat, questions: list[Question]
) -> None:
    with pytest.raises(ValueError, match="unknown side 'blind'"):
        evaluate_vqa(model, tokenizer, chat, questions, load_media={}, sides=("blind",))
    with pytest.raises(ValueError, match="no questions"):
        evaluate_vqa(model, tokenizer, chat, [], load_media={})


def test_files_hold_every_question_and_the_figures_add_up(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    questions: list[Question],
    load_media: LoadMedia,
    tmp_path: Path,
    pictures: list[Path],
) -> None:
    result = evaluate_vqa(
        model, tokenizer, chat, questions, load_media=load_media, train=questions, max_new_tokens=3
    )
    result.write(tmp_path / "vqa.json", tmp_path / "vqa_answers.jsonl")
    summary = json.loads((tmp_path / "vqa.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "vqa_answers.jsonl").read_text().splitlines()]
    assert len(records) == len(questions) == summary["num_questions"]
    assert summary["num_pictures"] == len(pictures)
    for side in ("model", "majority_by_question", "majority_by_type", "no_picture", "wrong_picture"):
        key = "answer" if side == "model" else side
        correct = sum(record[key] == record["truth"] for record in records)
        assert summary["overall"][side] == Accuracy(correct, len(records)).to_json()
    assert [record["correct"] for record in records] == [r["answer"] == r["truth"] for r in records]
    # Here every truth depends on the picture alone, and the commonest is "no": three pictures of five.
    assert {record["majority_by_type"] for record in records} == {"no"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vqa.json", "vqa_answers.jsonl"]
    result.write(pictures[0].parent / "vqa.json", pictures[0].parent / "answers.jsonl")
    first = json.loads((pictures[0].parent / "answers.jsonl").read_text().splitlines()[0])
    assert first["image"] == "0.png"


def test_table_prints_a_row_per_type_and_one_for_all(questions: list[Question]) -> None:
    from rich.console import Console

    from mm_llama.eval.vqa_result import VQAResult

    asked = [
        Question(q.question, q.truth, "red" if "red" in q.question else "other", q.prompt, q.source)
        for q in questions
    ]
    answers = [normalise(question.truth) for question in asked]
    result = VQAResult(asked, {"model": answers, "no_picture": ["no"] * len(asked)})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result.table())
    text = console.export_text()
    rows = [line.split() for line in text.splitlines()]
    for kind, num in (("other", 12), ("red", 5), ("all", 17)):
        unseen = 100 * sum(
            answer == "no" and (kind == "all" or question.type == kind)
            for answer, question in zip(answers, asked, strict=True)
        )
        assert [kind, str(num), "100.0", "0.0", f"{unseen / num:.1f}"] in rows
