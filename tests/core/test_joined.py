"""Projections of one input as one product: same results, nothing held twice, and weights that may still change."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mm_llama.core.digest import digest_tensors
from mm_llama.core.export import export_hf
from mm_llama.core.layers import FeedForward, Linear, RMSNorm, joined
from mm_llama.core.llama import Llama, LlamaConfig
from mm_llama.core.weights import load_core

CONFIG = LlamaConfig(dim=48, num_layers=2, num_heads=6, num_kv_heads=2, ffn_dim=80, vocab_size=64)
TOKENS = torch.randint(0, 64, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def core() -> Llama:
    core = Llama(CONFIG)
    core.init_weights(1)
    for weight in core.parameters():
        if weight.ndim == 2:  # large enough that every layer has its say
            weight.data.mul_(4)
    return core.requires_grad_(False)


def apart(core: Llama) -> Llama:
    """The same core, each projection a product of its own: a hook on them keeps them apart."""
    other = copy.deepcopy(core)
    for module in other.modules():
        if isinstance(module, Linear):
            module.register_forward_hook(lambda *_: None)
    return other


def maps(core: Llama) -> tuple[Linear, Linear, Linear]:
    attention = core.layers[0].attention
    return attention.q, attention.k, attention.v


def is_joined(core: Llama) -> bool:
    q, k, v = maps(core)
    begins = [part.weight.data_ptr() for part in (q, k, v)]
    return begins == [begins[0], begins[0] + q.weight.nbytes, begins[0] + q.weight.nbytes + k.weight.nbytes]


def test_logits_are_those_of_separate_products(core: Llama) -> None:
    expected = apart(core)(TOKENS)
    got = core(TOKENS)
    assert is_joined(core)
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert expected.abs().max() > 0.5


def test_nothing_is_held_twice_and_the_digest_stays(core: Llama) -> None:
    before, names = digest_tensors(core.state_dict()), list(core.state_dict())
    core(TOKENS)
    assert digest_tensors(core.state_dict()) == before and list(core.state_dict()) == names
    q, k, v = maps(core)
    storages = {part.weight.untyped_storage().data_ptr() for part in (q, k, v)}
    assert len(storages) == 1
    assert q.weight.untyped_storage().nbytes() == sum(part.weight.nbytes for part in (q, k, v))


def test_a_changed_cast_copied_or_replaced_weight_is_seen(core: Llama) -> None:
    core(TOKENS)
    q, k, v = maps(core)

    k.weight.mul_(-1)
    assert is_joined(core)
    torch.testing.assert_close(core(TOKENS), apart(core)(TOKENS))

    k.weight = nn.Parameter(torch.randn_like(k.weight), requires_grad=False)
    torch.testing.assert_close(core(TOKENS), apart(core)(TOKENS))
    assert is_joined(core)

    copied = copy.deepcopy(core)
    maps(copied)[2].weight.zero_()
    torch.testing.assert_close(copied(TOKENS), apart(copied)(TOKENS))
    assert not torch.equal(copied(TOKENS), core(TOKENS))

    wide = copy.deepcopy(core).double()
    torch.testing.assert_close(wide(TOKENS), apart(wide)(TOKENS))
    assert (wide(TOKENS) - core(TOKENS)).abs().max() < 1e-5


def test_what_a_cast_leaves_behind_is_let_go(core: Llama) -> None:
    core(TOKENS)
    assert maps(core)[0]._joined is not None
    core.to(torch.bfloat16)
    assert maps(core)[0]._joined is None
    core(TOKENS)
    assert is_joined(core)


def test_weights_that_train_stay_separate_and_get_their_gradients(core: Llama) -> None:
    with torch.inference_mode():
        core(TOKENS)
    assert is_joined(core)
    core.requires_grad_(True)
    assert joined(maps(core)) is None
    core(TOKENS).square().sum().backward()
    other = apart(core).requires_grad_(True)
    other(TOKENS).square().sum().backward()
    for (name, ours), theirs in zip(core.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    # A step of training changes what inference then multiplies.
    before = core(TOKENS).detach()
    torch.optim.SGD(core.parameters(), lr=1e-3).step()
    with torch.no_grad():
        after = core(TOKENS)
        torch.testing.assert_close(after, apart(core)(TOKENS))
    assert (after - before).abs().max() > 1e-3


def test_gradients_go_through_frozen_projections(core: Llama) -> None:
    states = torch.randn(2, 5, 48)
    results = []
    for model in (core, apart(core)):
        x = states.clone().requires_grad_()
        model.run(x).square().sum().backward()
        results.append(x.grad)
    torch.testing.assert_close(results[0], results[1])


def test_hooks_and_other_classes_keep_maps_apart(core: Llama) -> None:
    core(TOKENS)
    seen: list[str] = []
    handle = maps(core)[1].register_forward_hook(lambda *_: seen.append("k"))
    core(TOKENS)
    assert seen == ["k"]
    handle.remove()

    class Doubling(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    feed = core.layers[0].feed_forward
    doubling = Doubling(48, 80)
    doubling.weight = nn.Parameter(feed.gate.weight.clone(), requires_grad=False)
    feed.gate = doubling
    x = torch.randn(2, 48)
    expected = feed.down(torch.nn.functional.silu(doubling(x)) * feed.up(x))
    assert torch.equal(feed(x), expected)


def test_a_joined_core_is_written_as_it_is(core: Llama, tmp_path: Path) -> None:
    core(TOKENS)
    export_hf(core, None, tmp_path / "core")
    again = load_core(tmp_path / "core", dtype=torch.float32).core
    assert digest_tensors(again.state_dict()) == digest_tensors(core.state_dict())
    assert sum(file.stat().st_size for file in (tmp_path / "core").glob("*.safetensors")) < 1.1 * sum(
        weight.nbytes for weight in core.parameters()
    )


def test_weights_made_in_inference_mode_stay_as_they_are() -> None:
    with torch.inference_mode():
        feed = FeedForward(8, 16)
        x = torch.randn(3, 8)
        assert torch.equal(feed(x), feed.down(torch.nn.functional.silu(feed.gate(x)) * feed.up(x)))
    assert joined((feed.gate, feed.up)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_rounds_where_llama_does(dtype: torch.dtype) -> None:
    norm = RMSNorm(64).requires_grad_(False)
    norm.weight.copy_(1 + 0.3 * torch.randn(64, generator=torch.Generator().manual_seed(2)))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    wide = x.double()
    scaled = (wide * (wide.square().mean(-1, keepdim=True) + norm.eps).rsqrt()).to(dtype)
    torch.testing.assert_close(norm(x), scaled * norm.weight.to(dtype), atol=0, rtol=2e-7)
