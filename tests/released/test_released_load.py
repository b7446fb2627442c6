"""Reading released vision folders: every form the same bits, every key used or named, nothing held twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mm_llama.core.weights import load_core
from mm_llama.model import MultimodalLlama
from mm_llama.released.load import load_modality, load_text_core, load_vision, open_vision
from mm_llama.released.names import new_name
from tests.released.material import BLOCKS, DIM, VOCAB, WIDTH, transformers_config, write_meta

pytestmark = pytest.mark.filterwarnings("ignore:.*all_gather_tensor:FutureWarning")


def state_of(folder: Path, **options: Any) -> dict[str, Tensor]:
    loaded, image = load_vision(folder, **options)
    return dict(MultimodalLlama(loaded.core, {"image": image}).state_dict())


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def edit_json(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    for key, value in changes.items():
        part, _, leaf = key.rpartition("__")
        (data[part] if part else data)[leaf] = value
    path.write_text(json.dumps(data))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


def edit_shard(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)


# --- the same bits ------------------------------------------------------------------------------------------------


def test_every_tensor_of_transformers_folder_is_where_it_belongs(theirs: Any, hf_folder: Path) -> None:
    ours = state_of(hf_folder)
    state = theirs.state_dict()
    table = state["model.language_model.embed_tokens.weight"]
    assert torch.equal(ours["core.embedding.weight"], table[:VOCAB])
    assert torch.equal(ours["modality.image.adapter.placeholder"], table[VOCAB])
    assert torch.equal(ours["modality.image.adapter.reserved"], table[VOCAB + 1 :])
    gate = "model.language_model.layers.6.cross_attn_mlp_gate"
    assert torch.equal(ours["modality.image.adapter.blocks.1.feed_forward_gate"], state[gate])
    assert sum(weight.numel() for weight in ours.values()) == sum(weight.numel() for weight in state.values())
    stored = load_file(hf_folder / "model.safetensors")
    assert len(ours) == len(stored) + 2


@pytest.mark.parametrize("form", ["new names", "sharded", "new names, sharded"])
def test_new_names_and_shards_hold_the_same_model(form: str, hf_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(hf_folder, tmp_path / "other")
    state = load_file(folder / "model.safetensors")
    if form.startswith("new"):
        state = {new_name(name): tensor for name, tensor in state.items()}
        assert "model.language_model.embed_tokens.weight" in state
    if form.endswith("sharded"):
        (folder / "model.safetensors").unlink()
        names = sorted(state)
        weight_map = {}
        for number in (0, 1):
            file = f"model-{number + 1:05d}-of-00002.safetensors"
            part = {name: state[name] for name in names[number::2]}
            save_file(part, folder / file)
            weight_map |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(state, folder / "model.safetensors")
    assert same(state_of(folder), state_of(hf_folder))


@pytest.mark.parametrize("num_shards", [2, 8])
def test_metas_shards_hold_the_same_model(
    num_shards: int, reference: Any, meta_folder: Path, tmp_path: Path
) -> None:
    cut = write_meta(tmp_path / "cut", reference.state_dict(), num_shards)
    one, many = state_of(meta_folder), state_of(cut)
    assert same(many, one)
    state = reference.state_dict()
    learnable = state["text_model.learnable_embedding.weight"]
    assert torch.equal(one["modality.image.adapter.placeholder"], learnable[0])
    assert torch.equal(one["modality.image.adapter.reserved"], learnable[1:])
    assert one["modality.image.encoder.patch.weight"].shape == (WIDTH, 3, 14, 14)
    # Without positions there is nothing to reorder.
    queries = state["text_model.cross_attention_layers.0.attention.wq.weight"]
    assert torch.equal(one["modality.image.adapter.blocks.0.attention.q.weight"], queries)
    rotary = state["text_model.layers.0.attention.wq.weight"]
    assert not torch.equal(one["core.layers.0.attention.q.weight"], rotary)


def test_a_gate_stored_once_per_channel_is_one_number(
    reference: Any, meta_folder: Path, tmp_path: Path
) -> None:
    state = dict(reference.state_dict())
    gates = [
        name for name in state if name.rsplit(".", 1)[-1] in ("gate_attn", "gate_ffwd", "gate_ffn", "gate")
    ]
    assert len(gates) == 2 * BLOCKS + 2 * 8 + 2
    wide = {name: state[name].repeat(DIM) if name in gates else state[name] for name in state}
    folder = write_meta(tmp_path / "wide", wide)
    assert same(state_of(folder), state_of(meta_folder))

    def differ(shard: dict[str, Tensor]) -> None:
        shard["text_model.cross_attention_layers.1.gate_attn"][-1] += 1

    edit_shard(folder / "consolidated.00.pth", differ)
    with pytest.raises(ValueError, match="cross_attention_layers.1.gate_attn: holds 128 values that differ"):
        load_vision(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_text_core_has_the_digest_of_a_plain_checkpoint(
    dtype: torch.dtype, theirs: Any, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    text = transformers_config().text_config
    numbers = {key: getattr(text, key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
    numbers |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 6}
    plain = LlamaForCausalLM(LlamaConfig(**numbers, rope_parameters=text.rope_parameters, rms_norm_eps=1e-5))
    old = theirs.state_dict()
    state = {
        "lm_head.weight": old["lm_head.weight"],
        "model.norm.weight": old["model.language_model.norm.weight"],
    }
    state["model.embed_tokens.weight"] = old["model.language_model.embed_tokens.weight"][:VOCAB]
    for index, place in enumerate((0, 1, 3, 4, 5, 7)):
        prefix = f"model.language_model.layers.{place}."
        state |= {
            f"model.layers.{index}.{name.removeprefix(prefix)}": weight
            for name, weight in old.items()
            if name.startswith(prefix)
        }
    plain.load_state_dict(state)
    plain.to(dtype).save_pretrained(tmp_path / "plain")
    whole = type(theirs)(theirs.config)
    whole.load_state_dict(old)
    whole.to(dtype).save_pretrained(tmp_path / "whole")
    expected = load_core(tmp_path / "plain", dtype=torch.float32).core
    loaded, image = load_vision(tmp_path / "whole", dtype=torch.float32)
    alone = load_text_core(tmp_path / "whole").core
    assert loaded.core.digest == alone.digest == expected.digest
    assert loaded.core.config.__dict__ | {"max_context": 0} == expected.config.__dict__ | {"max_context": 0}
    assert same(dict(alone.state_dict()), dict(expected.state_dict()))
    # So the released adapter attaches to the plain core, and to no other.
    lent = load_modality(tmp_path / "whole", expected)
    assert same(dict(lent.state_dict()), dict(image.state_dict()))
    expected.digest = "sha256:0"
    with pytest.raises(ValueError, match=f"trained on the core {alone.digest}, but this core is sha256:0"):
        load_modality(tmp_path / "whole", expected)
    assert load_modality(tmp_path / "whole", expected, allow_core_swap=True)


def test_digests_are_those_of_the_stored_tensors_in_any_dtype(
    hf_folder: Path, reference: Any, meta_folder: Path, tmp_path: Path
) -> None:
    single, image = load_vision(hf_folder, dtype=torch.float32)
    half, half_image = load_vision(hf_folder, dtype=torch.bfloat16)
    stored, _ = load_vision(hf_folder, dtype=None)
    assert single.core.digest == half.core.digest == stored.core.digest
    assert image.encoder.digest == half_image.encoder.digest
    assert {weight.dtype for weight in half_image.state_dict().values()} == {torch.bfloat16}
    cut, cut_image = load_vision(write_meta(tmp_path / "cut", reference.state_dict(), 2))
    one, one_image = load_vision(meta_folder)
    assert (cut.core.digest, cut_image.encoder.digest) == (one.core.digest, one_image.encoder.digest)
    assert one.core.digest != single.core.digest


# --- the checkpoint decides ---------------------------------------------------------------------------------------


def test_the_tile_size_and_the_pixels_scale_come_from_the_checkpoint(hf_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(hf_folder, tmp_path / "scaled")
    settings = {
        "size": {"height": 56, "width": 56},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.1, 0.2, 0.3],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    encoder = load_vision(folder)[1].encoder
    assert (encoder.tile_size, encoder.mean, encoder.std) == (56, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert load_vision(hf_folder)[1].encoder.mean == (0.48145466, 0.4578275, 0.40821073)
    # The newer file, in which the settings are one part of several.
    (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    edit_json(folder / "processor_config.json")
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert load_vision(folder)[1].encoder.std == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"size": {"height": 448, "width": 448}},
            "size is {'height': 448, 'width': 448}; the tower prepares with",
        ),
        ({"max_image_tiles": 2}, "max_image_tiles is 2; the tower prepares with 4"),
        ({"resample": 3}, "resample is 3; the tower prepares with 2"),
        ({"do_pad": False}, "do_pad is False"),
    ],
)
def test_preprocessing_that_the_tower_does_not_do_is_refused(
    settings: dict[str, Any], message: str, hf_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(hf_folder, tmp_path / "other")
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        open_vision(folder)


def test_a_plain_loader_says_what_to_do_with_a_vision_checkpoint(hf_folder: Path, meta_folder: Path) -> None:
    for folder in (hf_folder, meta_folder):
        with pytest.raises(ValueError, match=r"this is a vision checkpoint, .*mm_llama.load\(PATH\)"):
            load_core(folder)
    with pytest.raises(ValueError, match="no vision checkpoint: expected config.json of model_type 'mllama'"):
        open_vision(hf_folder.parent)


def test_chat_format_is_told_by_the_template_or_the_name(
    hf_folder: Path, meta_folder: Path, tmp_path: Path
) -> None:
    assert (open_vision(hf_folder).chat, open_vision(meta_folder).chat) == ("llama3", "llama3")
    base = copy_of(hf_folder, tmp_path / "Tiny-Vision")
    (base / "tokenizer_config.json").unlink()
    assert open_vision(base).chat == "plain"
    # The hub's instruct folders keep the template in a file of its own.
    (base / "chat_template.json").write_text('{"chat_template": "<|start_header_id|>"}')
    assert open_vision(base).chat == "llama3"
    plain = copy_of(meta_folder, tmp_path / "Tiny-Vision-Meta")
    assert open_vision(plain).chat == "plain"
    # The hub keeps Meta's files, in one file without a number, in a subfolder of the model's.
    original = copy_of(meta_folder, tmp_path / "Tiny-Vision-Instruct" / "original")
    (original / "consolidated.00.pth").rename(original / "consolidated.pth")
    assert open_vision(original).chat == "llama3"
    shutil.copy(original / "consolidated.pth", original / "consolidated.00.pth")
    with pytest.raises(ValueError, match="original: has both consolidated.pth and numbered shards"):
        open_vision(original)


# --- every key used or named ----------------------------------------------------------------------------------------


def test_missing_unknown_and_misshaped_tensors_are_one_error(hf_folder: Path, tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        del state["vision_model.class_embedding"]
        state["vision_model.extra"] = torch.zeros(1)
        state["multi_modal_projector.bias"] = torch.zeros(5)
        name = "language_model.model.embed_tokens.weight"
        state[name] = state[name][:VOCAB].clone()

    folder = copy_of(hf_folder, tmp_path / "broken")
    edit_weights(folder, change)
    with pytest.raises(ValueError) as caught:
        load_vision(folder)
    for part in (
        "1 tensor is missing: vision_model.class_embedding",
        "1 tensor is unknown: vision_model.extra",
        "2 tensors are of the wrong shape",
        "language_model.model.embed_tokens.weight is [304, 128] where config.json asks for [312, 128]",
        "multi_modal_projector.bias is [5] where config.json asks for [128]",
    ):
        assert part in str(caught.value)


def test_a_missing_tensor_is_named_as_its_file_spells_it(hf_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(hf_folder, tmp_path / "new")
    state = {new_name(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="1 tensor is missing: lm_head.weight$"):
        load_vision(folder)


def test_metas_missing_unknown_and_misshaped_tensors_are_one_error(reference: Any, tmp_path: Path) -> None:
    state = dict(reference.state_dict())
    del state["vision_model.vision_encoder.ln_post.bias"]
    del state["text_model.cross_attention_layers.1.ffn_norm.weight"]
    state["text_model.surplus"] = torch.zeros(2)
    state["text_model.learnable_embedding.weight"] = torch.zeros(16, DIM)
    folder = write_meta(tmp_path / "broken", state, 2)
    with pytest.raises(ValueError) as caught:
        load_vision(folder)
    for part in (
        "2 tensors are missing: ",
        "vision_model.vision_encoder.ln_post.bias",
        "text_model.cross_attention_layers.1.ffn_norm.weight",
        "1 tensor is unknown: text_model.surplus",
        "text_model.learnable_embedding.weight is [16, 128] where params.json asks for [8, 128]",
    ):
        assert part in str(caught.value)


PARAMS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"vision_max_num_chunks": None}, "vision_max_num_chunks missing; a vision checkpoint's"),
    "too many blocks": ({"vision_num_cross_attention_layers": 4}, "is 4, which does not fit 6 layers evenly"),
    "fewer blocks": ({"vision_num_cross_attention_layers": 1}, "cross_attention_layers.1.*unknown|unknown: "),
    "another tile size": ({"vision_chunk_size": 70}, r"positional_embedding is \[17, 64\] where params.json"),
    "tiles": ({"vision_max_num_chunks": 2}, r"gated_positional_embedding is \[4, 4, 17, 64\] where"),
    "no number": ({"vision_chunk_size": "56"}, "vision_chunk_size is '56'; expected a positive whole number"),
    "width": (
        {"n_heads": 8},
        r"20 tensors .*wk.weight is \[64, 128\] where params.json asks for \[32, 128\]",
    ),
}


@pytest.mark.parametrize("case", PARAMS)
def test_params_that_do_not_fit_are_named(case: str, meta_folder: Path, tmp_path: Path) -> None:
    changes, message = PARAMS[case]
    folder = copy_of(meta_folder, tmp_path / "meta")
    edit_json(folder / "params.json", **{key: value for key, value in changes.items() if value is not None})
    if None in changes.values():
        data = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps({k: v for k, v in data.items() if k not in changes}))
    with pytest.raises(ValueError, match=message):
        load_vision(folder)


def test_a_damaged_tensor_is_named(hf_folder: Path, tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state["vision_model.transformer.layers.5.mlp.fc1.bias"][3] = float("nan")

    folder = copy_of(hf_folder, tmp_path / "damaged")
    edit_weights(folder, change)
    with pytest.raises(
        ValueError, match="vision_model.transformer.layers.5.mlp.fc1.bias holds NaN or infinity"
    ):
        load_vision(folder)


def test_another_models_tokenizer_is_refused(hf_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(hf_folder, tmp_path / "other")
    document = json.loads((folder / "tokenizer.json").read_text())
    added = document["added_tokens"]
    # The hub names the placeholder behind the vocabulary; that is no text.
    added.append({**added[0], "id": VOCAB, "content": "<|image|>"})
    document["model"]["vocab"]["<|image|>"] = VOCAB
    (folder / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = load_vision(folder)[0].tokenizer
    assert tokenizer is not None and tokenizer.specials["<|image|>"] == VOCAB
    assert VOCAB not in tokenizer.encode("<|image|>")
    added[-1] |= {"content": "word", "special": False}
    document["model"]["vocab"]["word"] = document["model"]["vocab"].pop("<|image|>")
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="305 ids, but the core's table has 304 rows and 8 for pictures"):
        load_vision(folder)
