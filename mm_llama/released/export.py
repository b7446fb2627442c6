"""Write a vision model as a Hugging Face folder: config, safetensors under the hub's names, processor, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mm_llama.core.digest import digest_tensors
from mm_llama.core.export import special_ids, staged_folder, write_json, write_safetensors
from mm_llama.core.stored import Entry, StoredTensors, counted, listed
from mm_llama.model import MultimodalLlama
from mm_llama.released.checkpoint import TOWER_KEYS, Sizes, VisionCheckpoint, shapes_of
from mm_llama.released.huggingface import (
    open_vision_huggingface,
    preprocessing_to_json,
    published_shapes,
    sizes_to_json,
    table_rows,
)
from mm_llama.released.names import PLACEHOLDER, RESERVED, TABLE, huggingface_name

if TYPE_CHECKING:
    from mm_llama.core.tokenizer import Tokenizer

IMAGE_TOKEN = "<|image|>"
# For checkpoints that brought no template: exactly what our chat format writes, pictures in their place.
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'ipython' if message['role'] == 'tool' else message['role'] %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<|image|>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
TEMPLATES = {"llama3": _LLAMA3}


def export_vision(
    model: MultimodalLlama,
    tokenizer: Tokenizer | None,
    folder: str | Path,
    *,
    chat: str = "llama3",
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a model of the released layout, in the dtype it has, as a folder that transformers loads.

    `folder` must be new or empty; nothing is left behind when it fails. Raises ValueError for a model whose image
    adapter or encoder is of another layout.
    """
    sizes = _sizes_of(model)
    entries = {
        name: Entry(name, tuple(tensor.shape), tensor.dtype, tensor.cpu)
        for name, tensor in model.state_dict().items()
    }
    with staged_folder(Path(folder)) as staging:
        checkpoint = VisionCheckpoint("model", sizes, StoredTensors(entries), (), chat, None)
        write_vision(checkpoint, tokenizer, staging, chat=chat, shard_bytes=shard_bytes)


def write_vision(
    checkpoint: VisionCheckpoint,
    tokenizer: Tokenizer | None,
    folder: Path,
    *,
    chat: str,
    shard_bytes: int = 5_000_000_000,
) -> str:
    """Fill an empty folder and return the digest of the text core in it; at most one shard is in memory."""
    sizes = checkpoint.sizes
    dtype = write_safetensors(_published(checkpoint.tensors, sizes), folder, shard_bytes=shard_bytes)
    pad = None if tokenizer is None else tokenizer.specials.get("<|finetune_right_pad_id|>")
    ids = special_ids(tokenizer, chat) | {"pad_token_id": pad}
    config = sizes_to_json(sizes) | {"torch_dtype": dtype}
    config["text_config"] |= ids
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {**ids, **checkpoint.generation})
    write_json(folder / "preprocessor_config.json", preprocessing_to_json(sizes))
    if tokenizer is not None:
        template = checkpoint.template or tokenizer.chat_template or TEMPLATES.get(chat)
        tokenizer.save(folder, chat_template=template)
        _name_placeholder(folder / "tokenizer.json", sizes.core.vocab_size)
        if template:
            # The processor reads its template here, the tokenizer from its own config.
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    digest = digest_tensors(open_vision_huggingface(folder).text().tensors)
    (folder / "README.md").write_text(_card(sizes, dtype, digest), encoding="utf-8")
    return digest


def _published(tensors: StoredTensors, sizes: Sizes) -> StoredTensors:
    """Return the tensors of the published layout: ours, but for the one table that three of ours are parts of."""
    shapes = published_shapes({name: entry.shape for name, entry in tensors.entries.items()}, sizes)
    table = huggingface_name(TABLE, sizes.layers)
    entries = {}
    for name, entry in tensors.entries.items():
        published = huggingface_name(name, sizes.layers)
        if table_rows(name, sizes.core.vocab_size) is None:
            entries[published] = entry
        elif published not in entries:
            parts = [tensors.entries[part] for part in (TABLE, PLACEHOLDER, RESERVED)]
            dtype = torch.promote_types(parts[0].dtype, parts[1].dtype)
            entries[table] = Entry(table, shapes[table], dtype, partial(_joined_table, parts))
    return StoredTensors(entries)


def _joined_table(parts: list[Entry]) -> Tensor:
    width = parts[0].shape[-1]
    return torch.cat([part.read().reshape(-1, width) for part in parts])


def _name_placeholder(path: Path, vocab_size: int) -> None:
    """Give the placeholder its name in a tokenizer.json: the id behind the vocabulary, as the hub has it."""
    document = json.loads(path.read_text(encoding="utf-8"))
    added: list[dict[str, Any]] = document["added_tokens"]
    vocab: dict[str, int] = document["model"]["vocab"]
    if any(entry["content"] == IMAGE_TOKEN and entry["id"] == vocab_size for entry in added):
        return
    taken = {*vocab, *(entry["content"] for entry in added)}
    free = next(name for n in count() if (name := f"<|reserved_special_token_{n}|>") not in taken)
    for entry in added:
        if entry["content"] == IMAGE_TOKEN:  # Meta's name for an id that neither texts nor pictures use
            entry["content"] = free
    if IMAGE_TOKEN in vocab:
        vocab[free] = vocab.pop(IMAGE_TOKEN)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added.append({"id": vocab_size, "content": IMAGE_TOKEN, **flags, "special": True})
    outside = {entry["content"]: entry["id"] for entry in added if entry["content"] not in vocab}
    if sorted(outside.values()) != list(range(len(vocab), len(vocab) + len(outside))):
        vocab |= outside  # readers number added tokens on from the vocabulary unless it holds them
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _sizes_of(model: MultimodalLlama) -> Sizes:
    """Return the numbers of a model in memory; ValueError where it is not of the released layout."""
    if "image" not in model.modality:
        raise ValueError("the model has no image modality: export its core alone (mm_llama.core.export)")
    encoder, adapter = model.modality["image"].encoder, model.modality["image"].adapter
    attributes = [key for key in TOWER_KEYS if key not in ("num_layers", "num_global_layers")]
    absent = [key for key in attributes if not hasattr(encoder, key)]
    scaled = [block for block in adapter.blocks if block.branch_scale != 1]
    if absent or scaled or getattr(encoder, "drop_absent", False):
        raise ValueError(
            "the image modality is not of the released layout (modality/image=llama3_2_vision): "
            + (f"its encoder has no {listed(absent)}" if absent else "branch_scale or drop_absent is set")
        )
    tower: dict[str, Any] = {key: getattr(encoder, key) for key in attributes}
    tower |= {"num_layers": len(encoder.layers), "num_global_layers": len(encoder.global_layers)}
    sizes = Sizes(model.core.config, tuple(adapter.layers), tower)
    shapes: Mapping[str, Any] = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted = shapes_of(sizes)
    differing = sorted(
        {name for name, shape in [*shapes.items(), *wanted.items()] if shapes.get(name) != wanted.get(name)}
    )
    if differing:
        raise ValueError(
            f"{counted(differing, 'tensor is', 'tensors are')} not of the released layout: {listed(differing)}; only a "
            "model of modality/image=llama3_2_vision and no other modality can be exported to it"
        )
    return sizes


def _card(sizes: Sizes, dtype: str, digest: str) -> str:
    core = sizes.core
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
---

# A vision model of the Llama 3.2 layout

Text core: {core.num_layers} layers, width {core.dim}, vocabulary {core.vocab_size}. {len(sizes.layers)} cross-attention
blocks before the layers {", ".join(map(str, sizes.layers))}. Image tower: tiles of {sizes.tower["tile_size"]}, at most
{sizes.tower["max_tiles"]}. Stored as {dtype}.

Written by mm_llama. Licence and intended use are those of the checkpoint that it was made from.

Digest of the text core's tensors: `{digest}`

An adapter that names this digest attaches to this core.
"""
