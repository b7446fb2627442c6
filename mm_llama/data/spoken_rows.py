"""Recordings with what is said in them, as chats: the row that every speech data set here is written as.

A set is a folder of 16 kHz FLAC files and one JSONL file for each split.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_llama.data.languages import repeat_prompt, translate_prompt
from mm_llama.data.sound import RATE, Sound

SPLITS = ("train", "holdout", "test")


def recognition(path: str, text: str, language: str = "English", **extra: Any) -> dict[str, Any]:
    """Return the row that asks for what is said in a recording."""
    return _row(
        repeat_prompt(language), path, text, text, {"task": "recognition", "language": language, **extra}
    )


def translation(
    path: str, said: str, text: str, language: str, transcript: str | None = None, **extra: Any
) -> dict[str, Any]:
    """Return the row that asks for it in another language; `said` is in the recording's own.

    `transcript` is what a readout is to find in the recording, by default what is said.
    """
    about = {"task": "translation", "language": language, "source_text": said, **extra}
    return _row(translate_prompt(language), path, said if transcript is None else transcript, text, about)


def dialogue(path: str, said: str, answer: str, **extra: Any) -> dict[str, Any]:
    """Return the row that answers what is said; dialogue has no system prompt."""
    return _row("", path, said, answer, {"task": "dialogue", **extra})


def _row(system: str, path: str, said: str, answer: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    audio = {"type": "audio", "path": path, **({"transcript": said} if said else {})}
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": [audio]}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "extra": {"text": answer, **extra}}


def write_rows(folder: Path, splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, Path]:
    """Write `SPLIT.jsonl` for each split; each appears whole."""
    files = {}
    for split, rows in splits.items():
        files[split] = folder / f"{split}.jsonl"
        partial = files[split].with_suffix(f".{os.getpid()}.partial")
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        os.replace(partial, files[split])
    return files


def write_split(
    folder: Path, rows: Sequence[Mapping[str, Any]], num_holdout: int, name: str = ""
) -> dict[str, Path]:
    """Write the first `num_holdout` rows as {name}holdout.jsonl, the rest as {name}train.jsonl; {split: file}."""
    parts = {"holdout": rows[:num_holdout], "train": rows[num_holdout:]}
    files = write_rows(folder, {f"{name}{split}": part for split, part in parts.items()})
    return {split: files[f"{name}{split}"] for split in parts}


def too_few(
    roots: Iterable[str | Path], what: str, count: int, num_train: int, num_holdout: int
) -> ValueError:
    """Return the error of texts that do not give the rows asked for."""
    return ValueError(
        f"{', '.join(map(str, roots))} hold {count:,} {what}, fewer than the {num_train + num_holdout:,} asked for "
        f"({num_train:,} to train on, {num_holdout:,} held out)"
    )


def write_flac(path: Path, sound: Sound, rate: int = RATE) -> float:
    """Write a recording of 16 kHz, or of another `rate` that is asked for, and return its seconds.

    The file appears whole. Raises ValueError for a recording of any other rate.
    """
    if sound.rate != rate:
        raise ValueError(f"recordings are written at {rate:,} samples a second, this one has {sound.rate:,}")
    try:
        import soundfile
    except ImportError:
        raise ValueError(
            'recordings are written with soundfile, which is not installed: pip install "mm_llama[speech]"'
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    soundfile.write(partial, sound.samples.clamp(-1, 1).numpy(), rate, format="FLAC", subtype="PCM_16")
    os.replace(partial, path)
    return sound.seconds


def plain(text: str) -> str:
    """Return the words of a text in lower case without marks: what makes two texts the same."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.casefold()))


def by_hash(texts: Iterable[str], seed: int = 0) -> list[str]:
    """Return the distinct texts in an order that depends on each one and the seed alone."""
    return sorted(set(texts), key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).digest())


def split_texts(
    texts: Sequence[str], num_test: int, num_holdout: int, fit: Callable[[str], bool] = lambda text: True
) -> dict[str, str]:
    """Return each plain text's split: by hash the first `num_test` that `fit`, then the holdout, the rest train."""
    ordered = by_hash(texts)
    test = [text for text in ordered if fit(text)][:num_test]
    chosen = set(test)
    rest = [text for text in ordered if text not in chosen]
    return (
        dict.fromkeys(test, "test")
        | dict.fromkeys(rest[:num_holdout], "holdout")
        | dict.fromkeys(rest[num_holdout:], "train")
    )
