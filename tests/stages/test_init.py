"""What a stage starts from: adapters, an encoder out of a run, tables of another resolution, parts of encoders."""

import pytest
import torch
from PIL import Image
from torch import nn

from adapters.image import ImageAdapter
from encoders.image_vit import TileViT
from encoders.image_vit_layers import resize_table
from mm_llama.core.digest import digest_tensors
from mm_llama.core.llama import Llama, LlamaConfig
from mm_llama.data.samples import MediaRef
from mm_llama.modality import CrossAttended
from mm_llama.model import MultimodalLlama
from mm_llama.stage_run import MediaReader
from mm_llama.stages.checkpoint import load_adapter, restore, save_checkpoint
from mm_llama.stages.freeze import freeze
from mm_llama.stages.identity import identity
from mm_llama.stages.optim import adamw
from mm_llama.stages.resume import load_init

CONFIG = LlamaConfig(dim=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=48, vocab_size=67)
TOWER = {"patch_size": 8, "width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 24}
ENCODER, ADAPTER = "modality.image.encoder", "modality.image.adapter"


def make_model(seed=0, core_seed=0, adapter=None, tile_size=16, **tower):
    core = Llama(CONFIG)
    core.init_weights(core_seed)
    core.digest = digest_tensors(core.state_dict())
    encoder = TileViT(**TOWER, tile_size=tile_size, seed=seed, **tower)
    adapter = adapter or ImageAdapter(
        encoder_dim=16,
        dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_dim=40,
        every=2,
        seed=seed,
    )
    return MultimodalLlama(core, {"image": CrossAttended(encoder, adapter)}).requires_grad_(False).eval()


def save(model, folder, train, seed=5):
    """A checkpoint of a stage that moved everything it trains."""
    table = freeze(model, train)
    generator = torch.Generator().manual_seed(seed)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    state = {"stage": "image_encoder", "step": 1, "train": list(train), "lineage": []}
    state |= identity(model, table.train)
    save_checkpoint(folder, model, adamw(trained), table, state, {})
    return model


def tensors(model, prefix):
    return {name: t.clone() for name, t in model.state_dict().items() if name.startswith(prefix + ".")}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_an_encoder_comes_out_of_a_run_that_trained_another_adapter_on_another_core(tmp_path):
    source = save(make_model(adapter=nn.Linear(2, 3)), tmp_path, [ENCODER, ADAPTER])
    model = make_model(seed=1, core_seed=1, max_tiles=4, num_global_layers=1)
    before = make_model(seed=1, core_seed=1, max_tiles=4, num_global_layers=1)
    with pytest.raises(
        ValueError, match="the model has no place for modality.image.encoder|was trained on the core"
    ):
        load_init(model, {"image": tmp_path}, False)
    lineage = load_init(model, {"image.encoder.trunk": tmp_path}, False)
    assert same(tensors(model, f"{ENCODER}.trunk"), tensors(source, f"{ENCODER}.trunk"))
    for untouched in (ADAPTER, f"{ENCODER}.across", "core"):
        assert same(tensors(model, untouched), tensors(before, untouched))
    assert [entry["stage"] for entry in lineage] == ["image_encoder"]


def test_a_run_that_trained_the_trunk_gives_it_under_the_encoders_name(tmp_path):
    source = save(make_model(), tmp_path, [f"{ENCODER}.trunk", ADAPTER])
    model = make_model(seed=1, max_tiles=4, num_global_layers=1)
    load_init(model, {"image.encoder": tmp_path}, False)
    assert same(tensors(model, f"{ENCODER}.trunk"), tensors(source, f"{ENCODER}.trunk"))


def test_what_a_run_does_not_hold_is_refused(tmp_path):
    save(make_model(), tmp_path, [ADAPTER])
    with pytest.raises(
        ValueError, match=r"holds \['modality.image.adapter'\], nothing below modality.image.encoder"
    ):
        load_init(make_model(), {"image.encoder": tmp_path}, False)


def test_an_adapter_still_demands_its_core(tmp_path):
    save(make_model(), tmp_path, [ENCODER, ADAPTER])
    with pytest.raises(ValueError, match="was trained on the core"):
        load_init(make_model(core_seed=1), {"image.adapter": tmp_path}, False)


def test_a_part_is_loaded_before_the_whole_that_was_trained_on_it(tmp_path):
    first = save(make_model(), tmp_path / "encoder", [ENCODER])
    second = make_model(seed=1)
    load_adapter(second, tmp_path / "encoder")
    save(second, tmp_path / "adapter", [ADAPTER], seed=6)
    model = make_model(seed=2)
    with pytest.raises(ValueError, match="was trained with the image encoder"):
        load_init(make_model(seed=2), {"image": tmp_path / "adapter"}, False)
    load_init(model, {"image": tmp_path / "adapter", "image.encoder": tmp_path / "encoder"}, False)
    assert same(tensors(model, ENCODER), tensors(first, ENCODER))
    assert same(tensors(model, ADAPTER), tensors(second, ADAPTER))


def test_a_table_of_another_tile_size_is_resized_by_the_module_that_owns_it(tmp_path):
    source = save(make_model(), tmp_path, [ENCODER])
    model = make_model(tile_size=48)
    load_adapter(model, tmp_path)
    name = f"{ENCODER}.trunk.positions"
    assert torch.equal(model.state_dict()[name], resize_table(source.state_dict()[name], 6))
    assert model.modality["image"].encoder.digest == source.modality["image"].encoder.digest


def test_a_tensor_that_nothing_fits_keeps_its_error(tmp_path):
    save(make_model(), tmp_path, [ENCODER])
    model = make_model()
    model.modality["image"].encoder.trunk.patches = nn.Linear(192, 17)
    with pytest.raises(
        ValueError, match=r"shapes differ .*patches\.bias, .*patches\.weight \(\(16,\), model \(17,\)\)"
    ):
        load_adapter(model, tmp_path)


def test_going_on_with_the_same_run_never_resizes(tmp_path):
    save(make_model(), tmp_path, [ENCODER])
    model = make_model(tile_size=48)
    table = freeze(model, [ENCODER])
    table.before.clear()  # the frozen parts are not what this is about
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(
        ValueError, match=r"shapes differ from the model's for .*positions \(\(4, 16\), model \(36, 16\)\)"
    ):
        restore(next(tmp_path.glob("checkpoints/step*")), model, adamw(trained), table)


@pytest.mark.parametrize("computed_in", [torch.bfloat16, torch.float32])
def test_making_features_in_any_dtype_leaves_the_weights_as_they_were(computed_in, tmp_path, monkeypatch):
    monkeypatch.setattr("mm_llama.stage_run.choose_dtype", lambda *_: computed_in)
    model = make_model()
    before = tensors(model, ENCODER)
    seen = []
    model.encoder_of("image").register_forward_pre_hook(
        lambda encoder, inputs: seen.extend((inputs[0].dtype, next(encoder.parameters()).dtype))
    )
    reader = MediaReader(model, [ADAPTER], folder=tmp_path)
    picture = Image.new("RGB", (20, 20), "red")
    reader.encode("image", [MediaRef("image", 0, picture, "red")], reader.caches["image"])
    assert set(seen) == {computed_in}
    assert reader.caches["image"].get("red").dtype == torch.bfloat16
    assert same(tensors(model, ENCODER), before)


def test_an_encoder_that_trained_in_part_names_what_it_stood_on(tmp_path):
    across = [f"{ENCODER}.across", ADAPTER]
    source = save(make_model(max_tiles=4, num_global_layers=1), tmp_path, across)
    other = make_model(seed=1, max_tiles=4, num_global_layers=1)
    with pytest.raises(
        ValueError, match="was trained with the image encoder sha256:.*, but this encoder is sha256:"
    ):
        load_adapter(other, tmp_path)
    model = make_model(max_tiles=4, num_global_layers=1)
    load_adapter(model, tmp_path)
    assert same(tensors(model, ENCODER), tensors(source, ENCODER))
    larger = make_model(max_tiles=4, num_global_layers=1)
    larger.modality["image"].encoder.resize_positions(48)
    load_adapter(larger, tmp_path)  # the same trunk at another tile size
