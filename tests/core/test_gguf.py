"""GGUF files: dequantised once, reordered, refused by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mm_llama.core.digest import digest_tensors
from mm_llama.core.gguf import rope_scaling
from mm_llama.core.llama import LlamaConfig, RopeScaling, rope_frequencies
from mm_llama.core.weights import load_core
from mm_llama.testing.bytes_tokenizer import BytesTokenizer

pytestmark = pytest.mark.usefixtures("own_cache")


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("family", ["llama3", "llama3_2"])
def test_gguf_equals_the_hugging_face_folder(
    family: str, transformers_llama: Callable[..., Any], as_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    model = transformers_llama(family)
    model.save_pretrained(tmp_path / "hf")
    theirs = load_core(tmp_path / "hf").core
    changes: dict[str, Any] = {}
    if theirs.config.rope_scaling:
        plain = rope_frequencies(LlamaConfig(64, 3, 4, 2, 160, 272))
        changes["tensors"] = {"rope_freqs.weight": (plain / rope_frequencies(theirs.config)).numpy()}
        changes["rope.scaling.original_context_length"] = 64
    loaded = load_core(as_gguf(tmp_path / "m.gguf", model, **changes))
    assert loaded.core.config == theirs.config
    assert same(loaded.core.state_dict(), theirs.state_dict())
    assert loaded.core.digest == theirs.digest
    assert (loaded.tokenizer, loaded.chat) == (None, "plain")


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("BF16", 4e-3), ("Q8_0", 1e-2), ("Q4_1", 0.1)])
def test_gguf_quantisation_is_undone_once(
    kind: str,
    error: float,
    transformers_llama: Callable[..., Any],
    as_gguf: Callable[..., Path],
    tmp_path: Path,
) -> None:
    model = transformers_llama()
    core = load_core(as_gguf(tmp_path / "m.gguf", model, quantise=kind)).core
    expected = model.state_dict()["model.layers.0.self_attn.q_proj.weight"]
    distance = (core.layers[0].attention.q.weight - expected).abs().max() / expected.abs().max()
    assert 0 < distance < error
    assert core.digest == digest_tensors(core.state_dict())


def test_gguf_is_converted_once(
    transformers_llama: Callable[..., Any], as_gguf: Callable[..., Path], tmp_path: Path, own_cache: Path
) -> None:
    path = as_gguf(tmp_path / "m.gguf", transformers_llama())
    first = load_core(path).core
    (folder,) = (own_cache / "converted").iterdir()
    written = (folder / "model.safetensors").stat()
    second = load_core(path.rename(tmp_path / "renamed.gguf")).core
    assert [entry.name for entry in (own_cache / "converted").iterdir()] == [folder.name]
    assert (folder / "model.safetensors").stat().st_mtime_ns == written.st_mtime_ns
    assert same(first.state_dict(), second.state_dict())
    assert first.digest == second.digest
    code = (
        "import sys\nfrom mm_llama.core.weights import load_core\n"
        f"load_core({str(tmp_path / 'renamed.gguf')!r})\nassert 'gguf' not in sys.modules, 'the file was parsed again'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_vocabulary_of_unknown_kind_matters_only_where_it_is_needed(
    transformers_llama: Callable[..., Any], as_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "unheard-of"}
    path = as_gguf(tmp_path / "m.gguf", transformers_llama(), **fields)
    for _ in range(2):  # with and without the conversion in the cache
        with pytest.raises(ValueError, match="m.gguf: tokenizer.ggml.pre is 'unheard-of'"):
            load_core(path)
    BytesTokenizer().save(tmp_path / "vocabulary")
    loaded = load_core(path, tokenizer_path=tmp_path / "vocabulary")
    assert loaded.tokenizer is not None and loaded.tokenizer.vocab_size == 265


def test_a_failed_conversion_leaves_nothing_behind(
    transformers_llama: Callable[..., Any], as_gguf: Callable[..., Path], tmp_path: Path, own_cache: Path
) -> None:
    model = transformers_llama()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = float("inf")
    path = as_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(ValueError, match="blk.2.ffn_down.weight holds NaN or infinity"):
        load_core(path)
    assert list((own_cache / "converted").iterdir()) == []


BROKEN_GGUF: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architecture": "qwen3"}, "general.architecture is 'qwen3'; the core reads 'llama'"),
    "missing": ({"embedding_length": None}, "llama.embedding_length is None; expected one whole number"),
    "heads by layer": (
        {"attention.head_count_kv": [2, 2, 1]},
        r"llama.attention.head_count_kv is \[2, 2, 1\]; expected one whole number",
    ),
    "experts": ({"expert_count": 8}, "llama.expert_count is 8; the core has no mixture of experts"),
    "scaling": ({"rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'; the core has plain"),
    "partial rope": ({"rope.dimension_count": 8}, "llama.rope.dimension_count is 8; the core needs .*, 16"),
    "layers": ({"block_count": 4}, "9 tensors are missing: blk.3.attn_norm.weight"),
    "bias": (
        {"tensors": {"blk.0.attn_q.bias": torch.ones(8, 8).numpy()}},
        "1 tensor is unknown: blk.0.attn_q.bias",
    ),
    "shape": (
        {"feed_forward_length": 161},
        r"blk.0.ffn_gate.weight is \[160, 64\] where the file's metadata asks",
    ),
    "rope factors": (
        {"tensors": {"rope_freqs.weight": torch.linspace(1, 5, 8).numpy()}},
        r"rope_freqs.weight \[8\] is not the Llama 3.1 scaling of the frequencies \(largest divisor 5\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN_GGUF)
def test_gguf_files_that_the_core_cannot_be_are_named(
    case: str,
    transformers_llama: Callable[..., Any],
    as_gguf: Callable[..., Path],
    tmp_path: Path,
    own_cache: Path,
) -> None:
    changes, message = BROKEN_GGUF[case]
    path = as_gguf(tmp_path / "m.gguf", transformers_llama(), **changes)
    with pytest.raises(ValueError, match=message):
        load_core(path)
    assert not (own_cache / "converted").exists()


@pytest.mark.parametrize("keep", [4, 40, 2000, -20000])
def test_a_truncated_gguf_file_is_named(
    keep: int, transformers_llama: Callable[..., Any], as_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path = as_gguf(tmp_path / "m.gguf", transformers_llama())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="m.gguf: not a whole GGUF file"):
        load_core(path)


def test_published_rope_factors_of_3_1_and_3_2_are_recognised() -> None:
    for factor in (8.0, 32.0):
        config = LlamaConfig(4096, 1, 32, 8, 14336, 128256, max_context=131072)
        scaling = RopeScaling(factor=factor)
        scaled = rope_frequencies(LlamaConfig(4096, 1, 32, 8, 14336, 128256, rope_scaling=scaling))
        factors = rope_frequencies(config) / scaled
        assert rope_scaling(factors, config, {}, where="here") == scaling
    assert rope_scaling(torch.ones(64), config, {}, where="here") is None
