"""Every YAML composes, resolves and builds; every stage takes a step on the tiny core; mistakes name themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from mm_llama.build import build, compose_config, core_config, resolve
from mm_llama.cli import main
from mm_llama.core.llama import count_parameters
from mm_llama.paths import conf_dir
from mm_llama.stage_run import run_stage
from mm_llama.targets import check_targets

PARAMETERS = {
    "llama3_8b": 8_030_261_248,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_1_405b": 405_853_388_800,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "smollm2_135m": 134_515_008,
}


def choices(group: str) -> list[str]:
    """Names in a config group, without the empty one."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml") if file.stem != "none")


@pytest.mark.parametrize("name", choices("core"))
def test_core_numbers_build_with_the_published_parameter_count(name: str) -> None:
    cfg = compose_config("train", [f"core={name}", "stage=none"])
    count = count_parameters(core_config(resolve(cfg)["core"]["numbers"]))
    assert name == "tiny" or count == PARAMETERS[name]


@pytest.mark.parametrize("name", choices("modality/image"))
def test_image_modality_composes_and_its_widths_come_from_their_owners(name: str) -> None:
    data = resolve(compose_config("train", [f"modality/image={name}", "stage=none"]))
    image = data["modality"]["image"]
    assert image["adapter"]["encoder_dim"] == image["encoder"]["dim"]
    assert image["adapter"]["dim"] == data["core"]["numbers"]["dim"]
    check_targets(image)


# The paper's and the released sizes are hundreds of millions of weights: those are built on the meta device.
BIG = ("h14", "llama3_2_vision")


# A contrastive adapter joins pictures to captions, not to the core: tests/stages/test_contrastive.py.
ATTACHABLE = [n for n in choices("modality/image") if not n.startswith("contrastive")]


@pytest.mark.parametrize("name", [n for n in ATTACHABLE if not n.endswith(BIG)])
def test_image_modality_builds_and_joins_encoder_to_adapter(
    name: str, asset_dir: Callable[[str], Path]
) -> None:
    data = resolve(compose_config("train", [f"modality/image={name}", "stage=none"]))
    image = data["modality"]["image"]
    weights = image["encoder"].get("weights")
    if weights:
        asset_dir(weights.removeprefix("asset:").split("/")[0])
    encoder, adapter = build(image["encoder"]).eval(), build(image["adapter"])
    with torch.no_grad():
        picture = encoder.preprocess(Image.new("RGB", (50, 30), "red"))
        tokens = adapter.project(encoder(picture[None]))
    # Towers over tiles give as many tokens as a picture has tiles for.
    cut = picture.ndim == 5
    num_tokens = picture.shape[0] * picture.shape[1] * encoder.tokens_per_tile if cut else encoder.num_tokens
    assert tokens.shape == (1, num_tokens, data["core"]["numbers"]["dim"])


def test_the_papers_image_encoder_has_the_papers_size() -> None:
    data = resolve(compose_config("train", ["modality/image=vit_h14", "stage=none", "core=llama3_1_8b"]))
    with torch.device("meta"):
        encoder, adapter = (build(data["modality"]["image"][part]) for part in ("encoder", "adapter"))
    assert sum(weight.numel() for weight in encoder.parameters()) == pytest.approx(630e6, rel=0.01)
    blocks = sum(weight.numel() for weight in adapter.blocks.parameters())
    assert blocks == 8 * 218_112_258  # llama 3.2 11B: per block q, k, v, o, SwiGLU, norms, gates


@pytest.mark.parametrize("kind", ["tiles", "contrastive"])
def test_the_papers_own_tower_has_the_papers_size(kind: str) -> None:
    overrides = [f"modality/image={kind}_vit_h14", "stage=none", "core=llama3_1_8b"]
    data = resolve(compose_config("train", overrides))
    with torch.device("meta"):
        encoder, adapter = (build(data["modality"]["image"][part]) for part in ("encoder", "adapter"))
    counts = {
        part: sum(p.numel() for p in encoder.get_submodule(part).parameters()) for part in ("", "trunk")
    }
    assert counts["trunk"] == pytest.approx(630e6, rel=0.003)
    if kind == "contrastive":
        assert counts[""] == counts["trunk"] and encoder.dim == 1280
        return
    # With eight gated layers and the projection; the release's 850M count its tables of every tile too.
    assert counts[""] + adapter.projection.weight.numel() == pytest.approx(850e6, rel=0.04)
    assert 4 * encoder.tokens_per_tile == 2308 and encoder.dim == 7680


def test_a_job_may_compose_another_config() -> None:
    """A source of a stage's data may load a core of its own, inside of `mm-llama train`."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert compose_config("train", ["core=tiny", "stage=none"]).core
        assert GlobalHydra.instance().hydra is outer
        with pytest.raises(Exception, match="nonesuch"):
            compose_config("train", ["core=nonesuch", "stage=none"])
        assert GlobalHydra.instance().hydra is outer
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("name", choices("experiment"))
def test_experiment_composes_and_resolves(name: str) -> None:
    data = resolve(compose_config("train", [f"experiment={name}"]))
    assert data["stage"]["train"] and data["data"]["train"]
    check_targets(data)


@pytest.mark.parametrize("name", choices("sweep"))
def test_sweep_composes_to_a_multirun(name: str) -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=["stage=image_sft", f"sweep={name}"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN" and cfg.hydra.sweeper.params


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, so that nothing of it reaches the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MM_LLAMA_CACHE", str(folder))
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Eight rows: with a picture, with two, without."""
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{number}.png")
    rows = []
    for number in range(8):
        images = [{"type": "image", "path": f"{index % 3}.png"} for index in range(number % 3)]
        content = [*images, {"type": "text", "text": f"question {number}?"}]
        answer = {"role": "assistant", "content": "yes" if number % 2 else "no"}
        rows.append({"messages": [{"role": "user", "content": content}, answer]})
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def tiny(chats: Path, tmp_path: Path, *overrides: str) -> list[str]:
    """Overrides that make any image stage take two steps in seconds."""
    return [
        "core=tiny",
        "modality/image=tiny",
        "data=jsonl",
        f"data.train.0.source.path={chats}",
        f"runs={tmp_path / 'runs'}",
        "stage.num_steps=2",
        "loader.batch_size=4",
        "dtype=float32",
        *overrides,
    ]


# Video stages and annealing go on from an image run: the chains are in tests/test_video_stages.py and test_anneal.py;
# stages of speech need recordings: tests/test_speech_stages.py; those of the voice: tests/test_speech_out_stages.py.
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in choices("stage")
        if not name.startswith(("video", "image_anneal", "image_encoder", "speech", "tts"))
    ],
)
def test_every_stage_takes_a_step_on_the_tiny_core(
    name: str, chats: Path, tmp_path: Path, own_cache: Path
) -> None:
    result = run_stage(compose_config("train", [f"stage={name}", *tiny(chats, tmp_path)]))
    assert result.exit_code == 0 and result.final["step"] == 2
    summary = json.loads((result.run_dir / "summary.json").read_text("utf-8"))
    rows = {row["group"]: row for row in summary["freeze"]}
    assert not rows["core"]["trained"] and rows["modality.image.adapter"]["trained"]


def test_a_trained_encoder_reads_pixels_and_changes(chats: Path, tmp_path: Path, own_cache: Path) -> None:
    overrides = tiny(chats, tmp_path, "stage.train=[modality.image]", "name=both")
    result = run_stage(compose_config("train", ["stage=image_pretrain", *overrides]))
    assert result.exit_code == 0 and not list(own_cache.glob("features/*"))


def test_pretraining_hands_its_adapter_to_finetuning(chats: Path, tmp_path: Path, own_cache: Path) -> None:
    first = run_stage(compose_config("train", ["stage=image_pretrain", *tiny(chats, tmp_path)]))
    init = f"stage.init.image={first.run_dir}"
    second = run_stage(compose_config("train", ["stage=image_sft", *tiny(chats, tmp_path, init)]))
    state = json.loads(next(second.run_dir.glob("checkpoints/*/state.json")).read_text("utf-8"))
    assert [stage["stage"] for stage in state["lineage"]] == ["image_pretrain", "image_sft"]


def test_the_same_command_again_continues(chats: Path, tmp_path: Path, own_cache: Path) -> None:
    command = ["train", "stage=image_pretrain", *tiny(chats, tmp_path)]
    assert main(command) == 0
    before = (tmp_path / "runs/image_pretrain/metrics.jsonl").read_bytes()
    assert main(command) == 0
    assert (tmp_path / "runs/image_pretrain/metrics.jsonl").read_bytes() == before


def test_a_sweep_runs_each_choice_in_a_folder_of_its_own(
    chats: Path, tmp_path: Path, own_cache: Path
) -> None:
    command = ["train", "stage=image_pretrain", *tiny(chats, tmp_path), "-m", "optim.lr=1e-3,3e-3"]
    assert main(command) == 0
    rates = {
        json.loads(line)["lr"]
        for file in (tmp_path / "runs").rglob("metrics.jsonl")
        for line in file.read_text("utf-8").splitlines()[:1]
    }
    assert len(rates) == 2


WRONG: dict[str, tuple[list[str], str]] = {
    "misspelt key": (
        ["stage=image_sft", "optim.lrr=1"],
        r"unknown key 'optim.lrr' \(did you mean .*optim.lr",
    ),
    "misspelt root key": (["stage=image_sft", "sead=1"], r"unknown key 'sead' \(did you mean seed"),
    "misspelt choice": (
        ["stage=image_stf"],
        r"stage=image_stf: there is no such choice \(did you mean image_sft",
    ),
    "misspelt group": (["stage=image_sft", "cores=tiny"], r"unknown key 'cores' \(did you mean core"),
    "wrong type": (["stage=image_sft", "stage.num_steps=many"], r"stage.num_steps.*many"),
    "no stage": (["core=tiny"], r"say which stage"),
    "broken override": (["stage=image_sft", "optim.betas=[0.9"], r"KEY=VALUE"),
    "numbers only": (
        ["stage=image_sft", "core=llama3_1_8b"],
        r"core=llama3_1_8b is numbers only: set core.source",
    ),
    "unknown dtype": (["stage=image_sft", "dtype=int3"], r"dtype is 'int3', expected one of auto,"),
    "no data": (["stage=image_sft", "data=none"], r"no training data: choose one with data="),
}


@pytest.mark.parametrize(("argv", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_command_line_names_itself_and_what_to_do(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import re

    assert main(["train", *argv, f"runs={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error, error
    assert error.startswith("error: ")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "builtins.eval",
        "mm_llama..os",
        "encoders.timm_image._load",
        7,
    ],
)
def test_a_target_outside_the_allowlist_is_never_called(target: Any) -> None:
    with pytest.raises(ValueError, match=r"inner\._target_ names .* may not be called"):
        build({"inner": {"_target_": target, "command": "touch never"}})


def test_help_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "image_pretrain" in out and "smollm2_135m" in out
    assert main(["tarin"]) == 2
    assert "did you mean `train`" in capsys.readouterr().err


@pytest.mark.parametrize(("computes_in_bfloat16", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_dtype_auto_is_what_the_processor_computes_in_and_stands_in_the_config(
    computes_in_bfloat16: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: computes_in_bfloat16)
    assert resolve(compose_config("train", ["stage=image_sft"]))["dtype"] == chosen
    assert resolve(compose_config("train", ["stage=image_sft", "dtype=float16"]))["dtype"] == "float16"
