"""Every stage of speech takes its steps on a tiny core, one goes on from the other, and every YAML builds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from mm_llama.assistant import load
from mm_llama.build import build, compose_config, resolve
from mm_llama.core.pieces import respelled
from mm_llama.data.recordings import Recordings
from mm_llama.data.spoken_rows import dialogue, recognition, write_rows
from mm_llama.paths import conf_dir
from mm_llama.stage_run import run_stage
from mm_llama.stages.checkpoint import load_adapter
from mm_llama.targets import check_targets

READOUT = [
    "modality.speech.adapter.emit=tokens",
    "modality.speech.adapter.num_pieces=256",
    "modality.speech.adapter.num_begin=2",
    "modality.speech.adapter.num_end=2",
    "modality.speech.adapter.stride=1",
]


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml") if file.stem != "none")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = os.environ.get("MM_LLAMA_CACHE", str(Path.home() / ".cache" / "mm_llama"))
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))
    if (Path(assets) / "assets").is_dir():
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "assets").symlink_to(Path(assets) / "assets")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Recordings from a half to two seconds: tones with noise, so that they differ."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        T = 8000 + 4000 * number
        tone = torch.sin(torch.arange(T) * (0.05 + 0.02 * number))
        samples = 0.3 * tone + 0.1 * torch.randn(T, generator=generator)
        soundfile.write(folder / f"{number}.flac", samples.numpy(), 16_000)
    return folder


@pytest.fixture
def rows(recordings: Path) -> Path:
    """Recognition and dialogue, one recording in two rows, and a row of text alone."""
    made = [recognition(f"{n}.flac", f"tone {n}", seconds=0.5 + 0.25 * n) for n in range(6)]
    made.append(dialogue("1.flac", "tone 1", "a low one"))
    write_rows(recordings, {"rows": made})
    text = {"role": "user", "content": "hum"}, {"role": "assistant", "content": "mm"}
    write_rows(recordings, {"mixed": [*made, {"messages": list(text)}]})
    return recordings / "rows.jsonl"


def tiny(rows: Path, *overrides: str) -> list[str]:
    return [
        "core=tiny",
        "modality/speech=tiny",
        "data=jsonl",
        f"data.train.0.source.path={rows}",
        f"runs={rows.parent / 'runs'}",
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


@pytest.mark.parametrize("name", choices("modality/speech"))
def test_speech_modality_builds(name: str) -> None:
    data = resolve(compose_config("train", [f"modality/speech={name}", "stage=none"]))
    part = data["modality"]["speech"]
    assert part["port"] == "spliced"
    check_targets(part)
    if name.startswith("whisper_base"):
        return  # its weights are fetched by those who use it
    with torch.device("meta" if "paper" in name else "cpu"):
        encoder, adapter = build(part["encoder"]), build(part["adapter"])
    counts = [sum(weight.numel() for weight in one.parameters()) for one in (encoder, adapter)]
    if name == "paper":
        assert counts[0] == pytest.approx(1.0006e9, rel=2e-3)
        # 576 wide here; tests/adapters has the sizes at 4,096 and 8,192.
        assert counts[1] == pytest.approx(91.4e6, rel=0.01)
    if name == "best_rq_small":
        assert counts[0] <= 10e6


def test_copy_readout_and_recognition_go_on_from_each_other(rows: Path) -> None:
    copy = run("stage=speech_copy", *tiny(rows, *READOUT))
    readout = run("stage=speech_readout", *tiny(rows, *READOUT))
    init = f"{{speech: {readout.run_dir}, speech.adapter.begin: {copy.run_dir}, speech.adapter.end: {copy.run_dir}}}"
    last = run(
        "stage=speech_sft",
        *tiny(rows.parent / "mixed.jsonl", *READOUT, f"stage.init={init}", "stage.step.readout_weight=0.3"),
    )
    summary = json.loads((last.run_dir / "summary.json").read_text("utf-8"))
    state = json.loads(next(last.run_dir.glob("checkpoints/*/state.json")).read_text("utf-8"))
    assert sorted(entry["stage"] for entry in state["lineage"]) == [
        "speech_copy",
        "speech_readout",
        "speech_sft",
    ]
    groups = {(row["group"], row["trained"]) for row in summary["freeze"]}
    assert groups == {
        ("core", False),
        ("modality.speech.encoder", True),
        ("modality.speech.adapter", True),
    }


def test_copying_encodes_no_recording(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = f"data.eval=[{{_target_: mm_llama.data.sources.JsonlChat, path: {rows}}}]"
    copy = run("stage=speech_copy", *tiny(rows, *READOUT, held_out))
    assert 0 <= copy.final["eval.answers"] <= 1
    assert "features" not in capsys.readouterr().err
    run("stage=speech_readout", *tiny(rows, *READOUT, held_out))
    assert "features of 6 recordings" in capsys.readouterr().err


def test_what_trained_a_part_brings_the_rest_along(rows: Path) -> None:
    readout = run("stage=speech_readout", *tiny(rows, *READOUT))
    copy = run("stage=speech_copy", *tiny(rows, *READOUT, f"stage.init.speech={readout.run_dir}"))
    model = load("tiny", [copy.run_dir], dtype="float32").model
    both = load("tiny", [readout.run_dir], dtype="float32").model
    load_adapter(both, copy.run_dir)
    ours, theirs = (one.modality["speech"].adapter.state_dict() for one in (model, both))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # Moved together they are still found; alone the part is refused.
    moved = rows.parent / "elsewhere"
    moved.mkdir()
    for one in (readout.run_dir, copy.run_dir):
        one.rename(moved / one.name)
    load("tiny", [moved / copy.run_dir.name], dtype="float32")
    (moved / readout.run_dir.name).rename(moved / "gone")
    with pytest.raises(ValueError, match="trained a part of the speech adapter of .* put that run beside it"):
        load("tiny", [moved / copy.run_dir.name], dtype="float32")
    # Another training in its place is not what the part was trained after.
    run("stage=speech_readout", *tiny(rows, *READOUT, "optim.lr=0.02")).run_dir.rename(
        moved / readout.run_dir.name
    )
    with pytest.raises(ValueError, match="trained after the speech adapter of .* holds another one now"):
        load("tiny", [moved / copy.run_dir.name], dtype="float32")


def test_a_stage_puts_a_source_around_its_training_rows(rows: Path) -> None:
    def trained(name: str, augment: str) -> torch.Tensor:
        result = run("stage=speech_copy", *tiny(rows, *READOUT, f"name={name}", augment))
        found: torch.Tensor = (
            load("tiny", [result.run_dir], dtype="float32").model.modality["speech"].adapter.begin
        )
        return found

    plain = trained("plain", "stage.augment=null")
    assert torch.equal(plain, trained("unchanged", "stage.augment.share=0.0"))
    assert not torch.equal(plain, trained("changed", "stage.augment.share=1.0"))
    with pytest.raises(Exception, match="share=2 is that of the words"):
        trained("refused", "stage.augment.share=2")


def test_what_nothing_reaches_is_named_early(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A readout that no loss asks for: at the fixed rate, without it as an aid.
    config = ["stage=speech_sft", *tiny(rows, "modality.speech.adapter.num_pieces=256", "stage.num_steps=8")]
    with pytest.raises(ValueError, match="3 of .* trainable tensors did not change"):
        run(*config)
    said = capsys.readouterr().err
    assert said.count("trainable tensors had no gradient in 5 updates") == 1
    assert "modality.speech.adapter.blank.weight" in said and "leave them out of stage.train" in said
    run(*config, "name=aided", "stage.step.readout_weight=0.3")
    assert "had no gradient" not in capsys.readouterr().err


def test_a_loaded_model_spells_what_was_read(rows: Path) -> None:
    result = run("stage=speech_readout", *tiny(rows, *READOUT, "modality.speech.adapter.spell=true"))
    loaded = load("tiny", [result.run_dir], dtype="float32")
    adapter = loaded.model.modality["speech"].adapter
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(30, adapter.encoder_dim, generator=generator) for _ in range(2)]
    table_VD = torch.randn(300, adapter.dim, generator=generator)
    with torch.inference_mode():
        adapter.blank.bias.fill_(-20.0)  # every frame hears a piece
        heard = adapter.hear(features, table_VD)
        read = [[piece for piece, _, _ in spans] for spans in heard.best_pieces()]
        spelled = adapter.embeddings(heard, table_VD)
        expected = adapter.spelled([respelled(row, loaded.tokenizer) for row in read], table_VD)
        assert all(read) and all(map(torch.equal, spelled, expected))
        adapter.read = None
        means = adapter.embeddings(heard, table_VD)
    assert not any(
        one.shape == other.shape and torch.equal(one, other)
        for one, other in zip(spelled, means, strict=True)
    )


def test_a_run_hears_without_the_runs_that_it_came_from(rows: Path) -> None:
    copy = run("stage=speech_copy", *tiny(rows, *READOUT))
    readout = run("stage=speech_readout", *tiny(rows, *READOUT))
    init = f"{{speech: {readout.run_dir}, speech.adapter.begin: {copy.run_dir}, speech.adapter.end: {copy.run_dir}}}"
    last = run("stage=speech_sft", *tiny(rows, *READOUT, f"stage.init={init}"))
    for one in (copy, readout):
        one.run_dir.rename(one.run_dir.with_name(f"{one.run_dir.name}_gone"))
    assistant = load("tiny", [last.run_dir], dtype="float32")
    heard = [{"role": "user", "content": [{"type": "audio", "path": str(rows.parent / "3.flac")}]}]
    first = assistant.chat(heard, max_new_tokens=4)
    assert first == assistant.chat(heard, max_new_tokens=4)
    samples, _ = soundfile.read(rows.parent / "3.flac", dtype="float32")
    given = [{"role": "user", "content": [{"type": "audio", "audio": (samples, 16_000)}]}]
    assert assistant.chat(given, max_new_tokens=4) == first


def test_the_papers_fixed_rate_and_a_trained_encoder(rows: Path) -> None:
    result = run("stage=speech_sft", *tiny(rows))
    assert not list((rows.parent.parent / "cache").glob("features/*"))
    found = {row["group"]: row for row in json.loads((result.run_dir / "summary.json").read_text())["freeze"]}
    assert found["modality.speech.encoder"]["before"] != found["modality.speech.encoder"]["after"]


def test_a_frozen_encoders_features_are_kept(rows: Path) -> None:
    run("stage=speech_sft", *tiny(rows, "stage.train=[modality.speech.adapter]"))
    assert list((rows.parent.parent / "cache").glob("features/*/*.safetensors"))


def test_rows_are_as_long_as_what_is_said_in_them(rows: Path) -> None:
    with pytest.raises(ValueError, match=r"rows.jsonl:\d+: the row has \d+ tokens and the limit is 60"):
        run("stage=speech_sft", *tiny(rows, "loader.max_tokens=60"))


def test_pretraining_hands_its_encoder_on(recordings: Path, rows: Path) -> None:
    first = run(
        "stage=speech_pretrain",
        "core=tiny",
        "modality/speech=best_rq_tiny",
        f"data.train.0.source.folders={recordings}",
        "data.train.0.source.skip=false",
        "data.train.0.source.every=1",
        "data.eval=[]",
        f"runs={recordings / 'runs'}",
        "stage.num_steps=3",
        "loader.batch_size=3",
        "dtype=float32",
    )
    assert 0.2 < first.final["hidden_share"] < 0.95 and first.final["expected_share"] == pytest.approx(
        0.555, abs=0.001
    )
    assert first.final["codes_used"] > 1
    summary = json.loads((first.run_dir / "summary.json").read_text("utf-8"))
    frozen = [row for row in summary["freeze"] if not row["trained"] and row["group"].endswith("adapter")]
    assert frozen and all(row["before"] == row["after"] for row in frozen)
    second = run(
        "stage=speech_sft",
        *tiny(
            rows, f"stage.init={{speech.encoder: {first.run_dir}}}", "stage.train=[modality.speech.adapter]"
        ),
    )
    config = compose_config("train", ["stage=speech_sft", *tiny(rows)])
    from mm_llama.build import build_model

    model, _, _ = build_model(resolve(config))
    before = model.modality["speech"].encoder.digest
    load_adapter(model, first.run_dir, prefix="modality.speech.encoder")
    assert model.modality["speech"].encoder.digest != before
    state = json.loads(next(second.run_dir.glob("checkpoints/*/state.json")).read_text("utf-8"))
    assert state["encoders"]["speech"] == model.modality["speech"].encoder.digest


def test_letters_are_read_by_a_pretrained_encoder(recordings: Path, rows: Path) -> None:
    sizes = [
        f"modality.speech.encoder.{key}"
        for key in ("width=16", "num_layers=1", "num_heads=2", "ffn_width=24")
    ]
    first = run(
        "stage=speech_pretrain",
        *tiny(rows, "modality/speech=best_rq_small", *sizes, "name=heard", "stage.num_steps=2"),
    )
    result = run(
        "stage=speech_readout",
        *tiny(
            rows,
            "modality/speech=conformer_letters",
            *sizes,
            "stage.train=[modality.speech.encoder,modality.speech.adapter]",
            "stage.step.hide=0.0",
            f"stage.init={{speech.encoder: {first.run_dir}}}",
            f"data.eval=[{{_target_: mm_llama.data.sources.JsonlChat, path: {rows}}}]",
            "stage.num_steps=25",
            "stage.eval_every=25",
            "optim.lr=1e-2",
        ),
    )
    lines = (result.run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    # All say "tone" and a space: that much is learned at once, if letters are what is learned.
    assert result.final["eval.readout_loss"] < 0.5 * json.loads(lines[0])["loss"]
    assert result.final["eval.piece_errors"] < 0.7
    summary = json.loads((result.run_dir / "summary.json").read_text("utf-8"))
    before = {row["group"]: row["before"] for row in summary["freeze"]}
    after = json.loads((first.run_dir / "summary.json").read_text("utf-8"))["freeze"]
    assert before["modality.speech.encoder"] == next(
        row["after"] for row in after if row["group"] == "modality.speech.encoder"
    )


@pytest.mark.parametrize("name", ["best_rq_tiny", "conformer_letters"])
def test_what_has_no_embeddings_says_so(rows: Path, name: str) -> None:
    with pytest.raises(ValueError, match="nothing that enters a core: choose a modality/speech"):
        run("stage=speech_sft", *tiny(rows, f"modality/speech={name}"))


def test_pretraining_resumed_is_pretraining_uninterrupted(recordings: Path) -> None:
    def go(name: str, *more: str) -> list[float]:
        common = [
            "stage=speech_pretrain",
            "core=tiny",
            "modality/speech=best_rq_tiny",
            f"data.train.0.source.folders={recordings}",
            "data.train.0.source.skip=false",
            "data.train.0.source.every=1",
            "data.eval=[]",
            f"runs={recordings / 'runs'}",
            f"name={name}",
            "stage.num_steps=4",
            "stage.save_every=2",
            "stage.accumulate=2",
            "loader.batch_size=3",
            "dtype=float32",
        ]
        run(*common, *more)
        lines = (recordings / "runs" / name / "metrics.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["loss"] for line in lines]

    whole = go("whole")
    go("cut")
    steps = sorted((recordings / "runs" / "cut" / "checkpoints").iterdir())
    for path in steps[1:]:  # as if killed after the second step
        for file in path.rglob("*"):
            file.unlink()
        path.rmdir()
    assert go("cut") == whole


def test_recordings_are_split_by_name(recordings: Path) -> None:
    kept = Recordings(recordings, every=2)
    rest = Recordings(recordings, every=2, skip=True)
    assert sorted(kept.files + rest.files) == sorted(Recordings(recordings).files)
    assert not set(kept.files) & set(rest.files) and kept.digest != rest.digest
    with pytest.raises(FileNotFoundError, match="there is no recording below"):
        Recordings(recordings / "runs")


@pytest.fixture
def make_step() -> Callable[..., Any]:
    from mm_llama.stages.best_rq import PredictCodes

    return PredictCodes


def test_padding_changes_no_loss(make_step: Callable[..., Any], rows: Path) -> None:
    from mm_llama.batch import Batch, Media
    from mm_llama.build import build_model
    from mm_llama.stages.best_rq import Drawn

    overrides = ["stage=speech_pretrain", "core=tiny", "modality/speech=best_rq_tiny", "dtype=float32"]
    model, _, _ = build_model(resolve(compose_config("train", overrides)))
    generator = torch.Generator().manual_seed(0)
    items = [torch.randn(length, 80, generator=generator) for length in (97, 400, 260)]
    media = Media(items, torch.arange(3), torch.zeros(3, dtype=torch.long), torch.arange(3))
    batch = Batch(torch.zeros(3, 2, dtype=torch.long), torch.full((3,), 2), media={"speech": media})
    step = make_step(noise=0.0)
    drawn = step.draw(batch, generator)
    together = float(step._loss(model, drawn).loss_sum)
    alone = 0.0
    for row, item in enumerate(items):
        hidden = drawn.hidden_BA[row : row + 1, : len(item)]
        one = Drawn(
            item[None],
            torch.tensor([len(item)]),
            hidden,
            drawn.predicted_BT[row : row + 1, : len(item) // 4],
        )
        alone += float(step._loss(model, one).loss_sum)
    assert together == pytest.approx(alone, rel=1e-5)
    assert step.count(batch) == int(step._drawn[id(batch)].predicted_BT.sum())


def test_long_utterances_are_cropped(make_step: Callable[..., Any]) -> None:
    step = make_step(max_frames=100)
    long = torch.arange(500.0)[:, None].expand(-1, 80)
    cropped = step._cropped(long, torch.Generator().manual_seed(1))
    assert cropped.shape == (100, 80) and torch.equal(cropped[1:] - cropped[:-1], torch.ones(99, 80))
    with pytest.raises(ValueError, match="probability=2"):
        make_step(probability=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_encoder_that_trains_computes_in_the_cores_dtype(
    make_step: Callable[..., Any], dtype: str
) -> None:
    from mm_llama.batch import Batch, Media
    from mm_llama.build import build_model

    overrides = ["stage=speech_pretrain", "core=tiny", "modality/speech=best_rq_tiny"]
    model, _, _ = build_model(resolve(compose_config("train", overrides)), getattr(torch, dtype))
    modality = model.modality["speech"].requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    items = [torch.randn(length, 80, generator=generator) for length in (97, 240)]
    media = Media(items, torch.arange(2), torch.zeros(2, dtype=torch.long), torch.arange(2))
    batch = Batch(torch.zeros(2, 2, dtype=torch.long), torch.full((2,), 2), media={"speech": media})
    step, seen = make_step(noise=0.0), []
    projection = modality.encoder.projection
    handle = projection.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    drawn = step.draw(batch, generator)
    gradients = []
    for trains in (True, False):
        # Whoever does not train computes as it is held, here in float32: what the other is measured against.
        modality.encoder.requires_grad_(trains)
        modality.encode(media, model.core.embedding.weight.dtype)
        loss = step._loss(model, drawn).loss_sum
        gradients.append(torch.autograd.grad(loss, modality.adapter.predictor.heads[0].weight)[0])
    handle.remove()
    assert seen == [getattr(torch, dtype)] * 2 + [torch.float32] * 2
    assert gradients[0].dtype == torch.float32
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()
