"""Meta's folder of a vision checkpoint: `params.json` and `consolidated*.pth`, in one file or one per rank.

The text part is cut and ordered as in a plain checkpoint. Queries and keys of the blocks have no positions, so
their rows stand as they are. A table of tile positions is one square there, and a row per tiling in ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mm_llama.core.documents import named, read_json, whole_number
from mm_llama.core.llama import LlamaConfig
from mm_llama.core.meta import (
    Shard,
    chat_of_folder,
    config_from_params,
    joined_shape,
    open_shards,
    pieces_of,
    read_joined,
)
from mm_llama.core.stored import Entry, Shape, StoredTensors, check_depth, check_tensors, half_split
from mm_llama.released.checkpoint import Sizes, VisionCheckpoint, released_tower, shapes_of
from mm_llama.released.huggingface import tilings
from mm_llama.released.names import CORE, ENCODER, EXTRA_ROWS, PLACEHOLDER, RESERVED, meta_name

_ROWS = (
    "wq.weight",
    "wk.weight",
    "wv.weight",
    "w1.weight",
    "w3.weight",
    "c_fc.weight",
    "c_fc.bias",
    "conv1._linear.weight",
    "tok_embeddings.weight",
    "learnable_embedding.weight",
    "output.weight",
    "vision_projection.weight",
    "vision_projection.bias",
)
_COLUMNS = ("wo.weight", "w2.weight", "c_proj.weight")
_IGNORED = ("text_model.rope.freqs", "rope.freqs")
_TABLES = ("tile_positions", "pre_tile.weight", "post_tile.weight")

Restore = Callable[[Tensor], Tensor]


def open_vision_meta(folder: Path) -> VisionCheckpoint:
    """Check a folder against its params.json and return it unread.

    Raises ValueError as `open_vision_huggingface` does, and for pickles that hold anything but tensors.
    """
    params_path = folder / "params.json"
    shards = open_shards(folder)
    pieces = {name: piece for name, piece in pieces_of(shards).items() if name not in _IGNORED}
    found = {name: joined_shape(name, cut, _axis(name)) for name, (cut, _) in pieces.items()}
    with named(params_path):
        sizes = _sizes(read_json(params_path), found, params_path)
        sizes.check_depth(found, params_path)
        shapes = shapes_of(sizes)
    places = {name: meta_name(name, sizes.layers) for name in shapes}
    expected = {published: _meta_shape(name, shapes[name], sizes) for name, published in places.items()}
    gates = {published for name, published in places.items() if name.endswith("gate")}
    check_tensors(
        str(folder),
        expected=expected,
        # Some files hold a gate once per channel.
        shapes={name: (1,) if name in gates and len(shape) == 1 else shape for name, shape in found.items()},
        dtypes={name: dtype for name, (_, dtype) in pieces.items()},
        asked_by=params_path.name,
    )
    entries = {
        name: Entry(
            published, shapes[name], pieces[published][1], partial(_read, name, published, shards, sizes)
        )
        for name, published in places.items()
    }
    return VisionCheckpoint(
        form="Meta",
        sizes=sizes,
        tensors=StoredTensors(entries),
        files=(params_path, *(shard.path for shard in shards)),
        chat=chat_of_folder(folder),
        tokenizer_path=folder if (folder / "tokenizer.model").is_file() else None,
    )


def block_layers(num_layers: int, num_blocks: int, where: Path | str) -> tuple[int, ...]:
    """Return the layers with a block before them: evenly, counted from the last layer."""
    every = math.ceil(num_layers / num_blocks)
    layers = tuple(reversed(range(num_layers - 1, -1, -every)))
    if len(layers) < num_blocks:
        raise ValueError(
            f"{where}: vision_num_cross_attention_layers is {num_blocks}, which does not fit {num_layers} layers evenly"
        )
    return layers[-num_blocks:]


def tiling_rows(table: Tensor, max_tiles: int) -> Tensor:
    """Return a square table float[t, t, n, W], entry (row, column) of a tile, as rows per tiling: float[T + 1, t n W].

    The row of a tiling holds its tiles' entries in order; slots of absent tiles, and row 0, hold zeros.
    """
    size = (len(tilings(max_tiles)) + 1, max_tiles, *table.shape[2:])
    rows = table.new_zeros(size)
    for number, (height, width) in enumerate(tilings(max_tiles), start=1):
        rows[number, : height * width] = table[:height, :width].flatten(0, 1)
    return rows.flatten(1)


def _sizes(params: Mapping[str, Any], found: Mapping[str, Shape], where: Path) -> Sizes:
    vision = ("vision_chunk_size", "vision_max_num_chunks", "vision_num_cross_attention_layers")
    missing = [key for key in vision if key not in params]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing; a vision checkpoint's params.json has them")
    text = {key: value for key, value in params.items() if key not in vision}
    core: LlamaConfig = config_from_params(text, tied=False, where=where)
    check_depth(core, found, where)
    layers = block_layers(core.num_layers, whole_number(params, vision[2], where), where)
    tower = released_tower() | {
        "tile_size": whole_number(params, vision[0], where),
        "max_tiles": whole_number(params, vision[1], where),
    }
    # params.json says nothing of the tower: what its tensors cannot have otherwise is read off one of them each.
    encoder = meta_name(ENCODER + "class_embedding", layers)
    patch = meta_name(ENCODER + "patch.weight", layers)
    up = meta_name(ENCODER + "layers.0.up.bias", layers)
    if encoder in found and patch in found and up in found:
        tower |= {
            "width": found[encoder][0],
            "patch_size": math.isqrt(found[patch][-1] // 3),
            "ffn_dim": found[up][0],
        }
    return Sizes(core, layers, tower)


def _axis(published: str) -> int | None:
    """Return the axis along which the ranks' pieces of a tensor are joined; None: each has the whole."""
    if published.endswith(_COLUMNS):
        return 1
    return 0 if published.endswith(_ROWS) else None


def _meta_shape(name: str, shape: Shape, sizes: Sizes) -> Shape:
    if name in (PLACEHOLDER, RESERVED):
        return (EXTRA_ROWS, sizes.core.dim)
    leaf = name.removeprefix(ENCODER)
    if leaf == "patch.weight":
        return (shape[0], math.prod(shape[1:]))
    if name.startswith(ENCODER) and leaf in _TABLES:
        side, width = sizes.tower["max_tiles"], sizes.tower["width"]
        return (side, side, shape[1] // (side * width), width)
    return shape


def _read(name: str, published: str, shards: list[Shard], sizes: Sizes) -> Tensor:
    tensor = read_joined(published, shards, _axis(published))
    if name.endswith("gate") and len(tensor) != 1:
        if not bool((tensor == tensor[0]).all()):
            raise ValueError(
                f"{published}: holds {len(tensor)} values that differ; a gate is one number for all channels"
            )
        return tensor[:1].clone()
    if name == PLACEHOLDER:
        return tensor[0]
    if name == RESERVED:
        return tensor[1:]
    if name.startswith(CORE) and name.endswith(".q.weight"):
        return half_split(tensor, sizes.core.num_heads)
    if name.startswith(CORE) and name.endswith(".k.weight"):
        return half_split(tensor, sizes.core.num_kv_heads)
    if name == ENCODER + "patch.weight":
        side = sizes.tower["patch_size"]
        return tensor.view(len(tensor), 3, side, side)
    if name.removeprefix(ENCODER) in _TABLES:
        return tiling_rows(tensor, sizes.tower["max_tiles"])
    return tensor
