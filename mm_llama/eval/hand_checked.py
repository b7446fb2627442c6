"""Two hundred sentences of many kinds, each with how a person says it: what a normaliser makes of them.

Beside each stands what nemo-text-processing (grammars of weighted transducers) makes of it, so that two ways of saying
the same are told from mistakes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mm_llama.core.chat import ChatFormat
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.eval.statistics import Accuracy
from mm_llama.model import MultimodalLlama
from mm_llama.voice.tagging import read


@dataclass(frozen=True)
class Checked:
    """A sentence, how it is said, what the grammars make of it, and what was found."""

    text: str
    truth: str
    grammars: str
    said: str

    @property
    def right(self) -> bool:
        """Whether the very words were found."""
        return spoken_words(self.said) == spoken_words(self.truth)

    @property
    def agrees(self) -> bool:
        """Whether grammars and tagger say the same, but for "and" within numbers and letters written apart."""
        return loosely(self.said) == loosely(self.grammars)


def sentences() -> list[tuple[str, str, str]]:
    """Return the sentences: as written, as said, as nemo-text-processing 1.2.0 has them."""
    rows = (files("mm_llama.data") / "hand_checked.tsv").read_text("utf-8").splitlines()
    found = [tuple(row.split("\t")) for row in rows if not row.startswith("# ")]
    return [(text, truth, grammars) for text, truth, grammars in found]


def evaluate_hand_checked(model: MultimodalLlama, tokenizer: Tokenizer, chat: ChatFormat) -> list[Checked]:
    """Read all of them. Raises ValueError without a normaliser."""
    rows = sentences()
    readings = read(model, tokenizer, chat, [text for text, _, _ in rows])
    return [Checked(*row, said=one.text()) for row, one in zip(rows, readings, strict=True)]


def summary(checked: list[Checked]) -> dict[str, Any]:
    """Return the shares as plain data."""

    def share(count: int) -> dict[str, Any]:
        return Accuracy(count, len(checked)).to_json()

    return {
        "sentences": len(checked),
        "right": share(sum(one.right for one in checked)),
        "agree": share(sum(one.agrees for one in checked)),
        "grammars_right": share(sum(loosely(one.grammars) == loosely(one.truth) for one in checked)),
    }


def spoken_words(text: str) -> list[str]:
    """Return the words of a text as they are compared: lower case, no punctuation, hyphens as spaces."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def loosely(text: str) -> list[str]:
    """Return the words but for "and"; letters that are written together are apart: "pm", "p m"."""
    found: list[str] = []
    for word in re.sub(r"[^\w\s']", " ", text).split():
        if word.isupper() and len(word) > 1:
            found += word.lower()
        elif word.lower() != "and":
            found.append(word.lower())
    return found
