"""Sentences that can be said: from instruction data and prose, plain words with a beginning and an end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mm_llama.data.spoken_rows import by_hash, plain

WORDS = (2, 16)
_ENDS = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
# Letters, apostrophes within words, commas and one mark at the end; digits and signs can be read in several ways.
_SAYABLE = re.compile(r"[A-Z][a-z']*(?:,? [A-Za-z][A-Za-z']*)*[.?!]")
_CAPITALS = re.compile(r"[A-Z]{2}|\b[A-Z]\.")


_CLAUSE_ENDS = re.compile(r"[.!?;:\"()\[\]—–]+|--+|\n\s*\n")
_CLAUSE = re.compile(r"[A-Za-z][a-z']*(?:,? [A-Za-z][A-Za-z']*)*")


def clauses_of(text: str) -> Iterator[str]:
    """Yield the clauses of prose, 3 to 16 sayable words without a mark at their end: long sentences give several."""
    for part in _CLAUSE_ENDS.split(text):
        clause = " ".join(part.split()).strip(" ,'")
        if (
            3 <= len(clause.split()) <= WORDS[1]
            and _CLAUSE.fullmatch(clause)
            and not _CAPITALS.search(clause)
        ):
            yield clause


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of a text that are 2 to 16 sayable words."""
    for part in _ENDS.split(text):
        sentence = " ".join(part.split())
        few = WORDS[0] <= len(sentence.split()) <= WORDS[1]
        if few and _SAYABLE.fullmatch(sentence) and not _CAPITALS.search(sentence):
            yield sentence


def read_texts(root: str | Path) -> Iterator[str]:
    """Yield the texts of a file, or of every file below a folder: `.txt` whole, of `.json`, `.jsonl` all strings.

    Raises FileNotFoundError when there is none.
    """
    root = Path(root)
    below = [root] if root.is_file() else sorted(root.rglob("*"))
    files = [path for path in below if path.suffix in (".txt", ".json", ".jsonl")]
    if not files:
        raise FileNotFoundError(f"{root} holds no .txt, .json or .jsonl file to take sentences from")
    for path in files:
        text = path.read_text("utf-8", errors="replace")
        if path.suffix == ".txt":
            yield text
        elif path.suffix == ".json":
            yield from _strings(json.loads(text))
        else:
            for line in text.splitlines():
                if line.strip():
                    yield from _strings(json.loads(line))


def sentences(roots: Iterable[str | Path], seed: int = 0, *, clauses: bool = False) -> list[str]:
    """Return the distinct sentences below folders, of equal words one, in an order by hash; also clauses if asked."""
    found: dict[str, str] = {}
    for root in roots:
        for text in read_texts(root):
            for sentence in sentences_of(text):
                found.setdefault(plain(sentence), sentence)
            for clause in clauses_of(text) if clauses else ():
                found.setdefault(plain(clause), clause)
    return [found[words] for words in by_hash(found, seed)]


def _strings(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
