"""The best rules of a text that fit each other: each token takes the best that its own signs and those before allow.

A tagger scores each token by itself, so that its best rules may contradict each other ("3/4" as MONTH, SKIP,
DENOMINATOR), or lose what is written. What is chosen is chosen from left to right and never changed: it streams.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mm_llama.voice.rules import CONTINUE, NAMES, PAUSE, PLAIN, SKIP, Reading, Unreadable
from mm_llama.voice.words import CURRENCIES, MONTHS, UNITS
from mm_llama.voice.written import Token

_NUMBER = ("CARDINAL", CONTINUE, "DIGITS")
# Rule: what must stand before it, the last of them nearest.
_BEHIND: dict[str, tuple[tuple[str, ...], ...]] = {
    "MINUTES": (("CARDINAL", SKIP),),
    "DENOMINATOR": (("CARDINAL", SKIP), ("AND_CARDINAL", SKIP)),
    "AND_CARDINAL": (("CARDINAL",), (CONTINUE,)),
    "AND": (("MONEY",), (CONTINUE,)),
    "CENTS": (("AND",),),
    "MONEY": ((SKIP,),),
    "MONEY_WORD": tuple((one,) for one in _NUMBER),
    "UNIT": tuple((one,) for one in (*_NUMBER, "UNIT", "PER", "DENOMINATOR")),
    "PER": (("UNIT",),),
    "POINT": tuple((one,) for one in _NUMBER),
    "TO": tuple((one,) for one in (*_NUMBER, "MINUTES", "YEAR", "LETTERS", "ORDINAL")),
    PAUSE: (("DIGITS",), (SKIP,)),
}
# What stands before: the rules that may follow, the longest of these that fits counts.
_AHEAD: dict[tuple[str, ...], tuple[str, ...]] = {
    ("MONTH",): (SKIP,),
    ("MONTH", SKIP): ("ORDINAL",),
    ("CARDINAL", SKIP): ("MINUTES", "DENOMINATOR"),
    ("AND_CARDINAL",): (SKIP,),
    ("AND_CARDINAL", SKIP): ("DENOMINATOR",),
    ("POINT",): ("DIGITS", "CARDINAL"),
    ("AND",): ("CENTS",),
    ("MINUS",): ("CARDINAL", "DIGITS"),
    ("PER",): ("UNIT",),
    ("TO",): ("CARDINAL", "YEAR", "DIGITS", "DECADE", "ORDINAL", "MONTH"),
    (PAUSE,): ("DIGITS",),
}
# The signs that these may stand for; what else they stood for would be lost.
_SIGNS = {
    "POINT": ".,",
    "AND": ".,",
    "PER": "/",
    "MINUS": "-−–",
    "TO": "-−–—:/",
    PAUSE: "-−–.)",
}
# The sign that stands before the second part of a number.
_DIVIDED_BY = {"DENOMINATOR": "/⁄", "MINUTES": ":."}
# Signs that are always said, and marks that are said between letters and digits alone.
_NEVER_SILENT, _MARKS = "&%=+@<>", ".,!?"
# What these shorten stands before a number, and these before a name: "No.", "St.".
_BEFORE_NUMBERS, _BEFORE_NAMES = ("no", "nos", "fig", "vol", "ch", "pp"), ("st", "dr")
_MONTHS = frozenset(month.lower()[:3] for month in MONTHS)
_ORDINAL_ENDINGS = ("st", "nd", "rd", "th")
_DOMAINS = ("com", "org", "net", "edu", "gov", "info", "io", "ai", "uk", "de", "eu", "fr", "us")
_LARGE = ("thousand", "million", "billion", "trillion", "k", "m", "bn", "mn")
# Units that are no English words: behind a number they are never read as they are written.
_BARE_UNITS = frozenset(UNITS) - {"m", "g", "in", "h", "s", "l", "L", "W", "V", "C", "F", "ms", "GB"}
# What may continue a number, and a shortened word.
_DIGITS_CONTINUE = ("CARDINAL", "MONEY", "ORDINAL", "DIGITS", "DECADE")
_LETTERS_CONTINUE = ("ORDINAL", "DECADE", "LETTERS", "EXPAND", "EXPAND_OTHER")


def fitting(tokens: Sequence[Token], scores_NR: Tensor, context: int = 0) -> list[str]:
    """Return the rule of each token by float[N, R] scores, which may depend on `context` tokens ahead.

    Raises ValueError when tokens and scores are not equally many.
    """
    if len(tokens) != len(scores_NR):
        raise ValueError(f"{len(tokens)} tokens of text have scores for {len(scores_NR)}")
    rules: list[str] = []
    for order in scores_NR.argsort(dim=-1, descending=True).tolist():
        rules.append(best_fitting(tokens[: len(rules) + 1 + context], rules, order))
    return rules


def best_fitting(tokens: Sequence[Token], rules: Sequence[str], order: Sequence[int]) -> str:
    """Return the first rule in `order`, numbers of rules, that fits behind `rules`; PLAIN where none does."""
    return next((NAMES[number] for number in order if fits(tokens, rules, NAMES[number])), PLAIN)


def fits(tokens: Sequence[Token], rules: Sequence[str], rule: str) -> bool:
    """True when `rule` may be that of the token behind those that have `rules`; `tokens` are all that are known."""
    place, token = len(rules), tokens[len(rules)]
    if (only := _only(tokens, rules)) is not None:
        return rule in only
    if rule == PLAIN:
        return not token.is_number and token.text not in _NEVER_SILENT  # digits are said in words
    if not _stands_for(tokens, rules, rule, token):
        return False
    if (before := _BEHIND.get(rule)) and not any(_ends_with(rules, one) for one in before):
        return False
    for length in (2, 1):
        last = tuple(rules[-length:])
        if last == ("CARDINAL", SKIP) and tokens[place - 1].text not in "/⁄:":
            continue  # a sign that is not said stands behind a number, and divides nothing
        allowed = _AHEAD.get(last) if len(rules) >= length else None
        if allowed is not None:
            if rule not in allowed:
                return False
            break
    if rule == "ORDINAL" and _ends_with(rules, (SKIP,)) and not _ends_with(rules, ("MONTH", SKIP)):
        return False
    if rule in _DIVIDED_BY and tokens[place - 1].text not in _DIVIDED_BY[rule]:
        return False
    try:
        Reading(tokens[: place + 1], [*rules, rule]).of(place)
    except Unreadable:
        # "e" of "e.g." is in no table before what continues it is known.
        return rule.startswith("EXPAND") and token.text.isalpha() and len(token.text) == 1
    return True


def _only(tokens: Sequence[Token], rules: Sequence[str]) -> tuple[str, ...] | None:
    """Return the rules of which one has to be that of a token because of how it is written; None: any may."""
    place, token = len(rules), tokens[len(rules)]
    before = tokens[place - 1] if place else None
    after = tokens[place + 1 : place + 4]
    joined = bool(after) and not after[0].space  # the next token stands right behind
    if token.is_number:
        if before is not None and before.text == "," and rules[-1] == CONTINUE:
            return (CONTINUE,)
        if joined and after[0].text.lower() in _ORDINAL_ENDINGS:
            return ("ORDINAL",)
        if after and after[0].text in CURRENCIES and (len(after) < 2 or not after[1].is_number):
            return ("MONEY",)
        if before is not None and before.text == "." and token.text == "00" and rules[-1] == SKIP:
            return (SKIP,)
        if (
            before is not None
            and before.text in CURRENCIES
            and not token.space
            and rules[-1] == SKIP
            and after
        ):
            large = any(one.text.lower() in _LARGE for one in after)
            return ("CARDINAL",) if large else ("MONEY",)
        return None
    if token.text in ("Dr", "St") and joined and after[0].text == ".":
        named_before = before is not None and before.text.isalpha() and before.text[0].isupper()
        named_after = len(after) > 1 and after[1].text.isalpha() and after[1].text[0].isupper()
        if named_before != named_after:  # Doctor and Saint stand before a name, Drive and Street behind one
            return ("EXPAND",) if named_after else ("EXPAND_OTHER",)
    if before is None or token.space:
        if before is not None and token.text in _BARE_UNITS and rules[-1] in _NUMBER:
            return ("UNIT",)
        return None
    if token.text == "," and joined and before.is_number and after[0].is_number and len(after[0].text) == 3:
        return (CONTINUE,) if _head(rules) in ("CARDINAL", "MONEY") else None
    if token.text == "." and rules[-1].startswith("EXPAND") and after:
        return (CONTINUE,)
    if before.is_number and rules[-1] == "ORDINAL" and token.text.lower() in _ORDINAL_ENDINGS:
        return (CONTINUE,)
    if token.text in _BARE_UNITS and rules[-1] in _NUMBER and before.is_number:
        return ("UNIT",)
    if token.text == "." and joined and _head(rules) == "MONEY" and after[0].is_number:
        return (SKIP,) if after[0].text == "00" else ("AND",)
    if token.text == "." and joined and rules[-1] == PLAIN and after[0].text.lower() in _DOMAINS:
        return ("SIGN",)
    return None


def _stands_for(tokens: Sequence[Token], rules: Sequence[str], rule: str, token: Token) -> bool:
    if rule in _SIGNS:
        return token.text in _SIGNS[rule]
    if rule == SKIP:  # a word is never left out, and of numbers no cents alone
        if token.text in _NEVER_SILENT:
            return False
        return not token.text.isalnum() or (token.text == "00" and _ends_with(rules, (SKIP,)))
    if rule == "SIGN" and token.text in _MARKS:
        place = len(rules)
        joined = place > 0 and not token.space and tokens[place - 1].text.isalnum()
        return joined and not (place + 1 < len(tokens) and tokens[place + 1].space)
    after = tokens[len(rules) + 1 : len(rules) + 4]
    if rule == "EXPAND_OTHER":  # a street has a name before it
        return len(rules) > 0 and tokens[len(rules) - 1].text.isalpha()
    if rule == "EXPAND" and token.text.lower() in _BEFORE_NUMBERS:
        return not after or any(one.is_number for one in after[:2])
    if rule == "EXPAND" and token.text.lower() in _BEFORE_NAMES:
        return not after or (len(after) > 1 and after[1].text[:1].isupper())
    if rule == "DECADE":
        return not after or after[0].text.lower() == "s"
    if rule == "ORDINAL_OF":
        return not after or after[0].text.lower()[:3] in _MONTHS
    if rule == "MONEY":
        return len(rules) > 0 and tokens[len(rules) - 1].text in CURRENCIES
    if rule == "LETTERS":
        return token.text.isalpha()
    if rule == CONTINUE and token.space:
        return False
    if rule == CONTINUE:
        head = _head(rules)
        if token.is_number:
            return head in _DIGITS_CONTINUE
        return head in _LETTERS_CONTINUE or (head in _DIGITS_CONTINUE and token.text in ",.")
    return True


def _head(rules: Sequence[str]) -> str:
    """Return the last rule that continues no other."""
    return next((rule for rule in reversed(rules) if rule != CONTINUE), "")


def _ends_with(rules: Sequence[str], last: tuple[str, ...]) -> bool:
    return tuple(rules[-len(last) :]) == last
