"""Spoken dialogue as the paper makes it (section 8.1): what is asked aloud, and the text core's own answer to it.

From transcripts of recordings, or from instructions that an engine speaks, short and simple, without signs. The core
answers in writing what will be asked aloud, so what a speech adapter learns from is the core itself: there is no system
prompt, and nothing that it says by itself is new to it. Answers are kept as they come; a call that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mm_llama.data.sentences import sentences_of

Answer = Callable[[Sequence[str]], list[str]]
BATCH = 16
WORDS = 24  # an answer is at most its first sentences of so many words
_SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.S)
_SIGNS = re.compile(r"[^\w\s.,!?;:'\"()-]|\d")


def instructions(roots: Iterable[str | Path]) -> list[str]:
    """Return what may be asked, one sayable sentence each: instructions that need no input, and questions.

    `roots` are `.json` and `.jsonl` files, or folders of them, of rows with `instruction` or `question`. Raises
    FileNotFoundError when they hold neither.
    """
    found: dict[str, None] = {}
    for root in map(Path, roots):
        for path in [root] if root.is_file() else sorted((*root.rglob("*.json"), *root.rglob("*.jsonl"))):
            for row in _rows(path):
                text = (
                    ""
                    if row.get("input")
                    else str(row.get("instruction") or row.get("question") or "").strip()
                )
                if text and "instruction" not in row:
                    text = text[:1].upper() + text[1:].rstrip("?.! ") + "?"
                if [text] == list(sentences_of(text)):
                    found[text] = None
    if not found:
        raise FileNotFoundError(
            f"{', '.join(map(str, roots))} hold no instructions: expected .json or .jsonl rows with `instruction` or "
            "`question`"
        )
    return list(found)


def _rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def short_answer(text: str) -> str:
    """Return the first sentences of an answer, as many as 24 words hold; "" where there are none without signs."""
    said, words = [], 0
    for match in _SENTENCE.finditer(text.strip()):
        sentence = " ".join(match[0].split())
        words += len(sentence.split())
        if words > WORDS or _SIGNS.search(sentence):
            break
        said.append(sentence)
    return " ".join(said)


def answers_to(texts: Sequence[str], folder: Path, name: str, answer: Callable[[], Answer]) -> dict[str, str]:
    """Return the short answers to texts, "" where there is none; those of `name` are kept in `folder`.

    `answer` is called when something is left to be answered, and gives what answers many texts at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"answers_{hashlib.sha256(name.encode()).hexdigest()[:12]}.jsonl"
    known = _read(kept)
    missing = [text for text in dict.fromkeys(texts) if text not in known]
    if missing:
        speak = answer()
        with kept.open("a", encoding="utf-8") as file:
            for first in range(0, len(missing), BATCH):
                batch = missing[first : first + BATCH]
                for text, long in zip(batch, speak(batch), strict=True):
                    known[text] = short_answer(long)
                    file.write(json.dumps({"text": text, "answer": known[text]}, ensure_ascii=False) + "\n")
                file.flush()
                print(f"answered {first + len(batch):,}/{len(missing):,}", file=sys.stderr)
    return {text: known[text] for text in texts}


def _read(kept: Path) -> dict[str, str]:
    """Return what was answered; a last line that was cut off is taken off the file."""
    if not kept.is_file():
        return {}
    lines: list[str] = []
    found: dict[str, Any] = {}
    for line in kept.read_text("utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[entry["text"]] = entry["answer"]
        lines.append(line)
    _rewrite(kept, lines)
    return found


def _rewrite(path: Path, lines: Iterable[str]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    os.replace(partial, path)
