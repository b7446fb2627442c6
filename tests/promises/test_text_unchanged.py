"""Promise: with any adapter attached, text-only input gives `torch.equal` logits to the plain core."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mm_llama.core.cache import KVCache
from mm_llama.model import MultimodalLlama
from tests.promises.material import CONFIG, features, pictures, tokens

Make = Callable[..., MultimodalLlama]


@torch.no_grad()
def test_text_logits_bit_equal_with_an_adapter_attached(make_model: Make, dtype: torch.dtype) -> None:
    model = make_model(dtype)
    text = tokens(5, 17)
    assert torch.equal(model(text, media=model.attach({})), model.core(text))
    documents = torch.tensor([[0] * 7 + [1] * 10] * 5)
    assert torch.equal(model(text, documents_BS=documents), model.core(text, documents_BS=documents))


@torch.no_grad()
def test_text_rows_beside_picture_rows_get_the_cores_own_bits(make_model: Make, dtype: torch.dtype) -> None:
    model = make_model(dtype)
    text = tokens(4, 20)
    state = model.attach(pictures([(1, 0, 0), (3, 5, 1), (3, 9, 0)], features(2)))
    mixed, plain = model(text, media=state), model.core(text)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    # The comparison would be blind if the pictures did nothing to the other rows.
    assert not torch.allclose(mixed[[1, 3]].float(), plain[[1, 3]].float(), atol=0.05)


@torch.no_grad()
def test_text_rows_stay_bit_equal_when_a_neighbours_picture_is_not_finite(
    make_model: Make, dtype: torch.dtype
) -> None:
    model = make_model(dtype)
    text = tokens(3, 12)
    broken = [torch.full_like(features(1)[0], float("nan"))]
    mixed = model(text, media=model.attach(pictures([(1, 0, 0)], broken)))
    assert torch.equal(mixed[[0, 2]], model.core(text)[[0, 2]])
    assert mixed[1].isnan().any()


@torch.no_grad()
def test_cached_decoding_of_text_rows_is_bit_equal_beside_picture_rows(
    make_model: Make, dtype: torch.dtype
) -> None:
    model = make_model(dtype)
    text = tokens(4, 16)
    state = model.attach(pictures([(0, 0, 0), (2, 3, 0)], features(1)))
    ours, plain = (KVCache(CONFIG, 4, 16, dtype) for _ in range(2))
    first, wanted = model(text[:, :9], cache=ours, media=state), model.core(text[:, :9], cache=plain)
    assert torch.equal(first[[1, 3]], wanted[[1, 3]])
    for position in range(9, 16):
        at = torch.full((4, 1), position)
        step = model(text[:, position : position + 1], positions_BS=at, cache=ours, media=state)
        wanted = model.core(text[:, position : position + 1], positions_BS=at, cache=plain)
        assert torch.equal(step[[1, 3]], wanted[[1, 3]])


@torch.no_grad()
def test_padding_of_a_picture_row_does_not_reach_other_rows(make_model: Make, dtype: torch.dtype) -> None:
    model = make_model(dtype)
    text = tokens(3, 14)
    lengths = torch.tensor([14, 6, 14])
    state = model.attach(pictures([(1, 1, 0)], features(1)))
    mixed = model(text, lengths_B=lengths, media=state)
    assert torch.equal(mixed[[0, 2]], model.core(text)[[0, 2]])
    # Past the length of the picture row nothing is computed from the picture either.
    short = model(text[1:2, :6], media=model.attach(pictures([(0, 1, 0)], features(1))))
    assert torch.allclose(
        mixed[1, :6].float(), short[0].float(), atol=1e-5 if dtype == torch.float32 else 0.1
    )
