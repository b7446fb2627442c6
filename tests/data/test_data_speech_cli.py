"""`mm-llama data make` for speech, and recordings in files that are validated."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mm_llama.cli import main
from mm_llama.core.messages import MediaPart
from mm_llama.data.sound import open_sound
from mm_llama.data.sources import JsonlChat

QUESTIONS = ["What is rain?", "Name a fruit.", "Who wrote this book?", "Why is the sky blue?"]


def make(*words: object) -> int:
    return main(["data", "make", *(str(word) for word in words)])


def test_carried_recordings(
    asset_dir: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = asset_dir("librivox_clips")
    assert make("librivox", "--root", root, "--out", tmp_path / "clips") == 0
    assert capsys.readouterr().out.split()[:3] == ["test", "5", "rows"]
    file = tmp_path / "clips" / "test.jsonl"
    assert main(["data", "validate", str(file), "--decode"]) == 0
    (part,) = JsonlChat(file).row(0).messages[1].parts
    assert isinstance(part, MediaPart)
    Path(str(part.source)).write_bytes(b"RIFF" + bytes(40))
    assert main(["data", "validate", str(file), "--decode"]) == 1
    assert capsys.readouterr().out.startswith(f"{file}:1: ")


def test_spoken_sentences_of_a_file(
    asset_dir: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("The kettle is on. Where did you put my umbrella? Seven swans swam.")
    out = tmp_path / "out"
    common = ("spoken", "--text", tmp_path / "a.txt", "--engine", asset_dir("hibari_tts"), "--out", out)
    assert make(*common, "--rows", 2, "--holdout", 1, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {split: entry["rows"] for split, entry in found.items()} == {"train": 2, "holdout": 1}
    row = JsonlChat(out / "train.jsonl").row(0)
    (part,) = row.messages[1].parts
    assert isinstance(part, MediaPart) and open_sound(part.source).seconds == pytest.approx(
        row.extra["seconds"], abs=0.01
    )
    assert make(*common, "--rows", 9) == 2
    assert "3 sentences that can be said, fewer than the 49 asked for (9 to train on, 40 held out)" in (
        capsys.readouterr().err
    )
    assert make("spoken", "--out", out) == 2
    assert "there is nothing to say: give files or folders with --text" in capsys.readouterr().err


def test_dialogues_of_texts_and_of_recordings(
    asset_dir: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The core of the tests is the real default one: a random one has no sentences to answer with."""
    asset_dir("smollm2_135m")
    (tmp_path / "asked.json").write_text(json.dumps([{"instruction": text} for text in QUESTIONS]))
    engine, out = asset_dir("hibari_tts"), tmp_path / "out"
    common = ("dialogue", "--rows", 1, "--holdout", 1, "--engine", engine)
    assert make(*common, "--text", tmp_path / "asked.json", "--out", out) == 0
    assert "answered 4/4" in capsys.readouterr().err
    rows = [JsonlChat(out / f"{split}.jsonl").row(0) for split in ("train", "holdout")]
    for row in rows:
        (part,) = row.messages[0].parts
        assert isinstance(part, MediaPart) and part.transcript in QUESTIONS and row.messages[0].role == "user"
        assert row.extra["task"] == "dialogue" and row.messages[1].parts
    # The same recordings, answered again from what their rows say is said in them.
    again = tmp_path / "again"
    (tmp_path / "both.jsonl").write_text(
        "".join(
            (out / f"{split}.jsonl").read_text().replace("clips/", "out/clips/")
            for split in ("train", "holdout")
        )
    )
    assert make(*common, "--recordings", tmp_path / "both.jsonl", "--out", again) == 0
    first, second = (JsonlChat(again / f"{split}.jsonl").row(0) for split in ("train", "holdout"))
    assert {one.messages[0].parts[0].transcript for one in (first, second)} == {  # type: ignore[union-attr]
        one.messages[0].parts[0].transcript  # type: ignore[union-attr]
        for one in rows
    }
    assert open_sound(first.messages[0].parts[0].source).seconds > 0.3  # type: ignore[union-attr]
    # One that stands in its row as bytes, in another language, is written out.
    inline = json.loads((out / "train.jsonl").read_text())
    heard = (out / inline["messages"][0]["content"][0]["path"]).read_bytes()
    audio = {"data": base64.b64encode(heard).decode(), "format": "flac"}
    inline["messages"][0]["content"] = [
        {"type": "input_audio", "input_audio": audio, "transcript": rows[0].messages[0].parts[0].transcript}  # type: ignore[union-attr]
    ]
    inline["extra"]["language"] = "German"
    (tmp_path / "inline.jsonl").write_text(json.dumps(inline) + "\n")
    wanted = (
        "--rows",
        1,
        "--holdout",
        0,
        "--recordings",
        tmp_path / "inline.jsonl",
        "--out",
        tmp_path / "in",
    )
    assert make("dialogue", *wanted) == 0
    row = JsonlChat(tmp_path / "in" / "train.jsonl").row(0)
    assert row.extra["language"] == "German"
    assert torch.equal(open_sound(row.messages[0].parts[0].source).samples, open_sound(heard).samples)  # type: ignore[union-attr]
    assert make(*common, "--out", again) == 2
    assert "from --text or from --recordings: give one of them" in capsys.readouterr().err
