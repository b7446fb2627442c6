"""Text normalisation measured: the share of texts whose every token got its rule, by class (paper Table 34)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.core.chat import ChatFormat, Text
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.data.sources import Row, Source, evenly
from mm_llama.eval.statistics import Accuracy
from mm_llama.eval.vqa_result import write_text
from mm_llama.model import MultimodalLlama
from mm_llama.voice.rules import Reading
from mm_llama.voice.tagging import read
from mm_llama.voice.written import split

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[str, int, int], None]  # side, done, all
BATCH = 64


@dataclass
class NormalizationResult:
    """Texts with their true readings and those that were found, in order."""

    rows: list[Row]
    truths: list[Reading]
    found: list[Reading] = field(default_factory=list)

    @property
    def accuracy(self) -> Accuracy:
        """Of texts with every rule right."""
        return self._of(range(len(self.rows)))

    @property
    def spoken(self) -> Accuracy:
        """Of texts that are said in the true words, whatever rules led there."""
        pairs = zip(self.found, self.truths, strict=True)
        return Accuracy(sum(one.text() == other.text() for one, other in pairs), len(self.rows))

    def by_class(self) -> dict[str, Accuracy]:
        """Return the accuracy of each class, in the order of their names."""
        kinds = [str(row.extra.get("class", "")) for row in self.rows]
        return {
            kind: self._of([place for place, one in enumerate(kinds) if one == kind])
            for kind in sorted(set(kinds))
        }

    def _of(self, places: Sequence[int]) -> Accuracy:
        right = sum(list(self.found[place].rules) == list(self.truths[place].rules) for place in places)
        return Accuracy(right, len(places))

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        return {
            "texts": len(self.rows),
            "accuracy": self.accuracy.to_json(),
            "spoken": self.spoken.to_json(),
            "classes": {kind: one.to_json() for kind, one in self.by_class().items()},
        }

    def records(self) -> list[dict[str, Any]]:
        """Return every text with what is said and what should be, the wrong ones first."""
        found = [
            {
                "source": row.source,
                "class": row.extra.get("class", ""),
                "template": row.extra.get("template", ""),
                "text": text_of(row),
                "truth": truth.text(),
                "said": reading.text(),
                "right": list(reading.rules) == list(truth.rules),
            }
            for row, truth, reading in zip(self.rows, self.truths, self.found, strict=True)
        ]
        return sorted(found, key=lambda one: one["right"])

    def table(self) -> Table:
        """Return the numbers as a table to print, the hardest class first."""
        from rich.table import Table

        table = Table("class", "texts", "every rule right")
        for kind, one in sorted(self.by_class().items(), key=lambda entry: entry[1].score):
            table.add_row(kind, str(one.total), f"{100 * one.score:.1f} ± {100 * one.half_width:.1f} %")
        table.add_section()
        table.add_row(
            "all",
            str(len(self.rows)),
            f"{100 * self.accuracy.score:.1f} ± {100 * self.accuracy.half_width:.1f} %",
        )
        table.add_row(
            "in the true words", "", f"{100 * self.spoken.score:.1f} ± {100 * self.spoken.half_width:.1f} %"
        )
        return table

    def write(self, path: Path, answers: Path) -> None:
        """Write the numbers as JSON and every text as JSONL beside it, the wrong ones first."""
        write_text(path, json.dumps(self.to_json(), indent=2) + "\n")
        write_text(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.records()))


def text_of(row: Row) -> str:
    """Return the text of a row: its last answer."""
    return "".join(part.text for part in row.messages[-1].parts if isinstance(part, Text))


def evaluate_normalization(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    source: Source,
    *,
    limit: int = 0,
    progress: Progress | None = None,
) -> NormalizationResult:
    """Read the text of every row, or of `limit` rows at even strides.

    Raises ValueError without a normaliser, and for a row without rules that fit its text.
    """
    rows = [source.row(index) for index in evenly(len(source), limit)]
    if not rows:
        raise ValueError("there are no texts to read")
    truths = []
    for row in rows:
        tokens, rules = split(text_of(row)), str((row.extra.get("labels") or {}).get("rules", "")).split()
        if len(tokens) != len(rules):
            raise ValueError(
                f"{row.source}: {len(rules)} rules do not fit the {len(tokens)} tokens of its text"
            )
        truths.append(Reading(tokens, rules))
    result = NormalizationResult(rows, truths)
    texts = [text_of(row) for row in rows]
    for first in range(0, len(texts), BATCH):
        result.found += read(model, tokenizer, chat, texts[first : first + BATCH])
        if progress is not None:
            progress("texts", len(result.found), len(texts))
    return result
