"""What a config may call: nothing but our own classes and functions, whatever is written where a name is expected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from mm_llama.build import build, compose_config, load_model, resolve_source
from mm_llama.cli import main
from mm_llama.clip_rows import clip_sources
from mm_llama.recorded_rows import load_aligner
from mm_llama.stage_run import run_stage
from mm_llama.stages.checkpoint_files import sha256_of
from mm_llama.targets import (
    check_run_config,
    locate,
    shipped_targets,
)

# Names that must not be called, by how they try to be.
HOSTILE: dict[str, Any] = {
    "shell": "os.system",
    "process": "subprocess.Popen",
    "eval": "builtins.eval",
    "pickle": "torch.load",
    "hub": "torch.hub.load",
    "numpy": "numpy.load",
    "joblib": "joblib.load",
    "hydra": "hydra.utils.instantiate",
    "partial": "functools.partial",
    "our own import": "mm_llama.paths.os.system",
    "import of data": "mm_llama.data.sources.os.system",
    "import of an encoder": "encoders.efficientnet_lite0.torch.load",
    "import of an adapter": "adapters.speech.torch.hub.load",
    "import of a layer": "torch.nn.modules.module.functools.partial",
    "alias of a module": "mm_llama.data.video_decord.subprocess.Popen",
    "imported function": "encoders.timm_weights.load_file",
    "imported class": "mm_llama.data.sources.Path",
    "the rest of ours": "mm_llama.cli.main",
    "writes a file": "mm_llama.core.identity.write_text",
    "private": "encoders.timm_image._layer_indices",
    "dunder": "encoders.image_vit.__builtins__.eval",
    "class attribute": "mm_llama.data.sources.JsonlChat.row",
    "globals": "mm_llama.data.sources.JsonlChat.__init__.__globals__",
    "main": "mm_llama.__main__.main",
    "module": "encoders.image_vit",
    "package": "encoders.",
    "constant": "mm_llama.data.sources.ROW_KEYS",
    "two dots": "encoders..os",
    "leading dot": ".encoders.image_vit.TileViT",
    "trailing dot": "encoders.image_vit.TileViT.",
    "space": "encoders.image_vit.TileViT ",
    "line": "encoders.image_vit.TileViT\nos.system",
    "look-alike": "encoders.image_vit.Tile\u0405iT",
    "wide letters": "encoders.ｉmage_vit.TileViT",
    "zero width": "encoders.image_vit.\u200bTileViT",
    "slash": "encoders/../os.system",
    "prefix of a name": "encoders_evil.run",
    "timm's neighbour": "timm.create_model_evil",
    "timm's module": "timm.models.create_model",
    "number": 7,
    "none": None,
    "mapping": {"_target_": "os.system", "command": "touch never"},
    "list": ["os.system"],
    "bytes": b"os.system",
    "function": print,
    "class": Path,
    "environment": "${oc.env:PATH}",
    "decoded": "${oc.decode:'os.system'}",
}


@pytest.mark.parametrize("target", HOSTILE.values(), ids=list(HOSTILE))
@pytest.mark.parametrize(
    "put",
    [
        lambda node: {"inner": node},
        lambda node: {"inner": [[node]]},
        lambda node: {"_target_": "torch.nn.Sequential", "inner": {"deeper": [node]}},
        lambda node: {"inner": {**node, "_partial_": True}},
    ],
)
def test_a_name_outside_of_the_allowlist_is_never_called(target: Any, put: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"inner.*_target_ names .* may not be called"):
        build(put({"_target_": target, "command": "touch never"}))


def test_what_is_refused_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="may not be called"):
        build({"_target_": "evil.run"})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["_args_", "_convert_", "_recursive_"])
def test_other_keys_of_hydra_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"inner\.{key} is not read here"):
        build({"inner": {"_target_": "torch.nn.Linear", key: ["os.system"]}})


@pytest.mark.parametrize("value", ["os.system", 1, "true", {"_target_": "os.system"}])
def test_partial_is_yes_or_no(value: Any) -> None:
    with pytest.raises(ValueError, match=r"_partial_"):
        build({"_target_": "torch.nn.Linear", "_partial_": value})


def test_plain_data_is_never_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a resolver would make of a text after the check has not been checked."""
    monkeypatch.setenv("SECRET", "hunter2")
    for text in ("${oc.env:SECRET}", "${oc.create:{_target_:os.system}}", "${inner}"):
        built = build({"inner": {"_target_": "torch.nn.ParameterDict"}, "text": text})
        assert built["text"] == text and "hunter2" not in str(built)


def test_an_interpolation_of_a_composed_config_is_resolved_before_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NAME", "os.system")
    node = OmegaConf.create({"inner": {"_target_": "${oc.env:NAME}", "command": "touch never"}})
    with pytest.raises(ValueError, match=r"inner\._target_ names 'os.system'"):
        build(node)
    with pytest.raises(ValueError, match=r"inner\._target_ names 'os.system'"):
        build(OmegaConf.create({"inner": "${oc.create:{_target_:os.system}}"}))


def test_what_may_be_called_is_called_with_its_arguments() -> None:
    layer = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    layers = build({"_target_": "torch.nn.ModuleList", "modules": [layer]})
    assert layers[0].weight.shape == (3, 2)
    step = build({"_target_": "mm_llama.stages.steps.next_token", "_partial_": True})
    assert step.func.__name__ == "next_token" and not step.keywords
    assert build(
        {"_target_": "torch.nn.Linear", "out_features": 3, "_partial_": True}, in_features=2
    )().bias.shape == (3,)
    assert build([{"a": (1, 2)}]) == [{"a": [1, 2]}]
    for target in shipped_targets():
        locate(target)
    assert locate("timm.create_model").__name__ == "create_model" and len(shipped_targets()) > 40


def test_an_argument_that_is_not_taken_is_named() -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown key inner.in_feature \(did you mean 'in_features'\?\); torch.nn.* takes in_features",
    ):
        build({"inner": {"_target_": "torch.nn.Linear", "in_feature": 2, "out_features": 3}})
    with pytest.raises(
        ValueError, match=r"inner: missing a required argument: 'out_features'; torch.nn.* needs it"
    ):
        build({"inner": {"_target_": "torch.nn.Linear", "in_features": 2}})
    with pytest.raises(ValueError, match=r"has no class or function JsonChat \(did you mean 'JsonlChat'"):
        build({"_target_": "mm_llama.data.sources.JsonChat"})


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "english/../../.."])
def test_a_shipped_voice_and_a_cache_are_below_their_folders(name: str, own_cache: Path) -> None:
    with pytest.raises(Exception, match="leaves"):
        OmegaConf.to_container(OmegaConf.create({"path": f"${{shipped:{name}}}"}), resolve=True)
    for source in (f"cache:{name}", f"asset:easy_vqa/{name}"):
        with pytest.raises(ValueError, match="leaves"):
            resolve_source(source)


# --- a run's folder is anybody's


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny image adapter."""
    folder = tmp_path_factory.mktemp("run")
    Image.new("RGB", (40, 40), "red").save(folder / "a.png")
    content = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "red?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    rows = f"{{_target_: mm_llama.data.sources.JsonlChat, path: {folder / 'rows.jsonl'}}}"
    options = ["stage=image_sft", "core=tiny", "modality/image=tiny", f"data.train=[{{source: {rows}}}]"]
    options += [f"data.eval=[{rows}]", "stage.num_steps=1", f"runs={folder}", "dtype=float32", "name=run"]
    options += ["loader.cache_features=false", "loader.batch_size=1"]
    return run_stage(compose_config("train", options)).run_dir


def forged(run: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a run whose config is another, with a manifest that says so: a file is no better for its digest."""
    shutil.copytree(run, folder)
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    config = OmegaConf.to_container(OmegaConf.load(checkpoint / "config.yaml"))
    assert isinstance(config, dict)
    change(config)
    (checkpoint / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    sign(checkpoint)
    return folder


def sign(checkpoint: Path) -> None:
    """Make a manifest true again."""
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    for name in manifest["files"]:
        path = checkpoint / name
        manifest["files"][name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))


def set_at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        *before, last = path.split(".")
        node: Any = config
        for key in before:
            node = node[int(key) if key.isdigit() else key]
        node[int(last) if last.isdigit() else last] = value

    return change


EVIL = {"_target_": "mm_llama.stages.checkpoint.write_file", "path": "never", "text": ""}
PARTS: dict[str, tuple[str, Any]] = {
    "another function": ("modality.image.adapter._target_", "mm_llama.stages.checkpoint.write_file"),
    "torch's layers": ("modality.image.adapter._target_", "torch.nn.Identity"),
    "a reader of files": ("modality.image.encoder._target_", "encoders.timm_weights.load_timm"),
    "a class that is no module": ("modality.image.adapter._target_", "encoders.mllama_layers.Layout"),
    "through an import": ("modality.image.encoder._target_", "encoders.efficientnet_lite0.torch.load"),
    "no name": ("modality.image.encoder._target_", 7),
    "inside of an argument": ("modality.image.adapter.every", EVIL),
    "inside of a list": ("modality.image.encoder.layers", [1, EVIL]),
    "a partial": ("modality.image.adapter.seed", EVIL | {"_partial_": True}),
    "an interpolation": ("modality.image.encoder.name", "\\${oc.env:PATH}"),
    "a created node": ("modality.image.encoder.name", "\\${oc.create:{_target_:os.system}}"),
    "a model of the hub": ("modality.image.encoder.name", "hf-hub:somebody/model"),
    "a model of a folder": ("modality.image.encoder.name", "local-dir:/tmp"),
    "an address": ("modality.image.encoder.weights", "https://example.org/weights.pth"),
    "no adapter": ("modality.image", {"encoder": {"_target_": "encoders.timm_image.TimmImage"}}),
    "a text": ("modality.image", "os.system"),
}


@pytest.mark.parametrize(("path", "value"), PARTS.values(), ids=list(PARTS))
def test_an_adapter_of_somebody_else_builds_encoders_and_adapters_alone(
    run: Path, tmp_path: Path, path: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = forged(run, tmp_path / "other", set_at(path, value))
    with pytest.raises(
        ValueError, match=rf"{other}: modality\.image.*(may not build|is data, without|no adapter)"
    ):
        load_model("tiny", [other])
    assert not (tmp_path / "never").exists()


def test_an_adapter_of_somebody_else_that_is_honest_loads(run: Path, tmp_path: Path) -> None:
    other = forged(run, tmp_path / "other", set_at("data.train.0.source", EVIL))  # nobody builds its data
    model, _, _ = load_model("tiny", [other])
    assert list(model.modality) == ["image"] and not (tmp_path / "never").exists()


ROWS: dict[str, tuple[str, Any]] = {
    "a function that writes": ("data.eval.0", EVIL),
    "a source around one": ("data.eval.0", {"_target_": "mm_llama.data.formats.Part", "source": EVIL}),
    "a step": ("stage.step", EVIL),
    "a folder of its own": (
        "data.eval.0",
        {"_target_": "mm_llama.data.recipes.easy_vqa", "root": "asset:easy_vqa", "out": "/tmp/elsewhere"},
    ),
    "an encoder": ("modality.image.encoder._target_", "mm_llama.data.sources.JsonlChat"),
    "an address": ("data.eval.0.path", "https://example.org/rows.jsonl"),
}


@pytest.mark.parametrize(("path", "value"), ROWS.values(), ids=list(ROWS))
def test_runs_are_averaged_and_evaluated_only_by_what_shipped_configs_name(
    run: Path,
    tmp_path: Path,
    path: str,
    value: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = forged(run, tmp_path / "other", set_at(path, value))
    assert main(["average", str(other), "--out", "out", "--eval"]) == 2
    error = capsys.readouterr().err
    assert f"{other}: " in error and "Traceback" not in error
    assert any(words in error for words in ("may not", "go to the cache", "is data, without")), error
    assert not (tmp_path / "never").exists() and not (tmp_path / "out").exists()


def test_a_run_of_ours_is_averaged_and_evaluated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["average", str(run), "--out", str(tmp_path / "out"), "--eval", "--metric", "loss"]) == 0
    check_run_config(
        OmegaConf.to_container(OmegaConf.load(next(run.glob("checkpoints/step_*/config.yaml")))), "run"
    )  # type: ignore[arg-type]


def test_clips_of_a_run_are_made_by_its_recipe_alone(run: Path, tmp_path: Path) -> None:
    node = {"_target_": "mm_llama.data.recipes.motion", "root": EVIL, "out": "cache:data/motion"}
    other = forged(run, tmp_path / "other", set_at("data.train.0.source", node))
    with pytest.raises(
        ValueError, match=r"data\.train\.root\._target_ names .*write_file', which no shipped config names"
    ):
        clip_sources("motion", "test", [other])


def test_an_aligner_of_somebody_else_is_an_adapter(run: Path, tmp_path: Path) -> None:
    other = forged(run, tmp_path / "other", set_at("modality.tts_aligner", {"adapter": EVIL}))
    with pytest.raises(ValueError, match=r"modality\.tts_aligner\.adapter\._target_ names .* may not build"):
        load_aligner(other)
