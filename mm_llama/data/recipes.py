"""Data that registry packages carry, as sources a config can name; made once, then read from the cache."""

from __future__ import annotations

from pathlib import Path

from mm_llama.data import easy_vqa as easy_vqa_data
from mm_llama.data import tuxpaint as tuxpaint_data
from mm_llama.data.sources import JsonlChat


def easy_vqa(
    root: str | Path, out: str | Path, split: str = "train", template: str = easy_vqa_data.BARE
) -> JsonlChat:
    """Return one split (train, holdout, test) of easy-VQA as chats."""
    return JsonlChat(_split(easy_vqa_data.write_jsonl(root, out, template=template), split, "easy-VQA"))


def tuxpaint(
    root: str | Path, out: str | Path, split: str = "train", prompt: str = tuxpaint_data.PROMPT
) -> JsonlChat:
    """Return one split (train, holdout, test) of the captioned Tux Paint stamps as chats."""
    return JsonlChat(_split(tuxpaint_data.write_jsonl(root, out, prompt=prompt), split, "Tux Paint"))


def _split(files: dict[str, Path], split: str, name: str) -> Path:
    if split not in files:
        raise ValueError(f"{name} has no split {split!r} (data.*.split); it has {', '.join(files)}")
    return files[split]
