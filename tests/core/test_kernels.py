"""Weights held for inference: the blocked layout gives the plain product's numbers, int8 nearly; what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from mm_llama.core.cache import KVCache
from mm_llama.core.kernels import Blocked, Int8
from mm_llama.core.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(dim=48, num_layers=2, num_heads=6, num_kv_heads=2, ffn_dim=80, vocab_size=64)
TOKENS = torch.randint(0, 64, (3, 9), generator=torch.Generator().manual_seed(0))
blocked = pytest.param(
    "blocked",
    marks=pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this CPU"
    ),
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def core(tied: bool) -> Llama:
    made = Llama(LlamaConfig(**{**vars(CONFIG), "tied": tied}))
    made.init_weights(1)
    for weight in made.parameters():
        if weight.ndim == 2:  # large enough that every layer has its say
            weight.data.mul_(4)
    return made.bfloat16().requires_grad_(False)


def held(tied: bool, form: str) -> Llama:
    made = core(tied)
    made.hold(form)
    return made


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 70])
def test_products_are_those_of_the_weights(rows: int) -> None:
    x, weight = randn(rows, 96), randn(40, 96, seed=1)
    exact = F.linear(x.double(), weight.double())
    scale = float(exact.abs().max())
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert float((Blocked(weight)(x).double() - exact).abs().max()) <= 2**-8 * scale
    kernel = Int8(weight)
    rounded = kernel.weight_YX.double() * kernel.scale_Y.double()[:, None]
    assert float((kernel(x).double() - F.linear(x.double(), rounded)).abs().max()) <= 2**-7 * scale
    # Each weight lies within half a step of what stands for it, and the largest of a row uses the whole range.
    assert bool(((rounded - weight.double()).abs() <= 0.502 * kernel.scale_Y.double()[:, None]).all())
    assert int(kernel.weight_YX.abs().amax(1).min()) >= 126
    assert kernel(x.view(1, rows, 96)).shape == (1, rows, 40)


def test_a_row_of_zeros_stays_zero() -> None:
    weight = randn(4, 32)
    weight[2] = 0
    got = Int8(weight)(randn(2, 32, seed=3))
    assert bool(got.isfinite().all()) and not got[:, 2].any() and got[:, [0, 1, 3]].all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", [blocked, "int8"])
def test_logits_stay(form: str, tied: bool) -> None:
    expected, got = core(tied)(TOKENS), held(tied, form)(TOKENS)
    difference = float((got - expected).abs().max() / expected.abs().max())
    # Blocked products are the same sums; whether in the same order is the processor's affair.
    assert difference <= {"blocked": 2e-2, "int8": 3e-2}[form]
    assert form == "blocked" or difference > 1e-4


@pytest.mark.parametrize("form", [blocked, "int8"])
def test_cached_and_in_chunks_as_whole(form: str) -> None:
    model = held(True, form)
    whole, cache, parts = model(TOKENS), KVCache(CONFIG, 3, 9, torch.bfloat16), []
    for start, end in ((0, 4), (4, 8), (8, 9)):
        positions = torch.arange(start, end).expand(3, -1)
        parts.append(model(TOKENS[:, start:end], positions_BS=positions, cache=cache))
    assert (torch.cat(parts, 1) - whole).abs().max() <= 2e-2 * whole.abs().max()


@pytest.mark.parametrize("form", [blocked, "int8"])
def test_what_weights_were_is_let_go(form: str) -> None:
    model = held(False, form)
    matrices = [weight for name, weight in model.layers.named_parameters() if "norm" not in name]
    assert all(weight.is_meta for weight in (*matrices, model.head.weight))  # type: ignore[union-attr]
    assert {name: weight.shape for name, weight in model.named_parameters()} == {
        name: weight.shape for name, weight in core(False).named_parameters()
    }


@pytest.mark.parametrize("form", [blocked, "int8"])
def test_one_map_of_several_can_still_be_called_and_hooked(form: str) -> None:
    model, seen = held(True, form), []
    expected = model(TOKENS)
    attention = model.layers[0].attention
    x = randn(2, 48)
    assert attention.v(x).shape == (2, 16) and not torch.equal(attention.k(x), attention.v(x))
    attention.v.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.equal(model(TOKENS), expected)
    assert len(seen) == 1


@pytest.mark.parametrize("form", [blocked, "int8"])
def test_held_weights_are_neither_moved_nor_trained(form: str) -> None:
    model = held(True, form)
    with pytest.raises(ValueError, match="load it anew"):
        model.float()
    with pytest.raises(ValueError, match='weights="plain"'):
        model.run(randn(1, 4, 48).requires_grad_())


def test_int8_of_a_copy_leaves_the_other_as_it_is() -> None:
    model = core(True)
    expected = model(TOKENS)
    other = copy.deepcopy(model)
    other.hold("int8")
    assert torch.equal(model(TOKENS), expected) and not torch.equal(other(TOKENS), expected)
