"""What the core writes, as it writes it, to the words that are said: normalised a few tokens behind it.

Lines are texts of their own to the normaliser; white space is one space. A word is there when it is settled what is
said up to the next one. Where a sentence ends only what stands before tells: its last sign, or its length.

Shapes: S core positions, D core width.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mm_llama.spoken import Written
from mm_llama.voice.features import features
from mm_llama.voice.fitting import best_fitting
from mm_llama.voice.rules import CONTINUE, PLAIN, SKIP, Reading, Writer
from mm_llama.voice.written import Splitter, Token

LONG = 240  # characters of a breath, from which on it ends at the next pause
LONGEST = 300  # and with which it ends anywhere
_END = re.compile(r"[.!?…][\"')\]”’]*$")
_PAUSE = re.compile(r"[,;:—–)][\"')\]”’]*$")
_MARKS = frozenset("';:,.!?—…\"()“”’‘-–")  # signs that the phones have, or that stand between letters
_KEEP = 64  # tokens before the present one that a rule may look at, and more


@dataclass(frozen=True)
class Word:
    """A word to be said: where the core began it, and the states behind its tokens (for prosody), float[s, D]."""

    text: str
    first: int  # position of the core's token in which it begins, of all that were written
    states_SD: Tensor | None
    at: int  # position of the first of the states


@dataclass
class _Line:
    """A line of text: its tokens, their rules, and what is said of it so far."""

    splitter: Splitter = field(default_factory=Splitter)
    kept: Any = None  # of the normaliser
    tokens: list[Token] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # of tokens, in bytes
    gone: int = 0  # tokens that are no longer in the lists
    rules: list[str] = field(default_factory=list)
    written: int = 0  # tokens whose words have been told
    writer: Writer = field(default_factory=Writer)
    num_bytes: int = 0
    word: str = ""
    word_start: int = 0  # in bytes


class Wording:
    """Tokens of the core to words. `normalizer` may be None: then everything is said as it is written.

    `layers` are those of the core whose states the normaliser and the prosody model read (0: none is read). Letters of
    other scripts are refused unless `any_script`. `push` and `finish` yield words; None among them ends a sentence.
    """

    def __init__(self, normalizer: Any, layers: tuple[int, int], any_script: bool = False) -> None:
        self.normalizer, (self.own_layer, self.prosody_layer) = normalizer, layers
        self.line = self._line()
        self.any_script = any_script
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._count = 0  # tokens of the core
        # Of recent core tokens of this line: where they end in bytes, their positions, their states for the prosody.
        self._core: list[tuple[int, int, Tensor | None]] = []
        # Where they end, and states that the normaliser has not seen.
        self._unread: list[tuple[int, Tensor]] = []
        self._told = 0  # up to which position states were told with words
        self._length = 0  # characters of this breath

    def push(self, token: Written) -> Iterator[Word | None]:
        """Yield the words that one more token settles. Raises ValueError for letters of another script."""
        position, self._count = self._count, self._count + 1
        text = self._decoder.decode(token.data)
        if not self.any_script:
            check_script(text)
        held, _ = self._decoder.getstate()  # bytes of a character that is not whole yet
        segments = re.split(r"[\r\n]", text)
        for number, segment in enumerate(segments):
            if number:
                yield from self._end_line()
            if segment or len(segments) == 1:
                end = self.line.num_bytes + len(segment.encode()) + len(held)
                self._core.append((end, position, token.states.get(self.prosody_layer)))
                if self.own_layer:
                    self._unread.append((end, token.states[self.own_layer]))
            for character in segment:
                for one in self.line.splitter.push(character):
                    yield from self._read(one, self.line.num_bytes)
                self.line.num_bytes += len(character.encode())

    def finish(self) -> Iterator[Word | None]:
        """Yield what is left when nothing more is written."""
        yield from self._end_line()

    def _line(self) -> _Line:
        kept = None if self.normalizer is None else self.normalizer.start()
        return _Line(kept=kept)

    def _read(self, token: Token, end: int) -> Iterator[Word | None]:
        line = self.line
        line.tokens.append(token)
        line.ends.append(end)
        self._tag([token], last=False)
        yield from self._words(last=False)

    def _tag(self, tokens: list[Token], last: bool) -> None:
        """Give rules to the tokens whose look-ahead is there."""
        line = self.line
        if self.normalizer is None:
            line.rules += [PLAIN] * len(tokens)
            return
        number = line.gone + len(line.tokens) - 1
        here = len(self._unread) if last else sum(end <= line.ends[-1] for end, _ in self._unread)
        states, self._unread = [state for _, state in self._unread[:here]], self._unread[here:]
        states_SD = torch.stack(states) if states else None
        if self.own_layer and states_SD is None:
            states_SD = torch.zeros(0, self.normalizer.dim, device=self.normalizer.embedding.device)
        given = features(tokens, self.normalizer.num_features).to(self.normalizer.embedding.device)
        scores_NR = self.normalizer.more(line.kept, given, states_SD, [number] * len(states), last=last)
        for order in scores_NR.argsort(dim=-1, descending=True).tolist():
            known = line.tokens[: len(line.rules) + 1 + self.normalizer.context]
            line.rules.append(best_fitting(known, line.rules, order))

    def _words(self, last: bool) -> Iterator[Word | None]:
        line = self.line
        while line.written < len(line.rules):
            place = line.written
            if not (last or self._settled(place)):
                return
            token = line.tokens[place]
            piece = line.writer.piece(Reading(line.tokens[: len(line.rules)], line.rules), place)
            if piece.strip() and not line.word:
                line.word_start = line.ends[place] - len(token.text.encode())
            line.word += piece
            following = place + 1
            if line.word and following < len(line.tokens) and line.tokens[following].space:
                start = line.ends[following] - len(line.tokens[following].text.encode())
                yield from self._told_word(start)
            line.written += 1
            if line.written > 2 * _KEEP:
                for part in (line.tokens, line.ends, line.rules):
                    del part[:_KEEP]
                line.gone, line.written = line.gone + _KEEP, line.written - _KEEP

    def _settled(self, place: int) -> bool:
        """Whether no later token can change what the one at a place says, or how its word goes on."""
        line = self.line
        if place + 1 >= len(line.tokens):
            return False
        if line.rules[place] in (PLAIN, SKIP, CONTINUE):
            return True
        return any(rule != CONTINUE for rule in line.rules[place + 1 :])

    def _told_word(self, until_byte: int | None) -> Iterator[Word | None]:
        """Yield the word that is complete, in parts if it has no end, and the end of its sentence."""
        line = self.line
        text, line.word = spoken_signs(line.word), ""
        if not text:
            return
        ends = [end for end, _, _ in self._core]
        first = next((place for place, end in enumerate(ends) if end > line.word_start), len(ends) - 1)
        stop = len(ends)
        if until_byte is not None:
            stop = next((place for place, end in enumerate(ends) if end > until_byte), len(ends))
        # A token that holds the beginnings of two words belongs to both, its state to the first.
        stop = max(stop, min(first + 1, len(ends)))
        position = self._core[first][1] if self._core else self._count
        told = [part for part in self._core[:stop] if part[1] >= self._told]
        states = [state for _, _, state in told if state is not None]
        states_SD = torch.stack(states) if states else None
        at = told[0][1] if told else self._told
        self._told = told[-1][1] + 1 if told else self._told
        del self._core[: max(0, stop - 1)]
        # A number is several words, and what has no end is told in parts.
        parts = [
            one[place : place + LONGEST] for one in text.split() for place in range(0, len(one), LONGEST)
        ]
        for number, part in enumerate(parts):
            yield Word(part, position, None if number else states_SD, at)
            self._length += len(part) + 1
            pause = self._length >= LONG and _PAUSE.search(part)
            if _END.search(part) or pause or self._length >= LONGEST:
                self._length = 0
                yield None

    def _end_line(self) -> Iterator[Word | None]:
        line = self.line
        rest = line.splitter.finish()
        for token in rest:
            line.tokens.append(token)
            line.ends.append(line.num_bytes)
        if line.tokens:
            self._tag(rest, last=True)
            yield from self._words(last=True)
            if line.word:
                yield from self._told_word(None)
        if self._length:
            self._length = 0
            yield None
        self.line, self._core, self._unread = self._line(), [], []


def spoken_signs(text: str) -> str:
    """Return what can be said of a word: letters, digits and marks.

    Other signs have no name and are left out; what stood on both sides of one are two words.
    """
    kept = "".join(one if one in _MARKS or _spoken(one) else " " for one in text if not _formats(one))
    return " ".join(kept.split())


def _spoken(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def _formats(character: str) -> bool:
    """True for what only joins or parts the letters beside it, as a soft hyphen does."""
    return unicodedata.category(character) == "Cf"


def check_script(text: str) -> None:
    """Raise ValueError, naming it, for a letter that is not of the Latin script."""
    for character in text:
        if character.isalpha() and not unicodedata.name(character, "").startswith(
            ("LATIN", "FEMININE", "MASCULINE")
        ):
            raise ValueError(
                f"this voice speaks English, and {character!r} ({unicodedata.name(character, 'no name').lower()}) is "
                "not of its script: leave it out, or write it in Latin letters"
            )
