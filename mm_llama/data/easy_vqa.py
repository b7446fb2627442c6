"""The easy-VQA data set (one coloured shape a picture, 107 question strings, 13 answers) as JSONL chats.

Splits: `holdout` is a fixed set of training pictures with all their questions, for choosing hyper-parameters;
`train` is the rest of the training pictures; `test` is the published test set.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_llama.data.folders import make_folder

SPLITS = ("train", "holdout", "test")
TYPES = ("shape", "color", "yesno", "yesno_negated")

BARE = "{question}"
SHORT_ANSWER = "Answer the question using a single word or phrase. {question}"  # Llama 3 paper, section 7.5.2


@dataclass(frozen=True)
class VQA:
    """One question about one picture."""

    question: str
    answer: str
    image_id: int
    image: Path

    @property
    def type(self) -> str:
        """`shape`, `color`, `yesno` or `yesno_negated`."""
        return question_type(self.question)


def question_type(question: str) -> str:
    """Type of an easy-VQA question, from its words. Raises ValueError for a question of another form."""
    words = question.lower().rstrip("?").split()
    if words[:1] == ["what"]:
        return "color" if "color" in words[:4] else "shape"
    if words[:1] in (["is"], ["does"]):
        return "yesno_negated" if "no" in words or "not" in words else "yesno"
    raise ValueError(f"not an easy-VQA question: {question!r}")


def read_split(root: str | Path, split: str, *, num_holdout: int = 400, seed: int = 0) -> list[VQA]:
    """The questions of one split, in the order of the published file. `root` is the unpacked package."""
    if split not in SPLITS:
        raise ValueError(f"easy-VQA has the splits {', '.join(SPLITS)}, not {split!r}")
    folder = _data_folder(root) / ("test" if split == "test" else "train")
    rows = [
        VQA(question, answer, image_id, folder / "images" / f"{image_id}.png")
        for question, answer, image_id in json.loads((folder / "questions.json").read_text("utf-8"))
    ]
    if split == "test":
        return rows
    held = holdout_images({row.image_id for row in rows}, num_holdout=num_holdout, seed=seed)
    return [row for row in rows if (row.image_id in held) == (split == "holdout")]


def holdout_images(image_ids: Iterable[int], *, num_holdout: int, seed: int) -> set[int]:
    """A fixed choice of `num_holdout` pictures: those with the smallest hash of (seed, id)."""
    ids = sorted(image_ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    if not 0 <= num_holdout < len(ids):
        raise ValueError(f"num_holdout must lie between 0 and {len(ids) - 1}, not {num_holdout}")
    return set(ids[:num_holdout])


def write_jsonl(
    root: str | Path, out_dir: str | Path, *, template: str = BARE, num_holdout: int = 400, seed: int = 0
) -> dict[str, Path]:
    """Write `train.jsonl`, `holdout.jsonl`, `test.jsonl` and their pictures under `out_dir`.

    Each row asks one question about one picture; `extra` holds question, answer, type and image number. The
    folder appears whole or not at all, and is reused when it was made with the same options.
    """
    if "{question}" not in template:
        raise ValueError(f"the template must contain '{{question}}', not {template!r}")
    options = {"template": template, "num_holdout": num_holdout, "seed": seed}

    def fill(folder: Path) -> None:
        for split in SPLITS:
            rows = read_split(root, split, num_holdout=num_holdout, seed=seed)
            images = folder / "images" / ("test" if split == "test" else "train")
            images.mkdir(parents=True, exist_ok=True)
            for image in {row.image for row in rows}:
                (images / image.name).write_bytes(image.read_bytes())
            with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(_chat(row, images.name, template)) + "\n")

    folder = make_folder(out_dir, "easy_vqa", options, fill)
    return {split: folder / f"{split}.jsonl" for split in SPLITS}


@dataclass(frozen=True)
class Majority:
    """The commonest training answer to each question string, to each type, and over all."""

    by_question: Mapping[str, str]
    by_type: Mapping[str, str]
    overall: str


def majority(rows: Iterable[VQA]) -> Majority:
    """The answers of somebody who never looks, learnt from `rows`; ties go to the first in the alphabet."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for row in rows:
        by_question[row.question][row.answer] += 1
        by_type[row.type][row.answer] += 1
        overall[row.answer] += 1
    if not overall:
        raise ValueError("there are no questions to take majority answers from")
    return Majority(
        by_question={question: _commonest(counts) for question, counts in sorted(by_question.items())},
        by_type={name: _commonest(by_type[name]) for name in TYPES if name in by_type},
        overall=_commonest(overall),
    )


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _chat(row: VQA, folder: str, template: str) -> dict[str, Any]:
    # Not str.format: a template may hold other braces.
    text = template.replace("{question}", row.question)
    image = {"type": "image", "path": f"images/{folder}/{row.image.name}"}
    return {
        "messages": [
            {"role": "user", "content": [image, {"type": "text", "text": text}]},
            {"role": "assistant", "content": row.answer},
        ],
        "extra": {"question": row.question, "answer": row.answer, "type": row.type, "image_id": row.image_id},
    }


def _data_folder(root: str | Path) -> Path:
    for folder in (Path(root) / "easy_vqa" / "data", Path(root) / "data", Path(root)):
        if (folder / "train" / "questions.json").is_file():
            return folder
    raise FileNotFoundError(f"{root} holds no easy-VQA data (easy_vqa/data/train/questions.json is missing)")
