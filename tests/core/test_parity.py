"""The core against transformers and against Meta's reference, on random weights and on a real checkpoint."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mm_llama.cli import main
from mm_llama.core.cache import KVCache
from mm_llama.core.export import export_hf
from mm_llama.core.llama import Llama, LlamaConfig, RopeScaling, rope_frequencies
from mm_llama.core.stored import blank_core
from mm_llama.core.weights import load_core

TOLERANCE = 2e-6  # of the largest logit
CHUNKS = (170, 1, 64, 1, 1, 63)
LENGTH = sum(CHUNKS)  # beyond the original context of the scaled families, 64


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in units of the largest logit."""
    assert ours.dtype == theirs.dtype == torch.float32
    return float((ours - theirs).abs().max() / theirs.abs().max())


def random_tokens(vocab_size: int, seed: int = 1) -> Tensor:
    return torch.randint(vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(seed))


def in_chunks(core: Llama, tokens_BS: Tensor) -> Tensor:
    """Logits of a cached run: prefill, then chunks and single tokens."""
    cache = KVCache(core.config, batch=len(tokens_BS), length=LENGTH)
    logits = []
    start = 0
    for length in CHUNKS:
        positions = torch.arange(start, start + length).expand(len(tokens_BS), -1)
        part = tokens_BS[:, start : start + length]
        logits.append(core(part, positions_BS=positions, cache=cache))
        start += length
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("family", ["llama3", "llama3_1", "llama3_2"])
@torch.no_grad()
def test_logits_equal_transformers(
    family: str, transformers_llama: Callable[..., Any], tmp_path: Path, own_cache: Path
) -> None:
    theirs = transformers_llama(family)
    theirs.save_pretrained(tmp_path / "hf")
    core = load_core(tmp_path / "hf").core
    tokens_BS = random_tokens(core.config.vocab_size)
    expected = theirs(tokens_BS).logits
    assert distance(core(tokens_BS), expected) <= TOLERANCE
    assert distance(in_chunks(core, tokens_BS), expected) <= TOLERANCE
    assert core.config.tied == (family == "llama3_2")
    if family != "llama3":
        # The comparison would be blind to a scaling that is left out if positions were too small for it.
        plain = Llama(replace(core.config, rope_scaling=None))
        plain.load_state_dict(core.state_dict())
        assert distance(plain(tokens_BS), expected) > 1000 * TOLERANCE


@torch.no_grad()
def test_head_width_of_its_own_equals_transformers(
    transformers_llama: Callable[..., Any], tmp_path: Path, own_cache: Path
) -> None:
    theirs = transformers_llama("llama3_1", head_dim=24)
    theirs.save_pretrained(tmp_path / "hf")
    core = load_core(tmp_path / "hf").core
    assert core.config.head_dim == 24
    tokens_BS = random_tokens(core.config.vocab_size)
    assert distance(core(tokens_BS), theirs(tokens_BS).logits) <= TOLERANCE


@pytest.fixture(scope="module")
def meta_reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """`meta_reference(**params)`: Meta's text transformer with random weights, in one gloo process."""
    from torch import distributed

    with warnings.catch_warnings():
        # Deprecations inside the oracle's own dependencies are not ours to fix.
        warnings.simplefilter("ignore")
        from fairscale.nn.model_parallel import initialize
        from llama_models.llama3.args import ModelArgs
        from llama_models.llama3.model import Transformer

        store = distributed.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        initialize.initialize_model_parallel(1)

    def make(**params: Any) -> Any:
        model = Transformer(ModelArgs(**params, max_batch_size=2, max_seq_len=LENGTH)).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(1 + 0.3 * noise if weight.ndim == 1 else 0.07 * noise)
        return model

    yield make
    initialize.destroy_model_parallel()
    distributed.destroy_process_group()


# Two heads of width 64: Meta's fixed 8192 positions then leave wavelengths to keep, to blend and to divide.
META_PARAMS = {
    "dim": 128,
    "n_layers": 3,
    "n_heads": 2,
    "n_kv_heads": 1,
    "vocab_size": 272,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
}


@pytest.mark.parametrize("scaled", [False, True], ids=["llama3", "llama3_1"])
@torch.no_grad()
def test_logits_equal_metas_reference(
    scaled: bool, meta_reference: Callable[..., Any], tmp_path: Path, own_cache: Path
) -> None:
    params = {**META_PARAMS, "use_scaled_rope": scaled}
    theirs = meta_reference(**params)
    torch.save(theirs.state_dict(), tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps(params))
    core = load_core(tmp_path).core
    tokens_BS = random_tokens(272)
    whole = theirs(tokens_BS, 0)
    assert distance(core(tokens_BS), whole) <= TOLERANCE
    steps = []
    start = 0
    for length in CHUNKS:
        steps.append(theirs(tokens_BS[:, start : start + length], start))
        start += length
    assert distance(in_chunks(core, tokens_BS), torch.cat(steps, dim=1)) <= TOLERANCE
    other = Llama(replace(core.config, rope_scaling=None if scaled else RopeScaling()))
    other.load_state_dict(core.state_dict())
    assert distance(other(tokens_BS), whole) > 1000 * TOLERANCE


def test_rope_scaling_has_the_published_values() -> None:
    config = LlamaConfig(4096, 1, 32, 8, 14336, 128256)
    plain = rope_frequencies(config)
    scaled = rope_frequencies(replace(config, rope_scaling=RopeScaling()))
    assert plain.shape == (64,)
    kept = scaled == plain
    divided = scaled == plain / 8
    assert kept.tolist() == [True] * 29 + [False] * 35
    assert divided.tolist() == [False] * 35 + [True] * 29
    blended = [0.00216657076, 0.00137189357, 0.000856751413, 0.000524846161, 0.00031269375, 0.000178507813]
    assert scaled[29:35].tolist() == pytest.approx(blended, rel=1e-6)
    assert float(scaled[-1]) == pytest.approx(3.06892599e-07, rel=1e-6)


SIZES = {
    # dim, layers, heads, FFN width, tied: parameters
    "8b": (4096, 32, 32, 14336, False, 8_030_261_248),
    "70b": (8192, 80, 64, 28672, False, 70_553_706_496),
    "405b": (16384, 126, 128, 53248, False, 405_853_388_800),
    "3.2_1b": (2048, 16, 32, 8192, True, 1_235_814_400),
    "3.2_3b": (3072, 28, 24, 8192, True, 3_212_749_824),
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_their_published_parameter_counts(size: str) -> None:
    dim, layers, heads, ffn, tied, count = SIZES[size]
    config = LlamaConfig(dim, layers, heads, 8, ffn, 128256, tied=tied)
    core = blank_core(config)
    assert {weight.device.type for weight in core.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in core.parameters()) == count


def test_blank_core_has_the_tensors_of_a_drawn_one() -> None:
    config = LlamaConfig(64, 2, 4, 2, 160, 272)
    drawn, blank = Llama(config).state_dict(), blank_core(config).state_dict()
    assert {name: (t.shape, t.dtype) for name, t in drawn.items()} == {
        name: (t.shape, t.dtype) for name, t in blank.items()
    }


SMOLLM2 = LlamaConfig(
    dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    ffn_dim=1536,
    vocab_size=49152,
    norm_eps=1e-5,
    rope_base=100000.0,
    tied=True,
    max_context=8192,
)


def test_real_gguf_has_the_models_numbers(smollm2: Any) -> None:
    assert smollm2.core.config == SMOLLM2
    assert smollm2.chat == "chatml"
    assert sum(weight.numel() for weight in smollm2.core.parameters()) == 134_515_008
    assert smollm2.core.digest.startswith("sha256:") and len(smollm2.core.digest) == 71


@torch.no_grad()
def test_real_gguf_answers_paris(smollm2: Any) -> None:
    from mm_llama.core.chat import Message, Text, chat_format

    core, tokenizer = smollm2.core, smollm2.tokenizer
    chat = chat_format(smollm2.chat, tokenizer)
    question = Message("user", (Text("What is the capital of France?"),))
    row = chat.render([question], open_assistant=True).tokens
    cache = KVCache(core.config, batch=1, length=len(row) + 24)
    position, new, answer = 0, row, []
    while len(answer) < 24:
        positions = torch.arange(position, position + len(new))[None]
        position += len(new)
        token = int(core(torch.tensor([new]), positions_BS=positions, cache=cache)[0, -1].argmax())
        if token in chat.stop:
            break
        answer.append(token)
        new = [token]
    assert tokenizer.decode(answer).strip() == "The capital of France is Paris."


@torch.no_grad()
def test_real_gguf_exported_has_the_same_logits_in_transformers(smollm2: Any, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    export_hf(smollm2.core, smollm2.tokenizer, tmp_path / "out", chat=smollm2.chat)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    text = "<h1>Gravity</h1> keeps the Moon near the Earth; 9.81 m/s² is what a falling apple feels."
    tokens_BS = torch.tensor([smollm2.tokenizer.encode(text)])
    assert distance(smollm2.core(tokens_BS), theirs(tokens_BS).logits) <= TOLERANCE
    assert math.isfinite(float(theirs(tokens_BS).logits.sum()))


def test_real_core_is_exported_by_its_name(
    smollm2: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", "smollm2_135m", str(out), "--dtype", "bfloat16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == 134_515_008 and report["chat"] == "chatml" and report["tokenizer"]
    core = load_core(out, dtype=None).core
    assert torch.equal(core.embedding.weight, smollm2.core.embedding.weight.bfloat16())
