"""Texts with their rules: every form and template is read in full, and splits share neither wording nor sentence."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from mm_llama.data.normalization import filled, normalization, rows, templates_of
from mm_llama.data.normalization_templates import TEMPLATES
from mm_llama.data.written_forms import FORMS
from mm_llama.voice.rules import NAMES, said
from mm_llama.voice.written import split

WHICH = ("first", "second", "third", "fourth", "fifth", "sixth", "next", "old", "new", "last")
SENTENCES = [f"This is the {word} one." for word in WHICH]


@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_a_rule_for_each_token_and_no_digit_is_left(name: str) -> None:
    for seed in range(200):
        text, rules = FORMS[name](Random(seed))
        assert len(split(text)) == len(rules) and set(rules) <= set(NAMES), text
        assert not re.search(r"\d", said(text, rules)), text


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_is_read_in_full(name: str) -> None:
    for number, template in enumerate(TEMPLATES[name]):
        text, rules = filled(template, Random(number))
        assert not re.search(r"[\d{}|]|\[", said(text, rules)), text


def test_a_template_whose_rules_do_not_fit_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"'\[Dr.\|EXPAND\] Smith' gives 'Dr. Smith', whose tokens are not those"
    ):
        filled("[Dr.|EXPAND] Smith", Random(0))


def test_splits_have_templates_and_words_of_their_own() -> None:
    parts = {name: templates_of(name) for name in ("train", "holdout", "test")}
    for kind, every in TEMPLATES.items():
        taken = [template for part in parts.values() for template in part[kind]]
        assert sorted(taken) == sorted(every) and all(part[kind] for part in parts.values()), kind

    # A noun that tells how a number is read stands in no sentence of another split.
    def words(split_name: str) -> set[str]:
        found = (re.match(r"We talked about (.+) \{", one) for one in parts[split_name]["digits"])
        return {match[1] for match in found if match}

    assert words("test") and not words("test") & (words("train") | words("holdout"))


def test_rows_are_distinct_and_the_same_each_time() -> None:
    first, again = list(rows("train", 300, SENTENCES)), list(rows("train", 300, SENTENCES))
    assert first == again and len({row["messages"][1]["content"] for row in first}) == 300
    for row in first:
        text, rules = row["messages"][1]["content"], row["extra"]["labels"]["rules"].split()
        assert len(split(text)) == len(rules)
    beside = [
        row for row in first if any(sentence in row["messages"][1]["content"] for sentence in SENTENCES)
    ]
    assert 100 < len(beside) < 280  # before, behind, or not at all


def test_the_recipe_writes_its_splits(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(" ".join(SENTENCES))
    options = {"root": tmp_path / "texts", "out": tmp_path / "out", "num_train": 40, "num_held_out": 10}
    found = {name: normalization(split=name, **options) for name in ("train", "holdout", "test")}
    assert {name: len(source) for name, source in found.items()} == {"train": 40, "holdout": 10, "test": 10}
    row = found["test"].row(0)
    assert row.messages[0].parts[0].text == "" and row.extra["class"] and row.extra["labels"]["rules"]
    with pytest.raises(ValueError, match="no split 'dev'"):
        normalization(split="dev", **options)
    (tmp_path / "texts" / "a.txt").write_text("This is one.")
    with pytest.raises(ValueError, match="hold 1 sentences .* fewer than the 10"):
        normalization(split="train", **options | {"num_train": 41})
