"""Promise: cached = uncached = chunked, batched = single, shared pictures = copies, remembered = computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mm_llama.core.cache import KVCache
from mm_llama.model import MultimodalLlama
from mm_llama.prefixes import Prefixes
from tests.promises.material import CONFIG, features, make_adapter, pictures, tokens

Make = Callable[..., MultimodalLlama]
PLACED = [(0, 1, 0), (0, 6, 1), (1, 0, 1), (1, 1, 2), (3, 11, 0)]


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 15, [4, 4, 4, 3], [2, 5, 8], [12, 1, 1, 1]])
def test_cached_equals_uncached_with_pictures_in_any_chunks(make_model: Make, chunks: list[int]) -> None:
    model = make_model()
    text = tokens(4, 15)
    state = model.attach(pictures(PLACED, features(3)))
    whole = model(text, media=state)
    cache, start, parts = KVCache(CONFIG, 4, 15), 0, []
    for chunk in chunks:
        positions = torch.arange(start, start + chunk).expand(4, chunk)
        parts.append(model(text[:, start : start + chunk], positions_BS=positions, cache=cache, media=state))
        start += chunk
    assert torch.allclose(torch.cat(parts, 1), whole, atol=2e-6)


@torch.no_grad()
def test_ragged_batch_equals_single_rows(make_model: Make) -> None:
    model = make_model()
    text, lengths = tokens(4, 15), [15, 9, 4, 13]
    items = features(3)
    batched = model(text, lengths_B=torch.tensor(lengths), media=model.attach(pictures(PLACED, items)))
    for row, length in enumerate(lengths):
        own = [(0, position, item) for owner, position, item in PLACED if owner == row]
        media = model.attach(pictures(own, items)) if own else None
        assert torch.allclose(
            batched[row, :length], model(text[row : row + 1, :length], media=media)[0], atol=2e-6
        )


@torch.no_grad()
def test_ragged_rows_decode_like_single_rows(make_model: Make) -> None:
    model = make_model()
    text, lengths = tokens(3, 12), torch.tensor([12, 5, 8])
    items, placed = features(2), [(0, 2, 0), (2, 0, 1)]
    state = model.attach(pictures(placed, items))
    cache = KVCache(CONFIG, 3, 16)
    model(text, lengths_B=lengths, cache=cache, media=state)
    new = tokens(3, 4, seed=9)
    for step in range(4):
        at = (lengths + step)[:, None]
        logits = model(new[:, step : step + 1], positions_BS=at, cache=cache, media=state)
        for row in range(3):
            single = torch.cat((text[row, : lengths[row]], new[row, : step + 1]))[None]
            own = [(0, position, item) for owner, position, item in placed if owner == row]
            media = model.attach(pictures(own, items)) if own else None
            assert torch.allclose(logits[row, 0], model(single, media=media)[0, -1], atol=2e-6)


@torch.no_grad()
def test_pictures_of_different_sizes_share_a_batch(make_model: Make) -> None:
    model = make_model()
    text = tokens(3, 10)
    items = [*features(1, seed=1, tokens=9), *features(1, seed=2, tokens=4)]
    mixed = model(text, media=model.attach(pictures([(0, 0, 0), (1, 2, 1), (2, 3, 0), (2, 4, 1)], items)))
    for row, placed in enumerate([[(0, 0, 0)], [(0, 2, 1)], [(0, 3, 0), (0, 4, 1)]]):
        single = model(text[row : row + 1], media=model.attach(pictures(placed, items)))
        assert torch.allclose(mixed[row], single[0], atol=2e-6)


def test_remembered_prefixes_give_the_same_gradients(make_model: Make) -> None:
    text, lengths = tokens(4, 15), torch.tensor([15, 9, 15, 12])
    gradients = []
    for prefixes in (None, Prefixes()):
        model = make_model()
        model.modality["image"].adapter.requires_grad_(True)
        model.prefixes = prefixes
        for _ in range(2):  # the second pass reads what the first one kept
            model.zero_grad()
            state = model.attach(pictures(PLACED, features(3)))
            model(text, lengths_B=lengths, media=state)[[0, 1, 3], :9].square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert prefixes is not None and prefixes.hits == prefixes.misses == 4
    plain, remembered = gradients
    # The placeholder of a stage that uses prefixes does not train, so it alone gets no gradient from them.
    assert set(plain) - set(remembered) == {"modality.image.adapter.placeholder"}
    for name, gradient in remembered.items():
        assert torch.allclose(gradient, plain[name], atol=1e-7, rtol=1e-4), name


def test_prefix_memory_stays_within_its_bound(make_model: Make) -> None:
    model = make_model()
    model.prefixes = Prefixes(max_bytes=3 * 10 * CONFIG.dim * 4)
    for seed in range(8):
        state = model.attach(pictures([(0, 1, 0)], features(1)))
        with torch.no_grad():
            model(tokens(1, 10, seed=seed), media=state)
    assert model.prefixes.num_bytes <= model.prefixes.max_bytes


def test_a_picture_without_an_image_adapter_says_how_to_get_one(make_model: Make) -> None:
    model = MultimodalLlama(make_model().core)
    with pytest.raises(ValueError, match="no image adapter is attached .*make demo"):
        model.attach(pictures([(0, 0, 0)], features(1)))


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="expects features of width 24 .* have 5"):
        make_adapter().project(torch.zeros(1, 9, 5))
