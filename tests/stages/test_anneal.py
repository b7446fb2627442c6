"""Annealing: the same weights at a higher resolution, position tables resized, an optimizer begun anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from adapters.positions import resize_positions
from mm_llama.build import build_model, compose_config, resolve
from mm_llama.data.features import FeatureCache
from mm_llama.model import MultimodalLlama
from mm_llama.stage_run import StageResult, run_stage
from mm_llama.stages.checkpoint import load_adapter
from mm_llama.stages.checkpoint_files import find_checkpoint, read_state
from mm_llama.stages.metrics import read_metrics

POSITIONS = "modality.image.adapter.positions"
PATCHES = "modality.image.encoder.model.pos_embed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("anneal")
    rows = []
    for number, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40 + 9 * number, 50), colour).save(folder / f"{number}.png")
        content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "?"}]
        rows.append([{"role": "user", "content": content}, {"role": "assistant", "content": colour}])
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), "utf-8")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MM_LLAMA_CACHE", str(folder / "cache"))
        yield folder
    torch.set_num_threads(threads)


def config(folder: Path, *overrides: str) -> Any:
    common = (
        "core=tiny",
        "data=jsonl",
        f"data.train.0.source.path={folder / 'rows.jsonl'}",
        "dtype=float32",
        "threads=1",
    )
    small = (
        "stage.num_steps=3",
        "loader.batch_size=2",
        "optim.gate_lr_multiple=10.0",
        f"runs={folder / 'runs'}",
    )
    return compose_config("train", [*common, *small, *overrides])


@pytest.fixture(scope="module")
def pretrained(folder: Path) -> dict[str, Path]:
    """Runs of image_pretrain: the adapter alone; the encoder too; tiles with their encoder."""
    both = "stage.train=[modality.image]"
    runs = {
        "adapter": ("modality/image=tiny",),
        "both": ("modality/image=tiny", both),
        "tiles": ("modality/image=tiles_tiny", both),
    }
    cfgs = {
        name: config(folder, "stage=image_pretrain", *more, f"name={name}") for name, more in runs.items()
    }
    return {name: run_stage(cfg).run_dir for name, cfg in cfgs.items()}


def anneal(folder: Path, *overrides: str) -> StageResult:
    return run_stage(config(folder, "stage=image_anneal", *overrides))


def tensors_of(run: Path) -> dict[str, Tensor]:
    return load_file(find_checkpoint(run) / "adapter.safetensors")


def loaded_into(run: Path, *overrides: str) -> tuple[dict[str, Tensor], MultimodalLlama]:
    """What a fresh model holds after loading a run, by name."""
    model, _, _ = build_model(resolve(config(run.parent.parent, "stage=image_pretrain", *overrides)))
    load_adapter(model, run)
    return dict(model.named_parameters()), model


def test_at_the_same_size_everything_is_loaded_to_the_bit(pretrained: dict[str, Path]) -> None:
    for name, modality in (("adapter", "tiny"), ("both", "tiny"), ("tiles", "tiles_tiny")):
        own, _ = loaded_into(pretrained[name], f"modality/image={modality}")
        saved = tensors_of(pretrained[name])
        assert all(torch.equal(own[key], saved[key]) for key in saved) and saved


def test_at_a_higher_resolution_position_tables_are_resized_and_all_else_is_kept(
    pretrained: dict[str, Path],
) -> None:
    own, model = loaded_into(pretrained["both"], "modality/image=tiny_96")
    saved = tensors_of(pretrained["both"])
    assert saved[POSITIONS].shape[0] == 16 and own[POSITIONS].shape[0] == 36
    assert torch.equal(own[POSITIONS], resize_positions(saved[POSITIONS], (6, 6)))
    assert torch.equal(own[PATCHES], resample_abs_pos_embed(saved[PATCHES], [6, 6], [4, 4]))
    same = [key for key in saved if key not in (POSITIONS, PATCHES)]
    assert all(torch.equal(own[key], saved[key]) for key in same) and len(same) > 50
    assert model.modality["image"].encoder.image_size == (96, 96)


@pytest.mark.parametrize(
    ("name", "train"), [("adapter", "modality.image.adapter"), ("both", "modality.image")]
)
def test_pretraining_is_annealed_at_a_higher_resolution(
    name: str, train: str, pretrained: dict[str, Path], folder: Path
) -> None:
    init = f"stage.init.image={pretrained[name]}"
    result = anneal(folder, "modality/image=tiny_96", init, f"stage.train=[{train}]", f"name={name}_annealed")
    assert result.exit_code == 0 and result.final["step"] == 3
    state = read_state(find_checkpoint(result.run_dir))
    assert [entry["stage"] for entry in state["lineage"]] == ["image_pretrain", "image_anneal"]
    assert tensors_of(result.run_dir)[POSITIONS].shape[0] == 36
    # The weights went on: at these rates they are near the loaded ones, and far from freshly drawn ones.
    before, _ = loaded_into(pretrained[name], "modality/image=tiny_96")
    fresh, _, _ = build_model(
        resolve(config(folder, "stage=image_pretrain", "modality/image=tiny_96", "seed=3"))
    )
    after = tensors_of(result.run_dir)
    drawn = dict(fresh.named_parameters())
    for key in (POSITIONS, "modality.image.adapter.projection.weight"):
        assert 0 < (after[key] - before[key]).abs().max() < 1e-3
        assert (after[key] - drawn[key]).abs().max() > 1e-2


def test_the_optimizer_begins_anew_and_warms_up_to_the_papers_rate(
    pretrained: dict[str, Path], folder: Path
) -> None:
    steps = ("stage.num_steps=4", "optim.warmup_steps=2")
    init = f"stage.init.image={pretrained['adapter']}"
    result = anneal(folder, "modality/image=tiny_96", init, *steps, "name=rates")
    rates = [record["lr"] for record in read_metrics(result.run_dir / "metrics.jsonl")]
    # Warm-up over three thirds, then half a cosine: 1, and 0.5 at the middle of the two steps that are left.
    assert rates == pytest.approx([2e-5 / 3, 2e-5 * 2 / 3, 2e-5, 1e-5])
    optimizer = load_file(find_checkpoint(result.run_dir) / "optimizer.safetensors")
    assert {float(value) for key, value in optimizer.items() if key.startswith("step.")} == {4.0}
    stored = load_file(find_checkpoint(pretrained["adapter"]) / "optimizer.safetensors")
    assert {float(value) for key, value in stored.items() if key.startswith("step.")} == {3.0}


def test_annealing_that_was_stopped_goes_on_as_if_it_had_not_been(
    pretrained: dict[str, Path], folder: Path
) -> None:
    more = ("modality/image=tiny_96", f"stage.init.image={pretrained['adapter']}", "optim.schedule=constant")
    whole = anneal(folder, *more, "name=whole", "stage.num_steps=4")
    anneal(folder, *more, "name=parts", "stage.num_steps=2")
    parts = anneal(folder, *more, "name=parts", "stage.num_steps=4")
    one, other = tensors_of(whole.run_dir), tensors_of(parts.run_dir)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_tiles_are_annealed_at_larger_tiles(pretrained: dict[str, Path], folder: Path) -> None:
    larger = ("modality/image=tiles_tiny", "modality.image.encoder.tile_size=48")
    own, _ = loaded_into(pretrained["tiles"], *larger)
    saved = tensors_of(pretrained["tiles"])
    resized = [key for key in saved if saved[key].shape != own[key].shape]
    assert resized and all("encoder" in key for key in resized)
    assert all(torch.equal(own[key], saved[key]) for key in saved if key not in resized)
    init = (f"stage.init.image={pretrained['tiles']}", "stage.train=[modality.image]", "name=tiles_annealed")
    assert anneal(folder, *larger, *init).exit_code == 0


def test_features_come_from_the_encoder_that_the_stage_starts_with(
    pretrained: dict[str, Path], folder: Path
) -> None:
    _, model = loaded_into(pretrained["both"], "modality/image=tiny")
    encoder: Any = model.modality["image"].encoder
    features = FeatureCache(folder / "cache/features", encoder.digest, encoder.identity).folder
    assert not features.exists()
    init = f"stage.init.image={pretrained['both']}"
    run_stage(config(folder, "stage=image_sft", "modality/image=tiny", init, "name=frozen"))
    assert features.exists()


def test_a_table_that_is_no_grid_of_the_same_proportions_is_refused(
    pretrained: dict[str, Path], folder: Path
) -> None:
    init = f"stage.init.image={pretrained['adapter']}"
    with pytest.raises(ValueError, match=r"a table of 16 positions, .* cannot be resized to a 6x4 grid"):
        wide = ("modality.image.encoder.image_size=[96,64]", "modality.image.adapter.num_positions=24")
        anneal(folder, "modality/image=tiny", *wide, "+modality.image.adapter.grid=[6,4]", init, "name=wide")


def test_annealing_asks_for_the_run_that_it_goes_on_from(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"leaves stage\.init\.image open"):
        anneal(folder, "modality/image=tiny_96", "name=nothing")
