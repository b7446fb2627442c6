"""Written text in the tokens of text normalisation: runs of one Unicode category (paper section 8.3).

Letters that follow each other are one token, digits are one token, every other sign is a token by itself; white space
is none, but remembered by the token after it.
"""

from __future__ import annotations

import unicodedata
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


class Splitter:
    """Splits a text that comes in pieces: a token is there when the character behind it is."""

    def __init__(self) -> None:
        self._run, self._start, self._place = "", 0, 0
        self._space, self._kind = False, ""

    def push(self, text: str) -> list[Token]:
        """Return the tokens that the next characters complete."""
        found = []
        for character in text:
            category = _category(character)
            if self._run and (category != self._kind or category == "S"):
                found += self.finish()
            if category == "Z":
                self._space = True
            else:
                if not self._run:
                    self._start, self._kind = self._place, category
                self._run += character
            self._place += 1
        return found

    def finish(self) -> list[Token]:
        """Return the token that has begun, if any: nothing more belongs to it."""
        if not self._run:
            return []
        token = Token(self._run, self._start, self._start + len(self._run), self._space)
        self._run, self._space = "", False
        return [token]


def split(text: str) -> list[Token]:
    """Return the tokens of a text; together with white space they are all of it."""
    splitter = Splitter()
    return [*splitter.push(text), *splitter.finish()]


def _category(character: str) -> str:
    """Return L for letters and what combines with them, N for decimal digits, Z for white space, S for signs."""
    if character.isspace():
        return "Z"
    category = unicodedata.category(character)
    if category[0] in "LM":
        return "L"
    return "N" if category == "Nd" else "S"
