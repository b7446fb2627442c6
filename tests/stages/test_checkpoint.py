"""Checkpoints hold exactly what trained, come back to the bit, and are refused where they do not belong."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_llama.stages.checkpoint import load_adapter, optimizer_tensors, restore, save_checkpoint
from mm_llama.stages.checkpoint_files import (
    FILES,
    InvalidCheckpoint,
    find_checkpoint,
    newest_checkpoint,
    read_run_config,
    read_state,
    validate,
)
from mm_llama.stages.freeze import freeze
from mm_llama.stages.identity import identity
from mm_llama.stages.optim import adamw
from mm_llama.stages.steps import next_token

ADAPTER = ["modality.image.adapter"]


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def updates(model, optimizer, tiny_batch, number):
    for seed in range(number):
        next_token(model, tiny_batch(seed + 1)).loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()


class Run:
    """A model after some updates, ready to be saved at any step."""

    def __init__(self, model, tiny_batch, folder, train=ADAPTER):
        self.model, self.folder, self.train = model, folder, train
        self.table = freeze(model, train)
        self.optimizer = adamw(trained(model), lr=1e-2)
        updates(model, self.optimizer, tiny_batch, 3)

    def save(self, step, keep_last=0, **config):
        state = {"stage": "image_pretrain", "step": step, "train": list(self.train), "lineage": []}
        state |= identity(self.model, self.table.train)
        return save_checkpoint(
            self.folder, self.model, self.optimizer, self.table, state, config, keep_last=keep_last
        )


@pytest.fixture
def run(tiny_model, tiny_batch, tmp_path):
    return Run(tiny_model(), tiny_batch, tmp_path / "image")


def test_a_checkpoint_holds_exactly_the_trained_tensors_in_float32(run):
    path = run.save(100)
    assert path == run.folder / "checkpoints" / "step_00000100"
    saved = load_file(path / "adapter.safetensors")
    assert saved.keys() == trained(run.model).keys()
    for name, tensor in saved.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, trained(run.model)[name])


def test_buffers_of_what_trains_are_saved_with_it(tiny_model, tiny_batch, tmp_path):
    model = tiny_model(train_placeholder=False)  # a constant, but drawn from the adapter's seed
    run = Run(model, tiny_batch, tmp_path, ["modality.image"])
    saved = load_file(run.save(1) / "adapter.safetensors")
    assert "modality.image.adapter.placeholder" in saved
    assert torch.equal(
        saved["modality.image.encoder.norm.running_var"], model.modality["image"].encoder.norm.running_var
    )
    fresh = tiny_model(seed=0, train_placeholder=False)
    fresh.modality["image"].adapter.placeholder.add_(1)
    load_adapter(fresh, tmp_path)
    assert all(torch.equal(fresh.state_dict()[name], saved[name]) for name in saved)


def test_the_manifest_describes_every_file(run):
    path = run.save(100)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert (
        {file.name for file in path.iterdir()}
        == {*FILES, "MANIFEST.json"}
        == {*manifest["files"], "MANIFEST.json"}
    )
    for name, entry in manifest["files"].items():
        raw = (path / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    assert manifest["core"] == run.model.core.digest
    assert manifest["lineage"] == [
        {"stage": "image_pretrain", "step": 100, "core": run.model.core.digest}
        | {"adapter": manifest["files"]["adapter.safetensors"]["sha256"]}
    ]
    assert {(path / name).stat().st_mode for name in FILES} == {(path / "MANIFEST.json").stat().st_mode}
    assert (run.folder / "checkpoints" / "latest").read_text() == "step_00000100\n"


def test_optimizer_state_comes_back_to_the_bit_and_goes_on_alike(run, tiny_model, tiny_batch):
    path = run.save(3)
    other = tiny_model()
    table = freeze(other, ADAPTER)
    optimizer = adamw(trained(other), lr=1e-2)
    state = restore(path, other, optimizer, table)
    assert state["step"] == 3
    before, after = optimizer_tensors(run.optimizer), optimizer_tensors(optimizer)
    assert before.keys() == after.keys() and len(before) == 3 * 30
    assert all(
        torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before
    )
    updates(run.model, run.optimizer, tiny_batch, 2)
    updates(other, optimizer, tiny_batch, 2)
    assert all(torch.equal(trained(other)[name], tensor) for name, tensor in trained(run.model).items())


@torch.no_grad()
def test_a_loaded_adapter_gives_the_trained_logits(run, tiny_model, tiny_batch):
    run.save(100)
    other, batch = tiny_model(), tiny_batch(9)
    run.model.eval()

    def logits(model):
        return model(batch.tokens_BS, media=model.attach(batch.media))

    assert not torch.equal(logits(other), logits(run.model))
    loaded = load_adapter(other, run.folder)
    assert loaded.step == 100 and loaded.path.name == "step_00000100"
    assert torch.equal(logits(other), logits(run.model))


def test_a_checkpoint_folder_itself_can_be_loaded(run, tiny_model):
    older = run.save(100)
    run.save(200)
    assert find_checkpoint(run.folder).name == "step_00000200"
    assert load_adapter(tiny_model(), older).step == 100


def test_the_config_comes_back_as_data(run):
    path = run.save(1, optim={"lr": 1e-3, "betas": (0.9, 0.98)}, stage={"train": ADAPTER, "init": None})
    wanted = {"optim": {"lr": 1e-3, "betas": [0.9, 0.98]}, "stage": {"train": ADAPTER, "init": None}}
    assert read_run_config(run.folder) == read_run_config(path) == wanted


def test_another_core_is_refused_with_both_digests_unless_declared(run, tiny_model):
    run.save(100)
    other = tiny_model(seed=1)
    ours, theirs = run.model.core.digest, other.core.digest
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"trained on the core {ours}, but this core is {theirs}.*allow_core_swap"
    ):
        load_adapter(other, run.folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    other.modality["image"].encoder.load_state_dict(run.model.modality["image"].encoder.state_dict())
    load_adapter(other, run.folder, allow_core_swap=True)


def test_another_frozen_encoder_is_refused_with_both_digests(run, tiny_model):
    run.save(100)
    other = tiny_model()
    ours = other.modality["image"].encoder.digest
    with torch.no_grad():
        other.modality["image"].encoder.patches.bias[0] += 1
    theirs = other.modality["image"].encoder.digest
    with pytest.raises(
        ValueError, match=rf"trained with the image encoder {ours}, but this encoder is {theirs}"
    ):
        load_adapter(other, run.folder)


def test_a_core_without_a_digest_cannot_be_trained_on(tiny_model):
    model = tiny_model()
    model.core.digest = ""
    with pytest.raises(ValueError, match=r"the core carries no digest.*set core\.digest"):
        identity(model, tuple(ADAPTER))


def forge(path, change):
    """Rewrite the tensors of a checkpoint, manifest included: valid, but not what a model needs."""
    tensors = load_file(path / FILES[0])
    change(tensors)
    save_file(tensors, path / FILES[0])
    manifest = json.loads((path / "MANIFEST.json").read_text())
    raw = (path / FILES[0]).read_bytes()
    manifest["files"][FILES[0]] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


BIAS = "modality.image.adapter.projection.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(extra=torch.zeros(1)), r"the model has no place for extra"),
        (lambda t: t.pop(BIAS), rf"it lacks {BIAS}"),
        (
            lambda t: t.update({BIAS: torch.zeros(5)}),
            rf"shapes differ from the model's for {BIAS} \(\(5,\), model \(32,\)\)",
        ),
        (lambda t: t[BIAS].fill_(float("nan")), rf"values are not finite in {BIAS}"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(run, tiny_model, change, message):
    path = run.save(100)
    forge(path, change)
    other = tiny_model()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=rf"adapter\.safetensors does not fit this model: {message}"):
        load_adapter(other, run.folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_an_adapter_of_another_shape_is_refused(run, tiny_model):
    run.save(100)
    with pytest.raises(ValueError, match=r"the model has no place for modality\.image\.adapter\.blocks\.1\."):
        load_adapter(tiny_model(every=4), run.folder)


def test_weights_that_are_not_finite_are_never_saved(run):
    run.save(100)
    with torch.no_grad():
        run.model.modality["image"].adapter.projection.bias[3] = float("inf")
    with pytest.raises(
        ValueError, match=rf"after step 200 values are not finite in {BIAS}; nothing is saved"
    ):
        run.save(200, keep_last=1)
    assert newest_checkpoint(run.folder).name == "step_00000100"


def flip_a_byte(path):
    raw = bytearray((path / FILES[0]).read_bytes())
    raw[-1] ^= 1
    (path / FILES[0]).write_bytes(raw)


DAMAGE = {
    r"adapter\.safetensors has another SHA-256": flip_a_byte,
    r"state\.json has 0 bytes, the manifest says": lambda path: (path / "state.json").write_bytes(b""),
    r"is incomplete: .*optimizer\.safetensors": lambda path: (path / "optimizer.safetensors").unlink(),
    r"is incomplete: .*MANIFEST\.json": lambda path: (path / "MANIFEST.json").unlink(),
    r"is incomplete: ": lambda path: (path / "MANIFEST.json").write_bytes(b"\xff\xfe{"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_checkpoint_is_named_left_alone_and_passed_over(run, capsys, message):
    run.save(100)
    damaged = run.save(200)
    DAMAGE[message](damaged)
    files = {file: file.read_bytes() for file in damaged.iterdir()}
    with pytest.raises(InvalidCheckpoint, match=rf"step_00000200:? .*{message}|step_00000200 {message}"):
        validate(damaged)
    assert find_checkpoint(run.folder).name == "step_00000100"
    assert "warning: left alone" in (said := capsys.readouterr().err) and str(damaged) in said
    assert {file: file.read_bytes() for file in damaged.iterdir()} == files


def test_a_damaged_checkpoint_asked_for_by_name_is_an_error(run):
    damaged = run.save(200)
    (damaged / "MANIFEST.json").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"step_00000200 is incomplete"):
        find_checkpoint(damaged)


def test_saving_over_a_damaged_checkpoint_sets_it_aside(run):
    flip_a_byte(run.save(100))
    validate(run.save(100))
    kept = [path.name for path in (run.folder / "checkpoints").iterdir()]
    assert sorted(kept) == ["latest", "step_00000100", "step_00000100.replaced-1"]


def test_only_the_newest_valid_checkpoints_are_kept(run):
    for step in (100, 200):
        run.save(step)
    damaged = run.save(250)
    flip_a_byte(damaged)
    for step in (300, 400):
        run.save(step, keep_last=2)
    kept = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert kept == ["latest", "step_00000250", "step_00000300", "step_00000400"]


def test_a_half_written_checkpoint_is_never_seen_and_cleared_by_the_next(run, monkeypatch):
    run.save(100)
    replace = shutil.copymode
    monkeypatch.setattr(
        shutil, "copymode", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        run.save(200)
    assert newest_checkpoint(run.folder).name == "step_00000100"
    monkeypatch.setattr(shutil, "copymode", replace)
    run.save(300)
    names = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert names == ["latest", "step_00000100", "step_00000300"]


@pytest.mark.parametrize(
    "make",
    [lambda path: None, lambda path: path.mkdir(), lambda path: (path / "checkpoints").mkdir(parents=True)],
)
def test_a_folder_without_checkpoints_says_how_to_get_one(tiny_model, tmp_path, make):
    make(tmp_path / "image")
    with pytest.raises(
        FileNotFoundError, match=r"image (does not exist|holds no valid checkpoint): .*`make demo`"
    ):
        load_adapter(tiny_model(), tmp_path / "image")


def test_another_format_is_refused(run):
    path = run.save(100)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format": "mm_llama checkpoint 9"}))
    with pytest.raises(ValueError, match=r"has the format 'mm_llama checkpoint 9'; this version reads"):
        read_state(path)


def test_restoring_under_another_declaration_is_refused(run, tiny_model):
    path = run.save(100)
    model = tiny_model()
    table = freeze(model, ["modality.image"])
    with pytest.raises(
        ValueError,
        match=r"trained \['modality\.image\.adapter'\], but this stage trains \['modality\.image'\]",
    ):
        restore(path, model, adamw(trained(model)), table)


def test_restoring_beside_other_frozen_tensors_is_refused(run, tiny_model):
    path = run.save(100)
    model = tiny_model(dtype=torch.bfloat16)
    model.core.digest = run.model.core.digest  # the same checkpoint, loaded in another dtype
    table = freeze(model, ADAPTER)
    with pytest.raises(
        ValueError, match=r"was made with other frozen tensors: core\.embedding\.weight, .* and \d+ more"
    ):
        restore(path, model, adamw(trained(model)), table)
