"""Promises of a model whose weights are held for inference: the core of both is held alike, so text is unchanged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mm_llama.core.cache import KVCache
from mm_llama.core.kernels import blocks_pay
from mm_llama.generation.engine import generate
from mm_llama.model import MultimodalLlama
from tests.promises.material import CONFIG, features, pictures, tokens

PLACED = [(0, 1, 0), (2, 5, 1), (2, 6, 0)]


@pytest.mark.parametrize("weights", ["auto", "int8"])
@torch.inference_mode()
def test_text_is_unchanged_alone_cached_and_beside_pictures(
    make_model: Callable[..., MultimodalLlama], weights: str
) -> None:
    model, other = make_model(torch.bfloat16), make_model(torch.bfloat16)
    model.hold(weights)
    other.hold(weights)
    plain, text = other.core, tokens(4, 12)
    assert torch.equal(model(text), plain(text))
    media = pictures(PLACED, features(2))
    mixed = model(text, media=model.attach(media))
    assert torch.equal(mixed[[1, 3]], plain(text)[[1, 3]]) and not torch.equal(mixed[0], plain(text)[0])
    caches = [KVCache(CONFIG, 4, 12, torch.bfloat16) for _ in range(2)]
    state = model.attach(media)
    for start, end in ((0, 7), *((n, n + 1) for n in range(7, 12))):
        positions = torch.arange(start, end).expand(4, -1)
        ours = model(text[:, start:end], positions_BS=positions, cache=caches[0], media=state)
        theirs = plain(text[:, start:end], positions_BS=positions, cache=caches[1])
        assert torch.equal(ours[[1, 3]], theirs[[1, 3]])


@torch.inference_mode()
def test_auto_changes_no_number_with_pictures_either(make_model: Callable[..., MultimodalLlama]) -> None:
    model, held = make_model(torch.bfloat16), make_model(torch.bfloat16)
    held.hold("auto")
    text, media = tokens(4, 12), pictures(PLACED, features(2))
    expected = model(text, media=model.attach(media))
    got = held(text, media=held.attach(media))
    assert (got - expected).abs().max() <= 2e-2 * expected.abs().max()
    assert held.core.layers[0].attention.q.weight.is_meta == blocks_pay(torch.bfloat16, "cpu")


def test_what_cannot_be_held_is_refused(make_model: Callable[..., MultimodalLlama]) -> None:
    model = make_model(torch.float32)
    with pytest.raises(ValueError, match="weights is 'int4', expected one of auto, plain, int8"):
        model.hold("int4")
    with pytest.raises(ValueError, match="computes in bfloat16"):
        model.hold("int8")
    expected = model(tokens(2, 5))
    model.hold("auto")
    assert torch.equal(model(tokens(2, 5)), expected) and not model.core.layers[0].attention.q.weight.is_meta


def test_held_weights_are_not_compiled(make_model: Callable[..., MultimodalLlama]) -> None:
    model = make_model(torch.bfloat16)
    model.hold("int8")
    with pytest.raises(ValueError, match='load the model with weights="plain"'):
        generate(model, [[1, 2, 3]], max_new_tokens=2, compile=True)
