"""Data that registry packages carry, as sources a config can name; made once, then read from the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mm_llama.data import easy_vqa as easy_vqa_data
from mm_llama.data import tuxpaint as tuxpaint_data
from mm_llama.data.sources import JsonlChat, Row, Source


def easy_vqa(
    root: str | Path,
    out: str | Path,
    split: str = "train",
    template: str = easy_vqa_data.BARE,
    types: Sequence[str] = easy_vqa_data.TYPES,
    answers: Sequence[str] = (),
) -> Source:
    """Return one split (train, holdout, test) of easy-VQA as chats; `types` and `answers` keep only some rows."""
    unknown = sorted(set(types) - set(easy_vqa_data.TYPES))
    if unknown or not types:
        raise ValueError(
            f"easy-VQA has no question type {(unknown or ['(none)'])[0]!r} (data.*.types); "
            f"types are {', '.join(easy_vqa_data.TYPES)}"
        )
    files = easy_vqa_data.write_jsonl(root, _folder(out, template), template=template)
    source = JsonlChat(_split(files, split, "easy-VQA"))
    if set(types) == set(easy_vqa_data.TYPES) and not answers:
        return source
    extras = [json.loads(line)["extra"] for line in source.path.read_text("utf-8").splitlines()]
    chosen = [
        index
        for index, extra in enumerate(extras)
        if extra["type"] in types and (not answers or extra["answer"] in answers)
    ]
    if not chosen:
        raise ValueError(f"no easy-VQA question of types {list(types)} has an answer among {list(answers)}")
    return Subset(source, chosen)


class Subset:
    """Some rows of a source, under their own names."""

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self.source = source
        self.rows = list(rows)

    @property
    def digest(self) -> str:
        """Identity of the chosen rows."""
        return hashlib.sha256(f"{self.source.digest}:{self.rows}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        """Return a chosen row."""
        return self.source.row(self.rows[index])

    def name_of(self, index: int) -> str:
        """Return "file:line" of a chosen row."""
        return self.source.name_of(self.rows[index])


def tuxpaint(
    root: str | Path,
    out: str | Path,
    split: str = "train",
    prompt: str = tuxpaint_data.PROMPT,
    exclude: Sequence[str] = (),
) -> JsonlChat:
    """Return one split (train, holdout, test) of the captioned Tux Paint stamps as chats."""
    folder = _folder(out, prompt, *sorted(exclude))
    files = tuxpaint_data.write_jsonl(root, folder, prompt=prompt, exclude=exclude)
    return JsonlChat(_split(files, split, "Tux Paint"))


def _folder(out: str | Path, *options: str) -> Path:
    """Give each choice of options a folder of its own: made data is never replaced."""
    return Path(out) / hashlib.sha256("\0".join(options).encode()).hexdigest()[:12]


def _split(files: dict[str, Path], split: str, name: str) -> Path:
    if split not in files:
        raise ValueError(f"{name} has no split {split!r} (data.*.split); it has {', '.join(files)}")
    return files[split]
