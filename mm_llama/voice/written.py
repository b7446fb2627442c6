"""Written text in the tokens of text normalisation: runs of one Unicode category (paper section 8.3).

Letters that follow each other are one token, digits are one token, every other sign is a token by itself; white space
is none, but remembered by the token after it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """One token of written text: characters [start, end) of it."""

    text: str
    start: int
    end: int
    space: bool  # white space stands before it

    @property
    def is_number(self) -> bool:
        """Whether it is digits."""
        return _category(self.text[0]) == "N"


def split(text: str) -> list[Token]:
    """Return the tokens of a text; together with white space they are all of it."""
    return list(_split(enumerate(text)))


def _split(characters: Iterable[tuple[int, str]]) -> Iterator[Token]:
    run, start, space, kind = "", 0, False, ""
    for place, character in characters:
        category = _category(character)
        if run and (category != kind or category == "S"):
            yield Token(run, start, place, space)
            run, space = "", False
        if category == "Z":
            space = True
            continue
        if not run:
            start, kind = place, category
        run += character
    if run:
        yield Token(run, start, start + len(run), space)


def _category(character: str) -> str:
    """Return L for letters and what combines with them, N for decimal digits, Z for white space, S for signs."""
    if character.isspace():
        return "Z"
    category = unicodedata.category(character)
    if category[0] in "LM":
        return "L"
    return "N" if category == "Nd" else "S"
