"""Shared tensors: no bit changes forward, and gradients add up in float32 backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mm_llama.core.fan_out import fan_out, take


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(gradient: Tensor, truth: Tensor) -> float:
    return float((gradient.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_aliases_hold_the_same_bits_in_the_same_memory(dtype: torch.dtype) -> None:
    x = random(3, 5, dtype=dtype).requires_grad_()
    aliases = fan_out(x, 4)
    assert len(aliases) == 4
    for alias in aliases:
        assert torch.equal(alias, x) and alias.data_ptr() == x.data_ptr() and alias.requires_grad
    with torch.no_grad():
        assert all(alias is x for alias in fan_out(x, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_reader_gets_autograds_own_gradient(dtype: torch.dtype) -> None:
    weight = random(5, 7, seed=1, dtype=dtype)
    gradients = []
    for read in (lambda x: x, lambda x: fan_out(x, 1)[0]):
        x = random(3, 5, dtype=dtype).requires_grad_()
        (read(x) @ weight).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_float32_gradients_are_autograds_own_for_any_number_of_readers() -> None:
    weights = [random(5, 7, seed=seed, dtype=torch.float32) for seed in range(6)]
    gradients = []
    for read in (lambda x: (x,) * 6, lambda x: fan_out(x, 6)):
        x = random(3, 5, dtype=torch.float32).requires_grad_()
        sum((alias @ weight).sin().sum() for alias, weight in zip(read(x), weights, strict=True)).backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_the_sum_is_that_of_float32_rounded_once() -> None:
    parts = [random(3, 5, seed=seed) for seed in range(16)]
    x = random(3, 5).requires_grad_()
    torch.autograd.backward(fan_out(x, 16), parts)
    total = torch.zeros(3, 5)
    for part in parts:
        total += part
    assert x.grad.dtype == torch.bfloat16
    assert torch.equal(x.grad, total.bfloat16())
    plain = random(3, 5).requires_grad_()
    torch.autograd.backward([plain.view_as(plain) for _ in parts], parts)
    assert not torch.equal(plain.grad, x.grad)  # or the test could not tell them apart


def test_small_terms_are_not_lost_beside_a_large_one() -> None:
    x = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    one, small = torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 2.0**-9, dtype=torch.bfloat16)
    torch.autograd.backward(fan_out(x, 65), [one, *[small] * 64])
    assert x.grad.item() == 1.125
    y = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    torch.autograd.backward([y.view_as(y) for _ in range(65)], [*[small] * 64, one])  # the last goes first
    assert y.grad.item() == 1.0


def test_aliases_may_be_read_twice_or_never() -> None:
    x = random(4).requires_grad_()
    first, second, _ = fan_out(x, 3)
    (first * 2 + first * 3 + second * 4).sum().backward()
    assert x.grad.tolist() == [9.0] * 4
    x.grad = None
    alias, _ = fan_out(fan_out(x, 2)[1], 2)
    alias.sum().backward()
    assert x.grad.tolist() == [1.0] * 4


def test_gradients_of_gradients_pass_through() -> None:
    x = random(4).requires_grad_()
    first, second = fan_out(x, 2)
    (gradient,) = torch.autograd.grad((first * second).sum(), x, create_graph=True)
    gradient.sum().backward()
    assert x.grad.tolist() == [2.0] * 4


def test_no_reader_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one reader, got 0"):
        fan_out(torch.zeros(1), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_taken_items_hold_the_same_bits(dtype: torch.dtype) -> None:
    x = random(5, 2, 3, dtype=dtype).requires_grad_()
    index = torch.tensor([[4, 0], [0, 0], [2, 4]])
    assert torch.equal(take(x, index), x[index])


def test_gradients_of_an_item_taken_often_add_up_in_float32() -> None:
    index = torch.arange(200)[:, None] % 3
    upstream = random(200, 1, 4, 8) + 1
    errors = {}
    exact = torch.zeros(3, 4, 8, dtype=torch.double)
    exact.index_add_(0, index.flatten(), upstream[:, 0].double())
    for name, read in {"plain": lambda x, i: x[i], "float32": take}.items():
        x = random(3, 4, 8).requires_grad_()
        read(x, index).backward(upstream)
        errors[name] = error(x.grad, exact)
    assert errors["float32"] < 2.0**-8  # one rounding
    assert errors["plain"] > 3 * errors["float32"]
