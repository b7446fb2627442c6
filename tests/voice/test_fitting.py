"""Rules that are chosen together can be read together, and nothing that is written is lost."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm_llama.data.normalization import rows
from mm_llama.eval.hand_checked import Checked, sentences, spoken_words, summary
from mm_llama.voice.fitting import fits, fitting
from mm_llama.voice.rules import NAMES, Reading
from mm_llama.voice.written import split

REAL = [
    f"This is the {word} sentence here."
    for word in ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]
]


def test_the_rules_of_every_row_fit() -> None:
    for name in ("train", "holdout", "test"):
        for row in rows(name, 700, REAL):
            tokens = split(row["messages"][1]["content"])
            rules = row["extra"]["labels"]["rules"].split()
            for place, rule in enumerate(rules):
                for context in (0, 3):
                    known = tokens[: place + 1 + context]
                    assert fits(known, rules[:place], rule), (
                        row["messages"][1]["content"],
                        tokens[place],
                        rule,
                    )


def scores(tokens: int, wanted: dict[int, str], seed: int = 0) -> torch.Tensor:
    found = torch.randn(tokens, len(NAMES), generator=torch.Generator().manual_seed(seed))
    for place, rule in wanted.items():
        found[place, NAMES.index(rule)] = 50.0
    return found


CASES = {
    "on 3/4": ({0: "PLAIN", 1: "MONTH", 2: "SKIP", 3: "DENOMINATOR"}, "on March fourth"),
    "$12.50": ({0: "SKIP", 1: "MONEY", 2: "SKIP", 3: "MONEY"}, "twelve dollars and fifty cents"),
    "$7.25": ({0: "SKIP", 1: "CARDINAL", 2: "AND", 3: "CENTS"}, "seven dollars and twenty five cents"),
    "$2.5 million": (
        {0: "SKIP", 1: "MONEY", 2: "POINT", 3: "DIGITS", 4: "MONEY_WORD"},
        "two point five million dollars",
    ),
    "the 2nd": ({0: "PLAIN", 1: "CARDINAL", 2: "LETTERS"}, "the second"),
    "50 min": ({0: "CARDINAL", 1: "PLAIN"}, "fifty minutes"),
    "museum.org": ({0: "PLAIN", 1: "PLAIN", 2: "PLAIN"}, "museum dot org"),
    "Dr. King": ({0: "EXPAND_OTHER", 1: "SKIP", 2: "PLAIN"}, None),
    "a word": ({0: "SKIP", 1: "CONTINUE"}, None),
}


@pytest.mark.parametrize("text", CASES)
def test_rules_that_contradict_each_other_are_not_chosen(text: str) -> None:
    wanted, truth = CASES[text]
    tokens = split(text)
    rules = fitting(tokens, scores(len(tokens), wanted), context=3)
    if truth is not None:
        assert Reading(tokens, rules).text() == truth
    for place in range(len(tokens)):
        assert fits(tokens[: place + 4], rules[:place], rules[place])
    if text == "Dr. King":
        assert rules[0] != "EXPAND_OTHER"
    if text == "a word":
        assert not {"SKIP", "CONTINUE"} & set(rules)


@given(st.text(alphabet="ab 12/.,:$-%k", min_size=1, max_size=24), st.integers(0, 10**6))
def test_whatever_a_tagger_says_no_word_is_lost(text: str, seed: int) -> None:
    tokens = split(text)
    rules = fitting(tokens, scores(len(tokens), {}, seed), context=3)
    assert len(rules) == len(tokens)
    assert not any(
        rule == "SKIP" and token.text.isalnum() and token.text != "00"
        for token, rule in zip(tokens, rules, strict=True)
    )
    said = Reading(tokens, rules).text()
    if any(token.text.isalnum() and token.text != "00" for token in tokens):
        assert any(character.isalnum() for character in said)


def test_a_look_ahead_of_its_own_makes_rules_that_stream() -> None:
    """With more of a text known than the context nothing changes."""
    random = Random(0)
    for row in rows("train", 60, REAL, seed=1):
        tokens = split(row["messages"][1]["content"])
        found = scores(len(tokens), {}, random.randrange(1000))
        whole = fitting(tokens, found, context=3)
        for cut in range(4, len(tokens), 5):
            part = fitting(tokens[:cut], found[:cut], context=3)
            assert part[: cut - 3] == whole[: cut - 3]


def test_hand_checked_sentences_are_two_hundred_and_are_compared_by_their_words() -> None:
    found = sentences()
    assert len(found) == len({text for text, _, _ in found}) == 200
    assert not any(character.isdigit() for _, truth, _ in found for character in truth)
    one = Checked("At 3 pm", "At three P M.", "at three pm", said="at three P-M")
    other = Checked("It is 204", "It is two hundred and four", "it is two hundred four", said="It is 204")
    assert one.right and not other.right and spoken_words("Twenty-one, it's!") == ["twenty", "one", "it's"]
    numbers = summary([one, other])
    assert numbers["right"]["correct"] == 1 and numbers["grammars_right"]["correct"] == 1


SAID = {
    "Dr. King lives on King Dr. today.": "Doctor King lives on King Drive today.",
    "5€": "five euros",
    "$1,000.00": "one thousand dollars",
    "No. He said so.": "No. He said so.",
    "a = b": "a equals b",
    "It is 24/7 here": "It is twenty four seven here",
    "He is 5'10\" tall.": "He is five feet ten inches tall.",
    "Q&A": "Q and A",
    "at 7.45 pm or 8 a.m. now": "at seven forty five P M or eight A M now",
    "agent 007": "agent zero zero seven",
    "1½ cups": "one and a half cups",
    "tea w/ milk, w/o sugar": "tea with milk, without sugar",
    "in Washington, D.C. now": "in Washington, D C now",
    "99¢ or 20 USD": "ninety nine cents or twenty U S dollars",
    "$3.5M": "three point five million dollars",
    "ask jane_doe@mail.com": "ask jane underscore doe at mail dot com",
    "www.a.com/2024/x": "www dot a dot com slash two zero two four slash x",
    "1.5% of it (2.5%)": "one point five percent of it (two point five percent)",
}


@pytest.mark.parametrize("text", SAID)
def test_what_the_signs_alone_tell_is_read_whatever_a_tagger_says(text: str) -> None:
    """Scores that prefer what is most often right in training, and none of what makes the difference."""
    tokens = split(text)
    wanted = {
        place: "CARDINAL" if token.is_number else {".": "POINT", "%": "SIGN"}.get(token.text, "PLAIN")
        for place, token in enumerate(tokens)
    }
    found = torch.zeros(len(tokens), len(NAMES))
    for place, rule in wanted.items():
        found[place, NAMES.index(rule)] = 2.0
    for rule, least in (("PLAIN", 1.0), ("SIGN", 0.5), ("SKIP", 0.2), ("CONTINUE", 0.1), ("EXPAND", 0.9)):
        found[:, NAMES.index(rule)] += least
    for place, token in enumerate(tokens):
        if token.text in "$€,(":
            found[
                place,
                NAMES.index("SKIP" if token.text in "$€" else "CONTINUE" if token.text == "," else "PLAIN"),
            ] += 5
        if place and tokens[place - 1].text == "." and token.is_number:
            found[place, NAMES.index("DIGITS")] += 5
    assert Reading(tokens, fitting(tokens, found, context=3)).text() == SAID[text]
