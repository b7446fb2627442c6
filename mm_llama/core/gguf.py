"""GGUF files of the Llama architecture: dequantised once to a Hugging Face folder in the cache, read there.

The file keeps q and k rows in interleaved rotary pairs; the core is half-split, so they are reordered. The
folder is named by the file's SHA-256, written under a temporary name and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mm_llama.core.documents import named, read_json
from mm_llama.core.export import staged_folder, write_huggingface
from mm_llama.core.gguf_tokenizer import read_metadata
from mm_llama.core.huggingface import chat_of_template, open_huggingface
from mm_llama.core.identity import cache_folder, file_sha256, remembered
from mm_llama.core.llama import LlamaConfig, RopeScaling, rope_frequencies
from mm_llama.core.stored import (
    Checkpoint,
    Entry,
    Names,
    StoredTensors,
    check_depth,
    check_tensors,
    core_shapes,
    half_split,
)

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

    from mm_llama.core.tokenizer import Tokenizer

GGUF_NAMES = Names(
    layers="blk.",
    parts={
        "embedding": "token_embd",
        "norm": "output_norm",
        "head": "output",
        "attention_norm": "attn_norm",
        "attention.q": "attn_q",
        "attention.k": "attn_k",
        "attention.v": "attn_v",
        "attention.o": "attn_output",
        "feed_forward_norm": "ffn_norm",
        "feed_forward.gate": "ffn_gate",
        "feed_forward.up": "ffn_up",
        "feed_forward.down": "ffn_down",
    },
)

SOURCE = "source.json"
_LAYOUT = 1  # raise it when what is written changes, so that older conversions are made again
_ROPE = "rope_freqs.weight"


def open_gguf(path: Path) -> Checkpoint:
    """Convert a .gguf file unless its conversion is in the cache, and return that, unread.

    Raises ValueError for another architecture and for missing, unknown or mis-shaped tensors.
    """
    sha256 = remembered("sha256", [path], partial(file_sha256, path))
    folder = cache_folder() / "converted" / f"{sha256[:32]}-{_LAYOUT}"
    if not (folder / SOURCE).is_file():
        convert(path, folder, sha256)
    checkpoint = open_huggingface(folder)
    record = read_json(folder / SOURCE)
    # A vocabulary that could not be converted is named when the tokenizer is asked for, not before.
    vocabulary = checkpoint.tokenizer_path or (path if record["vocabulary"] else None)
    return replace(
        checkpoint,
        form="GGUF",
        digest=record["digest"],
        chat=record["chat"],
        tokenizer_path=vocabulary,
    )


def convert(path: Path, folder: Path, sha256: str) -> None:
    """Write the dequantised float32 tensors, config and tokenizer of a GGUF file as a Hugging Face folder."""
    reader = _open(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if len(field.data) < 1000}
    config, tensors = _contents(reader, fields, path)
    chat = chat_of_template(str(fields.get("tokenizer.chat_template", "")))
    vocabulary = "tokenizer.ggml.model" in fields
    try:
        with staged_folder(folder) as staging:
            tokenizer = _tokenizer(path) if vocabulary else None
            digest = write_huggingface(config, tensors.finite(), tokenizer, staging, chat=chat)
            record = {
                "file": path.name,
                "sha256": sha256,
                "digest": digest,
                "chat": chat,
                "vocabulary": vocabulary,
            }
            (staging / SOURCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError):
        # Another process may have finished the same conversion first; its folder is as good.
        if not (folder / SOURCE).is_file():
            raise


def _tokenizer(path: Path) -> Tokenizer | None:
    from mm_llama.core.tokenizer import load_tokenizer

    try:
        return load_tokenizer(path)
    except ValueError:
        return None


def _open(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    # That reader believes the lengths in a header and keeps an object for each entry; these are held against the
    # file's size first.
    try:
        read_metadata(path)
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        reason = str(error).removeprefix(f"{path} is not a readable GGUF file ")
        raise ValueError(f"{path}: not a whole GGUF file: {reason}") from None


def _contents(reader: GGUFReader, fields: Mapping[str, Any], path: Path) -> tuple[LlamaConfig, StoredTensors]:
    parts = {part.name: part for part in reader.tensors}
    embedding, head = (GGUF_NAMES.of(f"{part}.weight") for part in ("embedding", "head"))
    num_rows = _shape(parts[embedding])[0] if embedding in parts else None
    with named(path):
        config = config_from_fields(fields, tied=head not in parts, num_rows=num_rows, where=path)
    factors = parts.pop(_ROPE, None)
    if factors is not None:
        config = replace(config, rope_scaling=rope_scaling(_dequantise(factors), config, fields, where=path))
    check_depth(config, parts, path)
    with named(path):
        core = core_shapes(config)
    check_tensors(
        str(path),
        expected={GGUF_NAMES.of(name): shape for name, shape in core.items()},
        shapes={name: _shape(part) for name, part in parts.items()},
        dtypes=dict.fromkeys(parts, torch.float32),
        asked_by="the file's metadata",
    )
    entries = {}
    for name, shape in core.items():
        published = GGUF_NAMES.of(name)
        read = partial(_read, name, parts[published], config)
        entries[name] = Entry(published, shape, torch.float32, read)
    return config, StoredTensors(entries)


def config_from_fields(
    fields: Mapping[str, Any], *, tied: bool, num_rows: int | None, where: Path | str
) -> LlamaConfig:
    """Translate GGUF metadata; whether the head is tied only the tensors tell.

    `num_rows` of the embedding stands in for a vocabulary size that the metadata leaves out.
    """
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{where}: general.architecture is {architecture!r}; the core reads 'llama'")

    def number(key: str, default: int | None = None) -> int:
        value = fields.get(f"llama.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise ValueError(f"{where}: llama.{key} is {value!r}; expected one whole number")
        return value

    def decimal(key: str, default: float) -> float:
        # Stored as float32: 1e-5 comes back as 9.999999747378752e-06, its shortest form is what was meant.
        value = fields.get(f"llama.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise ValueError(f"{where}: llama.{key} is {value!r}; expected a number above 0")
        return float(str(np.float32(value)))

    if number("expert_count", 0):
        raise ValueError(
            f"{where}: llama.expert_count is {number('expert_count')}; the core has no mixture of experts"
        )
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling not in ("none", ""):
        raise ValueError(
            f"{where}: llama.rope.scaling.type is {scaling!r}; the core has plain rotary positions "
            f"and those that {_ROPE} describes"
        )
    dim, num_heads = number("embedding_length"), number("attention.head_count")
    if not num_heads or not dim:
        raise ValueError(
            f"{where}: llama.embedding_length is {dim} and llama.attention.head_count {num_heads}"
        )
    head_dim = number("attention.key_length", dim // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if number(key, head_dim) != head_dim:
            raise ValueError(
                f"{where}: llama.{key} is {number(key)}; the core needs the head width, {head_dim}"
            )
    return LlamaConfig(
        dim=dim,
        num_layers=number("block_count"),
        num_heads=num_heads,
        num_kv_heads=number("attention.head_count_kv", num_heads),
        ffn_dim=number("feed_forward_length"),
        vocab_size=number("vocab_size", num_rows),
        head_dim=head_dim,
        norm_eps=decimal("attention.layer_norm_rms_epsilon", 1e-5),
        rope_base=decimal("rope.freq_base", 10_000.0),
        tied=tied,
        max_context=number("context_length"),
    )


def rope_scaling(
    factors: Tensor, config: LlamaConfig, fields: Mapping[str, Any], *, where: Path | str
) -> RopeScaling | None:
    """Return the scaling that float32[d/2] `rope_freqs.weight` holds as divisors of the frequencies.

    The file keeps only these divisors: the 3.1 rule is taken if an original context reproduces all of them.
    """
    if torch.all(factors == 1):
        return None
    plain = rope_frequencies(replace(config, rope_scaling=None))
    if factors.shape == plain.shape:
        stated = fields.get("llama.rope.scaling.original_context_length")
        known = (stated, 8192, config.max_context)
        for original in dict.fromkeys(n for n in known if isinstance(n, int) and 0 < n < 1 << 31):
            scaling = RopeScaling(factor=float(factors.max()), original_context=original)
            ours = rope_frequencies(replace(config, rope_scaling=scaling))
            if torch.allclose(plain / factors, ours, rtol=1e-5, atol=0):
                return scaling
    raise ValueError(
        f"{where}: {_ROPE} {list(factors.shape)} is not the Llama 3.1 scaling of the frequencies "
        f"(largest divisor {float(factors.max()):g}); the core knows no other"
    )


def _shape(part: ReaderTensor) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(part.shape))


def _dequantise(part: ReaderTensor) -> Tensor:
    from gguf import dequantize

    try:
        values = dequantize(part.data, part.tensor_type)
    except NotImplementedError as error:
        raise ValueError(f"{part.name}: cannot be dequantised: {error}") from None
    return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(_shape(part))


def _read(name: str, part: ReaderTensor, config: LlamaConfig) -> Tensor:
    tensor = _dequantise(part)
    if name.endswith(".attention.q.weight"):
        return half_split(tensor, config.num_heads)
    if name.endswith(".attention.k.weight"):
        return half_split(tensor, config.num_kv_heads)
    return tensor
