"""Promises with clips: attaching video changes nothing else, no leak, any order and any chunks, one encoder."""

from __future__ import annotations

import pytest
import torch

from mm_llama.core.cache import KVCache
from mm_llama.modality import CrossAttended
from mm_llama.model import MultimodalLlama
from tests.promises.material import CONFIG, WIDTH, features, tokens
from tests.promises.video_material import clip_features, make_video_adapter, make_video_model, media_of

# Pictures and clips in any order over several turns; consecutive ones, one at a row's end, a row without.
PICTURES = [(0, 1, 0), (0, 9, 1), (1, 4, 1), (3, 6, 2), (3, 7, 0)]
CLIPS = [(0, 5, 0), (1, 3, 1), (1, 12, 0), (3, 5, 1), (3, 14, 2)]


@torch.no_grad()
def test_attaching_video_leaves_text_only_and_image_only_logits_bit_equal(dtype: torch.dtype) -> None:
    without, attached = make_video_model(dtype, video=False), make_video_model(dtype)
    text = tokens(4, 16)
    assert torch.equal(attached(text), without.core(text))
    media = media_of(image=(PICTURES, features(3)))
    expected = without(text, media=without.attach(media))
    assert torch.equal(attached(text, media=attached.attach(media)), expected)


@torch.no_grad()
def test_text_and_picture_rows_beside_clips_get_the_same_bits(dtype: torch.dtype) -> None:
    model = make_video_model(dtype)
    text = tokens(4, 16)
    alone = media_of(image=([(1, 4, 0)], features(1)))
    beside = media_of(image=([(1, 4, 0)], features(1)), video=([(2, 3, 0), (3, 0, 1)], clip_features(2)))
    mixed = model(text, media=model.attach(beside))
    assert torch.equal(mixed[0], model.core(text)[0])
    assert torch.equal(mixed[1], model(text, media=model.attach(alone))[1])
    assert not torch.equal(mixed[2], model.core(text)[2])


@torch.no_grad()
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_clip_moves_nothing_before_it_and_no_other_row(changed: int) -> None:
    model = make_video_model()
    text = tokens(4, 16)
    items = clip_features(3)
    other = [clip_features(1, seed=9)[0] if index == changed else item for index, item in enumerate(items)]
    before, after = (
        model(text, media=model.attach(media_of(image=(PICTURES, features(3)), video=(CLIPS, clips))))
        for clips in (items, other)
    )
    for row in range(4):
        positions = [position for owner, position, item in CLIPS if owner == row and item == changed]
        first = min(positions, default=16)
        assert torch.equal(before[row, :first], after[row, :first])
        if positions:
            assert not torch.equal(before[row, first:], after[row, first:])


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 16, [5, 4, 4, 3], [13, 1, 1, 1]])
def test_cached_equals_uncached_with_pictures_and_clips_in_any_order(chunks: list[int]) -> None:
    model = make_video_model()
    text = tokens(4, 16)
    media = media_of(image=(PICTURES, features(3)), video=(CLIPS, clip_features(3)))
    whole = model(text, media=model.attach(media))
    state, cache, start, parts = model.attach(media), KVCache(CONFIG, 4, 16), 0, []
    for chunk in chunks:
        positions = torch.arange(start, start + chunk).expand(4, chunk)
        parts.append(model(text[:, start : start + chunk], positions_BS=positions, cache=cache, media=state))
        start += chunk
    assert torch.allclose(torch.cat(parts, 1), whole, atol=2e-6)


@torch.no_grad()
def test_batched_equals_single_with_clips_of_different_length() -> None:
    model = make_video_model()
    text = tokens(3, 12)
    items = [*clip_features(1, frames=6), *clip_features(1, seed=1, frames=2)]
    placed = [(0, 2, 0), (1, 0, 1), (2, 3, 1), (2, 4, 0)]
    batched = model(text, media=model.attach(media_of(video=(placed, items))))
    for row in range(3):
        own = [(0, position, item) for owner, position, item in placed if owner == row]
        single = model(text[row : row + 1], media=model.attach(media_of(video=(own, items))))
        assert torch.allclose(batched[row], single[0], atol=2e-6)


@torch.no_grad()
def test_a_long_run_of_pictures_equals_pictures_one_at_a_time() -> None:
    """The positions of a run see the pictures up to themselves: as if the rest of the row were not there yet."""
    model = make_video_model()
    count = 8
    text = tokens(1, count + 6)
    items = features(count)
    placed = [(0, 2 + number, number) for number in range(count)]
    whole = model(text, media=model.attach(media_of(image=(placed, items))))
    for number in range(count):
        part = text[:, : 3 + number]
        seen = media_of(image=(placed[: number + 1], items[: number + 1]))
        assert torch.allclose(whole[:, : 3 + number], model(part, media=model.attach(seen)), atol=2e-6)


def test_video_has_no_encoder_of_its_own_and_asks_for_the_one_it_reads() -> None:
    model = make_video_model()
    assert not [name for name, _ in model.named_parameters() if name.startswith("modality.video.encoder")]
    alone = MultimodalLlama(
        model.core, {"video": CrossAttended(None, make_video_adapter(), reads="image", num_frames=6)}
    )
    media = media_of(video=([(0, 0, 0)], [torch.zeros(6, 3, 8, 8)]))
    media["video"].encoded = False
    with pytest.raises(ValueError, match="reads the image encoder, but no image adapter is attached"):
        alone.attach(media)


@torch.no_grad()
def test_frames_go_through_the_image_encoder_in_parts_with_the_same_features() -> None:
    class Patches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(WIDTH, 3, 4, 4))
            self.most = 0

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            self.most = max(self.most, len(pixels))
            return torch.nn.functional.conv2d(pixels, self.weight, stride=4).flatten(2).transpose(1, 2)

    encoder = Patches()
    clips = torch.randn(3, 30, 3, 12, 12)
    modality = CrossAttended(None, make_video_adapter(), reads="image", num_frames=30)
    found = modality.features(clips, encoder)
    assert found.shape == (3, 30, 9, WIDTH) and encoder.most == 32
    assert torch.allclose(found[2], encoder(clips[2]), atol=1e-5)
