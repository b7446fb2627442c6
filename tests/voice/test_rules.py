"""What is written is said as it should be, rule by rule, and nothing of a text is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_llama.voice.rules import NAMES, Reading, Unreadable, in_words, roman, said
from mm_llama.voice.written import split

CASES = {
    "$12.50": ("SKIP MONEY AND CENTS", "twelve dollars and fifty cents"),
    "£1.01": ("SKIP MONEY AND CENTS", "one pound and one penny"),
    "It costs $1,234.": (
        "PLAIN PLAIN SKIP MONEY CONTINUE CONTINUE PLAIN",
        "It costs one thousand two hundred and thirty four dollars.",
    ),
    "€5 million": ("SKIP CARDINAL MONEY_WORD", "five million euros"),
    "2 1/2 cups": ("CARDINAL AND_CARDINAL SKIP DENOMINATOR PLAIN", "two and a half cups"),
    "3 3/4": ("CARDINAL AND_CARDINAL SKIP DENOMINATOR", "three and three quarters"),
    "1/2": ("CARDINAL SKIP DENOMINATOR", "one half"),
    "on 1/2": ("PLAIN MONTH SKIP ORDINAL", "on January second"),
    "2015-03-14": ("YEAR SKIP MONTH SKIP ORDINAL", "twenty fifteen March fourteenth"),
    "5 May": ("ORDINAL_OF PLAIN", "the fifth of May"),
    "at 3:05 pm": ("PLAIN CARDINAL SKIP MINUTES LETTERS", "at three oh five P M"),
    "at 3:00.": ("PLAIN CARDINAL SKIP MINUTES PLAIN", "at three o'clock."),
    "at 3:00 am.": ("PLAIN CARDINAL SKIP MINUTES LETTERS PLAIN", "at three A M."),
    "won 3:1": ("PLAIN CARDINAL TO CARDINAL", "won three to one"),
    "Henry VIII": ("PLAIN ROMAN_ORDINAL", "Henry the eighth"),
    "World War II": ("PLAIN PLAIN ROMAN_CARDINAL", "World War two"),
    "Dr. Smith of Elm Dr.": (
        "EXPAND CONTINUE PLAIN PLAIN PLAIN EXPAND_OTHER CONTINUE",
        "Doctor Smith of Elm Drive",
    ),
    "the U.S., e.g. Ohio": (
        "PLAIN LETTERS CONTINUE CONTINUE CONTINUE PLAIN EXPAND CONTINUE CONTINUE CONTINUE PLAIN",
        "the U S, for example Ohio",
    ),
    "90 km/h": ("CARDINAL UNIT PER UNIT", "ninety kilometers per hour"),
    "1 kg": ("CARDINAL UNIT", "one kilogram"),
    "1.5kg": ("CARDINAL POINT DIGITS UNIT", "one point five kilograms"),
    "-5°C": ("MINUS CARDINAL UNIT UNIT", "minus five degrees Celsius"),
    "the 1980s": ("PLAIN DECADE CONTINUE", "the nineteen eighties"),
    "the 1900s": ("PLAIN DECADE CONTINUE", "the nineteen hundreds"),
    "in 1905": ("PLAIN YEAR", "in nineteen oh five"),
    "room 101": ("PLAIN DIGITS", "room one zero one"),
    "555-0123 now": ("DIGITS PAUSE DIGITS PLAIN", "five five five, zero one two three now"),
    "mary@example.com": ("PLAIN SIGN PLAIN SIGN PLAIN", "mary at example dot com"),
    "A&B": ("PLAIN SIGN PLAIN", "A and B"),
    "21st": ("ORDINAL CONTINUE", "twenty first"),
    "#5": ("EXPAND CARDINAL", "number five"),
    "20%.": ("CARDINAL SIGN PLAIN", "twenty percent."),
    "'90s": ("SKIP DECADE CONTINUE", "nineties"),
    "the 1980's": ("PLAIN DECADE CONTINUE CONTINUE", "the nineteen eighties"),
    "100s of cats": ("DECADE CONTINUE PLAIN PLAIN", "hundreds of cats"),
    "open 24/7": ("PLAIN CARDINAL SKIP CARDINAL", "open twenty four seven"),
    "5'10\"": ("CARDINAL UNIT CARDINAL UNIT", "five feet ten inches"),
    "1'": ("CARDINAL UNIT", "one foot"),
    "8/10": ("CARDINAL OUT_OF CARDINAL", "eight out of ten"),
    "120/80": ("CARDINAL OVER CARDINAL", "one hundred and twenty over eighty"),
    "8x10": ("CARDINAL BY CARDINAL", "eight by ten"),
    "3x": ("CARDINAL SIGN", "three times"),
    "1.2M views": ("CARDINAL POINT DIGITS LARGE PLAIN", "one point two million views"),
    "$80k": ("SKIP CARDINAL MONEY_WORD", "eighty thousand dollars"),
    "$5-10": ("SKIP CARDINAL TO MONEY", "five to ten dollars"),
    "99¢": ("CARDINAL UNIT", "ninety nine cents"),
    "50 m²": ("CARDINAL UNIT CONTINUE", "fifty square meters"),
    "x²": ("PLAIN SIGN", "x squared"),
    "1½ cups, ½ km": ("CARDINAL SIGN PLAIN PLAIN SIGN UNIT", "one and a half cups, one half kilometer"),
    "at 14:00": ("PLAIN CARDINAL SKIP MINUTES", "at fourteen hundred"),
    "tea w/o milk": ("PLAIN EXPAND CONTINUE CONTINUE PLAIN", "tea without milk"),
    "John's (old) hat, 'tis": ("PLAIN " * 10, "John's (old) hat, 'tis"),
}


@pytest.mark.parametrize("text", CASES)
def test_a_text_is_said(text: str) -> None:
    rules, spoken = CASES[text]
    assert said(text, rules.split()) == spoken


def test_every_rule_is_shown() -> None:
    used = {rule for rules, _ in CASES.values() for rule in rules.split()}
    assert used == set(NAMES)


def test_numbers_are_said_in_other_languages() -> None:
    assert said("21 Leute", ["CARDINAL", "PLAIN"], "de") == "einundzwanzig Leute"
    assert said("21 personnes", ["ORDINAL", "PLAIN"], "fr") == "vingt et unième personnes"
    with pytest.raises(Unreadable, match="no cardinal words for 5 in 'xx'"):
        in_words(5, language="xx")


def test_a_rule_without_a_reading_leaves_the_token_as_it_is_written() -> None:
    assert said("the 13/5", ["PLAIN", "MONTH", "SKIP", "ORDINAL"]) == "the 13 fifth"
    assert said("IIII cats", ["ROMAN_CARDINAL", "EXPAND"]) == "IIII cats"
    assert said("99", ["MONEY"]) == "99"
    with pytest.raises(Unreadable, match="'IIII' is no Roman numeral"):
        roman("IIII")


def test_wrong_rules_are_named() -> None:
    with pytest.raises(ValueError, match="2 tokens of text have 1 rules"):
        said("5 cats", ["CARDINAL"])
    with pytest.raises(ValueError, match="there is no rule 'NUMBER'"):
        said("5", ["NUMBER"])


@pytest.mark.parametrize("value", [1, 4, 9, 14, 40, 90, 400, 944, 1666, 1999, 2024, 3999])
def test_roman_numerals(value: int) -> None:
    numerals = {1000: "M", 900: "CM", 500: "D", 400: "CD", 100: "C", 90: "XC", 50: "L", 40: "XL"}
    text, rest = "", value
    for size, letters in (numerals | {10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"}).items():
        text += letters * (rest // size)
        rest %= size
    assert roman(text) == value


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=60))
def test_tokens_and_white_space_are_the_whole_text(text: str) -> None:
    tokens = split(text)
    place = 0
    for token in tokens:
        assert text[place : token.start].strip() == "" and token.space == (token.start > place)
        assert token.text == text[token.start : token.end] and not re.search(r"\s", token.text)
        place = token.end
    assert text[place:].strip() == ""
    # Read as it is written, no character but white space changes.
    plain = Reading(tokens, ["PLAIN"] * len(tokens)).text()
    assert plain == " ".join(text.split())


@given(st.text(max_size=20), st.lists(st.sampled_from(NAMES), max_size=20))
def test_no_rules_on_any_text_end_in_an_error(text: str, rules: list[str]) -> None:
    tokens = split(text)
    chosen = (rules or ["PLAIN"]) * len(tokens)
    assert isinstance(Reading(tokens, chosen[: len(tokens)]).text(), str)


def test_letters_digits_and_signs_are_apart() -> None:
    assert [token.text for token in split("iPhone15: $3.50  naïve—ok")] == [
        "iPhone", "15", ":", "$", "3", ".", "50", "naïve", "—", "ok",
    ]  # fmt: skip
