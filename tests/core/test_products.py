"""A single row's product in halves: the same numbers up to the order of a sum, where it is taken and where not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mm_llama.core import products
from mm_llama.core.layers import attend
from mm_llama.core.products import linear


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the matrices that were multiplied in halves, on a processor where that pays."""
    seen: list[tuple[int, ...]] = []
    whole = torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(a.shape))
        return whole(a, b)

    monkeypatch.setattr(products, "halves_pay", lambda: True)
    monkeypatch.setattr(torch, "mm", mm)
    return seen


@pytest.mark.parametrize("shape", [(576,), (1, 576), (1, 1, 2048), (1, 1, 1, 2)])
def test_one_row_in_halves_is_the_same_product(shape: tuple[int, ...], calls: list[tuple[int, ...]]) -> None:
    K = shape[-1]
    x, weight = randn(*shape), randn(300, K, seed=1)
    got, exact = linear(x, weight), F.linear(x.double(), weight.double())
    assert calls == [(600, K // 2)]
    assert got.shape == exact.shape and got.dtype == torch.float32
    assert (got - exact).abs().max() <= 1e-6 * exact.abs().max() * max(1, K**0.5 / 24)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (randn(2, 64), randn(8, 64)),
        (randn(1, 63), randn(8, 63)),
        (randn(1, 2050), randn(8, 2050)),
        (randn(1, 64, dtype=torch.bfloat16), randn(8, 64, dtype=torch.bfloat16)),
        (randn(1, 64), randn(64, 8).t()),
        (randn(1, 64), randn(64)),
    ],
    ids=["two rows", "no halves", "a long row", "bfloat16", "another layout", "one output"],
)
def test_everything_else_is_the_plain_product_to_the_bit(
    x: torch.Tensor, weight: torch.Tensor, calls: list[tuple[int, ...]]
) -> None:
    assert torch.equal(linear(x, weight), F.linear(x, weight)) and not calls


def test_neither_traced_nor_subclassed_products_are_cut(calls: list[tuple[int, ...]]) -> None:
    class Marked(torch.Tensor):
        pass

    x, weight = randn(1, 64), randn(8, 64, seed=1)
    expected = F.linear(x, weight)
    assert torch.equal(torch.compile(linear, backend="eager", fullgraph=True)(x, weight), expected)
    assert isinstance(linear(x.as_subclass(Marked), weight), Marked)
    assert isinstance(linear(x, weight.as_subclass(Marked)), Marked)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert (16, 32) not in calls
    linear(x, weight)
    assert (16, 32) in calls


def test_on_other_processors_it_is_the_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "halves_pay", lambda: False)
    x, weight = randn(1, 576), randn(300, 576, seed=1)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_gradients_of_one_row_are_those_of_the_plain_product(calls: list[tuple[int, ...]]) -> None:
    found = []
    for product in (linear, F.linear):
        x, weight = randn(1, 64).requires_grad_(), randn(10, 64, seed=1).requires_grad_()
        (product(x, weight) * randn(1, 10, seed=2)).sum().backward()
        found.append((x.grad, weight.grad))
    assert calls
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("T", [600, 1500])
@pytest.mark.parametrize("masked", [False, True])
def test_one_query_over_many_keys_is_the_softmax_written_out(T: int, masked: bool) -> None:
    B, H, K, d = 2, 6, 2, 16
    q, k, v = randn(B, H, 1, d), randn(B, K, T, d, seed=1), randn(B, K, T, d, seed=2)
    mask = (randn(B, 1, T, seed=3) > 0) if masked else None
    got = attend(q, k, v, mask)
    for b in range(B):
        for h in range(H):
            scores = k[b, h // (H // K)].double() @ q[b, h, 0].double() / d**0.5
            if mask is not None:
                scores = scores.masked_fill(~mask[b, 0], float("-inf"))
            expected = scores.softmax(0) @ v[b, h // (H // K)].double()
            torch.testing.assert_close(got[b, h, 0].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("S", "T"), [(1, 40), (7, 40), (520, 520)]
)  # one query, explicit products, the fused kernel
def test_what_is_added_to_scores_counts_in_every_head(S: int, T: int, masked: bool) -> None:
    B, H, K, d = 2, 4, 2, 16
    q, k, v = randn(B, H, S, d), randn(B, K, T, d, seed=1), randn(B, K, T, d, seed=2)
    added = 2 * randn(B, 1, T, seed=4)
    mask = (randn(B, S, T, seed=3) > 0) if masked else None
    got = attend(q, k, v, mask, added)
    every = torch.arange(H) // (H // K)
    scores = (q.double() @ k[:, every].double().transpose(-1, -2)) / d**0.5 + added[:, None].double()
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    expected = scores.softmax(-1) @ v[:, every].double()
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
