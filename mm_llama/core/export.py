"""Write a core as a Hugging Face folder, whole or not at all: config, safetensors, tokenizer, card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from mm_llama.core.digest import digest_tensors
from mm_llama.core.huggingface import HF_NAMES, INDEX, WEIGHTS, config_to_json, open_huggingface
from mm_llama.core.llama import Llama, LlamaConfig
from mm_llama.core.stored import Entry, StoredTensors

if TYPE_CHECKING:
    from mm_llama.core.tokenizer import Tokenizer

# For checkpoints that brought no template: exactly what our chat formats write.
_CHATML = (
    "{% for message in messages %}"
    "{% set role = 'tool' if message['role'] == 'ipython' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\\n' + message['content']"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'ipython' if message['role'] == 'tool' else message['role'] %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
TEMPLATES = {"chatml": _CHATML, "llama3": _LLAMA3}


def export_hf(
    core: Llama,
    tokenizer: Tokenizer | None,
    folder: str | Path,
    *,
    chat: str = "plain",
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a core, in the dtype it has, as a folder that transformers loads; `folder` must be new or empty.

    Nothing is left behind when it fails. The folder loads back with `load_core`, bit for bit. `chat` is the
    format of its conversations: it decides the stop tokens, and the template where the tokenizer has none.
    """
    weights = core.state_dict()
    entries = {
        name: Entry(name, tuple(weight.shape), weight.dtype, weight.cpu) for name, weight in weights.items()
    }
    with staged_folder(Path(folder)) as staging:
        write_huggingface(
            core.config, StoredTensors(entries), tokenizer, staging, chat=chat, shard_bytes=shard_bytes
        )


def write_huggingface(
    config: LlamaConfig,
    tensors: StoredTensors,
    tokenizer: Tokenizer | None,
    folder: Path,
    *,
    chat: str,
    shard_bytes: int = 5_000_000_000,
) -> str:
    """Fill an empty folder and return the digest of the tensors in it; at most one shard is in memory."""
    published = StoredTensors({HF_NAMES.of(name): entry for name, entry in tensors.entries.items()})
    dtype = write_safetensors(published, folder, shard_bytes=shard_bytes)
    ends = special_ids(tokenizer, chat)
    write_json(folder / "config.json", {**config_to_json(config), **ends, "torch_dtype": dtype})
    write_json(folder / "generation_config.json", ends)
    if tokenizer is not None:
        tokenizer.save(folder, chat_template=tokenizer.chat_template or TEMPLATES.get(chat))
    digest = digest_tensors(open_huggingface(folder).tensors)
    (folder / "README.md").write_text(_card(config, dtype, digest), encoding="utf-8")
    return digest


def write_safetensors(tensors: StoredTensors, folder: Path, *, shard_bytes: int) -> str:
    """Write tensors under the names they have, with an index where one file is not enough; return their dtype."""
    shards = _plan(tensors, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        part = {name: tensors[name].contiguous() for name in names}
        save_file(part, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(folder.stat().st_mode & 0o666)  # not only for its owner
        weight_map |= dict.fromkeys(part, file)
    if len(shards) > 1:
        total = sum(_size(entry) for entry in tensors.entries.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    dtypes = {entry.dtype for entry in tensors.entries.values()}
    return str(dtypes.pop() if len(dtypes) == 1 else torch.float32).removeprefix("torch.")


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place on success and vanishes on any error."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder}: already there and not an empty folder; name another place or remove it first"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        os.replace(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _plan(tensors: StoredTensors, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name, entry in tensors.entries.items():
        if not shards or _size(entry) > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= _size(entry)
    return shards


def _size(entry: Entry) -> int:
    return entry.dtype.itemsize * torch.Size(entry.shape).numel()


def special_ids(tokenizer: Tokenizer | None, chat: str) -> dict[str, Any]:
    """Return the ids that begin a text and end generation, as config.json names them."""
    if tokenizer is None:
        return {}
    from mm_llama.core.chat import chat_format

    ids: dict[str, Any] = {}
    if tokenizer.bos_token is not None:
        ids["bos_token_id"] = tokenizer.specials[tokenizer.bos_token]
    ends = sorted(chat_format(chat, tokenizer).stop)
    if ends:
        ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return ids


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object as JSON."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _card(config: LlamaConfig, dtype: str, digest: str) -> str:
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# A Llama-architecture text core

{config.num_layers} layers, width {config.dim}, {config.num_heads} heads ({config.num_kv_heads} KV),
vocabulary {config.vocab_size}, context {config.max_context}, stored as {dtype}.

Written by mm_llama. Licence and intended use are those of the checkpoint that it was made from.

Digest of the tensors: `{digest}`

An adapter that names this digest attaches to this core.
"""
