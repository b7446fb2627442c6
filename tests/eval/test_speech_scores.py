"""Errors, intervals and tests of significance, against hand-counted cases and the peers' own functions."""

from __future__ import annotations

import jiwer
import pytest

from mm_llama.eval.speech_scores import (
    align,
    chrf_paired_p,
    error_rate,
    normalised,
    paired_p,
    translation_score,
)

SAID = ["the cat sat on the mat", "Mr. Smith paid twenty-one dollars.", "colour me surprised"]
HEARD = ["the cat sat on mat", "mister smith paid $21", "color me very surprised"]


def test_texts_are_compared_as_whispers_evaluation_does() -> None:
    assert normalised("Mr. Smith's colour, uh, [noise] twenty-one!") == "mister smith is color 21"
    assert normalised("Žluťoučký kůň.", "Czech") == normalised("žluťoučký  kůň", "Czech")


def test_errors_are_those_of_jiwer() -> None:
    found = [align(said, heard) for said, heard in zip(SAID, HEARD, strict=True)]
    assert [(one.errors, one.length) for one in found] == [(1, 6), (0, 4), (1, 3)]
    rate = error_rate(found)
    expected = jiwer.wer([normalised(one) for one in SAID], [normalised(one) for one in HEARD])
    assert rate.rate == pytest.approx(expected) and (rate.errors, rate.length) == (2, 13)
    assert 0 <= rate.low <= rate.rate <= rate.high <= 1
    assert [edit.op for edit in found[0].edits] == ["equal"] * 4 + ["delete"] + ["equal"]
    assert found[0].edits[4].said == "the"
    assert [(edit.op, edit.heard) for edit in found[2].edits][2] == ("insert", "very")


def test_nothing_heard_and_nothing_said() -> None:
    assert (align("a b c", "").errors, align("a b c", "").length) == (3, 3)
    assert (align("", "a b").errors, align("", "a b").length, align("", "a b").rate) == (2, 0, 2)
    assert align("", "").errors == 0
    with pytest.raises(ValueError, match="no utterances"):
        error_rate([])


def test_some_languages_are_counted_by_character() -> None:
    one = align("今日は晴れ", "今日は雨", "Japanese")
    assert (one.errors, one.length) == (2, 5)
    assert str(error_rate([one], "Japanese")).startswith("CER 40.0 %")


def test_intervals_do_not_depend_on_the_call() -> None:
    found = [align(said, heard) for said, heard in zip(SAID, HEARD, strict=True)]
    assert error_rate(found) == error_rate(found)


def test_a_paired_test_finds_what_is_there_and_nothing_else() -> None:
    better = [align("a b c d", "a b c d") for _ in range(30)]
    worse = [align("a b c d", "a b c x") for _ in range(29)] + [align("a b c d", "a b c d")]
    assert paired_p(better, worse) < 0.01
    assert paired_p(better, better) == 1
    with pytest.raises(ValueError, match="the same utterances: 30 of one, 2 of the other"):
        paired_p(better, worse[:2])


def test_translation_scores_are_sacrebleus() -> None:
    import sacrebleu

    references = ["The fish swims in the sea.", "Where is my hat?", "I have seen nothing at all."]
    good = ["The fish swims in the sea.", "Where is the hat?", "I have seen nothing."]
    bad = ["A ship.", "Nothing at all here?", "The sea swims."]
    found = translation_score(references, good)
    assert found.bleu == pytest.approx(sacrebleu.corpus_bleu(good, [references]).score)
    assert found.chrf == pytest.approx(sacrebleu.corpus_chrf(good, [references]).score)
    assert found.chrf > translation_score(references, bad).chrf
    theirs = sacrebleu.CHRF().corpus_score(good * 10, [references * 10], n_bootstrap=1000)
    assert translation_score(references * 10, good * 10).chrf_half_width == pytest.approx(
        theirs._ci, rel=0.15
    )
    # Some resamples hold nothing that was heard, where sacrebleu's own interval fails.
    assert translation_score(references, ["A ship.", "", ""]).chrf_half_width > 0
    assert chrf_paired_p(references * 10, good * 10, bad * 10) < 0.01
