"""The adapter's parts: schedule, gates, branch scale."""

from __future__ import annotations

import pytest
import torch

from adapters.cross_attention import GatedCrossAttention, cross_attention_layers
from adapters.image import ImageAdapter


@pytest.mark.parametrize(
    ("num_layers", "every", "layers", "expected"),
    [
        (32, 4, None, [3, 7, 11, 15, 19, 23, 27, 31]),
        (80, 4, None, list(range(3, 80, 4))),
        (30, None, [18, 20], [18, 20]),
    ],
)
def test_schedule_follows_every_n_or_the_list(
    num_layers: int, every: int | None, layers: list[int] | None, expected: list[int]
) -> None:
    assert cross_attention_layers(num_layers, every, layers) == expected


@pytest.mark.parametrize(
    ("every", "layers", "message"),
    [
        (None, None, "exactly one of"),
        (2, [1], "exactly one of"),
        (None, [], "must rise"),
        (None, [3, 3], "must rise"),
        (None, [4, 2], "must rise"),
        (None, [1, 8], "from 0 to 7"),
        (9, None, "from 0 to 7"),
    ],
)
def test_impossible_schedules_are_named(every: int | None, layers: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cross_attention_layers(8, every, layers)


def test_closed_gates_are_exact_identity_at_any_branch_scale() -> None:
    block = GatedCrossAttention(16, 4, 2, 4, 32, branch_scale=8.0)
    keys, values = block.keys_values(torch.randn(2, 5, 16))
    x = torch.randn(6, 16)
    assert torch.equal(block(x, keys, values, None, None), x)


def test_branch_scale_multiplies_the_branches() -> None:
    x, media = torch.randn(6, 16), torch.randn(2, 5, 16)
    moved = []
    for scale in (1.0, 3.0):
        torch.manual_seed(0)
        block = GatedCrossAttention(16, 4, 2, 4, 0, branch_scale=scale)
        with torch.no_grad():
            block.attention_gate.fill_(0.4)
            moved.append(block(x, *block.keys_values(media), None, None) - x)
    assert torch.allclose(3 * moved[0], moved[1], atol=1e-6)


def test_more_tokens_than_positions_is_a_named_error() -> None:
    adapter = ImageAdapter(8, 16, 4, 4, 2, 4, 32, layers=[1], num_positions=4)
    with pytest.raises(ValueError, match=r"gives 9 tokens, but the image adapter has 4 positions"):
        adapter.project(torch.zeros(1, 9, 8))


def test_an_adapter_is_drawn_from_its_seed() -> None:
    one, same, other = (
        ImageAdapter(8, 16, 4, 4, 2, 4, 32, layers=[1, 3], num_positions=4, seed=seed) for seed in (1, 1, 2)
    )
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert not torch.equal(one.projection.weight, other.projection.weight)
