"""Tiny random checkpoints in the three published forms, made by other people's code: transformers writes the
Hugging Face folders, Meta's rules cut the shards, the gguf package writes the GGUF files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "llama3_1": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "llama3_2": {
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}
TINY = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw weights that leave every part of the network its say: norms well away from 1, none tiny."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if weight.ndim == 1 else 0.1 * noise)


@pytest.fixture(scope="session")
def transformers_llama() -> Callable[..., Any]:
    """`transformers_llama("llama3_1", **config)`: a random transformers model of that family."""

    def make(family: str = "llama3", seed: int = 0, **changes: Any) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        settings = {**TINY, **FAMILIES[family], "attn_implementation": "eager", **changes}
        model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
        randomise(model, seed)
        return model

    return make


@pytest.fixture
def hf_folder(transformers_llama: Callable[..., Any], tmp_path: Path) -> Path:
    """A folder that transformers wrote: tiny, untied, unscaled."""
    folder = tmp_path / "hf"
    transformers_llama("llama3").save_pretrained(folder)
    return folder


def to_meta(model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return params.json and the whole state of a transformers model under Meta's names."""
    config = model.config
    names = {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "tok_embeddings",
        "model.norm": "norm",
        "lm_head": "output",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().clone()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if part in name:
                rows, columns = tensor.shape
                tensor = (
                    tensor.view(count, 2, rows // count // 2, columns).transpose(1, 2).reshape(rows, columns)
                )
        for theirs, metas in names.items():
            name = name.replace(theirs, metas)
        state[name.removeprefix("model.")] = tensor
    if config.tie_word_embeddings:
        state.pop("output.weight", None)
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": 32,
        "ffn_dim_multiplier": 0.9,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "use_scaled_rope": config.rope_parameters["rope_type"] == "llama3",
    }
    return params, state


def write_meta(folder: Path, params: dict[str, Any], state: dict[str, Tensor], num_shards: int = 1) -> Path:
    """Cut a state as `num_shards` model-parallel ranks hold it, KV heads repeated where ranks exceed them."""
    folder.mkdir(parents=True)
    head_dim = params["dim"] // params["n_heads"]
    copies = max(num_shards // params["n_kv_heads"], 1)
    for rank in range(num_shards):
        part = {}
        for name, tensor in state.items():
            if "norm" in name:
                part[name] = tensor
                continue
            if name.endswith(("wk.weight", "wv.weight")):
                heads = tensor.view(params["n_kv_heads"], head_dim, -1)
                tensor = heads.repeat_interleave(copies, dim=0).flatten(0, 1)
            axis = 1 if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")) else 0
            part[name] = tensor.chunk(num_shards, dim=axis)[rank].clone()
        part["rope.freqs"] = torch.ones(head_dim // 2)
        torch.save(part, folder / f"consolidated.{rank:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def write_gguf(path: Path, model: Any, *, quantise: str = "F32", **changes: Any) -> Path:
    """Write a transformers model as llama.cpp's converter lays it out: q and k rows interleaved."""
    import gguf

    config = model.config
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "rope.dimension_count": config.head_dim,
    }
    architecture = changes.pop("architecture", "llama")
    tensors = changes.pop("tensors", {})
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**fields, **changes}.items():
        if value is None:
            continue
        name = key if key.startswith("tokenizer.") else f"{architecture}.{key}"
        if isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_string(name, value)
    kind = gguf.GGMLQuantizationType[quantise]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    state = {
        names.get_name(name, try_suffixes=(".weight",)): value.detach().numpy()
        for name, value in model.state_dict().items()
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    }
    for name, value in {**state, **tensors}.items():
        if value is None:
            continue
        for part, count in (
            ("attn_q.", config.num_attention_heads),
            ("attn_k.", config.num_key_value_heads),
        ):
            if part in name:
                rows, columns = value.shape
                value = (
                    value.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
                )
        value = np.ascontiguousarray(value, dtype=np.float32)
        if value.ndim == 1 or quantise == "F32":
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MM_LLAMA_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def as_meta() -> Callable[..., Path]:
    """`as_meta(model, folder, num_shards, **params)` writes a transformers model in Meta's form."""

    def write(model: Any, folder: Path, num_shards: int = 1, **changes: Any) -> Path:
        params, state = to_meta(model)
        written = write_meta(folder, params, state, num_shards)
        (written / "params.json").write_text(
            json.dumps({key: value for key, value in {**params, **changes}.items() if value is not None})
        )
        return written

    return write


@pytest.fixture(scope="session")
def as_gguf() -> Callable[..., Path]:
    """`as_gguf(path, model, quantise="F32", **fields)` writes a transformers model as a GGUF file."""
    return write_gguf
