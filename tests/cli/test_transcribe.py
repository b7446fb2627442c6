"""`mm-llama transcribe` and `translate`: files, subtitles, a stream, and what is said when something is wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from mm_llama.build import compose_config
from mm_llama.cli import main
from mm_llama.data.spoken_rows import recognition, write_rows
from mm_llama.stage_run import run_stage

RATE = 16_000


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise as loud as speech: what a random adapter makes of it is beside the point here."""
    generator = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(int(seconds * RATE), generator=generator)).numpy()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on the tiny core."""
    folder = tmp_path_factory.mktemp("run")
    soundfile.write(folder / "a.flac", speech(1), RATE)
    write_rows(folder, {"rows": [recognition("a.flac", "a b c", seconds=1.0)]})
    result = run_stage(
        compose_config(
            "train",
            [
                "stage=speech_sft",
                "core=tiny",
                "modality/speech=tiny",
                "data=jsonl",
                f"data.train.0.source.path={folder / 'rows.jsonl'}",
                f"runs={folder}",
                "stage.num_steps=2",
                "stage.eval_every=0",
                "dtype=float32",
            ],
        )
    )
    return result.run_dir


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Two stretches of speech with a pause of a second between them."""
    pause = 1e-4 * speech(1, 9)
    soundfile.write(tmp_path / "talk.wav", np.concatenate((speech(2), pause, speech(1.5, 1), pause)), RATE)
    return tmp_path / "talk.wav"


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_forms(adapter: Path, recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--core", "tiny", "--adapter", adapter, "--dtype", "float32")
    assert run("transcribe", recording, *common) == 0
    text = capsys.readouterr().out
    assert run("transcribe", recording, *common, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == text.rstrip("\n") and found["seconds"] == 5.5 and found["language"] == "English"
    first, second = found["segments"]
    assert 0 <= first["start"] < 0.1 and 2 <= first["end"] <= 3 <= second["end"] <= 5.5
    assert run("transcribe", recording, *common, "--srt", "-o", recording.with_suffix(".srt")) == 0
    assert capsys.readouterr().out == ""
    assert "-->" in recording.with_suffix(".srt").read_text("utf-8")
    assert run("transcribe", recording, *common, "--vtt") == 0
    assert capsys.readouterr().out.startswith("WEBVTT\n")
    assert run("transcribe", recording, recording, *common) == 0
    assert [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()] == [str(recording)] * 2


def test_a_stream_ends_as_the_file_does(
    adapter: Path, recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("--core", "tiny", "--adapter", adapter, "--dtype", "float32", "--json")
    samples, _ = soundfile.read(recording, dtype="float32")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(samples.astype("<f4").tobytes())))
    assert run("transcribe", "-", *common, "--format", "f32le") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any(not row["final"] for row in rows)
    final = [{key: row[key] for key in ("start", "end", "text")} for row in rows if row["final"]]
    assert run("transcribe", recording, *common) == 0
    whole = json.loads(capsys.readouterr().out)["segments"]
    assert [(one["start"], one["end"]) for one in final] == [(one["start"], one["end"]) for one in whole]
    # A WAV of 16 bits is not the samples it was made of: only what lies between is the same.
    assert len(final) == 2


def test_a_search_needs_a_readout(adapter: Path, recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--core", "tiny", "--adapter", adapter, "--dtype", "float32")
    assert run("transcribe", recording, *common, "--beam", "4") == 2
    assert "only a speech adapter with a readout can be searched" in capsys.readouterr().err
    assert run("transcribe", recording, *common, "--beam", "-1") == 2
    assert "--beam is -1, expected a number of readings" in capsys.readouterr().err


def test_silence_is_told(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "hush.wav", np.zeros(3 * RATE), RATE)
    assert run("transcribe", tmp_path / "hush.wav", "--core", "tiny", "--adapter", adapter) == 0
    printed = capsys.readouterr()
    assert printed.out == "\n" and "nothing was heard in" in printed.err and "(3.0 s)" in printed.err


@pytest.mark.usefixtures("asset_dir")
def test_a_network_hears_nothing_in_noise(
    adapter: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--core", "tiny", "--adapter", adapter, "--json")
    assert run("transcribe", recording, *common) == 0
    assert len(json.loads(capsys.readouterr().out)["segments"]) == 2
    assert run("transcribe", recording, *common, "--vad", "silero") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["segments"] == [] and "nothing was heard in" in printed.err


def test_translation_asks_with_its_own_prompt(
    adapter: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mm_llama.assistant import load
    from mm_llama.listen import Listener

    assistant = load("tiny", [adapter], dtype="float32")
    assert Listener(assistant, "de", "translate").system == "Translate the following sentence into German:"
    assert Listener(assistant).system == "Repeat after me in English:"
    with pytest.raises(ValueError, match="transcribe or translate, not 'sing'"):
        Listener(assistant, "de", "sing")
    assert run("translate", recording, "--to", "German", "--core", "tiny", "--adapter", adapter) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("transcribe", "gone.wav"), "there is no file gone.wav"),
        (("transcribe", "FILE", "--language", "Klingon"), "'Klingon' is not one of the 34 languages"),
        (("translate", "FILE"), "the following arguments are required: --to"),
        (("translate", "FILE", "--to", "Germn"), "did you mean 'German'"),
        (("transcribe", "-", "FILE"), "`-` is the sound that comes in: give it alone"),
        (("transcribe", "FILE"), "there is no trained adapter to hear with (runs/demo/speech does not exist"),
        (("transcribe", "FILE", "--adapter", "nowhere"), "(nowhere does not exist here)"),
        (("transcribe", "FILE", "--srt", "--vtt"), "not allowed with argument"),
        (("transcribe",), "the following arguments are required: FILE"),
    ],
)
def test_mistakes_get_one_line(
    words: tuple[str, ...],
    said: str,
    recording: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*(recording if word == "FILE" else word for word in words)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and said in printed and printed.count("\n") == 1


def test_an_adapter_that_does_not_hear_is_named(
    tmp_path: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mm_llama.assistant import load
    from mm_llama.listen import Listener

    with pytest.raises(ValueError, match="the input holds speech, but no speech adapter is attached"):
        Listener(load("tiny", dtype="float32"))
