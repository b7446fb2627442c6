"""The best rules of a text that fit each other: each token takes the best that its own signs and those before allow.

A tagger scores each token by itself, so that its best rules may contradict each other ("3/4" as MONTH, SKIP,
DENOMINATOR), or lose what is written. What is chosen is chosen from left to right and never changed: it streams.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mm_llama.voice.rules import CONTINUE, NAMES, PAUSE, PLAIN, SKIP, Reading, Unreadable
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
    PAUSE: "-−–.) ",
}
# What may continue a number, and a shortened word.
_DIGITS_CONTINUE = ("CARDINAL", "MONEY", "ORDINAL", "DIGITS", "DECADE")
_LETTERS_CONTINUE = ("ORDINAL", "DECADE", "LETTERS", "EXPAND", "EXPAND_OTHER")


def fitting(tokens: Sequence[Token], scores_NR: Tensor) -> list[str]:
    """Return the rule of each token by float[N, R] scores. Raises ValueError when they are not equally many."""
    if len(tokens) != len(scores_NR):
        raise ValueError(f"{len(tokens)} tokens of text have scores for {len(scores_NR)}")
    rules: list[str] = []
    for order in scores_NR.argsort(dim=-1, descending=True).tolist():
        rules.append(next(NAMES[number] for number in order if fits(tokens, rules, NAMES[number])))
    return rules


def fits(tokens: Sequence[Token], rules: Sequence[str], rule: str) -> bool:
    """True when `rule` may be that of the token behind those that have `rules`; PLAIN always may."""
    if rule == PLAIN:
        return True
    place, token = len(rules), tokens[len(rules)]
    if not _stands_for(tokens, rules, rule, token):
        return False
    if (before := _BEHIND.get(rule)) and not any(_ends_with(rules, one) for one in before):
        return False
    for length in (2, 1):
        allowed = _AHEAD.get(tuple(rules[-length:])) if len(rules) >= length else None
        if allowed is not None:
            if rule not in allowed:
                return False
            break
    if rule == "ORDINAL" and _ends_with(rules, (SKIP,)) and not _ends_with(rules, ("MONTH", SKIP)):
        return False
    try:
        Reading(tokens[: place + 1], [*rules, rule]).of(place)
    except Unreadable:
        # "e" of "e.g." is in no table before what continues it is known.
        return rule.startswith("EXPAND") and token.text.isalpha() and len(token.text) == 1
    return True


def _stands_for(tokens: Sequence[Token], rules: Sequence[str], rule: str, token: Token) -> bool:
    if rule in _SIGNS:
        return token.text in _SIGNS[rule]
    if rule == SKIP:  # a word is never left out, and of numbers no cents alone
        return not token.text.isalnum() or (token.text == "00" and _ends_with(rules, (SKIP,)))
    if rule == CONTINUE:
        place = len(rules) - 1
        while place > 0 and rules[place] == CONTINUE:
            place -= 1
        head = rules[place] if rules else ""
        if token.is_number:
            return head in _DIGITS_CONTINUE
        return head in _LETTERS_CONTINUE or (head in _DIGITS_CONTINUE and token.text in ",.")
    return True


def _ends_with(rules: Sequence[str], last: tuple[str, ...]) -> bool:
    return tuple(rules[-len(last) :]) == last
