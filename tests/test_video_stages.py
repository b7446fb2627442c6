"""The video stages on the tiny core: trained beside a frozen image adapter, handed on, attached, asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mm_llama.build import build_model, compose_config, load_model, resolve
from mm_llama.core.chat import messages_from_dicts
from mm_llama.data.media import KEYS
from mm_llama.data.samples import make_sample
from mm_llama.data.sources import JsonlChat
from mm_llama.generation.engine import generate
from mm_llama.paths import conf_dir
from mm_llama.stage_run import MediaReader, StageResult, batches_of, run_stage

NAMES = sorted(
    file.stem for file in (conf_dir() / "modality" / "video").glob("*.yaml") if file.stem != "none"
)
COLOURS = ("red", "green", "blue", "white", "black", "yellow")


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Rows with a clip, with a picture, with both, with text alone; clips are animations of plain colours."""
    for number in range(3):
        frames = [Image.new("RGB", (40, 32), COLOURS[(number + step) % 6]) for step in range(6)]
        frames[0].save(tmp_path / f"{number}.gif", save_all=True, append_images=frames[1:], duration=100)
        frames[0].save(tmp_path / f"{number}.png")
    rows = []
    for number in range(8):
        parts: list[dict[str, str]] = []
        if number % 2:
            parts.append({"type": "video", "path": f"{number % 3}.gif"})
        if number % 4 > 1:
            parts.append({"type": "image", "path": f"{number % 3}.png"})
        content = [*parts, {"type": "text", "text": f"question {number}?"}]
        answer = {"role": "assistant", "content": "yes" if number % 2 else "no"}
        rows.append({"messages": [{"role": "user", "content": content}, answer]})
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


@pytest.fixture
def run(chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StageResult]:
    """`run(stage, *overrides)`: two steps of a stage on the tiny core."""
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))

    def take(stage: str, *overrides: str) -> StageResult:
        names = [
            f"stage={stage}",
            "core=tiny",
            "modality/image=tiny",
            "modality/video=tiny",
            "data=jsonl",
            f"data.train.0.source.path={chats}",
            f"runs={tmp_path / 'runs'}",
            "stage.num_steps=2",
            "loader.batch_size=4",
            "dtype=float32",
        ]
        return run_stage(compose_config("train", [*names, *overrides]))

    return take


@pytest.fixture
def image_run(run: Callable[..., StageResult]) -> Path:
    """An image adapter trained on the rows without clips."""
    return run("image_pretrain", "modality.video.num_frames=4").run_dir


def groups(result: StageResult) -> dict[str, Any]:
    """Rows of a run's freeze table by group."""
    summary = json.loads((result.run_dir / "summary.json").read_text("utf-8"))
    return {row["group"]: row for row in summary["freeze"]}


def test_the_chain_trains_video_alone_and_keeps_the_rest(
    run: Callable[..., StageResult], image_run: Path
) -> None:
    first = run("video_pretrain", f"stage.init.image={image_run}", "modality.video.num_frames=4")
    rows = groups(first)
    assert rows["modality.video.adapter"]["trained"]
    for frozen in ("core", "modality.image.encoder", "modality.image.adapter"):
        assert not rows[frozen]["trained"] and rows[frozen]["unchanged"]
    second = run(
        "video_sft",
        f"stage.init.image={image_run}",
        f"stage.init.video={first.run_dir}",
        "modality.video.num_frames=8",
    )
    state = json.loads(next(second.run_dir.glob("checkpoints/*/state.json")).read_text("utf-8"))
    assert [stage["stage"] for stage in state["lineage"]] == ["image_pretrain", "video_pretrain", "video_sft"]
    model, tokenizer, chat = load_model("tiny", [second.run_dir])  # the image run comes by itself
    assert list(model.modality) == ["image", "video"] and model.modality["video"].num_frames == 8
    again, _, _ = load_model("tiny", [second.run_dir, image_run])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    clip = [Image.new("RGB", (40, 32), colour) for colour in COLOURS]
    content = [{"type": "video", "video": clip}, {"type": "text", "text": "what?"}]
    prompt = chat.render(messages_from_dicts([{"role": "user", "content": content}]), open_assistant=True)
    (answer,) = generate(model, [prompt], max_new_tokens=4, tokenizer=tokenizer)
    assert len(answer.tokens) == 4


def test_video_alone_says_what_it_lacks(run: Callable[..., StageResult], image_run: Path) -> None:
    with pytest.raises(ValueError, match="leaves stage.init.image open"):
        run("video_pretrain")
    with pytest.raises(ValueError, match="reads the image encoder, but there is none: choose modality/image"):
        run("video_pretrain", f"stage.init.image={image_run}", "modality/image=none")


def test_a_video_run_without_its_image_run_says_which_is_gone(
    run: Callable[..., StageResult], image_run: Path
) -> None:
    made = run("video_pretrain", f"stage.init.image={image_run}", "modality.video.num_frames=4")
    image_run.rename(image_run.with_name("moved"))
    with pytest.raises(
        ValueError, match="trained beside the image adapter of .*image_pretrain, which is not"
    ):
        load_model("tiny", [made.run_dir])
    model, _, _ = load_model("tiny", [image_run.with_name("moved"), made.run_dir])
    assert list(model.modality) == ["image", "video"]


@pytest.mark.parametrize("name", NAMES)
def test_video_modality_composes_and_its_widths_come_from_their_owners(name: str) -> None:
    core = {"paper_8b": "llama3_1_8b", "paper_70b": "llama3_1_70b"}.get(name, "tiny")
    image = "vit_h14" if name.startswith("paper") else "efficientnet_lite0" if name == "default" else "tiny"
    core = "smollm2_135m" if name == "default" else core
    cfg = compose_config(
        "train", [f"core={core}", f"modality/image={image}", f"modality/video={name}", "stage=none"]
    )
    data = resolve(cfg)
    adapter = data["modality"]["video"]["adapter"]
    assert adapter["encoder_dim"] == data["modality"]["image"]["encoder"]["dim"]
    assert adapter["dim"] == data["core"]["numbers"]["dim"]


def test_held_out_rows_come_to_the_device_of_the_model(chats: Path) -> None:
    parts = ["core=tiny", "modality/image=tiny", "modality/video=tiny", "modality.video.num_frames=4"]
    config = resolve(compose_config("train", ["stage=video_pretrain", "stage.init.image=none", *parts]))
    model, _, chat = build_model(config)
    source = JsonlChat(chats)
    samples = [make_sample(source.row(index), chat, media_keys=KEYS) for index in range(len(source))]
    media = MediaReader(model, cache_features=False)
    for device in ("cpu", "meta"):  # a device with no more than shapes, which every machine has
        model.to(device)
        (batch,) = batches_of(samples, media)
        assert batch.targets_BS is not None
        held = [batch.tokens_BS, batch.lengths_B, batch.targets_BS]
        held += [item for kind in ("image", "video") for item in batch.media[kind].items]
        assert {tensor.device.type for tensor in held} == {device}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_stage_trains_and_evaluates_on_a_gpu(run: Callable[..., StageResult], chats: Path) -> None:
    held_out = f"data.eval=[{{_target_: mm_llama.data.sources.JsonlChat, path: {chats}}}]"
    result = run("image_pretrain", "modality.video.num_frames=4", held_out, "device=cuda", "dtype=auto")
    assert "eval.answers" in result.final and result.final["step"] == 2


def test_an_image_run_that_was_trained_anew_is_not_taken_for_the_one_it_was(
    run: Callable[..., StageResult], image_run: Path
) -> None:
    first = run("video_pretrain", f"stage.init.image={image_run}", "modality.video.num_frames=4")
    load_model("tiny", [first.run_dir])
    kept = image_run.rename(image_run.with_name("kept"))
    again = run("image_pretrain", "modality.video.num_frames=4", "seed=1").run_dir
    assert again == image_run
    with pytest.raises(
        ValueError, match=f"beside the image adapter of {image_run}, but that folder holds another"
    ):
        load_model("tiny", [first.run_dir])
    model, _, _ = load_model("tiny", [first.run_dir, kept])
    assert list(model.modality) == ["image", "video"]
