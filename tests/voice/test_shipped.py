"""The voice that comes with mm_llama says what is written, on the real core, and is understood; nothing is dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from encoders.log_mel import LogMel
from mm_llama.assistant import Assistant, load
from mm_llama.cli import main
from mm_llama.cli.say import SHIPPED, speaker_of
from mm_llama.data.sound import open_sound
from mm_llama.eval.hand_checked import evaluate_hand_checked
from mm_llama.eval.speech_scores import align, error_rate
from mm_llama.eval.whisper import Whisper
from mm_llama.voice.speak import Speaker

pytestmark = pytest.mark.slow

# Of every kind that a text may hold: what is written, and what is to be heard of it.
TEXTS = {
    "numbers": ("There were 12 horses and 1,250 people in 1906.", ""),
    "money and dates": ("Dr. Smith paid $12.50 on 3/4, and left at 3:05 pm.", ""),
    "address": (
        "You can read more at www.example.com today.",
        "You can read more at www.example.com today.",
    ),
    "abbreviations": ("Bring fruit, e.g. apples, to Main St. on Mon. at 9 am.", ""),
    "empty lines": ("\n\nThe river was cold.\n\n\n   \nNobody came to the house.\n\n", ""),
    "emoji": (
        "They were very happy \N{GRINNING FACE} about the garden \N{SPARKLES}.",
        "They were very happy about the garden.",
    ),
    "no end": ("the old house stood by the river and nobody came", ""),
    "marks": ("He said: “nobody knows” (so they thought) — and left…", "He said nobody knows so they thought and left"),
    "very long": (
        "The people of the village walked along the shore of the river until the evening came and the light was gone "
        "and then they went back to the old house where the children were waiting for them with bread and milk and "
        "stories of the day and nobody wanted to sleep because the summer was short and the night was warm and the "
        "garden was full of stars.",
        "",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def assistant(asset_dir: Callable[[str], Path]) -> Assistant:
    asset_dir("smollm2_135m")
    parts = sorted(path for path in SHIPPED.iterdir() if path.is_dir())
    assert [path.name for path in parts] == [
        "tts_acoustic",
        "tts_normalization",
        "tts_prosody",
        "tts_vocoder",
    ]
    return load("smollm2_135m", parts)


@pytest.fixture(scope="module")
def speaker(assistant: Assistant, asset_dir: Callable[[str], Path]) -> Speaker:
    asset_dir("hibari_tts")
    return speaker_of(assistant)


@pytest.fixture(scope="module")
def judge(asset_dir: Callable[[str], Path]) -> Whisper:
    return Whisper(asset_dir("whisper_tiny_en"), LogMel(80))


def heard(speaker: Speaker, judge: Whisper, text: str) -> str:
    samples = torch.cat([one.samples for one in speaker.say(text)])
    return judge([open_sound((samples, speaker.samples_a_second), rate=16_000).samples])[0]


def test_its_sound_is_small_and_its_card_names_what_made_it() -> None:
    card = (SHIPPED / "README.md").read_text("utf-8")
    size = 0
    for folder in (path for path in SHIPPED.iterdir() if path.is_dir()):
        manifest = json.loads((folder / "MANIFEST.json").read_text("utf-8"))
        weights = manifest["files"]["adapter.safetensors"]
        assert weights["sha256"] in card and f"stage={folder.name}" in card
        size += weights["bytes"] * (folder.name in ("tts_acoustic", "tts_vocoder"))
    assert size < 16e6


def test_every_kind_of_text_is_said_in_full(speaker: Speaker, judge: Whisper) -> None:
    found = {}
    for name, (text, spoken) in TEXTS.items():
        known = spoken or " ".join(text.split())
        said = " ".join(one.words for one in speaker.say(text))
        again = heard(speaker, judge, text)
        found[name] = min((align(one, again) for one in (known, said)), key=lambda one: one.errors)
        # Nothing is dropped, and nothing said twice: as many words are heard as are said, within a tenth.
        missing = sum(edit.op == "delete" for edit in found[name].edits)
        more = sum(edit.op == "insert" for edit in found[name].edits)
        assert max(missing, more) <= 1 + found[name].length // 10, (name, again)
    assert error_rate(list(found.values())).rate < 0.12


def test_two_hundred_sentences_are_read_as_a_person_reads_them(assistant: Assistant) -> None:
    parts = assistant.model, assistant.tokenizer, assistant.chat_format
    checked = evaluate_hand_checked(*parts)
    assert sum(one.right for one in checked) >= 185


def test_say_works_at_once(
    speaker: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["say", "Good morning.", "-o", "out.wav", "--show"]) == 0
    assert "Good morning." in capsys.readouterr().err and (tmp_path / "out.wav").stat().st_size > 30_000
    assert main(["say", "Привет", "-o", "b.wav"]) == 2
    assert "is not of its script" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_an_answer_keeps_its_words_when_it_is_spoken(
    assistant: Assistant, speaker: Speaker, judge: Whisper
) -> None:
    question = "What do bees do in winter?"
    plain = assistant.chat(question, max_new_tokens=24)
    answer = assistant.chat(question, max_new_tokens=24, stream=True, watch=speaker.layers)
    samples = torch.cat([piece.samples for piece in speaker.stream(answer.written())])
    assert answer.result.text == plain
    again = judge([open_sound((samples, speaker.samples_a_second), rate=16_000).samples])[0]
    assert align(plain, again).rate < 0.3
