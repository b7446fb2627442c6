"""Data that registry packages carry, as sources a config can name; made once, then read from the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from mm_llama.data import easy_vqa as easy_vqa_data
from mm_llama.data import tuxpaint as tuxpaint_data
from mm_llama.data.sources import JsonlChat


def easy_vqa(
    root: str | Path, out: str | Path, split: str = "train", template: str = easy_vqa_data.BARE
) -> JsonlChat:
    """Return one split (train, holdout, test) of easy-VQA as chats."""
    files = easy_vqa_data.write_jsonl(root, _folder(out, template), template=template)
    return JsonlChat(_split(files, split, "easy-VQA"))


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
