"""The rules of text normalisation: what each token of written text says, given which rule was chosen for it.

A tagger chooses (`adapters.tts_normalization`); a rule only rewrites, by `num2words` and small tables, and may look at
its neighbours: "2" as DENOMINATOR is "half" behind "1" and "halves" behind "3". What is CONTINUE belongs to the token
before it ("1", ",", "234" is one number), what is SKIP says nothing. So "$12.50" is SKIP MONEY AND CENTS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mm_llama.voice.words import ABBREVIATIONS, CURRENCIES, FRACTIONS, LARGE, MONTHS, SIGNS, UNITS
from mm_llama.voice.written import Token, split

PLAIN, SKIP, CONTINUE, PAUSE = "PLAIN", "SKIP", "CONTINUE", "PAUSE"
_ROMAN = re.compile(r"M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
_ROUND = {"100": "hundreds", "1000": "thousands"}  # "100s of people"
_POWERS = {"²": "square ", "³": "cubic "}
_ROMAN_VALUES = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}


class Unreadable(ValueError):
    """A rule was chosen for a token that it has no reading for."""


@dataclass(frozen=True)
class Reading:
    """The tokens of a text with the rule of each, in a language that `num2words` knows."""

    tokens: Sequence[Token]
    rules: Sequence[str]
    language: str = "en"

    def text(self) -> str:
        """Return the text as it is said.

        A rule that cannot read its token leaves it as it is written: nothing is lost. Raises ValueError when tokens
        and rules are not equally many, or a rule is unknown.
        """
        if len(self.tokens) != len(self.rules):
            raise ValueError(f"{len(self.tokens)} tokens of text have {len(self.rules)} rules")
        writer = Writer()
        return "".join(writer.piece(self, place) for place in range(len(self.tokens)))

    def of(self, place: int) -> str:
        """Return what the token at a place says. Raises Unreadable where its rule has no reading for it."""
        name = self.rules[place]
        if name not in RULES:
            raise ValueError(f"there is no rule {name!r}; rules are {', '.join(RULES)}")
        return RULES[name](self, place)

    def digits(self, place: int) -> str:
        """Return the digits of the number that begins at a place. Raises Unreadable when there are none."""
        found = "".join(token.text for token in self._whole(place) if token.is_number)
        if not found:
            raise Unreadable(f"{self.tokens[place].text!r} is no number")
        return found

    def letters(self, place: int) -> str:
        """Return the characters of what begins at a place, without a point at their end."""
        return "".join(token.text for token in self._whole(place)).rstrip(".")

    def number(self, place: int, to: str = "cardinal") -> str:
        """Return the number at a place in words, of a kind that `num2words` knows."""
        return in_words(int(self.digits(place)), to, self.language)

    def before(self, place: int, count: int = 1) -> Token | None:
        """Return the token so many places before."""
        return self.tokens[place - count] if place >= count else None

    def after(self, place: int) -> Token | None:
        """Return the token behind one and what continues it."""
        end = place + len(self._whole(place))
        return self.tokens[end] if end < len(self.tokens) else None

    def amount(self, place: int) -> int | None:
        """Return the last whole number before a place, None when none is near."""
        for back in range(place - 1, max(-1, place - 7), -1):
            if self.tokens[back].is_number and self.rules[back] != CONTINUE:
                return int(self.digits(back))
        return None

    def currency(self, place: int) -> tuple[str, str, str, str]:
        """Return the names of the currency whose sign stands nearest before a place, else right behind it."""
        near = [self.tokens[back] for back in range(place - 1, max(-1, place - 7), -1)]
        for token in [*near, self.after(place)]:
            if token is not None and token.text in CURRENCIES:
                return CURRENCIES[token.text]
        raise Unreadable(f"no sign of a currency near {self.tokens[place].text!r}")

    def _whole(self, place: int) -> list[Token]:
        end = place + 1
        while end < len(self.tokens) and self.rules[end] == CONTINUE:
            end += 1
        return list(self.tokens[place:end])


@dataclass
class Writer:
    """Puts together what is said, from left to right: where a space stands between two tokens, and where none does."""

    said: str = ""  # its last character
    gap: bool = False  # white space stood before a token that says nothing
    before: str = PLAIN  # the rule of what was said last
    unread: bool = False  # the token that this one continues could not be read

    def piece(self, reading: Reading, place: int) -> str:
        """Return what the token at a place adds to what is said, with the space before it."""
        token, rule = reading.tokens[place], reading.rules[place]
        self.gap |= token.space
        self.unread &= rule == CONTINUE  # what continues a token that could not be read is left as well
        try:
            words = token.text if self.unread else reading.of(place)
        except Unreadable:
            words, self.unread = token.text, True
        if self.unread:
            rule = PLAIN
        if not words:
            return ""
        touching = bool(self.said) and (self.said.isalnum() or self.before == PAUSE) and words[0].isalnum()
        space = bool(self.said) and (self.gap or (touching and (rule, self.before) != (PLAIN, PLAIN)))
        self.said, self.gap, self.before = words[-1], False, rule
        return " " * space + words


def in_words(number: int, to: str = "cardinal", language: str = "en") -> str:
    """Return a number in words. Raises Unreadable for a language, or a number, that `num2words` does not say."""
    from num2words import num2words

    try:
        return str(num2words(number, to=to, lang=language)).replace(",", "").replace("-", " ")
    except (
        NotImplementedError,
        OverflowError,
        TypeError,
    ) as error:  # what num2words raises for a language or number
        raise Unreadable(f"no {to} words for {number} in {language!r}") from error


def roman(text: str) -> int:
    """Return the value of a Roman numeral. Raises Unreadable for other text."""
    if not text or not _ROMAN.fullmatch(text):
        raise Unreadable(f"{text!r} is no Roman numeral")
    values = [_ROMAN_VALUES[letter] for letter in text]
    signed = zip(values, [*values[1:], 0], strict=True)
    return sum(-value if value < following else value for value, following in signed)


def _found(table: Mapping[str, tuple[str, ...]], key: str, number: int = 0) -> str:
    words = table.get(key, ())
    if len(words) <= number:
        raise Unreadable(f"{key!r} is in no table")
    return words[number]


def _digit_by_digit(reading: Reading, place: int) -> str:
    return " ".join(in_words(int(digit), language=reading.language) for digit in reading.digits(place))


def _year(reading: Reading, place: int) -> str:
    return reading.number(place, "year")


def _decade(reading: Reading, place: int) -> str:
    if reading.digits(place) in _ROUND:
        return _ROUND[reading.digits(place)]
    said = in_words(int(reading.digits(place)), "year", reading.language)
    return said[:-1] + "ies" if said.endswith("y") else said + "s"


def _denominator(reading: Reading, place: int) -> str:
    value, count = int(reading.digits(place)), reading.amount(place)
    many = count != 1
    if value == 2:
        return "halves" if many else "half"
    if value == 4:
        return "quarters" if many else "quarter"
    return reading.number(place, "ordinal") + ("s" if many else "")


def _money(reading: Reading, place: int) -> str:
    one, many, _, _ = reading.currency(place)
    return f"{reading.number(place)} {one if int(reading.digits(place)) == 1 else many}"


def _cents(reading: Reading, place: int) -> str:
    _, _, one, many = reading.currency(place)
    value = int(reading.digits(place).ljust(2, "0"))
    return f"{in_words(value, language=reading.language)} {one if value == 1 else many}"


def _money_word(reading: Reading, place: int) -> str:
    letters = reading.letters(place)
    return f"{LARGE.get(letters, letters)} {reading.currency(place)[1]}"


def _unit(reading: Reading, place: int) -> str:
    before, letters, power = reading.before(place), reading.letters(place), ""
    if letters[-1:] in _POWERS:
        letters, power = letters[:-1], _POWERS[letters[-1]]
    if before is not None and before.text == "/":  # per one of it
        return power + _found(UNITS, letters, 0)
    part = place >= 2 and reading.rules[place - 1] in ("DIGITS", "DENOMINATOR")
    if before is not None and before.text in FRACTIONS:
        whole = reading.before(place, 2)
        one = whole is None or not whole.is_number
    else:
        one = reading.amount(place) == 1 and not part
    return power + _found(UNITS, letters, 0 if one else 1)


def _sign(reading: Reading, place: int) -> str:
    text, before = reading.tokens[place].text, reading.before(place)
    if text in FRACTIONS:
        return FRACTIONS[text][before is not None and before.is_number]
    if text not in SIGNS:
        raise Unreadable(f"{text!r} has no name")
    return SIGNS[text]


def _month(reading: Reading, place: int) -> str:
    value = int(reading.digits(place))
    if not 1 <= value <= 12:
        raise Unreadable(f"there is no month {value}")
    return MONTHS[value - 1]


def _minutes(reading: Reading, place: int) -> str:
    digits = reading.digits(place)
    if digits == "00":
        following = reading.after(place)
        if following is not None and following.text.lower() in ("am", "pm", "a", "p"):
            return ""
        return "hundred" if (reading.amount(place) or 0) > 12 else "o'clock"
    return ("oh " if digits[0] == "0" else "") + reading.number(place)


def _letters(reading: Reading, place: int) -> str:
    return " ".join(character.upper() for character in reading.letters(place) if character.isalnum())


def _expanded(number: int) -> Callable[[Reading, int], str]:
    return lambda reading, place: _found(ABBREVIATIONS, reading.letters(place).lower(), number)


# Rule: what it makes of the token at a place. Their order gives their numbers: new ones are added at the end.
RULES: dict[str, Callable[[Reading, int], str]] = {
    PLAIN: lambda reading, place: reading.tokens[place].text,
    SKIP: lambda reading, place: "",
    CONTINUE: lambda reading, place: "",
    "CARDINAL": lambda reading, place: reading.number(place),
    "ORDINAL": lambda reading, place: reading.number(place, "ordinal"),
    "DIGITS": _digit_by_digit,
    "YEAR": _year,
    "DECADE": _decade,
    "POINT": lambda reading, place: "point",
    "DENOMINATOR": _denominator,
    "AND": lambda reading, place: "and",
    "AND_CARDINAL": lambda reading, place: f"and {_numerator(reading, place)}",
    "MONEY": _money,
    "CENTS": _cents,
    "MONEY_WORD": _money_word,
    "UNIT": _unit,
    "PER": lambda reading, place: "per",
    "SIGN": _sign,
    "MINUS": lambda reading, place: "minus",
    "TO": lambda reading, place: "to",
    PAUSE: lambda reading, place: ",",
    "MONTH": _month,
    "ORDINAL_OF": lambda reading, place: f"the {reading.number(place, 'ordinal')} of",
    "MINUTES": _minutes,
    "LETTERS": _letters,
    "ROMAN_CARDINAL": lambda reading, place: in_words(
        roman(reading.letters(place)), language=reading.language
    ),
    "ROMAN_ORDINAL": lambda reading, place: (
        f"the {in_words(roman(reading.letters(place)), 'ordinal', reading.language)}"
    ),
    "EXPAND": _expanded(0),
    "EXPAND_OTHER": _expanded(1),
    "LARGE": lambda reading, place: _large(reading, place),
    "BY": lambda reading, place: "by",
    "OVER": lambda reading, place: "over",
    "OUT_OF": lambda reading, place: "out of",
}


def _large(reading: Reading, place: int) -> str:
    letters = reading.letters(place)
    if letters not in LARGE:
        raise Unreadable(f"{letters!r} stands for no large number")
    return LARGE[letters]


def _numerator(reading: Reading, place: int) -> str:
    """Of "2 1/2" the "1": "and a half" is said, but "and three quarters"."""
    return "a" if reading.digits(place) == "1" else reading.number(place)


NAMES = tuple(RULES)


def said(text: str, rules: Sequence[str], language: str = "en") -> str:
    """Return a text as it is said by the rules of its tokens (`mm_llama.voice.written.split`)."""
    return Reading(split(text), rules, language).text()
