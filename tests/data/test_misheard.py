"""Transcripts as an imperfect ear writes them: changed alike in both places, drawn once for each row."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mm_llama.core.messages import MediaPart, Text
from mm_llama.data.misheard import Misheard, misspelled
from mm_llama.data.sources import JsonlChat, Row
from mm_llama.data.spoken_rows import dialogue, recognition, write_rows

TEXTS = [f"Number {n} wanders slowly through silent valleys, singing." for n in range(40)]


def rows(folder: Path, *more: dict[str, object]) -> JsonlChat:
    (folder / "x.flac").touch()  # nothing here listens
    made = [*(recognition("x.flac", text) for text in TEXTS), *more]
    return JsonlChat(write_rows(folder, {"rows": made})["rows"])


def both(row: Row) -> tuple[str, str]:
    """What is said and what is to be answered."""
    (heard,) = (part for message in row.messages for part in message.parts if isinstance(part, MediaPart))
    (answer,) = row.messages[-1].parts
    assert isinstance(answer, Text)
    return heard.transcript or "", answer.text


def test_said_and_answered_change_alike(tmp_path: Path) -> None:
    source = rows(tmp_path)
    changed = Misheard(source, 0.3)
    pairs = [both(changed.row(n)) for n in range(len(changed))]
    assert all(said == answer for said, answer in pairs)
    wrong = sum(
        len(set(text.split()) - set(said.split())) for text, (said, _) in zip(TEXTS, pairs, strict=True)
    )
    # Of 7 words each, 30 % are drawn; some changes leave a short word as it is, or take the next one in.
    assert 0.2 * 7 * 40 < wrong < 0.45 * 7 * 40
    assert pairs == [both(Misheard(source, 0.3).row(n)) for n in range(40)]
    assert pairs != [both(Misheard(source, 0.3, seed=1).row(n)) for n in range(40)]
    assert changed.name_of(3) == source.name_of(3) and len(changed) == 40
    assert changed.row(0).messages[0] == source.row(0).messages[0]
    assert len({source.digest, changed.digest, Misheard(source, 0.2).digest}) == 3
    assert [both(Misheard(source, 0).row(n))[0] for n in range(40)] == TEXTS


def test_what_is_not_repeated_stays(tmp_path: Path) -> None:
    source = rows(tmp_path, dialogue("x.flac", "Who is there?", "Nobody."))
    assert Misheard(source, 1.0).row(40) == source.row(40)
    alone = JsonlChat(write_rows(tmp_path, {"one": [recognition("x.flac", "I")]})["one"])
    for seed in range(20):  # the one word there is, is never left out
        assert both(Misheard(alone, 1.0, seed).row(0))[1] == "I"


def test_words_are_misspelled_by_a_letter(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(50):
        assert misspelled("umbrella", "split", rng).replace(" ", "") == "umbrella"
        assert len(misspelled("umbrella", "letter_lost", rng)) == 7
        assert len(misspelled("umbrella", "letter_doubled", rng)) == 9
        vowel = misspelled("umbrella", "vowel", rng)
        assert sum(a != b for a, b in zip(vowel, "umbrella", strict=True)) == 1
        assert misspelled("umbrella", "", rng) == "umbrella"
    with pytest.raises(ValueError, match="share=2 is that of the words"):
        Misheard(rows(tmp_path), 2)
