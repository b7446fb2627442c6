"""The best rules of a text that fit each other: each token takes the best that its own signs and those before allow.

A tagger scores each token by itself, so that its best rules may contradict each other ("3/4" as MONTH, SKIP,
DENOMINATOR), or lose what is written. What is chosen is chosen from left to right and never changed: it streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from mm_llama.voice.certain import NUMBER, Here, certain
from mm_llama.voice.rules import CONTINUE, NAMES, PAUSE, PLAIN, SKIP, Reading, Unreadable, roman
from mm_llama.voice.words import ABBREVIATIONS, CURRENCIES, MONTHS, SIGNS
from mm_llama.voice.written import Token

# What a range may begin with: the last rule of it.
_ENDS_OF_RANGES = (
    *NUMBER, "MINUTES", "YEAR", "LETTERS", "ORDINAL", "EXPAND", "SIGN", "UNIT", "MONEY", "CENTS", "ROMAN_CARDINAL",
)  # fmt: skip
# Rule: what must stand before it, the last of them nearest.
_BEHIND: dict[str, tuple[tuple[str, ...], ...]] = {
    "MINUTES": (("CARDINAL", SKIP),),
    "DENOMINATOR": (("CARDINAL", SKIP), ("AND_CARDINAL", SKIP)),
    "AND_CARDINAL": (("CARDINAL",), (CONTINUE,)),
    "AND": (("MONEY",), (CONTINUE,)),
    "CENTS": (("AND",),),
    "MONEY": ((SKIP,), ("TO",)),
    "LARGE": tuple((one,) for one in NUMBER),
    "BY": tuple((one,) for one in NUMBER),
    "OVER": tuple((one,) for one in NUMBER),
    "OUT_OF": tuple((one,) for one in NUMBER),
    "MONEY_WORD": tuple((one,) for one in NUMBER),
    "UNIT": tuple((one,) for one in (*NUMBER, "UNIT", "PER", "DENOMINATOR")),
    "PER": (("UNIT",),),
    "POINT": tuple((one,) for one in NUMBER),
    "TO": tuple((one,) for one in _ENDS_OF_RANGES),
    PAUSE: (("DIGITS",), (SKIP,)),
}
# What stands before: the rules that may follow, the longest of these that fits counts.
_AHEAD: dict[tuple[str, ...], tuple[str, ...]] = {
    ("MONTH",): (SKIP,),
    ("MONTH", SKIP): ("ORDINAL",),
    ("CARDINAL", SKIP): ("MINUTES", "DENOMINATOR", "CARDINAL"),
    ("AND_CARDINAL",): (SKIP,),
    ("AND_CARDINAL", SKIP): ("DENOMINATOR",),
    ("POINT",): ("DIGITS", "CARDINAL"),
    ("AND",): ("CENTS",),
    ("MINUS",): ("CARDINAL", "DIGITS"),
    ("PER",): ("UNIT",),
    ("TO",): (
        "CARDINAL", "YEAR", "DIGITS", "DECADE", "ORDINAL", "MONTH", "MINUS", "MONEY", "EXPAND", "ROMAN_CARDINAL", SKIP,
    ),
    ("BY",): ("CARDINAL",),
    ("OVER",): ("CARDINAL",),
    ("OUT_OF",): ("CARDINAL",),
    (PAUSE,): ("DIGITS",),
}  # fmt: skip
# The signs that these may stand for; what else they stood for would be lost.
_SIGNS = {
    "POINT": ".,",
    "AND": ".,",
    "PER": "/",
    "MINUS": "-−–",
    "TO": "-−–—:/",
    PAUSE: "-−–.)",
    "BY": "xX×*",
    "OVER": "/⁄",
    "OUT_OF": "/⁄",
}
# The sign that stands before the second part of a number.
_DIVIDED_BY = {"DENOMINATOR": "/⁄", "MINUTES": ":."}
# Signs that are always said, signs that are said between numbers, and marks between letters and digits alone.
_NEVER_SILENT, _BETWEEN_NUMBERS, _MARKS = "&%=+@<>≤≥≈±×÷", "-−–:/.*", ".,!?"
_PAUSES = "';:,.!?—…\"()“”’‘-–"  # signs that part what stands beside them even when they are not named
# What these shorten stands before a number, and these before a name: "No.", "St.".
_BEFORE_NUMBERS, _BEFORE_NAMES = ("no", "nos", "fig", "vol", "ch", "pp", "p", "figs", "vols"), ("st", "dr")
_MONTHS = frozenset(month.lower()[:3] for month in MONTHS)
_CALENDAR = _MONTHS | {"sept", "mon", "tue", "tues", "wed", "thu", "thur", "thurs", "fri", "sat", "sun"}
# What is shortened without a point behind it as well.
_NO_POINT = (
    "dr",
    "mr",
    "mrs",
    "ms",
    "st",
    "prof",
    "vs",
    "#",
    "jr",
    "sr",
    "mt",
    "ft",
    "lt",
    "capt",
    "sgt",
    "etc",
    "ave",
)
_INCHES_AND_FEET = "'’′\"”″"
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
    if (only := certain(tokens, rules)) is not None:
        return rule in only
    if rule == PLAIN:  # digits are said in words
        here = Here(tokens, rules)
        return not token.is_number and not _is_said(here) and not _is_numeral(here)
    if not _stands_for(tokens, rules, rule, token):
        return False
    if (before := _BEHIND.get(rule)) and not any(_ends_with(rules, one) for one in before):
        return False
    if rule in ("CARDINAL", "DENOMINATOR") and _ends_with(rules, ("CARDINAL", SKIP)):
        divided, same = tokens[place - 1].text, tokens[place - 2].text == token.text
        if rule == "DENOMINATOR" and same or rule == "CARDINAL" and divided == ":":
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


def _is_said(here: Here) -> bool:
    """Whether something would be lost, or two words be one, if a sign were not said."""
    text, before, after = here.token.text, here.before, here.after
    beside = [one.text for one in (before, *after[:1]) if one is not None]
    if text in _NEVER_SILENT:
        return text not in beside  # "====" is a line
    if before is None or not after:
        return False
    if before.is_number and after[0].is_number and text in _BETWEEN_NUMBERS:
        return text in "/*" or (here.joins and here.joined)
    words = before.text.isalnum() and after[0].text.isalnum()
    return words and here.joins and here.joined and text in SIGNS and text not in _PAUSES


def _is_numeral(here: Here) -> bool:
    """Whether it is a Roman numeral that is no word and no name: "II", "LVIII"."""
    text, behind = here.token.text, here.before is not None and here.before.text.isalpha()
    in_code = (
        not here.after or here.after[0].is_number or (here.joined and here.after[0].text not in ".,;:!?)")
    )
    if not behind or in_code or len(text) < 2 or not (set(text) <= set("IVX") or len(text) > 3):
        return False
    try:
        return roman(text) > 0
    except Unreadable:
        return False


def _stands_for(tokens: Sequence[Token], rules: Sequence[str], rule: str, token: Token) -> bool:
    here = Here(tokens, rules)
    if rule in _SIGNS and token.text not in _SIGNS[rule]:
        return False
    special = _STANDS_FOR.get(rule)
    return special is None or special(here)


def _skip(here: Here) -> bool:
    """A word is never left out, and of numbers no cents alone."""
    text = here.token.text
    if text in (*_NEVER_SILENT, "_") or (here.last == "TO" and text not in CURRENCIES):
        return False
    return not text.isalnum() or (text == "00" and here.last == SKIP)


def _sign(here: Here) -> bool:
    if here.token.text == "x":
        return here.before is not None and here.before.is_number
    if here.token.text not in _MARKS:
        numbers = (
            here.before is not None and here.before.is_number and bool(here.after) and here.after[0].is_number
        )
        return not (numbers and here.joined and here.token.text in "-–")
    if here.before is None or not here.joins or not here.before.text.isalnum():
        return False
    if here.before.is_number and here.after and here.after[0].is_number:
        # Of the address of a machine: a decimal has a point, and in a telephone number there is a pause.
        return here.last == "DIGITS" and PAUSE not in here.rules[-2:] and len(here.after[0].text) < 4
    return not (here.after and here.after[0].space)


def _to(here: Here) -> bool:
    if (
        here.last == "LETTERS"
        and here.before is not None
        and here.before.text.lower() not in ("am", "pm", "m")
    ):
        return False
    if not here.after:
        return True
    following = here.after[0]
    return (
        following.is_number
        or following.text in (*CURRENCIES, "-", "−")
        or following.text.lower() in _CALENDAR
        or (here.last == "ROMAN_CARDINAL" and following.text.isupper())
    )


def _money(here: Here) -> bool:
    if here.before is not None and here.before.text in CURRENCIES:
        return True
    return here.last == "TO" and any(one.text in CURRENCIES for one in here.tokens[: len(here.rules)][-6:])


def _expand(here: Here) -> bool:
    text, after = here.token.text.lower(), here.after
    if not after:
        return True
    point = here.joined and after[0].text == "."
    if text in _CALENDAR and not point:
        dated = after[0].is_number or after[0].text in "-–" or here.last in ("TO", "ORDINAL_OF")
        return dated and here.token.text[0].isupper()
    if text in ABBREVIATIONS and text not in _NO_POINT and not point:
        return False
    if text in _BEFORE_NUMBERS:
        return any(one.is_number for one in after[:2])
    if text in _BEFORE_NAMES:
        return len(after) > 1 and after[1].text[:1].isupper()
    if text == "al":
        return here.before is not None and here.before.text == "et"
    if text == "v":
        return here.before is not None and here.before.text[0].isupper() and here.token.text == "v"
    if text in ("n", "s", "e", "w") and len(after) > 1 and (after[1].space or not after[1].text.isalpha()):
        return here.token.text.isupper() and here.before is not None and here.before.is_number
    return True


def _letters(here: Here) -> bool:
    """A word in small letters is not spelled, but for short ones and those that nobody could say; nor is a numeral."""
    text = here.token.text
    in_small = here.before is not None and here.before.text.islower()
    if not text.isalpha() or (_is_numeral(here) and not (text == "IV" and in_small)):  # "an IV drip"
        return False
    word = text.islower() or (text[1:].islower() and len(text) > 2)
    return not word or len(text) < 3 or text == "html" or not set(text.lower()) & set("aeiouy")


def _roman(here: Here) -> bool:
    """Behind a word, or at the end of a range; "I" may be the speaker's, and "X" of "X-100" is a letter."""
    text, behind = here.token.text, here.before is not None and here.before.text.isalpha()
    if here.joined and here.after[0].text in "-–":
        return behind and len(text) > 1
    if text == "I" and here.joined and here.after[0].text in "'’":
        return False
    return behind or here.last == "TO"


def _unit(here: Here) -> bool:
    if here.token.text not in _INCHES_AND_FEET:
        return True
    return here.joins and not (here.joined and here.after[0].text.isalpha())


def _decade(here: Here) -> bool:
    after = here.after
    return not after or after[0].text.lower() == "s" or (after[0].text in "'’" and here.joined)


def _continue(here: Here) -> bool:
    if here.token.space or here.token.text in _NEVER_SILENT:
        return False
    if here.token.is_number:
        return here.head in _DIGITS_CONTINUE
    return here.head in _LETTERS_CONTINUE or (here.head in _DIGITS_CONTINUE and here.token.text in ",.")


# Rule: what it may stand for. "EXPAND_OTHER": a street has a name before it.
_STANDS_FOR: dict[str, Callable[[Here], bool]] = {
    SKIP: _skip,
    "SIGN": _sign,
    "POINT": lambda here: not here.after or (here.joined and here.after[0].is_number),
    "TO": _to,
    "MONEY": _money,
    "EXPAND": _expand,
    "EXPAND_OTHER": lambda here: here.before is not None and here.before.text.isalpha(),
    "LETTERS": _letters,
    "ROMAN_CARDINAL": _roman,
    "ROMAN_ORDINAL": _roman,
    "UNIT": _unit,
    "DECADE": _decade,
    "LARGE": lambda here: here.joins,
    "ORDINAL_OF": lambda here: not here.after or here.after[0].text.lower()[:3] in _MONTHS,
    CONTINUE: _continue,
}


def _ends_with(rules: Sequence[str], last: tuple[str, ...]) -> bool:
    return tuple(rules[-len(last) :]) == last
