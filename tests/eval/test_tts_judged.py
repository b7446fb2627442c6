"""A voice is judged by a recogniser: its teacher is understood, an untrained vocoder is not."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.log_mel import LogMel
from mm_llama.assistant import load
from mm_llama.cli import main
from mm_llama.data.sound import open_sound
from mm_llama.data.text_to_speech import Hibari
from mm_llama.data.voice_rows import VoiceRows
from mm_llama.eval.perceptual import measures
from mm_llama.eval.tts import evaluate_tts, with_noise
from mm_llama.eval.whisper import Whisper
from mm_llama.voice.spectra import mel_cepstral_distortion


@pytest.fixture(scope="module")
def judge(asset_dir: Callable[[str], Path]) -> Whisper:
    return Whisper(asset_dir("whisper_tiny_en"), LogMel(80))


def test_whisper_writes_down_what_is_said(judge: Whisper, asset_dir: Callable[[str], Path]) -> None:
    sound = Hibari(asset_dir("hibari_tts")).speak("Nobody came to the garden.")
    assert judge([sound.samples]) == ["Nobody came to the garden."]
    with pytest.raises(ValueError, match="a recording of 31.0 s is longer than Whisper's 30 s"):
        judge([torch.zeros(31 * 16_000)])


def test_a_voice_is_measured(judge: Whisper, tiny_voice: Any, tmp_path: Path) -> None:
    source = VoiceRows(tiny_voice.rows)
    runs = [tiny_voice.runs[kind] for kind in ("acoustic", "vocoder", "prosody")]
    model = load("tiny", runs[:2], dtype="float32").model
    mel = LogMel(80, 24_000, 1200, 300, dynamic_range=None)
    result = evaluate_tts(model, source, mel, {"Whisper": judge}, noise=30.0)
    assert result.errors("teacher").rate == result.errors("teacher", noisy=True).rate == 0
    assert min(result.errors(side).rate for side in ("vocoder", "voice")) > 0.5
    numbers = result.to_json()
    assert set(numbers["sides"]) == {"teacher", "vocoder", "voice"} and numbers["recordings"] == 2
    assert (
        numbers["sides"]["voice"]["stft_distance"] > 0.5
        and "stft_distance" not in numbers["sides"]["teacher"]
    )
    # The same from the command line, without noise.
    out = tmp_path / "found.json"
    common = ["--core", "tiny", "--dtype", "float32", "--adapter", str(runs[0]), "--adapter", str(runs[1])]
    assert main(["eval", "tts", *common, "--data", str(source.path), "--no-noise", "--out", str(out)]) == 0
    assert (
        json.loads(out.read_text("utf-8"))["sides"]["teacher"]["Whisper tiny.en"]["clean"]
        == numbers["sides"]["teacher"]["Whisper"]["clean"]
    )
    heard = [json.loads(line) for line in (tmp_path / "found_answers.jsonl").read_text("utf-8").splitlines()]
    assert [one["said"] for one in heard] == result.texts and all("in_noise" not in one for one in heard)
    assert main(["eval", "tts", *common, "--data", str(source.path), "--no-noise", "--sides", "vocoder"]) == 0
    assert main(["eval", "tts", *common, "--data", str(source.path), "--sides", "teacher,other"]) == 2
    # Every part, from the text, and a page of pairs.
    page = tmp_path / "page.html"
    whole = [*common, "--adapter", str(runs[2]), "--data", str(source.path), "--no-noise", "--out", str(out)]
    assert main(["eval", "tts", *whole, "--page", str(page), "--page-pairs", "1"]) == 0
    found = json.loads(out.read_text("utf-8"))
    assert set(found["sides"]) == {"teacher", "vocoder", "voice", "own"}
    assert set(found["parts"]) == {"core", "normaliser", "phones", "prosody", "acoustic", "vocoder"}
    assert found["sides"]["own"]["real_time_factor"] == pytest.approx(sum(found["parts"].values()), rel=0.2)
    text = page.read_text("utf-8")
    assert html.escape(result.texts[0], quote=False) in text and "{{" not in text
    assert main(["eval", "tts", *common, "--data", str(source.path), "--no-noise", "--page", str(page)]) == 2
    with pytest.raises(ValueError, match="there is no tts_vocoder here"):
        evaluate_tts(load("tiny", [runs[0]], dtype="float32").model, source, mel, {"Whisper": judge})


def test_mel_cepstra_are_as_far_apart_as_their_spectra() -> None:
    """A ripple of the log spectrum of 1 dB is one coefficient; loudness is none."""
    mels = torch.rand(30, 80, generator=torch.Generator().manual_seed(0))
    assert float(mel_cepstral_distortion(mels, mels + 0.3)) == pytest.approx(0.0, abs=1e-4)
    ripple = torch.cos(torch.pi / 80 * (torch.arange(80) + 0.5) * 5) / 40  # a decibel, as log-mels are scaled
    assert float(mel_cepstral_distortion(mels, mels + ripple)) == pytest.approx(2**-0.5, rel=1e-3)
    far = mels + torch.cos(torch.pi / 80 * (torch.arange(80) + 0.5) * 20) / 40
    assert float(mel_cepstral_distortion(mels, far)) == pytest.approx(
        0.0, abs=1e-4
    )  # finer than 13 coefficients


def test_perceptual_measures_prefer_the_original(asset_dir: Callable[[str], Path]) -> None:
    found = measures()
    if not found:
        pytest.skip("neither pesq nor pystoi is installed")
    sound = Hibari(asset_dir("hibari_tts")).speak("Nobody came to the garden.").samples
    for measure in found.values():
        assert measure(sound, sound) > measure(sound, with_noise(sound, 3.0, seed=0))


def test_noise_is_as_far_below_as_it_is_said(asset_dir: Callable[[str], Path]) -> None:
    sound = open_sound((torch.randn(16_000, generator=torch.Generator().manual_seed(3)), 16_000)).samples
    noise = with_noise(sound, 3.0, seed=0) - sound
    assert 10 * float((sound.square().mean() / noise.square().mean()).log10()) == pytest.approx(3.0, abs=0.05)
    assert torch.equal(with_noise(sound, 3.0, seed=0), with_noise(sound, 3.0, seed=0))
