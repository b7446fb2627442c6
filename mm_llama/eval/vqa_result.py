"""What an evaluation of questions about pictures found: answers by side, accuracies, records, a table."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.core.chat import MediaPart, Message
from mm_llama.eval.statistics import Accuracy, paired_difference

if TYPE_CHECKING:
    from rich.table import Table

SIDES = (
    "model",
    "majority_by_question",
    "majority_by_type",
    "no_picture",
    "wrong_picture",
    "one_frame",
    "middle_frame",
)
SIDE_NAMES = {
    "model": "this\nadapter",
    "majority_by_question": "majority\nby question",
    "majority_by_type": "majority\nby type",
    "no_picture": "no\npicture",
    "wrong_picture": "another\npicture",
    "one_frame": "one\nframe",
    "middle_frame": "middle\nframe",
}


@dataclass(frozen=True)
class Question:
    """One question with its true answer; `prompt` is everything before the answer."""

    question: str
    truth: str
    type: str
    prompt: tuple[Message, ...]
    source: str  # "file:line"

    @property
    def image(self) -> Any:
        """The first picture of the prompt; None when there is none."""
        return next((part.source for _, part in pictures_of(self.prompt)), None)


@dataclass
class VQAResult:
    """Answers of every side, in the order of the questions."""

    questions: list[Question]
    answers: dict[str, list[str]]  # side -> normalised answers
    seconds: dict[str, float] = field(default_factory=dict)
    method: str = "generation"

    def correct(self, side: str) -> list[bool]:
        """Which questions a side answered right."""
        truths = [normalise(question.truth) for question in self.questions]
        return [answer == truth for answer, truth in zip(self.answers[side], truths, strict=True)]

    def accuracy(self, side: str, kind: str | None = None) -> Accuracy:
        """A side's accuracy over all questions, or over those of one type."""
        marks = [
            mark
            for mark, question in zip(self.correct(side), self.questions, strict=True)
            if kind in (None, question.type)
        ]
        return Accuracy(sum(marks), len(marks))

    @property
    def types(self) -> list[str]:
        """Question types in the order of their first question."""
        return list(dict.fromkeys(question.type for question in self.questions))

    def to_json(self) -> dict[str, Any]:
        """Overall and by type for each side, and the paired comparisons, pictures resampled as a whole."""
        pictures = [str(question.image) for question in self.questions]
        ours = self.correct("model")
        return {
            "method": self.method,
            "num_questions": len(self.questions),
            "num_pictures": len(set(pictures)),
            "overall": {side: self.accuracy(side).to_json() for side in self.answers},
            "types": [
                {"type": kind} | {side: self.accuracy(side, kind).to_json() for side in self.answers}
                for kind in self.types
            ],
            "comparisons": {
                side: paired_difference(ours, self.correct(side), clusters=pictures).to_json()
                for side in self.answers
                if side != "model"
            },
            "seconds": self.seconds,
        }

    def records(self) -> Iterable[dict[str, Any]]:
        """One record a question: what was asked, truth, answer, picture, and the other sides' answers."""
        others = [side for side in self.answers if side != "model"]
        marks = self.correct("model")
        for index, question in enumerate(self.questions):
            yield {
                "question": question.question,
                "truth": normalise(question.truth),
                "answer": self.answers["model"][index],
                "image": question.image if isinstance(question.image, str) else None,
                "type": question.type,
                "correct": marks[index],
                **{side: self.answers[side][index] for side in others},
                "source": question.source,
            }

    def write(self, summary: Path, answers: Path) -> None:
        """Write the JSON summary and the JSONL records; each file appears whole or not at all.

        Pictures below the records' folder are named relative to it.
        """
        write_text(summary, json.dumps(self.to_json(), indent=2) + "\n")
        folder = answers.parent.absolute()
        lines = []
        for record in self.records():
            image = record["image"]
            if image is not None and Path(image).is_relative_to(folder):
                record["image"] = Path(image).relative_to(folder).as_posix()
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        write_text(answers, "".join(lines))

    def table(self) -> Table:
        """Accuracy by type and side as a rich table that fits 80 columns."""
        from rich.table import Table

        table = Table(title="answered right, per cent", title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("question\ntype", no_wrap=True)
        table.add_column("asked", justify="right", no_wrap=True)
        for side in self.answers:
            style = "bold" if side == "model" else None
            table.add_column(SIDE_NAMES[side], justify="right", style=style, no_wrap=True)
            if side == "model":
                table.add_column("±", justify="right", no_wrap=True)
        for kind in [*self.types, None]:
            if kind is None:
                table.add_row()
            cells = []
            for side in self.answers:
                found = self.accuracy(side, kind)
                cells.append(f"{100 * found.score:.1f}")
                if side == "model":
                    cells.append(f"{100 * found.half_width:.1f}")
            table.add_row(kind or "all", f"{self.accuracy('model', kind).total:,}", *cells)
        return table


def majority_answers(train: Sequence[Question], questions: Sequence[Question]) -> tuple[list[str], list[str]]:
    """Answer with the commonest training answer to the same question (else to its type), and to its type.

    Ties go to the first in the alphabet; a type that training never saw is answered "".
    """
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        by_question[row.question][normalise(row.truth)] += 1
        by_type[row.type][normalise(row.truth)] += 1
    of_question = {key: _commonest(counts) for key, counts in by_question.items()}
    of_type = {key: _commonest(counts) for key, counts in by_type.items()}
    typed = [of_type.get(question.type, "") for question in questions]
    return [of_question.get(q.question, kind) for q, kind in zip(questions, typed, strict=True)], typed


def normalise(answer: str) -> str:
    """Lower-case, punctuation to spaces, runs of spaces to one: how answers are compared."""
    return " ".join(re.sub(r"[^\w\s]|_", " ", answer.lower()).split())


def pictures_of(prompt: Sequence[Message]) -> list[tuple[int, MediaPart]]:
    """The pictures and clips of a prompt, with the number of their message."""
    return [
        (i, part)
        for i, message in enumerate(prompt)
        for part in message.parts
        if isinstance(part, MediaPart) and part.kind != "speech"
    ]


def _commonest(counts: Mapping[str, int]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)
