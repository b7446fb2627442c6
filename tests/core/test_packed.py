"""Attention by documents: what a dense block-diagonal mask gives, without anything across documents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_llama.core.layers import attend
from mm_llama.core.packed import attend_documents, find_documents


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows_of(lengths: list[list[int]]) -> torch.Tensor:
    """Documents int64[B, S] of these lengths, numbered through; -1 in the padding."""
    numbers, longest = iter(range(1000)), max(map(sum, lengths))
    rows = [[number for length in row for number in [next(numbers)] * length] for row in lengths]
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])


def dense_mask(documents_BS: torch.Tensor) -> torch.Tensor:
    same = documents_BS[:, :, None] == documents_BS[:, None, :]
    return same & torch.ones_like(same).tril()


LENGTHS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=3)


@given(LENGTHS)
@settings(deadline=None, max_examples=40)
def test_outputs_and_gradients_are_those_of_a_dense_mask(lengths):
    documents = rows_of(lengths)
    B, S = documents.shape
    inputs = [random(B, heads, S, 8, seed=heads).requires_grad_() for heads in (4, 2, 2)]
    upstream = random(B, 4, S, 8, seed=9)
    results = []
    for run in (
        lambda q, k, v: attend_documents(q, k, v, find_documents(documents)),
        lambda q, k, v: attend(q, k, v, dense_mask(documents)),
    ):
        out = run(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, upstream)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)


def test_documents_beyond_the_explicit_products_go_through_the_fused_kernel():
    documents = rows_of([[520, 30], [7, 540]])
    q, k, v = (random(2, heads, 550, 8, seed=heads) for heads in (4, 2, 3))
    v = v[:, :2]
    got = attend_documents(q, k, v, find_documents(documents))
    torch.testing.assert_close(got, attend(q, k, v, dense_mask(documents)), rtol=1e-5, atol=2e-6)


def test_documents_of_like_length_go_together_and_padding_stays_below_twice():
    found = find_documents(rows_of([[3, 15, 16, 17], [33, 20, 1], [64]]))
    # 3, 15, 16, 1 and the padding of two rows; 17, 20 and no more; 33 and 64.
    assert [tuple(positions.shape) for positions, _ in found.groups] == [(6, 16), (2, 20), (2, 64)]
    assert sum(int(real.sum()) for _, real in found.groups) == 3 * 64
    for heads in (1, 3):
        order = found.order(heads)
        assert order is found.order(heads)
        assert len(order.there) == heads * (6 * 16 + 2 * 20 + 2 * 64)
        assert torch.equal(order.there[order.back], torch.arange(3 * 64 * heads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_document_changes_no_bit_even_when_it_is_not_finite(dtype):
    documents = rows_of([[1, 9, 34], [44]])
    inputs = [random(2, heads, 44, 8, seed=heads, dtype=dtype) for heads in (4, 2, 2)]
    found = find_documents(documents)
    before = attend_documents(*inputs, found)
    for x in inputs:
        x[0, :, 1:10] = torch.nan
    after = attend_documents(*inputs, found)
    untouched = (documents != 1)[:, None, :, None].expand_as(after)
    assert torch.equal(before[untouched], after[untouched])
    assert after[0, :, 1:10].isnan().all()


def test_a_number_that_comes_again_is_another_document():
    q, k, v = (random(1, 2, 6, 8, seed=seed) for seed in range(3))
    again = attend_documents(q, k, v, find_documents(torch.tensor([[0, 0, 1, 1, 0, 0]])))
    other = attend_documents(q, k, v, find_documents(torch.tensor([[0, 0, 1, 1, 2, 2]])))
    assert torch.equal(again, other)
