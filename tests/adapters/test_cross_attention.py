"""The adapter's parts: schedule, gates, branch scale."""

from __future__ import annotations

import pytest
import torch

from adapters.cross_attention import GatedCrossAttention, cross_attention_layers, keys_values_by_layer
from adapters.image import ImageAdapter
from adapters.video import VideoAdapter


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


@pytest.mark.parametrize(("num_blocks", "times"), [(8, 1.5), (32, 2.5)])
def test_media_gradients_of_many_blocks_add_up_in_float32(num_blocks: int, times: float) -> None:
    """Against the float32 truth; plain autograd drifts with the number of blocks, one rounding does not."""
    generator = torch.Generator().manual_seed(7)
    adapter = ImageAdapter(24, 64, num_blocks, 4, 2, 16, 0, every=1)
    with torch.no_grad():
        for weight in adapter.parameters():
            noise = 0.2 * torch.randn(weight.shape, generator=generator) if weight.ndim == 1 else 0
            weight.copy_((weight + noise).bfloat16())
    media = torch.randn(4, 9, 64, generator=generator).bfloat16()
    upstream = [torch.randn(4, 2, 9, 16, generator=generator).bfloat16() for _ in range(2 * num_blocks)]

    def plain(media_MND: torch.Tensor) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        return {layer: block.keys_values(media_MND) for layer, block in enumerate(adapter.blocks)}

    def shared(media_MND: torch.Tensor) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        return keys_values_by_layer(adapter.layers, adapter.blocks, media_MND)

    def run(read, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
        x = media.to(dtype).requires_grad_()
        outputs = [part for pair in read(x).values() for part in pair]
        (gradient,) = torch.autograd.grad(outputs, x, [part.to(dtype) for part in upstream])
        return outputs, gradient.float()

    (_, truth), (before, drifting), (after, summed) = (
        run(plain, torch.float32),
        run(plain, torch.bfloat16),
        run(shared, torch.bfloat16),
    )
    assert all(map(torch.equal, before, after))
    assert (drifting - truth).norm() > times * (summed - truth).norm()
    assert (summed - truth).norm() < 2**-8 * truth.norm()
    assert torch.equal(run(shared, torch.float32)[1], truth)


def test_both_adapters_hand_their_blocks_shared_media(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "adapters.cross_attention.fan_out", lambda x, readers: asked.append(readers) or (x,) * readers
    )
    image = ImageAdapter(24, 64, 8, 4, 2, 16, 0, every=2)
    video = VideoAdapter(
        24, 64, 8, 4, 2, 16, 0, image_every=2, every=2, aggregator_dim=32, aggregator_heads=2
    )
    assert image.keys_values(torch.randn(1, 3, 64)).keys() == {1, 3, 5, 7}
    assert video.keys_values(torch.randn(1, 3, 64)).keys() == {3, 7}
    assert asked == [8, 4]
