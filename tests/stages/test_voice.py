"""The stages of acoustic model and vocoder: labels become losses, and a piece that counts is the piece of the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from encoders.log_mel import LogMel
from mm_llama.build import build, compose_config, resolve
from mm_llama.data.sound import Sound
from mm_llama.data.spoken_rows import write_flac, write_rows
from mm_llama.data.text_to_speech import Hibari
from mm_llama.data.voice_rows import VoiceRows, taught_voice
from mm_llama.paths import conf_dir
from mm_llama.stage_run import run_stage
from mm_llama.stages.checkpoint_files import find_checkpoint, read_state
from mm_llama.stages.voice import Acoustic, Vocode
from mm_llama.targets import check_targets
from mm_llama.voice.phones import NUM_PHONES, numbers
from mm_llama.voice.prosody import F0_CENTER, F0_SCALE, POWER_CENTER, POWER_SCALE, prosody_of
from mm_llama.voice.recorded import recorded
from mm_llama.voice.spectra import spectral_distance

RATE, HOP = 24_000, 300
KINDS = ("acoustic", "vocoder")


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """Six recordings of tones that rise, a phone of each letter."""
    rows, generator = [], torch.Generator().manual_seed(0)
    for number in range(6):
        phones = "".join("abdɛ"[place % 4] for place in range(3 + number))
        frames = [4, *(6 + place for place in range(len(phones))), 4]
        count = sum(frames)
        hz = torch.linspace(110, 220 + 20 * number, count).repeat_interleave(HOP)
        samples = 0.3 * (2 * torch.pi * hz.cumsum(0) / RATE).sin() + 0.02 * torch.randn(
            count * HOP, generator=generator
        )
        write_flac(tmp_path / "clips" / f"{number}.flac", Sound(samples, RATE), RATE)
        labels = {"phones": phones, "frames": frames, "f0": hz[::HOP].round().int().tolist()}
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": ""},
                    {"role": "assistant", "content": f"tone {number}"},
                ],
                "extra": {"labels": labels | {"audio": f"clips/{number}.flac"}},
            }
        )
    return write_rows(tmp_path, {"voice": rows})["voice"]


def tiny(kind: str, voice: Path, *overrides: str) -> list[str]:
    rows = f"{{_target_: mm_llama.data.voice_rows.VoiceRows, path: {voice}}}"
    return [
        f"stage=tts_{kind}",
        "core=tiny",
        f"modality/tts_{kind}=tiny",
        f"data.train=[{{source: {rows}}}]",
        f"data.eval=[{rows}]",
        f"runs={voice.parent / 'runs'}",
        "stage.num_steps=2",
        "stage.eval_every=0",
        "loader.batch_size=4",
        "dtype=float32",
        *overrides,
    ]


def run(*overrides: str) -> Any:
    result = run_stage(compose_config("train", list(overrides)))
    assert result.exit_code == 0
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_builds(kind: str) -> None:
    for file in sorted((conf_dir() / "modality" / f"tts_{kind}").glob("*.yaml")):
        if file.stem == "none":
            continue
        data = resolve(compose_config("train", [f"modality/tts_{kind}={file.stem}", "stage=none"]))
        part = data["modality"][f"tts_{kind}"]
        check_targets(part)
        adapter = build(part["adapter"])
        assert part["port"] == "spoken" and getattr(adapter, "num_phones", NUM_PHONES) == NUM_PHONES


@pytest.mark.parametrize(("kind", "measure"), [("acoustic", "mel_distance"), ("vocoder", "stft_distance")])
def test_a_stage_trains_its_part_alone_and_gets_nearer(voice: Path, kind: str, measure: str) -> None:
    few = run(*tiny(kind, voice, "name=few"))
    many = run(*tiny(kind, voice, "name=many", "stage.num_steps=40", "optim.lr=5e-3"))
    summary = json.loads((many.run_dir / "summary.json").read_text("utf-8"))
    assert {(row["group"], row["trained"]) for row in summary["freeze"]} == {
        ("core", False),
        (f"modality.tts_{kind}.adapter", True),
    }
    assert many.final[f"eval.{measure}"] < 0.9 * few.final[f"eval.{measure}"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_where_it_was(voice: Path, kind: str) -> None:
    losses = []
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        for count in steps:
            # The schedule knows the number of steps; a constant one makes both runs the same.
            found = run(
                *tiny(kind, voice, f"name={name}", f"stage.num_steps={count}", "optim.schedule=constant")
            )
        lines = (found.run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_prosody_is_the_mean_of_each_phone() -> None:
    mels = torch.arange(10.0)[:, None].expand(10, 8)
    f0 = torch.tensor([0.0, 100, 200, 0, 0, 0, 300, 300, 0, 0])
    found = prosody_of(torch.tensor([1, 2, 3, 4]), f0, mels)
    mean = float((torch.tensor(100.0).log() + torch.tensor(200.0).log()) / 2)
    assert found[:, 1].tolist() == [0, 1, 0, 1]  # half of the last one's frames
    assert found[:, 0].tolist() == pytest.approx(
        [0, (mean - F0_CENTER) * F0_SCALE, 0, (float(torch.tensor(300.0).log()) - F0_CENTER) * F0_SCALE],
        abs=1e-4,
    )
    assert found[:, 2].tolist() == pytest.approx([(m - POWER_CENTER) * POWER_SCALE for m in (0, 1.5, 4, 7.5)])


def test_distance_is_none_of_a_sound_from_itself_and_grows() -> None:
    sound = torch.randn(1, 9000, generator=torch.Generator().manual_seed(0))
    near, far = (spectral_distance(sound + size * torch.randn_like(sound), sound) for size in (0.01, 0.3))
    assert float(spectral_distance(sound, sound)) == 0 < float(near) < float(far)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no pitch": ({"f0": None}, "labels have no 'f0'"),
    "no recording": ({"audio": None}, "labels have no 'audio'"),
    "a phone that is none": ({"phones": "a#dɛ"}, "'#' .* is no phone"),
    "too few lengths": ({"frames": [10, 19]}, "2 lengths do not fit 5 phones"),
    "lengths of another recording": ({"frames": [4, 6, 7, 8, 5]}, "phones of 30 frames .* recording of 29"),
    "no file": ({"audio": "gone.flac"}, "gone.flac"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_is_named(voice: Path, name: str) -> None:
    changes, message = WRONG[name]
    row = json.loads(voice.read_text("utf-8").splitlines()[0])
    labels = row["extra"]["labels"] | changes
    row["extra"]["labels"] = {key: value for key, value in labels.items() if value is not None}
    file = write_rows(voice.parent, {"wrong": [row]})["wrong"]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        run(*tiny("acoustic", file))
    assert "wrong.jsonl:1" in str(raised.value)


def test_another_rate_is_refused(voice: Path) -> None:
    labels = VoiceRows(voice).row(0).extra["labels"]
    with pytest.raises(ValueError, match=r"row 1: .*0.flac has 24,000 samples a second, this voice 16,000"):
        recorded(labels, "row 1", 16_000, 200)


def test_a_teacher_tells_what_it_did(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    engine = Hibari(asset_dir("hibari_tts"))
    phones = engine.phones("It costs twelve dollars, and nobody came.")
    taught = engine.teach(phones)
    assert len(taught.frames) == len(numbers(phones)) and sum(taught.frames) * HOP == len(taught.samples)
    assert len(taught.f0_F) == sum(taught.frames) and torch.equal(
        taught.samples, engine.teach(phones).samples
    )
    # The very sound that it speaks, and the pitch that it speaks with: harmonics stand where F0 says.
    assert torch.equal(taught.samples, torch.from_numpy(engine.engine.from_phonemes(phones, seed=0)))
    voiced = (taught.f0_F > 100).nonzero().flatten().tolist()
    frame = voiced[len(voiced) // 2]
    window = taught.samples[frame * HOP - 600 : frame * HOP + 600] * torch.hann_window(1200)
    spectrum = torch.fft.rfft(window, 24_000).abs()  # one bin a hertz
    peak = 80 + int(spectrum[80:400].argmax())
    f0 = float(taught.f0_F[frame])
    assert min(abs(peak - f0), abs(peak / 2 - f0)) < 12
    with pytest.raises(ValueError, match="the engine has no phone '#'"):
        engine.teach("a#")
    (tmp_path / "texts").mkdir()
    words = ("house", "garden", "river", "mountain")
    (tmp_path / "texts" / "a.txt").write_text(" ".join(f"They saw the {word} again." for word in words))
    options = {
        "root": tmp_path / "texts",
        "engine": asset_dir("hibari_tts"),
        "out": tmp_path / "out",
        "num_train": 3,
    }
    source = taught_voice(num_holdout=1, **options)
    row = source.row(0)
    one = recorded(row.extra["labels"], row.source, RATE, HOP)
    assert len(source) == 3 and len(one.samples) == sum(row.extra["labels"]["frames"]) * HOP
    assert soundfile.info(row.extra["labels"]["audio"]).samplerate == RATE
    assert LogMel(80, RATE, 1200, HOP, dynamic_range=None)(one.samples).shape == (int(one.frames_P.sum()), 80)
    with pytest.raises(ValueError, match="no split 'test'"):
        taught_voice(split="test", **options)
    with pytest.raises(ValueError, match="4 sentences that can be said, fewer than the 203"):
        taught_voice(**options)


def test_the_vocoder_learns_on_from_what_the_acoustic_model_makes(voice: Path) -> None:
    acoustic, vocoder = (run(*tiny(kind, voice)).run_dir for kind in KINDS)
    init = [f"stage.init.tts_acoustic={acoustic}", f"stage.init.tts_vocoder={vocoder}"]
    matched = [one for one in tiny("vocoder", voice, *init) if not one.startswith("stage=")]
    found = run("stage=tts_matched", "modality/tts_acoustic=tiny", *matched)
    assert read_state(find_checkpoint(found.run_dir))["train"] == ["modality.tts_vocoder.adapter"]
    # Where all log-mels are predicted, other ones are learned from than where none is.
    losses = []
    for share in (0.0, 1.0):
        one = run(
            "stage=tts_matched",
            "modality/tts_acoustic=tiny",
            *matched,
            f"stage.step.predicted={share}",
            f"name=p{share}",
        )
        lines = (one.run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)])
    assert losses[0] != losses[1]
    with pytest.raises(ValueError, match="predicted=2 is a share"):
        Vocode(None, predicted=2)  # type: ignore[arg-type]


def test_prosody_that_is_a_little_wrong_is_learned_from_and_never_measured_with(voice: Path) -> None:
    acoustic = run(*tiny("acoustic", voice)).run_dir
    options = [one for one in tiny("acoustic", voice) if not one.startswith("stage=")]
    found = []
    for noise in (0.0, 0.5):
        init = [f"stage.init.tts_acoustic={acoustic}", f"stage.step.noise={noise}", f"name=n{noise}"]
        one = run("stage=tts_tolerant", *options, *init, "stage.eval_every=2")
        lines = [json.loads(line) for line in (one.run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
        found.append(lines)
    first, second = (next(line["loss"] for line in lines if "loss" in line) for lines in found)
    assert first != second
    with pytest.raises(ValueError, match="noise=-1 is a deviation"):
        Acoustic(None, noise=-1)  # type: ignore[arg-type]
