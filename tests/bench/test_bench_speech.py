"""`mm-llama bench speech`: every term is there, lengths cost what they are, the peer has the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from encoders.speech_whisper import WhisperEncoder
from mm_llama.bench import speech
from mm_llama.cli import main as cli


def test_terms_lengths_and_the_papers_size_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speech.json"
    assert (
        cli(["bench", "speech", "--small", "--repeats", "1", "--paper-seconds", "1", "--json", str(path)])
        == 0
    )
    found = json.loads(path.read_text("utf-8"))
    terms = found["latency"]["terms_s"]
    assert tuple(terms) == speech.TERMS and all(seconds > 0 for seconds in terms.values())
    assert found["latency"]["seconds_of_sound"] == 6 and found["latency"]["positions"] > 40
    assert found["ragged"]["wasted_frames"] == pytest.approx(1 - 22.5 / 48, abs=0.01)
    assert found["ragged"]["wasted_frames_at_30_s"] > 0.8
    assert found["paper"]["layers"] == 2 and found["paper"]["layer_saved_bytes"] > 0
    printed = capsys.readouterr().out
    assert "to the first token" in printed and "times faster than transformers" in printed


def test_the_peer_encodes_the_same() -> None:
    encoder = WhisperEncoder(dim=32, num_layers=2, num_heads=2).eval()
    peer = speech._peer(encoder)
    mels = torch.randn(1, 3000, 80)
    with torch.inference_mode():
        torch.testing.assert_close(peer(mels.transpose(1, 2)), encoder(mels), rtol=0, atol=2e-5)
