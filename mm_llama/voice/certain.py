"""What the signs alone tell: the rules of which one has to be that of a token, whatever a tagger makes of the words.

Each function looks at one token, what was chosen for those before it, and the few behind it that are known; it returns
the rules of which one has to be taken, or None when the signs leave it open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mm_llama.voice.rules import CONTINUE, PLAIN, SKIP
from mm_llama.voice.words import CURRENCIES, FRACTIONS, LARGE, SIGNS, UNITS
from mm_llama.voice.written import Token

Only = tuple[str, ...] | None

NUMBER = ("CARDINAL", CONTINUE, "DIGITS")  # rules of a number's last token
AHEAD = 3  # tokens behind one that are looked at, at most
_ORDINAL_ENDINGS = ("st", "nd", "rd", "th")
_DOMAINS = (
    "com",
    "org",
    "net",
    "edu",
    "gov",
    "info",
    "io",
    "ai",
    "uk",
    "de",
    "eu",
    "fr",
    "us",
    "co",
    "app",
    "dev",
    "tv",
)
_LARGE_WORDS = ("thousand", "million", "billion", "trillion", "bn", "mn")
# Units that are English words, letters of their own or marks: behind a number they may be read as they are written.
_OTHER_THAN_UNITS = (
    "m", "g", "in", "h", "s", "l", "L", "W", "V", "C", "F", "ms", "GB", "'", "’", "′", '"', "”", "″", "sq", "cu",
    "cal",
    "mo", "ha", "MW", "CAD",
)  # fmt: skip
_BARE_UNITS = frozenset(UNITS) - frozenset(_OTHER_THAN_UNITS)
_FEET, _INCHES = "'’′", '"”″'
_PARTS_OF_ADDRESSES = ("www", "://", "@")


@dataclass(frozen=True)
class Here:
    """The token that stands behind those with `rules`, and what is around it."""

    tokens: Sequence[Token]
    rules: Sequence[str]

    @cached_property
    def token(self) -> Token:
        """The token itself."""
        return self.tokens[len(self.rules)]

    @cached_property
    def before(self) -> Token | None:
        """The token before it."""
        return self.tokens[len(self.rules) - 1] if self.rules else None

    @cached_property
    def after(self) -> Sequence[Token]:
        """The tokens behind it that are known, `AHEAD` at most."""
        return self.tokens[len(self.rules) + 1 : len(self.rules) + 1 + AHEAD]

    @cached_property
    def joins(self) -> bool:
        """Whether it stands right behind the token before it."""
        return self.before is not None and not self.token.space

    @cached_property
    def joined(self) -> bool:
        """Whether the next token is known, and stands right behind it."""
        return bool(self.after) and not self.after[0].space

    @cached_property
    def last(self) -> str:
        """The rule of the token before it."""
        return self.rules[-1] if self.rules else ""

    @cached_property
    def head(self) -> str:
        """The last rule that continues no other."""
        return next((rule for rule in reversed(self.rules) if rule != CONTINUE), "")

    def follows(self, number: int, *texts: str) -> bool:
        """Whether so many tokens behind it one of these stands, right behind the token before it."""
        return len(self.after) > number and not self.after[number].space and self.after[number].text in texts


def certain(tokens: Sequence[Token], rules: Sequence[str]) -> Only:
    """Return the rules of which one has to be that of the token behind those that have `rules`; None: any may."""
    here = Here(tokens, rules)
    return next((only for tell in _TELL if (only := tell(here)) is not None), None)


def _number(here: Here) -> Only:
    token, before, after = here.token, here.before, here.after
    if not token.is_number:
        return None
    if before is not None and before.text == "," and here.last == CONTINUE:
        return (CONTINUE,)
    if here.joined and after[0].text.lower() in _ORDINAL_ENDINGS:
        return ("ORDINAL",)
    if after and after[0].text in CURRENCIES and (len(after) < 2 or not after[1].is_number):
        return ("MONEY",)
    if before is not None and before.text == "." and token.text == "00" and here.last == SKIP:
        return (SKIP,)
    if before is not None and before.text in CURRENCIES and here.joins and here.last == SKIP and after:
        return ("CARDINAL",) if _is_large(after) else ("MONEY",)
    if tuple(here.rules[-3:]) == (SKIP, "CARDINAL", "TO") and after and not _is_large(after):
        return ("MONEY",) if here.tokens[len(here.rules) - 3].text in CURRENCIES else None
    if (
        len(token.text) == 3
        and here.follows(0, "-")
        and len(after) > 2
        and after[1].is_number
        and here.follows(2, "-")
    ):
        return ("DIGITS",)  # the first of three groups and more
    if token.text[0] == "0" and len(token.text) > 2 and not (here.joins and here.last == "POINT"):
        return ("DIGITS",)
    return None


def _is_large(after: Sequence[Token]) -> bool:
    """Whether a number goes on as one of millions does, or as a range: its currency is said behind all of it."""
    rest = list(after)
    while len(rest) > 1 and rest[0].text in ".," and not rest[0].space and rest[1].is_number:
        del rest[:2]
    if not rest:
        return False
    if len(rest) > 1 and rest[0].text in "-–" and not rest[1].space and rest[1].is_number:
        return True
    return rest[0].text.lower() in _LARGE_WORDS or (not rest[0].space and rest[0].text in LARGE)


def _money_word(here: Here) -> Only:
    """Of "$3.5M", whose letter is no word."""
    if not here.joins or here.token.text not in LARGE or here.before is None or not here.before.is_number:
        return None
    place = len(here.rules) - 1
    while (
        place > 0
        and not here.tokens[place].space
        and (here.tokens[place].is_number or here.tokens[place].text in ".,")
    ):
        place -= 1
    return ("MONEY_WORD",) if here.tokens[place].text in CURRENCIES and here.last in NUMBER else None


def _all_day(here: Here) -> Only:
    """Of "24/7", which is neither a part nor a day."""
    if here.token.text == "24" and here.follows(0, "/") and here.follows(1, "7"):
        return ("CARDINAL",)
    if (
        here.joins
        and here.token.text == "/"
        and here.follows(0, "7")
        and here.before
        and here.before.text == "24"
    ):
        return (SKIP,)
    tokens = [one.text for one in here.tokens[max(0, len(here.rules) - 2) : len(here.rules) + 1]]
    return ("CARDINAL",) if tokens == ["24", "/", "7"] and here.joins else None


def _height(here: Here) -> Only:
    """Of 5'10": feet stand between numbers, inches behind feet."""
    if not here.joins or here.before is None:
        return None
    text, behind_feet = here.token.text, tuple(here.rules[-2:]) == ("UNIT", "CARDINAL")
    if here.before.is_number and here.last == "CARDINAL" and text in _FEET:
        return ("UNIT",) if here.joined and here.after[0].is_number else None
    if here.token.is_number and here.before.text in _FEET and here.last == "UNIT":
        return ("CARDINAL",)
    if behind_feet and text in _INCHES and here.tokens[len(here.rules) - 2].text in _FEET:
        return ("UNIT",)
    return None


def _fraction_or_power(here: Here) -> Only:
    if here.token.text in FRACTIONS:
        return ("SIGN",)
    if here.joins and here.token.text in ("²", "³"):
        return (CONTINUE,) if here.last == "UNIT" else ("SIGN",)
    return None


def _title_or_street(here: Here) -> Only:
    """Doctor and Saint stand before a name, Drive and Street behind one."""
    if here.token.text not in ("Dr", "St") or not here.joined or here.after[0].text != ".":
        return None
    named_before = _is_name(here.before)
    named_after = len(here.after) > 1 and _is_name(here.after[1])
    if named_before == named_after:
        return None
    return ("EXPAND",) if named_after else ("EXPAND_OTHER",)


def _is_name(token: Token | None) -> bool:
    return token is not None and token.text.isalpha() and token.text[0].isupper()


def _with_a_stroke(here: Here) -> Only:
    """Of "w/", "w/o" and "b/c"."""
    before = here.before.text.lower() if here.before is not None and here.joins else ""
    if here.token.text.lower() == "w" and here.follows(0, "/"):
        return ("EXPAND",)
    if here.token.text.lower() == "b" and here.follows(0, "/") and here.follows(1, "c"):
        return ("EXPAND",)
    if before in ("w", "b") and here.last == "EXPAND" and here.token.text == "/":
        return (CONTINUE,)
    if before == "/" and here.last == CONTINUE and here.token.text in ("o", "out", "c"):
        return (CONTINUE,)
    return None


def _initials(here: Here) -> Only:
    """Of "D.C.": capitals with points between them are letters."""
    token, after = here.token, here.after
    one = len(token.text) == 1 and token.text.isupper()
    more = len(after) > 1 and here.follows(0, ".") and not after[1].space and _is_capital(after[1])
    if one and more:
        return ("LETTERS",)
    if not here.joins or here.before is None:
        return None
    if token.text == "." and here.last == "LETTERS" and _is_capital(here.before):
        goes_on = bool(after) and (_is_capital(after[0]) if here.joined else after[0].text.islower())
        return (CONTINUE,) if goes_on and len(here.rules) > 1 else None
    if one and here.before.text == "." and here.last == CONTINUE and here.head == "LETTERS":
        return ("LETTERS",)
    return None


def _is_capital(token: Token) -> bool:
    return len(token.text) == 1 and token.text.isupper()


def _half_day(here: Here) -> Only:
    """Of "a.m." behind a number, and of the point in "7.45 pm"."""
    text, timed = here.token.text.lower(), here.before is not None and here.before.is_number
    if timed and text in ("am", "pm"):
        return ("LETTERS",)
    if here.token.is_number and here.last == SKIP and here.before is not None and here.before.text == ".":
        return ("MINUTES",) if here.after and here.after[0].text.lower() in ("am", "pm", "a", "p") else None
    if timed and text in ("a", "p") and here.follows(0, ".") and here.follows(1, "m", "M"):
        return ("LETTERS",)
    if here.joins and here.head == "LETTERS" and "".join(_run(here)) in ("a", "p", "a.", "p.", "a.m", "p.m"):
        return (CONTINUE,) if text in (".", "m") else None
    if not timed or text != "." or not here.joined or len(here.after) < 2 or len(here.after[0].text) != 2:
        return None
    half = here.after[1].text.lower() in ("am", "pm") or (
        here.after[1].text.lower() in ("a", "p") and len(here.after) > 2 and here.after[2].text == "."
    )
    return (SKIP,) if half and here.after[0].is_number and int(here.after[0].text) < 60 else None


def _run(here: Here) -> list[str]:
    """Return what stands before it and is no number, back to white space or a number."""
    found: list[str] = []
    for token in reversed(here.tokens[: len(here.rules)]):
        if token.is_number:
            break
        found.insert(0, token.text.lower())
        if token.space:
            break
    return found


def _compass(here: Here) -> Only:
    if here.before is not None and here.before.text == "°" and here.token.text in ("N", "S", "E", "W"):
        return ("EXPAND",)
    return None


def _in_address(here: Here) -> Only:
    """Of what stands in an address behind its first parts, or before an @: every sign is said, digits one by one."""
    if here.before is None or here.token.space or here.last.startswith("EXPAND"):
        return None
    first = len(here.rules) - 1
    while first > 0 and not here.tokens[first].space:
        first -= 1
    run = "".join(token.text for token in here.tokens[first : len(here.rules)]).lower()
    known = any(part in run for part in _PARTS_OF_ADDRESSES) or any(
        rule == "SIGN" and token.text == "." and following.text.lower() in _DOMAINS
        for token, following, rule in zip(
            here.tokens[first:], here.tokens[first + 1 : len(here.rules)], here.rules[first:], strict=False
        )
    )
    ahead = "".join(token.text for token in here.after[:2] if not any(one.space for one in here.after[:2]))
    if not known and "@" not in ahead and here.token.text + ahead != "://" and run[-2:] not in (":/",):
        return None
    if here.token.is_number:
        return ("DIGITS",)
    if here.token.text.isalpha() or here.token.text not in SIGNS or not here.joined:
        return None
    return ("SIGN",)


def _unit(here: Here) -> Only:
    if here.before is None or here.token.text not in _BARE_UNITS or here.last not in (*NUMBER, "SIGN"):
        return None
    if here.token.text in ("min", "max") and here.follows(0, "."):
        return None
    if here.last == "SIGN":
        return ("UNIT",) if here.before.text in FRACTIONS else None
    return ("UNIT",) if here.token.space or here.before.is_number else None


def _continues(here: Here) -> Only:
    """Of what goes on right behind the token before it."""
    token, before, after = here.token, here.before, here.after
    if before is None or not here.joins:
        return None
    if (
        token.text == ","
        and here.joined
        and before.is_number
        and after[0].is_number
        and len(after[0].text) == 3
    ):
        return (CONTINUE,) if here.head in ("CARDINAL", "MONEY") else None
    if token.text == "." and here.last.startswith("EXPAND") and after:
        pointless = len(here.rules) > 1 and (
            here.rules[-2] == "TO" or here.tokens[len(here.rules) - 2].text == "°"
        )
        return None if pointless else (CONTINUE,)
    if (
        token.text == "."
        and here.last == CONTINUE
        and here.head == "EXPAND"
        and before.text.isalpha()
        and after
    ):
        return (CONTINUE,)  # the second of "e.g."
    if before.is_number and here.last == "ORDINAL" and token.text.lower() in _ORDINAL_ENDINGS:
        return (CONTINUE,)
    if token.text == "." and here.joined and here.head == "MONEY" and after[0].is_number:
        return (SKIP,) if after[0].text == "00" else ("AND",)
    if token.text == "." and here.joined and here.last in (PLAIN, "LETTERS"):
        return ("SIGN",) if after[0].text.lower() in _DOMAINS else None
    return None


_TELL: tuple[Callable[[Here], Only], ...] = (
    _in_address, _all_day, _height, _number, _money_word, _fraction_or_power, _title_or_street, _with_a_stroke,
    _half_day, _initials, _compass, _unit, _continues,
)  # fmt: skip
