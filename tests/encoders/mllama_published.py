"""A small image tower with random weights, and the same weights in its two published implementations."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from encoders.mllama import MllamaTower
from encoders.tiles import tilings

SIDE, TILES, WIDTH, LAYERS, GLOBAL, HEADS, FFN = 56, 4, 64, 4, 2, 4, 128
TAPS = (1, 2, 3)
TILINGS = tilings(TILES)


# ours: (transformers', Meta's)
OUTER = {
    "patch.weight": ("patch_embedding.weight", "conv1._linear.weight"),
    "class_embedding": ("class_embedding", "class_embedding"),
    "positions": ("gated_positional_embedding.embedding", "positional_embedding"),
    "position_gate": ("gated_positional_embedding.gate", "gated_positional_embedding_gate"),
    "tile_positions": ("gated_positional_embedding.tile_embedding.weight", "gated_positional_embedding"),
    "pre_tile.weight": ("pre_tile_positional_embedding.embedding.weight", "pre_tile_pos_embed.embedding"),
    "pre_tile.gate": ("pre_tile_positional_embedding.gate", "pre_tile_pos_embed.gate"),
    "post_tile.weight": ("post_tile_positional_embedding.embedding.weight", "post_tile_pos_embed.embedding"),
    "post_tile.gate": ("post_tile_positional_embedding.gate", "post_tile_pos_embed.gate"),
    "norm_pre.weight": ("layernorm_pre.weight", "ln_pre.weight"),
    "norm_pre.bias": ("layernorm_pre.bias", "ln_pre.bias"),
    "norm_post.weight": ("layernorm_post.weight", "ln_post.weight"),
    "norm_post.bias": ("layernorm_post.bias", "ln_post.bias"),
}
STACKS = {
    "layers": ("transformer.layers", "transformer.resblocks"),
    "global_layers": ("global_transformer.layers", "global_transformer.resblocks"),
}
INNER = {
    "attention.q": ("self_attn.q_proj", "attn.wq"),
    "attention.k": ("self_attn.k_proj", "attn.wk"),
    "attention.v": ("self_attn.v_proj", "attn.wv"),
    "attention.o": ("self_attn.o_proj", "attn.wo"),
    "attention_norm": ("input_layernorm", "ln_1"),
    "feed_forward_norm": ("post_attention_layernorm", "ln_2"),
    "up": ("mlp.fc1", "mlp.c_fc"),
    "down": ("mlp.fc2", "mlp.c_proj"),
    "attention_gate": ("gate_attn", "gate_attn"),
    "feed_forward_gate": ("gate_ffn", "gate_ffn"),
}
TABLES = ("pre_tile.weight", "tile_positions", "post_tile.weight")
TRANSFORMERS, META = 0, 1


def published(name: str, whose: int) -> str:
    """The published name of one of our parameters."""
    inner = re.fullmatch(r"(\w+)\.(\d+)\.(.+?)(\.weight|\.bias)?", name)
    if inner is None or name in OUTER:
        return OUTER[name][whose]
    return f"{STACKS[inner[1]][whose]}.{inner[2]}.{INNER[inner[3]][whose]}{inner[4] or ''}"


def tower(**changes: Any) -> MllamaTower:
    numbers: dict[str, Any] = {
        "tile_size": SIDE,
        "patch_size": 14,
        "max_tiles": TILES,
        "width": WIDTH,
        "num_layers": LAYERS,
        "num_global_layers": GLOBAL,
        "num_heads": HEADS,
        "ffn_dim": FFN,
        "taps": TAPS,
    }
    return MllamaTower(**(numbers | changes)).eval()


@torch.no_grad()
def filled(model: MllamaTower, absent: str = "zero", seed: int = 0) -> MllamaTower:
    """Random weights, gates and norms away from trivial; slots of absent tiles `zero`, `alike` or `random`."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "gate" in name:
            weight.copy_(0.7 + 0.1 * noise)
        elif "norm" in name and name.endswith("weight"):
            weight.copy_(1 + 0.3 * noise)
        else:
            weight.copy_((0.15 if ".layers" in f".{name}" or "global" in name else 0.5) * noise)
    if absent != "random":
        for name in TABLES:
            table = model.get_parameter(name)
            slots = table.view(len(table), TILES, -1)
            for row, (rows, columns) in enumerate(TILINGS, start=1):
                slots[row, rows * columns :] = 0.0 if absent == "zero" else slots[0, 0]
    return model


def in_four(tiles_Mrc3ss: Tensor) -> Tensor:
    """The tiles as the published models take them: four slots, absent ones zero."""
    four = tiles_Mrc3ss.new_zeros(len(tiles_Mrc3ss), TILES, *tiles_Mrc3ss.shape[3:])
    flat = tiles_Mrc3ss.flatten(1, 2)
    four[:, : flat.shape[1]] = flat
    return four


def transformers_model(ours: MllamaTower) -> Any:
    from transformers import MllamaVisionConfig
    from transformers.models.mllama.modeling_mllama import MllamaVisionModel

    config = MllamaVisionConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_global_layers=GLOBAL,
        attention_heads=HEADS,
        intermediate_size=FFN,
        image_size=SIDE,
        patch_size=14,
        max_num_tiles=TILES,
        norm_eps=ours.norm_eps,
        # This version counts states after a block, the checkpoints' own code and numbers those before one.
        intermediate_layers_indices=[tap - 1 for tap in TAPS],
        supported_aspect_ratios=[list(tiling) for tiling in TILINGS],
    )
    model = MllamaVisionModel(config).eval()
    state = {published(name, TRANSFORMERS): weight for name, weight in ours.state_dict().items()}
    model.load_state_dict(state)
    return model


def transformers_features(model: Any, tiles_Mrc3ss: Tensor) -> Tensor:
    M, rows, columns = tiles_Mrc3ss.shape[:3]
    mask = torch.zeros(M, 1, TILES, dtype=torch.long)
    mask[:, :, : rows * columns] = 1
    features = model(
        in_four(tiles_Mrc3ss)[:, None],
        aspect_ratio_ids=torch.full((M, 1), TILINGS.index((rows, columns)) + 1),
        aspect_ratio_mask=mask,
    ).last_hidden_state
    return features[:, 0, : rows * columns].flatten(1, 2)


def meta_table(table: Tensor, tokens: int) -> Tensor:
    """One of our tables as Meta's float[t, t, tokens, W], which has one vector per place of a tile for all tilings."""
    square = torch.zeros(TILES, TILES, tokens, WIDTH)
    slots = table.view(len(table), TILES, tokens, WIDTH)
    for row, (rows, columns) in enumerate(TILINGS, start=1):
        square[:rows, :columns] = slots[row, : rows * columns].view(rows, columns, tokens, WIDTH)
    return square


@torch.no_grad()
def metas(ours: MllamaTower) -> dict[str, Tensor]:
    """Meta's state of our weights, whose tables are first made to agree where tilings share a place."""
    state = {}
    for name, weight in ours.named_parameters():
        if name in TABLES:
            tokens = ours.tokens_per_tile if name == "tile_positions" else 1
            square = meta_table(weight, tokens)
            slots = weight.view(len(weight), TILES, tokens, WIDTH)
            for row, (rows, columns) in enumerate(TILINGS, start=1):
                slots[row, : rows * columns] = square[:rows, :columns].flatten(0, 1)
            state[published(name, META)] = square
        else:
            state[published(name, META)] = weight.flatten(1) if name == "patch.weight" else weight
    return state
