"""Meta's own folder: `params.json` and `consolidated.NN.pth`, one file per model-parallel rank.

Column-parallel tensors were cut along rows, row-parallel ones along columns; norms are whole in every file.
Rotary pairs are interleaved there and half-split in the core, so q and k rows are reordered. Where there were
more ranks than KV heads (the 405B in 16 files), each KV head is stored several times and one copy is kept.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_llama.core.documents import decimal, named, read_json, whole_number
from mm_llama.core.huggingface import VISION
from mm_llama.core.llama import LlamaConfig, RopeScaling
from mm_llama.core.stored import (
    Checkpoint,
    Entry,
    Names,
    Shape,
    StoredTensors,
    check_depth,
    check_tensors,
    core_shapes,
    counted,
    half_split,
    listed,
)

META_NAMES = Names(
    layers="layers.",
    parts={
        "embedding": "tok_embeddings",
        "norm": "norm",
        "head": "output",
        "attention_norm": "attention_norm",
        "attention.q": "attention.wq",
        "attention.k": "attention.wk",
        "attention.v": "attention.wv",
        "attention.o": "attention.wo",
        "feed_forward_norm": "ffn_norm",
        "feed_forward.gate": "feed_forward.w1",
        "feed_forward.up": "feed_forward.w3",
        "feed_forward.down": "feed_forward.w2",
    },
)

_KV = [META_NAMES.of(f"layers.0.attention.{part}.weight") for part in "kv"]
# Models whose scaled rotary positions use factor 32: (dim, layers) of the 3.2 1B and 3B.
_FACTOR_32 = {(2048, 16), (3072, 28)}
_REFUSED = {
    "quantization_args": "quantised checkpoints are read as GGUF only",
    "lora_args": "adapters inside the checkpoint have no place in the core",
    "vision_chunk_size": VISION,
    "moe_args": "the core has no mixture of experts",
}
_SHARD = re.compile(r"consolidated\.(\d+)\.pth")
_KEEP_MAPPED = 32 * 2**20  # bytes, of all files of a checkpoint


def open_meta(folder: Path) -> Checkpoint:
    """Check a folder against its params.json and return it unread.

    Raises ValueError for absent files, for pickles that hold anything but tensors, and for tensors that are
    missing, unknown or mis-shaped.
    """
    params_path = folder / "params.json"
    params = read_json(params_path)
    shards = open_shards(folder)
    pieces = pieces_of(shards)
    joined = {name: joined_shape(name, cut, _split_axis(name)) for name, (cut, _) in pieces.items()}
    head, embedding = META_NAMES.of("head.weight"), META_NAMES.of("embedding.weight")
    tied = head not in joined or (embedding in joined and _same(shards, head, embedding))
    with named(params_path):
        config = config_from_params(params, tied=tied, where=params_path)
    stored_heads = joined.get(_KV[0], (0,))[0] // config.head_dim
    repeat = _kv_repeat(config.num_kv_heads, stored_heads, shards)
    if repeat > 1 and stored_heads == config.num_kv_heads:
        # The 405B in 16 files counts the copies in params.json too.
        config = replace(config, num_kv_heads=config.num_kv_heads // repeat)
    check_depth(config, joined, params_path)
    with named(params_path):
        core = core_shapes(config)
    ignored = {"rope.freqs"} | ({head} if tied else set())
    check_tensors(
        str(folder),
        expected={META_NAMES.of(name): _with_copies(name, shape, repeat) for name, shape in core.items()},
        shapes={name: shape for name, shape in joined.items() if name not in ignored},
        dtypes={name: dtype for name, (_, dtype) in pieces.items() if name not in ignored},
        asked_by=params_path.name,
    )
    entries = {}
    for name, shape in core.items():
        published = META_NAMES.of(name)
        read = partial(_read, name, published, shards, config, repeat)
        entries[name] = Entry(published, shape, pieces[published][1], read)
    return Checkpoint(
        form="Meta",
        config=config,
        tensors=StoredTensors(entries),
        files=(params_path, *(shard.path for shard in shards)),
        chat=chat_of_folder(folder),
        tokenizer_path=folder if (folder / "tokenizer.model").is_file() else None,
    )


def chat_of_folder(folder: Path) -> str:
    """Return the chat format of a folder: only the name that it is released under tells chat from base models."""
    folder = folder.resolve()
    # The hub keeps Meta's files in a subfolder of the model's.
    name = folder.parent.name if folder.name == "original" else folder.name
    return "llama3" if "instruct" in name.lower() else "plain"


def config_from_params(params: Mapping[str, Any], *, tied: bool, where: Path | str) -> LlamaConfig:
    """Translate params.json; whether the head is tied only the tensors tell."""
    for key, why in _REFUSED.items():
        if params.get(key) not in (None, -1):
            raise ValueError(f"{where}: {key} is {params[key]!r}: {why}")
    missing = [
        key
        for key in ("dim", "n_layers", "n_heads", "vocab_size", "norm_eps", "rope_theta")
        if key not in params
    ]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing; add what the model was trained with")
    dim, num_layers, num_heads = (whole_number(params, key, where) for key in ("dim", "n_layers", "n_heads"))
    scaled = bool(params.get("use_scaled_rope", False))
    factor = 32.0 if (dim, num_layers) in _FACTOR_32 else 8.0
    return LlamaConfig(
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=whole_number(params, "n_kv_heads", where) if params.get("n_kv_heads") else num_heads,
        ffn_dim=ffn_width(
            dim,
            decimal(params, "ffn_dim_multiplier", where) if params.get("ffn_dim_multiplier") else None,
            whole_number(params, "multiple_of", where, 256),
        ),
        vocab_size=whole_number(params, "vocab_size", where),
        norm_eps=decimal(params, "norm_eps", where),
        rope_base=decimal(params, "rope_theta", where),
        rope_scaling=RopeScaling(factor=factor) if scaled else None,
        tied=tied,
        max_context=131_072 if scaled else 8192,
    )


def ffn_width(dim: int, multiplier: float | None, multiple_of: int) -> int:
    """Return the feed-forward width that Meta's numbers mean: two thirds of 4 dim, scaled, rounded up."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def shard_files(folder: Path) -> list[Path]:
    """Return consolidated.00.pth, .01.pth, ... in order, or consolidated.pth; a gap in the numbers is an error."""
    found = {int(match[1]): file for file in folder.iterdir() if (match := _SHARD.fullmatch(file.name))}
    whole_file = folder / "consolidated.pth"
    if whole_file.is_file():
        if found:
            raise ValueError(
                f"{folder}: has both {whole_file.name} and numbered shards; keep one of the two models"
            )
        return [whole_file]
    if not found:
        raise ValueError(f"{folder}: has params.json but no consolidated.NN.pth")
    absent = [f"consolidated.{n:02d}.pth" for n in range(max(found) + 1) if n not in found]
    if absent:
        raise ValueError(
            f"{folder}: {len(absent)} of {max(found) + 1} shards are not there: {listed(absent)}"
        )
    return [found[n] for n in sorted(found)]


def open_shards(folder: Path) -> list[Shard]:
    """Return the folder's files in order, which together keep no more mapped than one would."""
    files = shard_files(folder)
    return [Shard(file, _KEEP_MAPPED // len(files)) for file in files]


class Shard:
    """One file, mapped; mapped anew now and then, or its pages would stay resident beside the model."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.keep = keep  # bytes
        self._tensors: dict[str, Tensor] | None = None
        self._handed_out = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the file, none of them read."""
        if self._tensors is None:
            try:
                loaded = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise ValueError(
                    f"{self.path}: not a file of plain tensors that can be opened safely ({reason[:200]})"
                ) from None
            if not isinstance(loaded, dict):
                raise ValueError(f"{self.path}: expected a table of tensors, found {type(loaded).__name__}")
            other = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
            if other:
                entries = counted(other, "entry is no tensor", "entries are no tensors")
                raise ValueError(f"{self.path}: {entries}: {listed(other)}")
            self._tensors = loaded
        return self._tensors

    def __getitem__(self, name: str) -> Tensor:
        if self._handed_out > self.keep:
            self._tensors, self._handed_out = None, 0
        tensor = self.tensors()[name]
        self._handed_out += tensor.nbytes
        return tensor


def read_joined(published: str, shards: list[Shard], axis: int | None) -> Tensor:
    """Return a tensor read from all shards and joined along `axis`; None: it is whole in each."""
    if axis is None or len(shards) == 1:
        return shards[0][published]
    return torch.cat([shard[published] for shard in shards], dim=axis)


def pieces_of(shards: list[Shard]) -> dict[str, tuple[list[Shape], torch.dtype]]:
    """Return the shapes of every tensor's pieces, one of each shard, and its dtype."""
    names = {name for shard in shards for name in shard.tensors()}
    for shard in shards:
        absent = sorted(names - set(shard.tensors()))
        if absent:
            tensors = counted(absent, "tensor", "tensors")
            raise ValueError(f"{shard.path}: lacks {tensors} that its siblings have: {listed(absent)}")
    first = shards[0].tensors()
    return {name: ([tuple(s.tensors()[name].shape) for s in shards], first[name].dtype) for name in first}


def _split_axis(published: str) -> int | None:
    if published.endswith((".attention.wo.weight", ".feed_forward.w2.weight")):
        return 1
    return None if "norm" in published or published == "rope.freqs" else 0


def joined_shape(published: str, shapes: list[Shape], axis: int | None) -> Shape:
    """Return the shape of pieces joined along `axis` (None: each is the whole); ValueError where they do not fit."""
    if axis is None or len(shapes[0]) <= axis:
        return shapes[0]
    if len({shape[:axis] + shape[axis + 1 :] for shape in shapes}) > 1:
        raise ValueError(
            f"{published}: its pieces do not fit together: {listed(map(str, map(list, shapes)))}"
        )
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def _same(shards: list[Shard], one: str, other: str) -> bool:
    # The first rows settle nearly every case without reading two whole tables.
    return all(torch.equal(shard[one][:rows], shard[other][:rows]) for rows in (1, None) for shard in shards)


def _kv_repeat(num_kv_heads: int, stored_heads: int, shards: list[Shard]) -> int:
    """Return how many copies of each KV head lie side by side."""
    if stored_heads > num_kv_heads and stored_heads % num_kv_heads == 0:
        return stored_heads // num_kv_heads
    if not stored_heads == num_kv_heads == len(shards):
        return 1
    repeat = 1
    while stored_heads % (2 * repeat) == 0 and all(
        torch.equal(shards[n][name], shards[n - n % (2 * repeat)][name])
        for name in _KV
        for n in range(stored_heads)
    ):
        repeat *= 2
    return repeat


def _with_copies(name: str, shape: Shape, repeat: int) -> Shape:
    return (shape[0] * repeat, *shape[1:]) if name.endswith((".k.weight", ".v.weight")) else shape


def _read(name: str, published: str, shards: list[Shard], config: LlamaConfig, repeat: int) -> Tensor:
    tensor = read_joined(published, shards, _split_axis(published))
    if repeat > 1 and name.endswith((".k.weight", ".v.weight")):
        copies = tensor.view(config.num_kv_heads, repeat, config.head_dim, config.dim)
        if not torch.equal(copies, copies[:, :1].expand_as(copies)):
            raise ValueError(f"{published}: the {repeat} stored copies of a KV head differ")
        tensor = copies[:, 0].reshape(-1, config.dim)
    if name.endswith(".q.weight"):
        return half_split(tensor, config.num_heads)
    if name.endswith(".k.weight"):
        return half_split(tensor, config.num_kv_heads)
    return tensor
