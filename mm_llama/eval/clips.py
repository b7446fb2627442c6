"""Questions about clips, beside what needs no motion: one frame for the video adapter, the middle frame for the image
adapter alone, another clip; and accuracy against the number of frames.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mm_llama.core.chat import ChatFormat
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.data.collate import LoadMedia
from mm_llama.data.sources import Source
from mm_llama.eval.vqa import evaluate_vqa, read_questions
from mm_llama.eval.vqa_result import SIDES, Question, VQAResult, normalise
from mm_llama.generation.engine import generate
from mm_llama.model import MultimodalLlama

Say = Callable[[str, int, int], None]
# Makes the media of a source ready to be read: what `collate` reads them with, and the kinds that come as features.
Prepare = Callable[[Source], tuple[LoadMedia, Collection[str]]]


def evaluate_clips(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    clips: Source,
    prepare: Prepare,
    *,
    middle_frames: Source | None = None,
    train: Source | None = None,
    wrong: bool = True,
    one_frame: bool = True,
    limit: int = 0,
    progress: Say | None = None,
) -> VQAResult:
    """Answer every question about a clip on every side.

    `middle_frames` holds the same rows with the middle frame as a picture: the image adapter alone answers them, made
    to choose among the answers of the question's type (free to say anything, it says what it was trained to say).
    `train` gives the majority by type. Features are cached for each number of frames.
    """
    questions = read_questions(clips, limit=limit)
    load_media, encoded = prepare(clips)
    result = evaluate_vqa(
        model,
        tokenizer,
        chat,
        questions,
        load_media=load_media,
        encoded=encoded,
        train=read_questions(train) if train is not None else (),
        sides=["wrong_picture"] if wrong else [],
        progress=progress,
    )
    found = dict(result.answers)
    if one_frame:
        with frames_of(model, 1):
            _answer_side(result, found, "one_frame", model, tokenizer, chat, clips, prepare, limit)
    if middle_frames is not None:
        _answer_side(
            result, found, "middle_frame", model, tokenizer, chat, middle_frames, prepare, limit, choose=True
        )
    found.pop("majority_by_question", None)  # nearly every question names another thing
    result.answers = {side: found[side] for side in SIDES if side in found}
    return result


def accuracy_by_frames(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    clips: Source,
    prepare: Prepare,
    numbers: Sequence[int],
    *,
    limit: int = 0,
) -> list[dict[str, Any]]:
    """Return accuracy, its interval and seconds a question, with each number of frames taken of a clip."""
    rows = []
    for number in numbers:
        with frames_of(model, number):
            start = time.perf_counter()
            load_media, encoded = prepare(clips)
            encode_seconds = time.perf_counter() - start
            questions = read_questions(clips, limit=limit)
            result = evaluate_vqa(
                model,
                tokenizer,
                chat,
                questions,
                load_media=load_media,
                encoded=encoded,
                sides=[],
            )
        rows.append(
            {"frames": number}
            | result.accuracy("model").to_json()
            | {"types": {kind: result.accuracy("model", kind).to_json() for kind in result.types}}
            | {"answer_seconds": result.seconds["model"], "encode_seconds": encode_seconds}
        )
    return rows


def seconds_alone(
    model: MultimodalLlama, chat: ChatFormat, questions: Sequence[Question], *, max_new_tokens: int = 8
) -> list[float]:
    """Ask one question after the other, clip and all, and return the wall time of each.

    Nothing is cached: a clip is opened, its frames go through the encoder, the answer is generated.
    """
    seconds = []
    for question in questions:
        start = time.perf_counter()
        prompt = chat.render(question.prompt, open_assistant=True)
        generate(model, [prompt], max_new_tokens=max_new_tokens, stop=chat.stop)
        seconds.append(time.perf_counter() - start)
    return seconds


def confusion(result: VQAResult, kind: str) -> dict[str, dict[str, int]]:
    """Return how often each true answer of a type of question was answered with what."""
    table: dict[str, Counter[str]] = {}
    for question, answer in zip(result.questions, result.answers["model"], strict=True):
        if question.type == kind:
            table.setdefault(normalise(question.truth), Counter())[answer] += 1
    return {truth: dict(counts.most_common()) for truth, counts in table.items()}


@contextmanager
def frames_of(model: MultimodalLlama, number: int) -> Iterator[None]:
    """Let clips be read with another number of frames for a while.

    Raises ValueError when no modality of the model reads clips.
    """
    kinds = [modality for modality in model.modality.values() if modality.num_frames]
    if not kinds:
        raise ValueError("no adapter that sees clips is attached: give a video run with --adapter")
    before = [modality.num_frames for modality in kinds]
    for modality in kinds:
        modality.num_frames = number
    try:
        yield
    finally:
        for modality, frames in zip(kinds, before, strict=True):
            modality.num_frames = frames


def _answer_side(
    result: VQAResult,
    found: dict[str, list[str]],
    side: str,
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    source: Source,
    prepare: Prepare,
    limit: int,
    choose: bool = False,
) -> None:
    load_media, encoded = prepare(source)
    questions = read_questions(source, limit=limit)
    if [q.truth for q in questions] != [q.truth for q in result.questions]:
        raise ValueError(f"the rows of the side {side} are not those of the clips: their answers differ")
    answers = [""] * len(questions)
    groups: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        groups.setdefault(question.type if choose else "", []).append(index)
    result.seconds[side] = 0.0
    for indices in groups.values():
        asked = [questions[index] for index in indices]
        part = evaluate_vqa(
            model,
            tokenizer,
            chat,
            asked,
            load_media=load_media,
            encoded=encoded,
            sides=[],
            candidates=sorted({question.truth for question in asked}) if choose else (),
        )
        for index, answer in zip(indices, part.answers["model"], strict=True):
            answers[index] = answer
        result.seconds[side] += part.seconds["model"]
    found[side] = answers
