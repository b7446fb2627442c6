"""Written text with the rule of each of its tokens, for the tagger of text normalisation (paper section 8.3).

A row is a text as the core would write it, an empty question before it; its labels name the rules. The text is made of
templates with drawn forms, one to three, or of one and a real sentence before or behind it. A split has templates and
real sentences of its own: what is held out is neither a sentence nor a wording that was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from mm_llama.data.normalization_templates import TEMPLATES
from mm_llama.data.recipes import _folder, _split
from mm_llama.data.sentences import sentences
from mm_llama.data.sources import JsonlChat
from mm_llama.data.spoken_rows import SPLITS, write_rows
from mm_llama.data.written_forms import FORMS, Form
from mm_llama.voice.rules import PLAIN
from mm_llama.voice.written import split as split_text

VERSION = 5
# Of forms that are easily mistaken for each other more is drawn, and real sentences alone stand beside them.
OFTEN = {"cardinal": 9, "short_words": 2}
OFTEN |= dict.fromkeys(("digits", "year", "date", "fraction", "ratio", "time", "decimal", "version"), 6)
OFTEN |= dict.fromkeys(("roman_cardinal", "roman_ordinal", "acronym", "acronym_word", "decade", "grouped"), 3)
OFTEN |= dict.fromkeys(("dialed", "rating", "pair", "large", "letter_behind"), 3)
HELD_OUT = {"holdout": 3, "test": 7}  # of each eight templates
SENTENCE = "sentence"
TOGETHER = (6, 3, 1)  # how often one, two and three sentences with forms are one text
TOGETHER_CLASS = "together"
SENTENCES_WEIGHT = 4
LEAST_SENTENCES = 10
_SLOT = re.compile(r"\{(\w+)\}|\[([^|\]]+)\|([A-Z_ ]+)\]")


def normalization(
    root: str | Path | Sequence[str | Path],
    out: str | Path,
    split: str = "train",
    num_train: int = 24_000,
    num_held_out: int = 1_000,
    seed: int = 0,
) -> JsonlChat:
    """Return one split (train, holdout, test); real sentences come from the texts below `root`.

    Raises ValueError for another split, or when the texts hold too few sentences.
    """
    roots = [root] if isinstance(root, str | Path) else list(root)
    names = [Path(one).name for one in roots]
    folder = _folder(out, repr([VERSION, num_train, num_held_out, seed, names]))
    path = _split({one: folder / f"{one}.jsonl" for one in SPLITS}, split, "text normalisation")
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        found = sentences(roots, seed)
        if len(found) < LEAST_SENTENCES:
            raise ValueError(
                f"{', '.join(map(str, roots))} hold {len(found)} sentences to stand beside the templates, fewer than "
                f"the {LEAST_SENTENCES} that three splits need"
            )
        counts = {one: num_train if one == "train" else num_held_out for one in SPLITS}
        # By their order, which is one by hash.
        shares = {"train": found[len(found) // 5 :], "holdout": found[: len(found) // 10]}
        shares["test"] = found[len(found) // 10 : len(found) // 5]
        write_rows(folder, {one: rows(one, counts[one], shares[one], seed) for one in SPLITS})
    return JsonlChat(path)


def templates_of(split: str) -> dict[str, list[str]]:
    """Return the templates of a split by class."""
    taken = {HELD_OUT[split]} if split in HELD_OUT else set(range(8)) - set(HELD_OUT.values())
    return {
        name: [one for place, one in enumerate(every) if place % 8 in taken]
        for name, every in TEMPLATES.items()
    }


def rows(split: str, count: int, found: Sequence[str], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield so many distinct rows of a split with the real sentences `found` beside its templates."""
    random, templates = Random(f"{seed} {split}"), templates_of(split)
    names = [*templates, SENTENCE]
    weights = [OFTEN.get(name, 1) for name in templates] + [SENTENCES_WEIGHT]
    seen: set[str] = set()
    while len(seen) < count:
        chosen = random.choices(names, weights, k=random.choices((1, 2, 3), TOGETHER)[0])
        drawn = [(name, random.choice(found if name == SENTENCE else templates[name])) for name in chosen]
        parts = [(one, _plain(one)) if name == SENTENCE else filled(one, random) for name, one in drawn]
        if len(parts) == 1 and chosen != [SENTENCE] and (side := random.randrange(3)) < 2:
            beside = random.choice(found)
            parts.insert(side, (beside, _plain(beside)))
        text = " ".join(part for part, _ in parts)
        if text in seen:
            continue
        seen.add(text)
        yield {
            "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": text}],
            "extra": {
                "class": chosen[0] if len(chosen) == 1 else TOGETHER_CLASS,
                "template": " ".join(template for _, template in drawn),
                "labels": {"rules": " ".join(rule for _, part in parts for rule in part)},
            },
        }


def filled(template: str, random: Random) -> Form:
    """Return a template's text with forms drawn for its slots, and the rule of each of its tokens.

    Raises ValueError, naming it, for a template whose rules are not as many as the tokens.
    """
    text, rules, place = "", list[str](), 0
    for slot in _SLOT.finditer(template):
        between = template[place : slot.start()]
        form, names = FORMS[slot[1]](random) if slot[1] else (slot[2], slot[3].split())
        text, rules, place = text + between + form, [*rules, *_plain(between), *names], slot.end()
    rest = template[place:]
    text, rules = text + rest, [*rules, *_plain(rest)]
    if len(split_text(text)) != len(rules):
        raise ValueError(
            f"the template {template!r} gives {text!r}, whose tokens are not those of its {len(rules)} rules"
        )
    return text, rules


def _plain(text: str) -> list[str]:
    return [PLAIN] * len(split_text(text))
