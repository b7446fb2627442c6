"""The video adapter: where its blocks stand, what the aggregator gives, and that its sizes are the paper's."""

from __future__ import annotations

import pytest
import torch

from adapters.video import Aggregator, VideoAdapter, at_times, focus_on, motion_of
from mm_llama.build import build, compose_config, resolve


def aggregator(**changes: object) -> Aggregator:
    """A small aggregator, weights drawn."""
    settings: dict[str, object] = {
        "width": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_latents": 5,
        "frames_per_group": 4,
        "max_groups": 3,
        "num_positions": 6,
    }
    made = Aggregator(12, 16, **(settings | changes))  # type: ignore[arg-type]
    with torch.no_grad():
        made.init_weights(torch.Generator().manual_seed(0))
    return made.eval()


@pytest.mark.parametrize(
    ("core", "video", "billions", "layers"),
    [("llama3_1_8b", "paper_8b", 0.6, [15, 31]), ("llama3_1_70b", "paper_70b", 4.6, [15, 31, 47, 63, 79])],
)
def test_the_papers_sizes(core: str, video: str, billions: float, layers: list[int]) -> None:
    names = [f"core={core}", "modality/image=vit_h14", f"modality/video={video}", "stage=none"]
    with torch.device("meta"):
        adapter = build(resolve(compose_config("train", names))["modality"]["video"]["adapter"])
    assert adapter.layers == layers
    assert round(sum(weight.numel() for weight in adapter.parameters()) / 1e9, 1) == billions


def test_consecutive_frames_become_one_effective_frame() -> None:
    made = aggregator()
    clips = torch.randn(2, 12, 6, 12, generator=torch.Generator().manual_seed(1))
    whole = made(clips)
    assert whole.shape == (2, 3 * 5, 16)
    other = clips.clone()
    other[:, 4:8] += 1
    moved = made(other)
    assert torch.equal(whole[:, :5], moved[:, :5]) and torch.equal(whole[:, 10:], moved[:, 10:])
    assert not torch.allclose(whole[:, 5:10], moved[:, 5:10])


def test_the_order_of_frames_and_of_groups_is_seen() -> None:
    made = aggregator()
    clip = torch.randn(1, 4, 6, 12, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(made(clip), made(clip.flip(1)), atol=1e-3)
    twice = made(torch.cat((clip, clip), 1))
    assert not torch.allclose(twice[:, :5], twice[:, 5:], atol=1e-3)


def test_fewer_frames_lie_where_their_time_is() -> None:
    # The centres of two halves of a table 0, 1, 2, 3 lie at 0.5 and 2.5; a single frame in the middle, at 1.5.
    table = torch.arange(4.0)[:, None].expand(4, 32)
    assert at_times(table, 2)[:, 0].tolist() == [0.5, 2.5]
    assert at_times(table, 1)[:, 0].tolist() == [1.5]
    assert torch.equal(at_times(table, 4), table)


def test_tables_in_time_are_fitted_when_loaded_at_another_length() -> None:
    made = aggregator(frames_per_group=4)
    stored = torch.arange(8.0)[:, None].expand(8, 32)
    fitted = made.fit_tensor("content.frame_positions", stored)
    assert fitted[:, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    latents = torch.zeros(7, 32)
    assert made.fit_tensor("content.latents", latents) is latents


def test_motion_sees_what_moves_and_not_what_is_there() -> None:
    made = aggregator(motion_latents=3)
    generator = torch.Generator().manual_seed(2)
    scene, thing = torch.randn(1, 1, 6, 12, generator=generator), torch.zeros(1, 4, 6, 12)
    for time in range(4):
        thing[0, time, time] = 3.0
    with torch.no_grad():
        moving, elsewhere = made(scene + thing), made(scene.flip(2) + thing)
        still = made((scene + thing[:, :1]).expand(1, 4, 6, 12))
    assert moving.shape == (1, 8, 16)
    assert torch.allclose(moving[:, 5:], elsewhere[:, 5:], atol=1e-5)
    assert not torch.allclose(moving[:, :5], elsewhere[:, :5], atol=1e-2)
    assert not torch.allclose(moving[:, 5:], still[:, 5:], atol=1e-2)


def test_places_and_times_begin_with_neighbours_alike() -> None:
    made = aggregator(num_positions=16, frames_per_group=8)
    assert made.content is not None and made.content.positions is not None
    places = torch.nn.functional.normalize(made.content.positions.detach(), dim=1).view(4, 4, -1)
    near, far = places[0, 0] @ places[0, 1], places[0, 0] @ places[3, 3]
    assert near > far + 0.2
    assert torch.allclose(places[1, 2] @ places[1, 3], places[2, 1] @ places[3, 1], atol=0.2)
    times = torch.nn.functional.normalize(made.content.frame_positions.detach(), dim=1)
    assert times[0] @ times[1] > times[0] @ times[5] + 0.2


def test_either_part_may_be_absent_but_not_both() -> None:
    made = aggregator(num_latents=0, motion_latents=3)
    assert made(torch.randn(2, 4, 6, 12)).shape == (2, 3, 16)
    assert not [name for name, _ in made.named_parameters() if "content" in name]
    with pytest.raises(
        ValueError, match="the aggregator reads nothing: set modality.video.adapter.num_latents"
    ):
        aggregator(num_latents=0)


def test_motion_is_zero_in_a_still_clip_and_in_units_of_its_mean_else() -> None:
    still = torch.randn(1, 1, 6, 12).expand(1, 4, 6, 12)
    assert float(motion_of(still).abs().max()) < 1e-3
    moving = torch.randn(1, 4, 6, 12)
    amount, signed = motion_of(moving).unbind(-1)
    assert float(amount.square().mean()) == pytest.approx(1, abs=1e-3)
    assert torch.allclose(signed, amount * torch.tensor([-0.75, -0.25, 0.25, 0.75])[:, None])
    assert torch.allclose(motion_of(moving), motion_of(10 * moving), atol=1e-4)


def test_focus_weighs_tokens_by_the_power_of_their_motion() -> None:
    clips = torch.randn(2, 4, 6, 12, generator=torch.Generator().manual_seed(1))
    amount_MT = motion_of(clips)[..., 0].flatten(1)
    weights_MT = focus_on(clips, 3.0).exp()
    assert torch.allclose(weights_MT.mean(1), torch.ones(2))
    ratio = (amount_MT[:, 3] + 0.1) / (amount_MT[:, 7] + 0.1)
    assert torch.allclose(weights_MT[:, 3] / weights_MT[:, 7], ratio**3)


@torch.no_grad()
def test_focus_changes_nothing_in_a_still_clip_and_makes_what_stands_still_count_less_in_others() -> None:
    plain, focused = aggregator(), aggregator(content_focus=3.0)
    generator = torch.Generator().manual_seed(1)
    still = torch.randn(1, 1, 6, 12, generator=generator).expand(-1, 4, -1, -1)
    assert torch.allclose(plain(still), focused(still), atol=1e-6)
    moving = still.clone()
    moving[:, 1, 2] += torch.randn(12, generator=generator)
    ground = moving.clone()
    ground[:, :, 3:] += torch.randn(3, 12, generator=generator)  # another background, as still as the first
    change = {made: float((made(ground) - made(moving)).norm()) for made in (plain, focused)}
    assert 0 < change[focused] < change[plain] / 2
    thing = moving.clone()
    thing[:, 1, 2] += torch.randn(12, generator=generator)
    assert (focused(thing) - focused(moving)).norm() > 2 * (plain(thing) - plain(moving)).norm()


def test_a_negative_focus_is_refused() -> None:
    with pytest.raises(ValueError, match=r"content_focus is -1, expected 0 \(off\) or a power above it"):
        aggregator(content_focus=-1)


def test_every_weight_of_the_aggregator_gets_a_gradient() -> None:
    made = aggregator(motion_latents=3)
    made(torch.randn(2, 12, 6, 12)).square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in made.parameters())


def test_too_many_frames_name_the_settings() -> None:
    with pytest.raises(
        ValueError, match=r"13 frames makes 4 groups of 4, .* 3: set modality.video.num_frames"
    ):
        aggregator()(torch.zeros(1, 13, 6, 12))


def test_another_encoder_is_refused_by_width() -> None:
    adapter = VideoAdapter(
        12, 16, 8, 2, 1, 8, 32, image_every=2, every=1, num_latents=2, aggregator_dim=8, aggregator_heads=2
    )
    with pytest.raises(ValueError, match=r"frame features \[M, F, N, 12\] .* are \[1, 4, 6, 13\]"):
        adapter.project(torch.zeros(1, 4, 6, 13))


def test_too_few_image_blocks_name_the_setting() -> None:
    with pytest.raises(ValueError, match=r"4 image cross-attention blocks, so none is the 5th"):
        VideoAdapter(12, 16, 8, 2, 1, 8, 32, image_every=2, every=5)
