"""Recordings that an engine makes: resumed, several voices, sentences that can be said, sets and their splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mm_llama.core.messages import MediaPart
from mm_llama.data import speech_recipes as recipes
from mm_llama.data.asterisk import read_prompts
from mm_llama.data.joined import Joined
from mm_llama.data.sentences import sentences, sentences_of
from mm_llama.data.sound import RATE, open_sound
from mm_llama.data.spoken import say_all
from mm_llama.data.spoken_rows import plain, split_texts
from mm_llama.data.text_to_speech import Hibari

TEXTS = ["The kettle is on.", "Where did you put my umbrella?", "Seven swans swam south."]


@pytest.fixture(scope="session")
def engine(asset_dir: Callable[[str], Path]) -> Hibari:
    return Hibari(asset_dir("hibari_tts"))


def test_the_engine_says_the_same_again_and_otherwise_in_another_voice(engine: Hibari) -> None:
    first = engine.speak(TEXTS[0])
    assert first.rate == RATE and 0.5 < first.seconds < 3 and not first.silent
    assert torch.equal(first.samples, engine.speak(TEXTS[0]).samples)
    slower, higher = engine.speak(TEXTS[0], speed=0.8), engine.speak(TEXTS[0], pitch=1.2)
    assert slower.seconds > 1.1 * first.seconds
    assert higher.seconds == pytest.approx(first.seconds, rel=0.12)
    assert _pitch(higher.samples) > 1.1 * _pitch(first.samples)


def _pitch(samples: torch.Tensor) -> float:
    """The period that a recording repeats most at, as a frequency from 100 to 400 Hz."""
    power = torch.fft.rfft(samples, n=2 * len(samples)).abs().square()
    lags = torch.fft.irfft(power)[: RATE // 100]
    shortest = RATE // 400
    return RATE / (shortest + int(lags[shortest:].argmax()))


def test_what_cannot_be_said(engine: Hibari, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finds nothing to say"):
        engine.speak(" ")
    with pytest.raises(ValueError, match="pitch is 3, expected a factor"):
        engine.speak("Hello.", pitch=3)


class Counting:
    """An engine that stops, as if killed, after some texts."""

    def __init__(self, engine: Hibari, most: int = 99) -> None:
        self.engine, self.most, self.said = engine, most, []  # type: ignore[var-annotated]

    def speak(self, text: str, **voice: float) -> object:
        if len(self.said) == self.most:
            raise KeyboardInterrupt
        self.said.append(text)
        return self.engine.speak(text, **voice)  # type: ignore[arg-type]


def test_a_call_that_was_cut_off_goes_on_and_ends_the_same(engine: Hibari, tmp_path: Path) -> None:
    whole = say_all(TEXTS, tmp_path / "whole", lambda: engine, say=False, workers=1)
    with pytest.raises(KeyboardInterrupt):
        say_all(TEXTS, tmp_path / "cut", lambda: Counting(engine, 1), say=False, workers=1)  # type: ignore[arg-type,return-value]
    with (tmp_path / "cut" / "clips.jsonl").open("a") as file:
        file.write('{"path": "clips/ha')  # a line that was being written
    second = Counting(engine)
    resumed = say_all(TEXTS, tmp_path / "cut", lambda: second, say=False)  # type: ignore[arg-type,return-value]
    assert second.said == TEXTS[1:] and resumed == whole
    for name, _ in whole.values():
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert not list((tmp_path / "cut").rglob("*.partial"))
    again = Counting(engine)
    assert say_all(TEXTS, tmp_path / "cut", lambda: again, say=False) == whole  # type: ignore[arg-type,return-value]
    assert not again.said
    lines = (tmp_path / "cut" / "clips.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == TEXTS


def test_several_engines_at_once_make_what_one_makes(
    asset_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    texts = [f"{text} {number} more." for number in ("One", "Two", "Three", "Four") for text in TEXTS]
    made = {
        workers: say_all(
            texts,
            tmp_path / str(workers),
            lambda: Hibari(asset_dir("hibari_tts")),
            say=False,
            workers=workers,
        )
        for workers in (1, 3)
    }
    assert made[1] == made[3]
    lists = [(tmp_path / name / "clips.jsonl").read_bytes() for name in ("1", "3")]
    assert lists[0] == lists[1]
    for name, _ in made[1].values():
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_an_engine_that_fails_loses_nothing_said_before(engine: Hibari, tmp_path: Path) -> None:
    class Failing:
        def speak(self, text: str, **voice: float) -> object:
            if text == TEXTS[1]:
                raise ValueError("no voice left")
            return engine.speak(text, **voice)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="no voice left"):
        say_all(TEXTS, tmp_path, Failing, say=False, workers=2)  # type: ignore[arg-type]
    lines = (tmp_path / "clips.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == TEXTS[:1]
    again = say_all(TEXTS, tmp_path, lambda: engine, say=False, workers=2)
    assert list(again) == TEXTS and not list(tmp_path.rglob("*.partial"))


def test_sentences_that_can_be_said() -> None:
    text = (
        'He left. "Call 911!" NASA did it. The U.S. too. It\'s fine, I think.\nOne. too low case. What (now)?'
    )
    assert list(sentences_of(text)) == ["He left.", "It's fine, I think."]


def test_sentences_of_real_texts(asset_dir: Callable[[str], Path]) -> None:
    found = sentences([asset_dir("llamafactory_data")])
    assert len(found) > 3000 and found == sentences([asset_dir("llamafactory_data")])
    assert len({plain(one) for one in found}) == len(found)


def test_splits_share_no_text() -> None:
    split = split_texts([f"text number {n}" for n in range(50)], 10, 5)
    assert sorted(split.values()).count("test") == 10 and list(split.values()).count("holdout") == 5
    assert split == split_texts([f"text number {n}" for n in reversed(range(50))], 10, 5)


def test_asterisk(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    root, texts = asset_dir("asterisk_prompts"), asset_dir("asterisk_texts")
    prompts = {prompt.name: prompt.text for prompt in read_prompts(root, texts)}
    assert prompts["auth-thankyou"] == "Thank you." and "beep" not in prompts
    made = {split: recipes.asterisk(root, texts, tmp_path, split) for split in ("train", "holdout", "test")}
    rows = {split: [source.row(n) for n in range(len(source))] for split, source in made.items()}
    said = {split: {plain(row.extra["text"]) for row in found} for split, found in rows.items()}
    assert len(said["test"]) == 40 and len(said["holdout"]) >= 28 and len(rows["train"]) > 400
    assert not said["train"] & said["test"] and not said["train"] & said["holdout"]
    assert all(len(text.split()) >= 3 for text in said["test"])
    row = rows["test"][0]
    (part,) = row.messages[1].parts
    assert isinstance(part, MediaPart) and part.kind == "speech" and part.transcript == row.extra["text"]
    assert row.messages[0].parts[0].text == "Repeat after me in English:"  # type: ignore[union-attr]
    sound = open_sound(part.source)
    assert sound.container == "FLAC" and sound.source_rate == RATE
    assert sound.seconds == pytest.approx(row.extra["seconds"], abs=0.001)
    with pytest.raises(FileNotFoundError, match="mm-llama assets fetch asterisk_texts"):
        read_prompts(tmp_path / "nowhere", tmp_path / "nowhere")


def test_librivox(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    source = recipes.librivox(asset_dir("librivox_clips"), tmp_path)
    texts = [source.row(n).extra["text"] for n in range(len(source))]
    assert len(texts) == 5 and "he was not an ill disposed young man" in texts
    with pytest.raises(ValueError, match="no split 'train'"):
        recipes.librivox(asset_dir("librivox_clips"), tmp_path, "train")


def test_spoken_sentences(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(" ".join(TEXTS) + " We are done here.")
    options = {"num_train": 2, "num_holdout": 1}
    made = [
        recipes.spoken_sentences(
            tmp_path / "texts", asset_dir("hibari_tts"), tmp_path / "out", split, **options
        )
        for split in ("train", "holdout")
    ]
    assert [len(source) for source in made] == [2, 1]
    with pytest.raises(ValueError, match="hold 4 sentences that can be said, fewer than"):
        recipes.spoken_sentences(
            tmp_path / "texts", asset_dir("hibari_tts"), tmp_path / "out", num_train=9, num_holdout=1
        )


def test_questions_asked_aloud(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    source = recipes.spoken_easy_vqa(
        asset_dir("easy_vqa"),
        asset_dir("hibari_tts"),
        tmp_path / "spoken",
        tmp_path / "typed",
        "holdout",
        types=["shape"],
    )
    row = source.row(0)
    kinds = [part.kind for part in row.messages[0].parts if isinstance(part, MediaPart)]
    assert kinds == ["image", "speech"] and len(row.messages[0].parts) == 2
    assert (
        row.extra["type"] == "shape"
        and row.extra["question"].lower() in row.messages[0].parts[1].transcript.lower()
    )  # type: ignore[union-attr]


def test_recordings_are_joined_with_what_is_said(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    source = recipes.librivox(asset_dir("librivox_clips"), tmp_path)
    joined = Joined(source, several=2)
    assert len(joined) == 2 and joined.name_of(1) == source.name_of(2)
    row = joined.row(0)
    (part,) = row.messages[1].parts
    assert isinstance(part, MediaPart)
    texts = [source.row(n).extra["text"] for n in range(2)]
    assert part.transcript == " ".join(texts) == row.messages[2].parts[0].text  # type: ignore[union-attr]
    lengths = [len(open_sound(source.row(n).messages[1].parts[0].source).samples) for n in range(2)]  # type: ignore[union-attr]
    assert len(part.source[0]) == sum(lengths) + int(0.35 * RATE)
    assert len(Joined(source, several=2, max_seconds=1).row(0).messages[1].parts[0].source[0]) == lengths[0]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="several=1 is at least 2"):
        Joined(source, several=1)
