"""A voice says all of a text, part by part, and a part as it is said alone; what it cannot say it names."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm_llama.assistant import load
from mm_llama.build import compose_config
from mm_llama.cli import main
from mm_llama.cli.eval_tts import log_mel
from mm_llama.data.text_to_speech import Hibari
from mm_llama.data.voice_rows import VoiceRows
from mm_llama.eval.prosody import evaluate_prosody, paired_p
from mm_llama.stage_run import run_stage
from mm_llama.voice.prosody import features_of, owners_of_phones, utterance_of
from mm_llama.voice.speak import Speaker
from mm_llama.voice.wording import check_script

TEXT = "The river was cold that day. Nobody came, they said!"


@pytest.fixture
def runs(tiny_voice: Any) -> list[Path]:
    """The parts of a voice, without its normaliser: what is written is said."""
    return [tiny_voice.runs[kind] for kind in ("prosody", "acoustic", "vocoder")]


@pytest.fixture
def speaker(runs: list[Path], asset_dir: Callable[[str], Path]) -> Speaker:
    one = load("tiny", runs, dtype="float32")
    return Speaker(one.model, one.tokenizer, one.chat_format, Hibari(asset_dir("hibari_tts")).phones)


def test_a_text_is_said_part_by_part(speaker: Speaker) -> None:
    parts = list(speaker.say(TEXT))
    assert [part.words for part in parts] == ["The river was cold that day.", "Nobody came, they said!"]
    for part in parts:
        assert len(part.samples) == int(part.frames_P.sum()) * speaker.vocoder.hop
        assert len(part.frames_P) == len(part.phones) + 2 and bool((part.frames_P >= 1).all())
    (alone,) = speaker.say(parts[0].words)
    assert torch.equal(alone.samples, parts[0].samples)  # what comes behind it changes nothing


def test_rate_and_pitch_are_what_they_say(speaker: Speaker) -> None:
    (plain,) = speaker.say("Nobody came.")
    options = (speaker.model, speaker.tokenizer, speaker.chat, speaker.phones)
    (fast,) = Speaker(*options, rate=2.0).say("Nobody came.")
    assert torch.equal(plain.features_P4, fast.features_P4)
    assert float(fast.frames_P.sum()) == pytest.approx(float(plain.frames_P.sum()) / 2, rel=0.2)
    phones, frames, prosody = utterance_of(
        torch.tensor([1, 2]), torch.tensor([[0.0, 0.5, 1, 0], [1, 0.5, 0, 0]])
    )
    _, _, higher = utterance_of(phones, torch.tensor([[0.0, 0.5, 1, 0], [1, 0.5, 0, 0]]), pitch=2.0)
    assert (
        float(higher[0, 0] - prosody[0, 0]) == pytest.approx(4.0 * 0.6931, abs=1e-3)
        and float(higher[1, 0]) == 0
    )
    assert torch.allclose(features_of((phones, frames, prosody))[:, 0], torch.tensor([0.0, 1.0]), atol=0.15)
    for wrong in ({"rate": 3.0}, {"pitch": 0.1}):
        with pytest.raises(ValueError, match="expected a factor from 0.5 to 2"):
            Speaker(*options, **wrong)


def test_a_style_is_learned_beside_the_first_and_named_when_it_is_wanted(
    tiny_voice: Any, runs: list[Path], tmp_path: Path, asset_dir: Callable[[str], Path]
) -> None:
    """A run goes on from one style with two, of rows that name theirs; what is said is the style's."""
    rows = [
        f"{{_target_: mm_llama.data.voice_rows.VoiceRows, path: {tiny_voice.rows}, style: {style}}}"
        for style in ("calm", "loud")
    ]
    adapter = "modality.tts_prosody.adapter"
    options = [
        "stage=tts_prosody", "core=tiny", "modality/tts_prosody=tiny", f"runs={tmp_path}", "dtype=float32",
        f"{adapter}.num_styles=2", f"{adapter}.style_names=[calm,loud]", f"stage.init.tts_prosody={runs[0]}",
        "stage.num_steps=2", f"data.train=[{{source: {rows[0]}}},{{source: {rows[1]}}}]", f"data.eval=[{rows[1]}]",
        "loader.batch_size=2", "optim.lr=0.1",
    ]  # fmt: skip
    result = run_stage(compose_config("train", options))
    one = load("tiny", [result.run_dir, *runs[1:]], dtype="float32")
    parts = one.model, one.tokenizer, one.chat_format
    phones = Hibari(asset_dir("hibari_tts")).phones
    said = {
        style: next(Speaker(*parts, phones, style=style).say(TEXT)).features_P4
        for style in ("calm", "loud", 1)
    }
    assert torch.equal(said["loud"], said[1]) and not torch.equal(said["loud"], said["calm"])
    with pytest.raises(ValueError, match="style is sad, but this voice has 2, numbered from 0: calm, loud"):
        Speaker(*parts, phones, style="sad")
    source, mel = VoiceRows(tiny_voice.rows, "loud"), log_mel(one.model)
    by_row, loud, calm = (
        evaluate_prosody(*parts, source, mel, style=style).found[0] for style in (None, "loud", "calm")
    )
    assert torch.equal(by_row, loud) and not torch.equal(loud, calm)


def test_the_command_writes_a_whole_file_or_none(
    runs: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.wav"
    common = [
        "--core",
        "tiny",
        "--dtype",
        "float32",
        *(word for run in runs for word in ("--adapter", str(run))),
    ]
    assert main(["say", TEXT, "-o", str(out), "--show", *common]) == 0
    with wave.open(str(out)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        whole = file.readframes(file.getnframes())
    assert "Nobody came, they said!" in capfd.readouterr().err
    out.unlink()
    assert main(["say", "你好", "-o", str(out), *common]) == 2
    assert "this voice speaks English, and '你'" in capfd.readouterr().err
    assert main(["say", "\N{GRINNING FACE}", "-o", str(out), *common]) == 2
    assert "nothing in this text that can be said" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
    # Raw samples on standard output are those of the file.
    import sys
    from io import BytesIO
    from types import SimpleNamespace

    written, before = BytesIO(), sys.stdout
    sys.stdout = SimpleNamespace(buffer=written)  # type: ignore[assignment]
    try:
        assert main(["say", TEXT, "-o", "-", "--raw", *common]) == 0
    finally:
        sys.stdout = before
    assert written.getvalue() == whole


def test_prosody_is_measured_beside_another_run(
    tiny_voice: Any, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"eval.length", "eval.pitch", "eval.power", "eval.voiced"} <= tiny_voice.prosody
    folder, rows = tmp_path, tiny_voice.rows
    common = [
        "core=tiny",
        "modality/tts_prosody=tiny",
        f"runs={folder}",
        "dtype=float32",
        "stage.num_steps=60",
    ]
    source = f"{{_target_: mm_llama.data.voice_rows.VoiceRows, path: {rows}}}"
    data = [f"data.train=[{{source: {source}}}]", "data.eval=[]", "loader.batch_size=2", "optim.lr=1e-2"]
    longer = run_stage(compose_config("train", ["stage=tts_prosody", *common, *data, "name=longer"])).run_dir
    out = tmp_path / "found.json"
    command = ["eval", "prosody", "--core", "tiny", "--dtype", "float32", "--adapter", str(longer)]
    assert main([*command, "--beside", str(runs[0]), "--data", str(rows), "--out", str(out)]) == 0
    found = json.loads(out.read_text("utf-8"))
    ours, theirs = found["runs"].values()
    for name in ("length", "power"):
        assert ours[name]["rmse"] < theirs[name]["rmse"] and found["compared"][name]["less"] > 0
        assert 0 < found["compared"][name]["p"] <= 1
    assert ours["utterances"] == 2 and "squared error" in capsys.readouterr().out


def test_a_difference_is_likely_by_chance_or_is_not() -> None:
    generator = np.random.default_rng(0)
    one = generator.random(60)
    assert paired_p(one, one + 0.2 + 0.1 * generator.standard_normal(60)) < 0.001
    assert paired_p(one, one + 0.1 * generator.standard_normal(60)) > 0.05


WRONG = {
    "no text": (["say", "  ", "-o", "x.wav"], "there is nothing to say"),
    "too fast": (
        ["say", "Hi", "-o", "x.wav", "--rate", "9"],
        "--rate is 9.0, expected a factor from 0.5 to 2",
    ),
    "raw into a file": (["say", "Hi", "-o", "x.wav", "--raw"], "give -o - --raw together"),
    "no such style": (["say", "Hi", "-o", "x.wav", "--style", "3"], "style is 3, but this voice has 1"),
    "no run": (["say", "Hi", "-o", "x.wav", "--adapter", "gone"], "there is no run at gone"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_named(
    name: str,
    runs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, message = WRONG[name]
    if name == "no text":
        argv = [*argv, "--adapter", str(runs[0])]
    assert main(argv) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_voice_without_a_part_names_it(runs: list[Path]) -> None:
    one = load("tiny", runs[:2], dtype="float32")
    with pytest.raises(ValueError, match="there is no tts_vocoder here: .*stage=tts_vocoder"):
        Speaker(one.model, one.tokenizer, one.chat_format, str)


def test_scripts_that_are_not_known_are_named() -> None:
    check_script("Café naïve 12 € \N{GRINNING FACE} №")
    for text, name in (
        ("да", "cyrillic small letter de"),
        ("α", "greek small letter alpha"),
        ("अ", "devanagari"),
    ):
        with pytest.raises(ValueError, match=name):
            check_script(f"Say {text}")


def test_phones_belong_to_the_token_in_which_their_word_begins() -> None:
    class Spelled:
        def token_bytes(self, id: int) -> bytes:
            return [b"No", b"body", b" came", b",", b" they", b" said"][id]

    found = owners_of_phones("nO kA ðA sɛ", "Nobody came, they said", range(6), Spelled())  # type: ignore[arg-type]
    assert found == [0, 0, 0, 0, 2, 2, 2, 4, 4, 4, 5, 5, 5]
    # Fewer words in phones than in the text: shared out.
    fewer = owners_of_phones("nO kA", "Nobody came, they said", range(6), Spelled())  # type: ignore[arg-type]
    assert fewer == [0, 0, 0, 0, 4, 4, 5]
    with pytest.raises(ValueError, match="no word in ' '"):
        owners_of_phones("n", " ", [0], Spelled())  # type: ignore[arg-type]


def test_an_answer_is_said_and_is_the_same_as_without_a_voice(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--core", "tiny", "--dtype", "float32", "--max-new-tokens", "12", "Say something."]
    assert main(["ask", *common]) == 0
    plain = capsys.readouterr().out
    out = tmp_path / "answer.wav"
    voice = [word for run in runs for word in ("--adapter", str(run))]
    assert main(["ask", *common, *voice, "--speak", str(out)]) == 0
    assert capsys.readouterr().out == plain
    assert len(out.read_bytes()) > 2000
    assert main(["ask", *common, *voice, "--speak", str(tmp_path / "b.wav"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == plain.removesuffix("\n")
    assert (tmp_path / "b.wav").read_bytes() == out.read_bytes()
    assert main(["ask", *common, *voice[:4], "--speak", str(out)]) == 2
    assert "there is no tts_vocoder here" in capsys.readouterr().err


@pytest.mark.parametrize("form", [[], ["--json"], ["--no-stream"]])
def test_an_answer_is_whole_where_the_voice_cannot_say_it(
    form: list[str], runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny core's fortieth byte is of another script, which a voice refuses."""
    common = ["--core", "tiny", "--dtype", "float32", "--max-new-tokens", "40", "Say something.", *form]
    assert main(["ask", *common]) == 0
    plain = capsys.readouterr()
    gone = tmp_path / "gone.wav"
    voice = [word for run in runs for word in ("--adapter", str(run))]
    assert main(["ask", *common, *voice, "--speak", str(gone)]) == 2
    spoken = capsys.readouterr()
    assert not gone.exists()
    assert "is not of its script" in spoken.err
    if form == ["--json"]:
        answers = [json.loads(printed.out)["answer"] for printed in (plain, spoken)]
        assert answers[0] == answers[1] and answers[0]
    else:
        assert spoken.out == plain.out and plain.out.strip()
