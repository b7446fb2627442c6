"""Names, places and counts of the published layouts; what config.json and params.json may say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mm_llama.core.llama import RopeScaling
from mm_llama.released.checkpoint import Sizes, shapes_of
from mm_llama.released.detect import is_vision
from mm_llama.released.huggingface import (
    preprocessing_to_json,
    published_shapes,
    sizes_from_json,
    sizes_to_json,
    tilings,
)
from mm_llama.released.meta import block_layers, tiling_rows
from mm_llama.released.names import huggingface_name, meta_name, new_name, old_name

HUB_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
HUB_11B: dict[str, Any] = {
    "model_type": "mllama",
    "text_config": {"rope_scaling": {**HUB_ROPE, "original_max_position_embeddings": 8192}},
    "vision_config": {"image_size": 560},
}
HUB_90B: dict[str, Any] = {
    **HUB_11B,
    "text_config": {
        **HUB_11B["text_config"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 100,
        "num_attention_heads": 64,
        "cross_attention_layers": list(range(3, 100, 5)),
    },
}


def count(sizes: Sizes) -> int:
    return sum(math.prod(shape) for shape in published_shapes(shapes_of(sizes), sizes).values())


def test_the_11b_model_has_exactly_the_published_number_of_parameters() -> None:
    sizes = sizes_from_json(HUB_11B, where="config.json")
    assert sizes.layers == (3, 7, 11, 15, 19, 23, 27, 31)
    assert (sizes.core.rope_scaling, sizes.core.rope_base) == (RopeScaling(), 500_000.0)
    assert count(sizes) == 10_670_220_835
    assert len(published_shapes(shapes_of(sizes), sizes)) == 906


def test_the_90b_model_is_the_70b_with_twenty_blocks() -> None:
    sizes = sizes_from_json(HUB_90B, where="config.json")
    assert sizes.layers == tuple(range(3, 80, 4))
    tower = 895_028_755 - (7680 * 4096 + 4096)
    table_rows, projection = 8 * 8192, 7680 * 8192 + 8192
    assert count(sizes) == 70_553_706_496 + 20 * 855_654_658 + table_rows + projection + tower


def test_what_a_file_leaves_out_is_the_11b_base_model() -> None:
    sizes = sizes_from_json({"model_type": "mllama"}, where="config.json")
    assert (sizes.tower["tile_size"], sizes.core.dim, sizes.core.num_layers) == (448, 4096, 32)
    assert sizes.feature_dim == 7680
    assert sizes.core.max_context == 131_072 and sizes.core.norm_eps == 1e-5


def test_names_are_those_of_the_hub_and_of_meta() -> None:
    layers = (3, 7, 11, 15, 19, 23, 27, 31)
    block, encoder = "modality.image.adapter.blocks.1.", "modality.image.encoder."
    expected = {
        "core.embedding.weight": (
            "language_model.model.embed_tokens.weight",
            "text_model.tok_embeddings.weight",
        ),
        "core.head.weight": ("language_model.lm_head.weight", "text_model.output.weight"),
        "core.layers.2.attention.q.weight": (
            "language_model.model.layers.2.self_attn.q_proj.weight",
            "text_model.layers.2.attention.wq.weight",
        ),
        "core.layers.3.feed_forward_norm.weight": (
            "language_model.model.layers.4.post_attention_layernorm.weight",
            "text_model.layers.3.ffn_norm.weight",
        ),
        "core.layers.31.feed_forward.down.weight": (
            "language_model.model.layers.39.mlp.down_proj.weight",
            "text_model.layers.31.feed_forward.w2.weight",
        ),
        f"{block}attention.k_norm.weight": (
            "language_model.model.layers.8.cross_attn.k_norm.weight",
            "text_model.cross_attention_layers.1.attention.k_norm.weight",
        ),
        f"{block}attention_gate": (
            "language_model.model.layers.8.cross_attn_attn_gate",
            "text_model.cross_attention_layers.1.gate_attn",
        ),
        f"{block}feed_forward_gate": (
            "language_model.model.layers.8.cross_attn_mlp_gate",
            "text_model.cross_attention_layers.1.gate_ffwd",
        ),
        "modality.image.adapter.projection.bias": (
            "multi_modal_projector.bias",
            "vision_model.vision_projection.bias",
        ),
        f"{encoder}patch.weight": (
            "vision_model.patch_embedding.weight",
            "vision_model.vision_encoder.conv1._linear.weight",
        ),
        f"{encoder}layers.31.down.bias": (
            "vision_model.transformer.layers.31.mlp.fc2.bias",
            "vision_model.vision_encoder.transformer.resblocks.31.mlp.c_proj.bias",
        ),
        f"{encoder}global_layers.7.feed_forward_gate": (
            "vision_model.global_transformer.layers.7.gate_ffn",
            "vision_model.vision_encoder.global_transformer.resblocks.7.gate_ffn",
        ),
    }
    for name, theirs in expected.items():
        assert (huggingface_name(name, layers), meta_name(name, layers)) == theirs


def test_no_two_tensors_share_a_name_but_the_parts_of_the_table() -> None:
    sizes = sizes_from_json(HUB_11B, where="config.json")
    names = list(shapes_of(sizes))
    assert len({huggingface_name(name, sizes.layers) for name in names}) == len(names) - 2
    assert len({meta_name(name, sizes.layers) for name in names}) == len(names) - 1
    for name in names:
        hub = huggingface_name(name, sizes.layers)
        assert old_name(new_name(hub)) == hub == old_name(hub)
        assert new_name(hub).startswith(("model.", "lm_head."))


def test_blocks_are_spread_from_the_last_layer() -> None:
    assert block_layers(32, 8, "") == (3, 7, 11, 15, 19, 23, 27, 31)
    assert block_layers(80, 20, "") == tuple(range(3, 80, 4))
    assert block_layers(6, 2, "") == (2, 5)
    assert block_layers(7, 2, "") == (2, 6)
    with pytest.raises(
        ValueError, match="vision_num_cross_attention_layers is 4, which does not fit 6 layers"
    ):
        block_layers(6, 4, "params.json")


def test_a_square_table_becomes_a_row_per_tiling() -> None:
    table = torch.arange(4 * 4 * 2 * 3).view(4, 4, 2, 3).float() + 1
    rows = tiling_rows(table, 4).view(9, 4, 2, 3)
    none = torch.zeros(2, 3)

    def slots(*places: tuple[int, int]) -> Tensor:
        return torch.stack([*(table[place] for place in places), *[none] * (4 - len(places))])

    assert tilings(4) == [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    assert not rows[0].any()
    assert torch.equal(rows[3], slots((0, 0), (0, 1), (0, 2)))
    assert torch.equal(rows[6], slots((0, 0), (0, 1), (1, 0), (1, 1)))
    assert torch.equal(rows[8], slots((0, 0), (1, 0), (2, 0), (3, 0)))


WRONG: dict[str, tuple[str, Any, str]] = {
    "adjacent blocks": ("text.cross_attention_layers", [3, 4], r"cross_attention_layers is \[3, 4\]"),
    "a block at the end": ("text.cross_attention_layers", [3, 39], "each with a self-attention layer behind"),
    "no blocks": ("text.cross_attention_layers", [], r"cross_attention_layers is \[\]"),
    "no whole number": ("text.hidden_size", "4096", "config.json: text_config: hidden_size is '4096'"),
    "activation": ("text.hidden_act", "gelu", "hidden_act is 'gelu', which the core does not have"),
    "image id": ("image_token_index", 128_011, "image_token_index is 128011; expected 128256"),
    "tower activation": ("vision.hidden_act", "quick_gelu", "vision_config: hidden_act is 'quick_gelu'"),
    "feature width": ("vision.vision_output_dim", 1280, "vision_output_dim is 1280; the tower has 7680"),
    "tilings": ("vision.supported_aspect_ratios", [[1, 1]], r"supported_aspect_ratios is \[\[1, 1\]\]"),
    "channels": ("vision.num_channels", 1, "num_channels is 1; the tower has 3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_numbers_that_the_model_cannot_have_are_named(case: str) -> None:
    key, value, message = WRONG[case]
    data = json.loads(json.dumps(HUB_11B))
    half, _, leaf = key.rpartition(".")
    (data[f"{half}_config"] if half else data)[leaf] = value
    with pytest.raises(ValueError, match=message):
        sizes_from_json(data, where="config.json")


@pytest.mark.parametrize("data", [HUB_11B, HUB_90B, {"model_type": "mllama"}], ids=["11B", "90B", "base"])
def test_config_there_and_back(data: dict[str, Any]) -> None:
    sizes = sizes_from_json(data, where="config.json")
    again = sizes_from_json(json.loads(json.dumps(sizes_to_json(sizes))), where="config.json")
    assert again == sizes
    assert preprocessing_to_json(sizes)["size"] == {
        "height": sizes.tower["tile_size"],
        "width": sizes.tower["tile_size"],
    }


def test_a_vision_checkpoint_is_known_by_its_json(tmp_path: Path) -> None:
    assert not is_vision(tmp_path) and not is_vision(tmp_path / "absent")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not is_vision(tmp_path)
    (tmp_path / "config.json").write_text("not json")
    assert not is_vision(tmp_path)
    (tmp_path / "params.json").write_text('{"dim": 4, "vision_chunk_size": -1}')
    assert not is_vision(tmp_path)
    (tmp_path / "params.json").write_text('{"dim": 4, "vision_chunk_size": 560}')
    assert is_vision(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mllama"}')
    assert is_vision(str(tmp_path))
