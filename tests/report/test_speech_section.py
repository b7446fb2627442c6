"""The speech section: figures, players, what was said beside what was heard, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from mm_llama.core.messages import MediaPart, Message, Text
from mm_llama.data.sound import open_sound
from mm_llama.data.sources import Row
from mm_llama.eval.speech import Asked, SpeechResult
from mm_llama.report.page import write_report


def asked(path: Path, said: str, task: str = "recognition") -> Asked:
    prompt = Message("user", (MediaPart("speech", str(path)),))
    row = Row((prompt, Message("assistant", (Text(said),))), "a.jsonl:1", extra={"id": path.stem})
    return Asked(row, said, task, "English", 1.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two recordings, one heard right."""
    generator = torch.Generator().manual_seed(0)
    for name in ("good", "bad"):
        samples = 0.1 * torch.randn(16_000, generator=generator)
        soundfile.write(tmp_path / f"{name}.flac", samples.numpy(), 16_000)
    rows = [
        asked(tmp_path / "good.flac", "All is well."),
        asked(tmp_path / "bad.flac", "Press the <pound> key now."),
    ]
    heard = {"model": ["all is well", "press a pound key"], "readout": ["all is well", "press pound"]}
    SpeechResult(rows, heard).write(tmp_path / "speech.json", tmp_path / "speech_answers.jsonl")
    return tmp_path


def page(run: Path) -> str:
    return write_report(run, run / "report.html", open_sound=open_sound).read_text("utf-8")


def section(text: str) -> str:
    start = (
        text.index('<section id="speech">') if '<section id="speech">' in text else text.index('id="speech"')
    )
    return text[start : text.index("</section>", start)]


def test_figures_players_and_words(run: Path) -> None:
    found = section(page(run))
    assert "42.9 %" in found  # three errors of seven words: what stands in brackets is not scored
    assert found.count("<audio") == 2 and found.count("data:audio/flac;base64,") == 2
    assert found.count("waveform") == 2
    assert "✓ every word right" in found and "words wrong" in found
    # The worst comes first, and what was said is never markup.
    assert found.index("words wrong") < found.index("every word right")
    assert "<pound>" not in found
    assert "<del>" in found


def test_the_page_allows_sound_and_nothing_else(run: Path) -> None:
    assert "img-src data:; media-src data:" in page(run)


def test_a_run_that_heard_nothing_says_so(tmp_path: Path) -> None:
    assert "this run listened to none" in section(page(tmp_path))


def test_a_recording_that_is_gone_is_named(run: Path) -> None:
    (run / "bad.flac").unlink()
    text = page(run)
    assert "recording not found" in section(text)
    assert "recording bad.flac" in text


def test_several_sets_and_questions_asked_aloud(run: Path) -> None:
    one: dict[str, Any] = json.loads((run / "speech.json").read_text("utf-8"))
    both = {
        "results": [{"name": "First set", **one}, {"name": "Second set", **one}],
        "aloud": {"total": 600, "spoken": 0.81, "typed": 0.9, "beam": 32},
    }
    (run / "speech.json").write_text(json.dumps(both))
    found = section(page(run))
    assert "First set" in found and "Second set" in found
    assert "81.0 %" in found and "90.0 % when typed" in found
    assert "right when spoken and searched among 32 readings" in found
