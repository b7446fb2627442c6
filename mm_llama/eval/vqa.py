"""Questions about pictures with short answers, answered by generating them, beside what needs no looking.

Sides: `model` sees the picture; `no_picture` is the same model given the same row without it; `wrong_picture`
is shown the picture of another question; the majority sides repeat the commonest training answer to the same
question or to its type. The answer is everything up to the end token, normalised, and must equal the truth
(exact match).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from mm_llama.core.chat import ChatFormat, MediaPart, Message, Text
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.data.collate import LoadMedia, collate
from mm_llama.data.media import KEYS
from mm_llama.data.samples import MediaRef, Sample
from mm_llama.data.sources import Row, Source, evenly
from mm_llama.eval.greedy import answer_greedily, score_candidates
from mm_llama.eval.journal import clock, recall
from mm_llama.eval.vqa_result import SIDES, Question, VQAResult, majority_answers, normalise, pictures_of
from mm_llama.model import MultimodalLlama

Progress = Callable[[str, int, int], None]  # side, done, all


def read_questions(source: Source, *, limit: int = 0) -> list[Question]:
    """Read questions from chat rows: the last assistant message is the truth, all before it the prompt.

    `extra` may hold `question` and `type`; else the last user text is the question and its type is "all".
    `limit` > 0 takes that many rows at even strides, the same ones every time.
    """
    return [_question(source.row(index)) for index in evenly(len(source), limit)]


def evaluate_vqa(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    questions: Sequence[Question],
    *,
    load_media: LoadMedia,
    encoded: Collection[str] = (),
    train: Sequence[Question] = (),
    sides: Collection[str] = ("no_picture", "wrong_picture"),
    candidates: Sequence[str] = (),
    batch_size: int = 64,
    max_new_tokens: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> VQAResult:
    """Answer every question on every side.

    `load_media` and `encoded` are as in `collate`. `train` questions give the majority sides. With
    `candidates`, the answer is the likeliest of them instead of a generated one. `seed` pairs pictures with
    wrong ones. Raises ValueError when there are no questions or a side is unknown.
    """
    unknown = sorted(set(sides) - {"no_picture", "wrong_picture"})
    if unknown or not questions:
        what = f"unknown side {unknown[0]!r}" if unknown else "there are no questions to answer"
        raise ValueError(f"{what}; sides are no_picture and wrong_picture, beside the majority from `train`")
    result = VQAResult(list(questions), {}, method="likelihood" if candidates else "generation")
    shown: dict[str, Callable[[], list[tuple[Message, ...]]]] = {
        "model": lambda: [question.prompt for question in questions],
        "no_picture": lambda: [_without_pictures(question.prompt) for question in questions],
        "wrong_picture": lambda: _with_wrong_pictures(questions, seed),
    }
    found: dict[str, list[str]] = {}
    for side in ("model", *(side for side in ("no_picture", "wrong_picture") if side in sides)):
        start = clock()
        found[side] = _answer_all(
            model,
            tokenizer,
            chat,
            shown[side](),
            [question.source for question in questions],
            load_media=load_media,
            encoded=encoded,
            candidates=candidates,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=None if progress is None else partial(progress, side),
        )
        result.seconds[side] = clock() - start
    if train:
        found["majority_by_question"], found["majority_by_type"] = majority_answers(train, questions)
    result.answers = {side: found[side] for side in SIDES if side in found}
    return result


def _answer_all(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    prompts: Sequence[tuple[Message, ...]],
    sources: Sequence[str],
    *,
    load_media: LoadMedia,
    encoded: Collection[str],
    candidates: Sequence[str],
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    """Answer prompts in batches of equal length, equal texts together; equal prompts are answered once."""
    keys = _KeyOf()
    samples: dict[tuple[Any, ...], Sample] = {}
    asked: list[tuple[Any, ...]] = []
    for messages, source in zip(prompts, sources, strict=True):
        rendered = chat.render(messages, open_assistant=True)
        refs = [
            MediaRef(item.kind, item.position, item.source, keys(item.kind, item.source))
            for item in rendered.media
        ]
        tokens = list(rendered.tokens)
        # Rows with one recording are equally long once it stands in them.
        spoken = tuple(ref.key for ref in refs if ref.kind == "speech")
        key = ((len(tokens), spoken), tuple(tokens), tuple((ref.position, ref.key) for ref in refs))
        samples.setdefault(key, Sample(tokens, [False] * len(tokens), refs, source))
        asked.append(key)
    ordered = sorted(samples)
    answers: dict[tuple[Any, ...], str] = {}
    options = [_answer_tokens(chat, text) for text in candidates]

    def answer(chunk: Sequence[tuple[Any, ...]]) -> list[str]:
        batch = collate([samples[key] for key in chunk], load_media, encoded=encoded).to(model.device)
        if options:
            best = score_candidates(model, batch, options).argmax(-1).tolist()
            return [candidates[index] for index in best]
        rows = answer_greedily(model, batch, stop=chat.stop, max_new_tokens=max_new_tokens)
        return [tokenizer.decode(row) for row in rows]

    with torch.inference_mode():
        for chunk in _chunks(ordered, batch_size):
            texts = recall(("vqa", chunk, candidates, max_new_tokens), partial(answer, chunk))
            answers.update((key, normalise(text)) for key, text in zip(chunk, texts, strict=True))
            if progress is not None:
                progress(len(answers), len(ordered))
    return [answers[key] for key in asked]


def _answer_tokens(chat: ChatFormat, text: str) -> list[int]:
    """The tokens that training would have the model predict for an answer, its end token included."""
    rendered = chat.render([Message("user", ()), Message("assistant", (Text(text),))])
    return [token for token, target in zip(rendered.tokens, rendered.targets, strict=True) if target]


def _chunks(ordered: Sequence[tuple[Any, ...]], size: int) -> Iterable[list[tuple[Any, ...]]]:
    """Cut keys, sorted by their length first, into runs of one length and at most `size`."""
    chunk: list[tuple[Any, ...]] = []
    for key in ordered:
        if chunk and (len(chunk) == size or key[0] != chunk[0][0]):
            yield chunk
            chunk = []
        chunk.append(key)
    if chunk:
        yield chunk


class _KeyOf:
    """Content key of a picture or clip, each path hashed once."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}

    def __call__(self, kind: str, source: Any) -> str:
        if not isinstance(source, str):
            return KEYS[kind](source)
        if source not in self.paths:
            self.paths[source] = KEYS[kind](source)
        return self.paths[source]


def _question(row: Row) -> Question:
    last = max(i for i, message in enumerate(row.messages) if message.role == "assistant")
    prompt = row.messages[:last]
    users = [message for message in prompt if message.role == "user"]
    if not users:
        raise ValueError(f"{row.source}: no user message before the answer, so nothing is asked")
    asked = str(row.extra.get("question") or _text(users[-1]).strip())
    return Question(asked, _text(row.messages[last]), str(row.extra.get("type", "all")), prompt, row.source)


def _text(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, Text))


def _without_pictures(prompt: Sequence[Message]) -> tuple[Message, ...]:
    """Leave the words, written and spoken."""
    kept = [tuple(part for part in message.parts if not _is_picture(part)) for message in prompt]
    return tuple(replace(message, parts=parts) for message, parts in zip(prompt, kept, strict=True))


def _is_picture(part: Text | MediaPart) -> bool:
    return isinstance(part, MediaPart) and part.kind != "speech"


def _with_wrong_pictures(questions: Sequence[Question], seed: int) -> list[tuple[Message, ...]]:
    """Show every question another picture (or clip): all of them, in a seeded circle, move one place on."""
    keys = _KeyOf()
    unique = {
        keys(part.kind, part.source): part
        for question in questions
        for _, part in pictures_of(question.prompt)
    }
    order = sorted(unique)
    random.Random(seed).shuffle(order)
    if len(order) == 1:
        raise ValueError("the wrong_picture side needs at least two different pictures among the questions")
    following = {key: unique[order[(i + 1) % len(order)]] for i, key in enumerate(order)}

    def swap(message: Message) -> Message:
        parts = [
            following[keys(part.kind, part.source)]
            if isinstance(part, MediaPart) and _is_picture(part)
            else part
            for part in message.parts
        ]
        return replace(message, parts=tuple(parts))

    return [tuple(swap(message) for message in question.prompt) for question in questions]
