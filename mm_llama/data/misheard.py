"""A source whose transcripts are as an imperfect ear would write them: what copying has to repeat, right or wrong.

A core that learns to repeat true sentences alone learns to mend as well: what was misheard comes out as something
likelier, and that is one more error. With words changed in the transcript and in the answer alike it learns to repeat.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

from mm_llama.core.messages import MediaPart, Message, Text
from mm_llama.data.sources import Row, Source

VOWELS = "aeiou"
CHANGES = ("other", "dropped", "joined", "split", "letter_lost", "letter_doubled", "vowel")


class Misheard:
    """Rows of recognition with a `share` of their words changed; all others as they are, recordings untouched.

    A changed word is another row's, is left out, joined with the next, split, or misspelled by a letter. What is drawn
    for a row depends on the seed and the row alone.
    """

    def __init__(self, source: Source, share: float = 0.2, seed: int = 0) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share={share} is that of the words that are changed, from 0 to 1")
        self.source, self.share, self.seed = source, share, seed
        said = f"misheard {share} {seed} {source.digest}"
        self.digest = f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"

    def __len__(self) -> int:
        return len(self.source)

    def name_of(self, index: int) -> str:
        """Return "file:line" of the row."""
        return self.source.name_of(index)

    def row(self, index: int) -> Row:
        """Return a row; where what is said is to be repeated, with words changed in both."""
        row = self.source.row(index)
        said = _repeated(row)
        if not said:
            return row
        rng = random.Random(
            int.from_bytes(hashlib.sha256(f"{self.seed} {index}".encode()).digest()[:8], "big")
        )
        text = self._changed(said, rng)
        return replace(row, messages=tuple(_with(message, text) for message in row.messages))

    def _changed(self, said: str, rng: random.Random) -> str:
        other, others = rng.randrange(len(self.source)), None  # read when a word of it is wanted
        words = said.split()
        found: list[str] = []
        joined = False  # the word before takes this one in
        for word in words:
            change = rng.choice(CHANGES) if rng.random() < self.share else ""
            if change == "other" and others is None:
                others = self._words(other)
            if change == "other" and others:
                word = rng.choice(others)
            elif change == "dropped" and len(words) > 1:
                continue
            else:
                word = misspelled(word, change, rng)
            if joined and found:
                found[-1] += word
            else:
                found.append(word)
            joined = change == "joined"
        return " ".join(found) or said

    def _words(self, index: int) -> list[str]:
        said = _repeated(self.source.row(index))
        return [word.strip(".,!?;:\"'") or word for word in said.split()]


def misspelled(word: str, change: str, rng: random.Random) -> str:
    """Return a word split, or with a letter lost, doubled or, of its vowels, changed; short words as they are."""
    at = rng.randrange(max(1, len(word)))
    if len(word) > 3 and change == "split":
        at = rng.randrange(2, len(word) - 1)
        return f"{word[:at]} {word[at:]}"
    if len(word) > 2 and change == "letter_lost":
        return word[:at] + word[at + 1 :]
    if len(word) > 2 and change == "letter_doubled":
        return word[:at] + word[at] + word[at:]
    places = [place for place, letter in enumerate(word) if letter in VOWELS]
    if change == "vowel" and places:
        at = rng.choice(places)
        return word[:at] + rng.choice(VOWELS.replace(word[at], "")) + word[at + 1 :]
    return word


def _repeated(row: Row) -> str:
    """Return what is said in a row's one recording when the answer is the same, else ""."""
    heard = [part for message in row.messages for part in message.parts if isinstance(part, MediaPart)]
    if len(heard) != 1 or heard[0].kind != "speech" or row.messages[-1].role != "assistant":
        return ""
    answer = "".join(part.text for part in row.messages[-1].parts if isinstance(part, Text))
    said = heard[0].transcript or ""
    return said if said.strip() == answer.strip() else ""


def _with(message: Message, text: str) -> Message:
    if message.role == "assistant":
        return replace(message, parts=(Text(text),))
    parts = tuple(
        replace(part, transcript=text) if isinstance(part, MediaPart) else part for part in message.parts
    )
    return replace(message, parts=parts)
