"""The voice section: players, pitch over words, what was heard; and a sentence where nothing was said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import soundfile
import torch

from mm_llama.data.sound import open_sound
from mm_llama.demos.voice import timed
from mm_llama.report.page import write_report
from mm_llama.voice.prosody import F0_CENTER, F0_SCALE
from mm_llama.voice.uttering import Said


def section(run: Path) -> str:
    text = write_report(run, run / "report.html", open_sound=open_sound).read_text("utf-8")
    start = text.index('<section id="voice"')
    return text[start : text.index("</section>", start)]


def test_words_and_pitch_stand_where_they_are_said() -> None:
    features = torch.zeros(7, 4)
    features[1:3, 2] = 1.0
    features[2, 1] = F0_SCALE * (5.0 - F0_CENTER)
    one = Said("no a", "nO a.", features, torch.tensor([4, 2, 3, 1, 5, 2, 4]), torch.zeros(21 * 300))
    found = timed([one, one], 0.0125)
    assert [word for word, _, _ in found["words"]] == ["no", "a", "no", "a"]
    assert found["words"][0][1:] == [0.05, 0.113] and found["words"][1][1:] == [0.125, 0.213]
    assert abs(found["words"][2][1] - found["words"][0][1] - 21 * 0.0125) < 2e-3
    assert len(found["pitch"]) == 4 and found["pitch"][1] == [0.075, 0.113, 148.4]


def test_the_section_plays_and_shows_what_was_said(tmp_path: Path) -> None:
    assert "Nothing was said" in section(tmp_path)
    (tmp_path / "voice").mkdir()
    soundfile.write(tmp_path / "voice" / "0.flac", (0.1 * torch.randn(24_000)).numpy(), 24_000)
    words = [[f"<b>{n}</b>", 0.4 * n, 0.4 * n + 0.3] for n in range(40)]
    row = {
        "title": "A & B", "asked": "<script>", "said": "said", "audio": "voice/0.flac", "seconds": 16.0, "words": words,
        "pitch": [[0.1, 0.2, 180.0], [15.0, 15.1, 9000.0]], "heard": {"one": "sad"}, "errors": 1, "length": 1,
        "edits": [["substitute", "said", "sad"]],
    }  # fmt: skip
    (tmp_path / "voice.json").write_text(json.dumps({"utterances": [row], "work_a_second": 0.25}))
    found = section(tmp_path)
    assert "<script>" not in found and "&lt;b&gt;0&lt;/b&gt;" in found and "A &amp; B" in found
    assert found.count("<svg") - found.count("waveform") >= 2  # two rows of a chart
    assert (
        found.count("data:audio/flac") == 1
        and "<del>said</del>" in found
        and "1 of 1 words heard wrong" in found
    )
    assert "0.25 s" in found
    # Every word stands in one row, and no line leaves the chart.
    assert len(re.findall(r'class="word"', found)) == 40
    assert all(-0.1 <= float(y) <= 220 for y in re.findall(r'y1="([-.0-9]+)"', found))
