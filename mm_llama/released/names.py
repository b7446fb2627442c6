"""What the two published forms call the tensors of a vision checkpoint.

Ours are the names of the whole model: `core.*`, `modality.image.adapter.*`, `modality.image.encoder.*`. Hugging
Face counts a block and the layer behind it as two layers of one list; Meta keeps two lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mm_llama.core.huggingface import HF_NAMES
from mm_llama.core.meta import META_NAMES

CORE, ADAPTER, ENCODER = "core.", "modality.image.adapter.", "modality.image.encoder."

# The last rows of a published embedding table, which only pictures use: the placeholder, and seven never used.
TABLE = CORE + "embedding.weight"
PLACEHOLDER, RESERVED = ADAPTER + "placeholder", ADAPTER + "reserved"
EXTRA_ROWS = 8


class _Published(NamedTuple):
    huggingface: str
    meta: str


_BLOCK = {
    "attention.q.weight": _Published("cross_attn.q_proj.weight", "attention.wq.weight"),
    "attention.k.weight": _Published("cross_attn.k_proj.weight", "attention.wk.weight"),
    "attention.v.weight": _Published("cross_attn.v_proj.weight", "attention.wv.weight"),
    "attention.o.weight": _Published("cross_attn.o_proj.weight", "attention.wo.weight"),
    "attention.q_norm.weight": _Published("cross_attn.q_norm.weight", "attention.q_norm.weight"),
    "attention.k_norm.weight": _Published("cross_attn.k_norm.weight", "attention.k_norm.weight"),
    "attention_norm.weight": _Published("input_layernorm.weight", "attention_norm.weight"),
    "attention_gate": _Published("cross_attn_attn_gate", "gate_attn"),
    "feed_forward.gate.weight": _Published("mlp.gate_proj.weight", "feed_forward.w1.weight"),
    "feed_forward.down.weight": _Published("mlp.down_proj.weight", "feed_forward.w2.weight"),
    "feed_forward.up.weight": _Published("mlp.up_proj.weight", "feed_forward.w3.weight"),
    "feed_forward_norm.weight": _Published("post_attention_layernorm.weight", "ffn_norm.weight"),
    "feed_forward_gate": _Published("cross_attn_mlp_gate", "gate_ffwd"),
}

_TOWER_LAYER = {
    "attention.q.weight": _Published("self_attn.q_proj.weight", "attn.wq.weight"),
    "attention.k.weight": _Published("self_attn.k_proj.weight", "attn.wk.weight"),
    "attention.v.weight": _Published("self_attn.v_proj.weight", "attn.wv.weight"),
    "attention.o.weight": _Published("self_attn.o_proj.weight", "attn.wo.weight"),
    "attention_norm.weight": _Published("input_layernorm.weight", "ln_1.weight"),
    "attention_norm.bias": _Published("input_layernorm.bias", "ln_1.bias"),
    "attention_gate": _Published("gate_attn", "gate_attn"),
    "up.weight": _Published("mlp.fc1.weight", "mlp.c_fc.weight"),
    "up.bias": _Published("mlp.fc1.bias", "mlp.c_fc.bias"),
    "down.weight": _Published("mlp.fc2.weight", "mlp.c_proj.weight"),
    "down.bias": _Published("mlp.fc2.bias", "mlp.c_proj.bias"),
    "feed_forward_norm.weight": _Published("post_attention_layernorm.weight", "ln_2.weight"),
    "feed_forward_norm.bias": _Published("post_attention_layernorm.bias", "ln_2.bias"),
    "feed_forward_gate": _Published("gate_ffn", "gate_ffn"),
}

_TOWER = {
    "patch.weight": _Published("patch_embedding.weight", "conv1._linear.weight"),
    "class_embedding": _Published("class_embedding", "class_embedding"),
    "positions": _Published("gated_positional_embedding.embedding", "positional_embedding"),
    "position_gate": _Published("gated_positional_embedding.gate", "gated_positional_embedding_gate"),
    "tile_positions": _Published(
        "gated_positional_embedding.tile_embedding.weight", "gated_positional_embedding"
    ),
    "pre_tile.weight": _Published(
        "pre_tile_positional_embedding.embedding.weight", "pre_tile_pos_embed.embedding"
    ),
    "pre_tile.gate": _Published("pre_tile_positional_embedding.gate", "pre_tile_pos_embed.gate"),
    "post_tile.weight": _Published(
        "post_tile_positional_embedding.embedding.weight", "post_tile_pos_embed.embedding"
    ),
    "post_tile.gate": _Published("post_tile_positional_embedding.gate", "post_tile_pos_embed.gate"),
    "norm_pre.weight": _Published("layernorm_pre.weight", "ln_pre.weight"),
    "norm_pre.bias": _Published("layernorm_pre.bias", "ln_pre.bias"),
    "norm_post.weight": _Published("layernorm_post.weight", "ln_post.weight"),
    "norm_post.bias": _Published("layernorm_post.bias", "ln_post.bias"),
}


def huggingface_name(name: str, layers: Sequence[int]) -> str:
    """Return the name of one of our tensors in the files of the hub; `layers` are those with a block before them."""
    if name.startswith(CORE):
        layer, part = _numbered(name.removeprefix(CORE), "layers")
        if layer is None:
            return "language_model." + HF_NAMES.of(part)
        behind = layer + sum(1 for one in layers if one <= layer)
        return "language_model." + HF_NAMES.of(f"layers.{behind}.{part}")
    if name in (PLACEHOLDER, RESERVED):
        return huggingface_name(TABLE, layers)
    if name.startswith(ADAPTER):
        block, part = _numbered(name.removeprefix(ADAPTER), "blocks")
        if block is None:
            return part.replace("projection", "multi_modal_projector")
        return f"language_model.model.layers.{layers[block] + block}.{_BLOCK[part].huggingface}"
    return "vision_model." + _tower_name(name, lambda names: names.huggingface, "transformer.layers")


def meta_name(name: str, layers: Sequence[int]) -> str:
    """Return the name of one of our tensors in Meta's files."""
    if name.startswith(CORE):
        return "text_model." + META_NAMES.of(name.removeprefix(CORE))
    if name in (PLACEHOLDER, RESERVED):
        return "text_model.learnable_embedding.weight"
    if name.startswith(ADAPTER):
        block, part = _numbered(name.removeprefix(ADAPTER), "blocks")
        if block is None:
            return part.replace("projection", "vision_model.vision_projection")
        return f"text_model.cross_attention_layers.{block}.{_BLOCK[part].meta}"
    return "vision_model.vision_encoder." + _tower_name(
        name, lambda names: names.meta, "transformer.resblocks"
    )


def old_name(name: str) -> str:
    """Return the name that the hub's files give a tensor which newer versions of the library call `name`."""
    for new, old in _RENAMED:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def new_name(name: str) -> str:
    """Return the name that newer versions of the library give a tensor of the hub's files."""
    for new, old in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


_RENAMED = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_model.", "vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def _numbered(name: str, what: str) -> tuple[int | None, str]:
    match = re.fullmatch(rf"{what}\.(\d+)\.(.+)", name)
    return (None, name) if match is None else (int(match[1]), match[2])


def _tower_name(name: str, column: Callable[[_Published], str], list_of_layers: str) -> str:
    name = name.removeprefix(ENCODER)
    for ours, theirs in (("layers", list_of_layers), ("global_layers", f"global_{list_of_layers}")):
        layer, part = _numbered(name, ours)
        if layer is not None:
            return f"{theirs}.{layer}.{column(_TOWER_LAYER[part])}"
    return column(_TOWER[name])
