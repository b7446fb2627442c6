"""The Hugging Face folder: `config.json` and one or several safetensors files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mm_llama.core.documents import decimal, mapping, named, read_json, whole_number
from mm_llama.core.llama import LlamaConfig, RopeScaling
from mm_llama.core.stored import (
    Checkpoint,
    Entry,
    Names,
    StoredTensors,
    check_depth,
    check_tensors,
    core_shapes,
    counted,
    listed,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

HF_NAMES = Names(
    layers="model.layers.",
    parts={
        "embedding": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        "attention_norm": "input_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.o": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    },
)

VISION = (
    "this is a vision checkpoint, not a plain core: mm_llama.load(PATH) and `mm-llama ask --core PATH` load it "
    "whole, and core.source=PATH trains on its text core"
)

# Mistral without a sliding window is the same network under the same names.
_MODEL_TYPES = ("llama", "mistral")
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu", "swish", None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, 1.0, None),
}
_WHY = {
    "attention_bias": "the Llama architecture has no biases",
    "mlp_bias": "the Llama architecture has no biases",
    "hidden_act": "the feed-forward is SwiGLU, activation silu",
    "sliding_window": "every position attends to all earlier ones",
    "quantization_config": "quantised checkpoints are read as GGUF only",
    "partial_rotary_factor": "rotary positions cover the whole head",
}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}


def open_huggingface(folder: Path) -> Checkpoint:
    """Check a folder against its config.json and return it unread.

    Raises ValueError for another architecture and for missing, unknown, repeated or mis-shaped tensors.
    """
    config_path = folder / "config.json"
    files = weight_files(folder)
    found = headers(files)
    with named(config_path):
        config = config_from_json(read_json(config_path), where=config_path)
        check_depth(config, found, config_path)
        shapes = core_shapes(config)
    ignored = {name for name in found if name.endswith(".rotary_emb.inv_freq")}
    embedding, head = HF_NAMES.of("embedding.weight"), HF_NAMES.of("head.weight")
    if config.tied and head in found:
        if embedding in found and not torch.equal(found[head].read(), found[embedding].read()):
            raise ValueError(
                f"{folder}: config.json says tie_word_embeddings, but {head} differs from {embedding}; "
                "set tie_word_embeddings to false if the checkpoint has its own output head"
            )
        ignored.add(head)
    found = {name: entry for name, entry in found.items() if name not in ignored}
    check_tensors(
        str(folder),
        expected={HF_NAMES.of(name): shape for name, shape in shapes.items()},
        shapes={name: entry.shape for name, entry in found.items()},
        dtypes={name: entry.dtype for name, entry in found.items()},
        asked_by=config_path.name,
    )
    entries = {name: found[HF_NAMES.of(name)] for name in shapes}
    return Checkpoint(
        form="Hugging Face",
        config=config,
        tensors=StoredTensors(entries),
        files=(config_path, *files),
        chat=chat_of_template(template_of(folder)),
        tokenizer_path=folder if has_tokenizer(folder) else None,
    )


def config_from_json(data: Mapping[str, Any], *, where: Path | str) -> LlamaConfig:
    """Translate config.json, whose rotary settings may be in the old form or in `rope_parameters`."""
    model_type = data.get("model_type")
    if model_type == "mllama":
        raise ValueError(f"{where}: {VISION}")
    if model_type not in _MODEL_TYPES:
        architectures = data.get("architectures")
        shown = ", ".join(map(str, architectures)) if isinstance(architectures, list) else "unnamed"
        raise ValueError(
            f"{where}: model_type is {model_type!r} ({shown}); "
            f"the core reads the Llama architecture ({', '.join(_MODEL_TYPES)})"
        )
    if model_type == "mistral":
        # Left out, these two mean something else there than in Llama.
        for key in ("sliding_window", "num_key_value_heads"):
            if key not in data:
                raise ValueError(
                    f"{where}: {key} is missing; model_type 'mistral' is read only where it is given"
                )
    for key, neutral in _NEUTRAL.items():
        if not any(data.get(key) is value or data.get(key) == value for value in neutral):
            raise ValueError(f"{where}: {key} is {data[key]!r}, which the core does not have: {_WHY[key]}")
    rope = mapping(data, "rope_scaling", where) | mapping(data, "rope_parameters", where)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"{where}: partial_rotary_factor is {rope['partial_rotary_factor']!r}, which the core does not "
            f"have: {_WHY['partial_rotary_factor']}"
        )
    num_heads = whole_number(data, "num_attention_heads", where)
    max_context = whole_number(data, "max_position_embeddings", where, default=2048)
    return LlamaConfig(
        dim=whole_number(data, "hidden_size", where),
        num_layers=whole_number(data, "num_hidden_layers", where),
        num_heads=num_heads,
        num_kv_heads=whole_number(data, "num_key_value_heads", where, default=num_heads),
        ffn_dim=whole_number(data, "intermediate_size", where),
        vocab_size=whole_number(data, "vocab_size", where),
        head_dim=whole_number(data, "head_dim", where, default=0),
        norm_eps=decimal(data, "rms_norm_eps", where, 1e-6),
        rope_base=decimal(rope if rope.get("rope_theta") else data, "rope_theta", where, 10_000.0),
        rope_scaling=_rope_scaling(rope, max_context, where),
        tied=bool(data.get("tie_word_embeddings", False)),
        max_context=max_context,
    )


def config_to_json(config: LlamaConfig) -> dict[str, Any]:
    """Return the config.json of a core, its rotary settings in both forms (transformers 4 and 5)."""
    scaling = config.rope_scaling
    kind: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        kind = {
            "rope_type": "llama3",
            "factor": float(scaling.factor),
            "low_freq_factor": float(scaling.low_freq_factor),
            "high_freq_factor": float(scaling.high_freq_factor),
            "original_max_position_embeddings": scaling.original_context,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": None if scaling is None else kind,
        "rope_parameters": {"rope_theta": config.rope_base, **kind},
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def chat_of_template(template: str) -> str:
    """Return the chat format that a Jinja chat template writes: "llama3", "chatml" or "plain"."""
    if "<|start_header_id|>" in template:
        return "llama3"
    return "chatml" if "<|im_start|>" in template else "plain"


def _rope_scaling(rope: Mapping[str, Any], max_context: int, where: Path | str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(
            f"{where}: rope_type is {kind!r}; the core has 'default' and 'llama3' rotary positions"
        )
    missing = [key for key in ("factor", "low_freq_factor", "high_freq_factor") if rope.get(key) is None]
    if missing:
        raise ValueError(f"{where}: rope_type 'llama3' needs {', '.join(missing)} beside it")
    return RopeScaling(
        factor=decimal(rope, "factor", where),
        low_freq_factor=decimal(rope, "low_freq_factor", where),
        high_freq_factor=decimal(rope, "high_freq_factor", where),
        original_context=whole_number(rope, "original_max_position_embeddings", where, max_context),
    )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder; ValueError where there are none, or the index lists others."""
    index = folder / INDEX
    single = folder / WEIGHTS
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: no weight_map in it")
        names = sorted({str(name) for name in weight_map.values()})
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise ValueError(f"{index}: weight_map points outside the folder: {listed(outside)}")
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            files = counted(absent, "file that is", "files that are")
            raise ValueError(f"{folder}: {INDEX} lists {files} not there: {listed(absent)}")
        return [folder / name for name in names]
    if single.is_file():
        return [single]
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder}: only pickled weights ({listed(pickles)}), which can run code when opened and are "
            "refused; get this model's safetensors files, or save it again with safe_serialization=True"
        )
    raise ValueError(f"{folder}: has config.json, but neither {WEIGHTS} nor {INDEX}")


def headers(files: Iterable[Path]) -> dict[str, Entry]:
    """Return every tensor of safetensors files, unread, by its name; one that is there twice is a ValueError."""
    found: dict[str, Entry] = {}
    holders: dict[str, str] = {}
    repeated = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (a shard is no mapping)
                    if name in found:
                        repeated.append(f"{name} ({holders[name]}, {file.name})")
                    part = shard.get_slice(name)
                    # Whatever is no float is refused later; uint8 stands for dtypes outside the table.
                    dtype = _DTYPES.get(part.get_dtype(), torch.uint8)
                    shape = tuple(part.get_shape())
                    found[name] = Entry(name, shape, dtype, partial(_read, file, name), file)
                    holders[name] = file.name
        except SafetensorError as error:
            raise ValueError(f"{file}: not a whole safetensors file: {error}") from None
    if repeated:
        tensors = counted(repeated, "tensor is", "tensors are")
        raise ValueError(f"{tensors} in more than one file: {listed(repeated)}")
    return found


def read_rows(file: Path, name: str, start: int, stop: int) -> Tensor:
    """Return some rows of a tensor; the others are not read."""
    with safe_open(file, framework="pt") as shard:
        return shard.get_slice(name)[start:stop]


def _read(file: Path, name: str) -> Tensor:
    # Opened for each tensor: pages of the mapping would otherwise stay resident beside the model.
    with safe_open(file, framework="pt") as shard:
        return shard.get_tensor(name)


def template_of(folder: Path) -> str:
    """Return the Jinja chat template of a folder, or nothing."""
    separate = folder / "chat_template.jinja"
    if separate.is_file():
        return separate.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = read_json(folder / name).get("chat_template") or ""
            if isinstance(template, list):  # several named ones
                template = "".join(str(row.get("template", "")) for row in template if isinstance(row, dict))
            if template:
                return str(template)
    return ""


def has_tokenizer(folder: Path) -> bool:
    """Say whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
