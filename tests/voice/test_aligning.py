"""The aligner: known lengths are learned and found again, and rows of real recordings become those of a voice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.log_mel import LogMel
from mm_llama.assets import asset
from mm_llama.build import compose_config
from mm_llama.cli.eval_tts import source_of
from mm_llama.data.sound import Sound, open_sound
from mm_llama.data.spoken_rows import write_flac, write_rows
from mm_llama.recorded_rows import load_aligner, recorded_voice
from mm_llama.stage_run import run_stage
from mm_llama.voice.aligning import align
from mm_llama.voice.phones import numbers
from mm_llama.voice.pitch import pitch
from mm_llama.voice.recorded import recorded

RATE, HOP = 24_000, 300
TONES = {"a": 300, "b": 900, "d": 2000, "s": 4000}


def clip(text: str, frames: list[int], seed: int) -> torch.Tensor:
    """Silence, a tone of its own for each phone, silence; float32[T]."""
    hz = [1.0, *(TONES[letter] for letter in text), 1.0]
    loud = [0.0, *(0.3 for _ in text), 0.0]
    counts = torch.tensor(frames) * HOP
    hz_T, loud_T = (torch.tensor(part).repeat_interleave(counts) for part in (hz, loud))
    noise_T = torch.randn(len(hz_T), generator=torch.Generator().manual_seed(seed))
    return loud_T * (2 * torch.pi * hz_T.cumsum(0) / RATE).sin() + 0.001 * noise_T


def row_of(folder: Path, text: str, frames: list[int], seed: int) -> dict[str, Any]:
    write_flac(folder / f"clips/{seed}.flac", Sound(clip(text, frames, seed), RATE), RATE)
    labels = {"phones": text, "frames": frames, "f0": [0] * sum(frames), "audio": f"clips/{seed}.flac"}
    return {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": text}],
        "extra": {"labels": labels},
    }


@pytest.fixture(scope="module")
def aligner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the stage on twelve texts of four tones."""
    folder = tmp_path_factory.mktemp("aligner")
    draw, rows = torch.Generator().manual_seed(0), []
    for seed in range(12):
        # No two of a kind side by side: where one tone becomes the same one nobody can hear.
        steps = torch.randint(1, 4, (8,), generator=draw).cumsum(0) % 4
        letters = [list(TONES)[int(place)] for place in steps]
        frames = torch.randint(3, 15, (10,), generator=draw).tolist()
        rows.append(row_of(folder, "".join(letters), frames, seed))
    file = write_rows(folder, {"tones": rows})["tones"]
    source = f"{{_target_: mm_llama.data.voice_rows.VoiceRows, path: {file}}}"
    result = run_stage(
        compose_config(
            "train",
            [
                "stage=tts_aligner",
                "core=tiny",
                "modality/tts_aligner=tiny",
                f"data.train=[{{source: {source}}}]",
                f"data.eval=[{source}]",
                "data.eval_rows=0",
                f"runs={folder / 'runs'}",
                "stage.num_steps=200",
                "stage.eval_every=0",
                "optim.lr=1e-2",
                "loader.batch_size=12",
                "threads=1",
                "dtype=float32",
                # A tone is known by where it is: what makes an aligner mind voices less would hide it.
                "stage.step.speeds=[0.95,1.05]",
                "stage.step.band=0",
            ],
        )
    )
    assert result.exit_code == 0
    assert result.final["eval.near"] > 0.9 and result.final["eval.boundary_seconds"] < 0.02
    return Path(result.run_dir)


def test_a_text_that_was_never_heard_is_found(aligner: Path) -> None:
    adapter = load_aligner(aligner)
    text, frames = "sabdasbd", [6, 9, 5, 12, 7, 4, 10, 8, 11, 6]
    heard = open_sound((clip(text, frames, 99), RATE), rate=adapter.rate)
    (logs_FN,) = adapter([adapter.features(heard.samples)])
    found_P, fit = align(logs_FN, torch.tensor(numbers(text)))
    assert int(found_P.sum()) == len(logs_FN) == sum(frames)
    off = (found_P.cumsum(0) - torch.tensor(frames).cumsum(0)).abs()
    assert int(off.max()) <= 2
    # What was not said fits worse.
    assert fit > align(logs_FN, torch.tensor(numbers("ddssabba")))[1] + 0.5


def test_the_best_path_is_the_best_of_all() -> None:
    """Beside every way to share out frames, phones of a kind side by side among them."""
    logs_FN = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).mul(2).log_softmax(-1)
    for phones in ([1, 2, 3], [4, 2, 4], [0, 1, 0]):
        best = max(
            (
                (float(sum(logs_FN[f, p] for f, p in enumerate(owner))), lengths)
                for a in range(1, 6)
                for b in range(1, 7 - a)
                for lengths in [[a, b, 7 - a - b]]
                for owner in [[p for p, n in zip(phones, lengths, strict=True) for _ in range(n)]]
            ),
        )
        found_P, score = align(logs_FN, torch.tensor(phones))
        assert found_P.tolist() == best[1]
        assert score == pytest.approx(best[0] / 7, abs=1e-5)
    found_P, _ = align(logs_FN, torch.tensor([1, 1, 2]))
    assert int(found_P.sum()) == 7 and int(found_P.min()) >= 1
    with pytest.raises(ValueError, match="7 frames are too few for 7 phones, 1 of them as the one before"):
        align(logs_FN, torch.tensor([1, 2, 3, 4, 4, 1, 2]))


def test_the_aligner_hears_one_recording_as_among_others(aligner: Path) -> None:
    adapter = load_aligner(aligner)
    mels = [adapter.features(torch.randn(16_000 + 4_000 * extra) * 0.1) for extra in range(3)]
    for alone, together in zip([adapter([mel])[0] for mel in mels], adapter(mels), strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_pitch_of_a_glide_and_of_silence() -> None:
    pytest.importorskip("librosa")
    hz = torch.linspace(110, 220, 16_000)
    phase = 2 * torch.pi * hz.double().cumsum(0) / 16_000
    # Harmonics as a voice has them.
    glide = sum((number * phase).sin() / number for number in range(1, 9)).float() * 0.2
    found_F = pitch(torch.cat((glide, torch.zeros(8_000))), 16_000, 200)
    assert len(found_F) == 120 and not bool(found_F[84:].any())
    cents_F = 1200 * (found_F[4:76] / hz[::200][4:76]).log2()
    assert float(cents_F.abs().max()) < 40


@pytest.mark.slow
def test_real_prompts_become_rows_of_a_voice(aligner: Path, tmp_path: Path) -> None:
    """Alignment by a toy is poor, so all fit is let pass; rows are whole all the same."""
    pytest.importorskip("librosa")
    common: dict[str, Any] = {
        "root": asset("asterisk_wideband"),
        "texts": asset("asterisk_texts"),
        "engine": asset("hibari_tts"),
        "aligner": aligner,
        "out": tmp_path,
        "limit": 16,
        "least_fit": -100.0,
    }
    rows = {split: recorded_voice(split=split, **common) for split in ("train", "holdout", "test")}
    texts = [
        json.loads(line)["messages"][1]["content"]
        for part in rows.values()
        for line in part.path.read_text("utf-8").splitlines()
    ]
    assert len(texts) == len(set(texts)) >= 10
    mel = LogMel(80, RATE, 1200, HOP, None)
    for part in rows.values():
        for number in range(len(part)):
            labels = part.row(number).extra["labels"]
            one = recorded(labels, "row", mel.rate, mel.hop)
            assert int(one.frames_P.min()) >= 1 and labels["phones"][-1] in ".,!?"
            # A speaker: some of it has a voice, of a height that voices have.
            hz = one.f0_F[one.f0_F > 0]
            assert len(hz) > 5 and 80 < float(hz.median()) < 350
    with pytest.raises(ValueError, match="no split 'dev'"):
        recorded_voice(split="dev", **common)
    with pytest.raises(ValueError, match="there is no aligner at .*nowhere.*stage=tts_aligner"):
        recorded_voice(**{**common, "aligner": tmp_path / "nowhere"})
    # Of this toy's paths none is as good as speech aligned: with the bound nothing is left to learn from.
    with pytest.raises(
        ValueError, match=r"16 of 16 prompts fit their texts less than least_fit=0.0, and none"
    ):
        recorded_voice(**{**common, "least_fit": 0.0})
    with pytest.raises(ValueError, match="there is no aligner at .*nowhere.*stage=tts_aligner"):
        source_of("recorded_voice", "test", tmp_path / "nowhere")
