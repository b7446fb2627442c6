"""Tiling against golden sizes and, pixel for pixel, against both published preprocessors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from encoders.tiles import MEAN, STD, choose_canvas, cut_tiles, fit_size, tilings

# tile side, picture (width, height) -> canvas, resized picture (width, height), (rows, columns)
GOLDEN = [
    (560, (800, 600), (1120, 1120), (800, 600), (2, 2)),
    (560, (300, 800), (560, 1120), (300, 800), (2, 1)),
    (560, (2000, 300), (2240, 560), (2000, 300), (1, 4)),
    (560, (560, 560), (560, 560), (560, 560), (1, 1)),
    (560, (100, 100), (560, 560), (560, 560), (1, 1)),
    (560, (1920, 1080), (1120, 1120), (1120, 630), (2, 2)),
    (560, (640, 480), (1120, 560), (640, 480), (1, 2)),
    (560, (5000, 20), (2240, 560), (2240, 8), (1, 4)),
    (448, (800, 600), (896, 896), (800, 600), (2, 2)),
    (448, (2000, 300), (1792, 448), (1792, 268), (1, 4)),
    (448, (1920, 1080), (896, 896), (896, 504), (2, 2)),
    # a side that rounds down to nothing keeps one pixel
    (560, (20000, 1), (2240, 560), (2240, 1), (1, 4)),
    (560, (1, 20000), (560, 2240), (1, 2240), (4, 1)),
]
SIDE = 28
SIZES = st.one_of(
    st.integers(1, 300),  # around and above the canvas
    st.sampled_from([1, 2, SIDE - 1, SIDE, SIDE + 1, 2 * SIDE, 3 * SIDE, 4 * SIDE, 4 * SIDE + 1]),
)


def picture(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * 100_003 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("side", "size", "canvas", "resized", "tiling"), GOLDEN)
def test_canvas_and_size_are_the_golden_ones(
    side: int,
    size: tuple[int, int],
    canvas: tuple[int, int],
    resized: tuple[int, int],
    tiling: tuple[int, int],
) -> None:
    rows, columns = choose_canvas(*size, tile_size=side, max_tiles=4)
    assert (rows, columns) == tiling
    assert (columns * side, rows * side) == canvas
    assert fit_size(*size, rows=rows, columns=columns, tile_size=side) == resized


def test_tilings_stand_in_the_order_of_the_released_tables() -> None:
    assert tilings(4) == ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
    assert [len(tilings(most)) for most in (1, 2, 3, 4, 6)] == [1, 3, 5, 8, 14]


@pytest.fixture(scope="module")
def pillow() -> Any:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    return MllamaImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=list(MEAN), image_std=list(STD), max_image_tiles=4
    )


@given(width=SIZES, height=SIZES)
@settings(max_examples=60, deadline=None)
def test_tiles_equal_transformers_pillow_processor_bit_for_bit(pillow: Any, width: int, height: int) -> None:
    image = picture(width, height)
    theirs = pillow(images=[[image]], return_tensors="pt")
    tiles = cut_tiles(image, tile_size=SIDE, max_tiles=4)
    rows, columns = tiles.shape[:2]
    assert tilings(4).index((rows, columns)) + 1 == int(theirs["aspect_ratio_ids"])
    assert theirs["num_tiles"] == [[rows * columns]]
    assert tiles.dtype == torch.float32
    assert tiles.is_contiguous()
    assert torch.equal(tiles.flatten(0, 1), theirs["pixel_values"][0, 0, : rows * columns])


@given(width=SIZES, height=SIZES)
@settings(max_examples=60, deadline=None)
def test_tiles_equal_metas_transform_bit_for_bit(width: int, height: int) -> None:
    from llama_models.llama3.multimodal.image_transform import VariableSizeImageTransform

    image = picture(width, height)
    tiles = cut_tiles(image, tile_size=SIDE, max_tiles=4)
    rows, columns = tiles.shape[:2]
    # Theirs has no least side: a needle may round down to nothing, which their resize refuses.
    assume(1 not in fit_size(width, height, rows, columns, SIDE))
    pixels, ratio = VariableSizeImageTransform(size=SIDE)(image, max_num_chunks=4)
    assert ratio == (rows, columns)
    assert torch.equal(tiles.flatten(0, 1), pixels)


def test_transformers_torchvision_processor_resizes_otherwise() -> None:
    """Its own resize of bytes differs from Pillow's: the same tiling, pixels up to two grey levels away."""
    from transformers.models.mllama.image_processing_mllama import MllamaImageProcessor

    processor = MllamaImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=list(MEAN), image_std=list(STD), max_image_tiles=4
    )
    levels = 255 * torch.tensor(STD).view(3, 1, 1)
    worst = 0.0
    for width, height in ((20, 20), (90, 50), (301, 77), (33, 290)):
        theirs = processor(images=[[picture(width, height)]], return_tensors="pt")
        tiles = cut_tiles(picture(width, height), tile_size=SIDE, max_tiles=4).flatten(0, 1)
        away = (theirs["pixel_values"][0, 0, : len(tiles)] - tiles).abs() * levels
        worst = max(worst, float(away.max()))
    assert 0.5 < worst < 2.5


def test_padding_is_black_before_it_is_normalised() -> None:
    tiles = cut_tiles(Image.new("RGB", (30, 10), (255, 255, 255)), tile_size=SIDE, max_tiles=4)
    assert tiles.shape == (1, 2, 3, SIDE, SIDE)
    black, white = (
        (torch.tensor(value) - torch.tensor(MEAN)).div(torch.tensor(STD)).view(3, 1, 1)
        for value in (0.0, 1.0)
    )
    # Enlarged to one tile's side at most, 30 x 10 stays as it is on its canvas of 56 x 28.
    assert torch.equal(tiles[0, 0, :, :10], white.expand(3, 10, SIDE))
    assert torch.equal(tiles[0, 0, :, 10:], black.expand(3, SIDE - 10, SIDE))
    assert torch.equal(tiles[0, 1, :, :10, :2], white.expand(3, 10, 2))
    assert torch.equal(tiles[0, 1, :, :, 2:], black.expand(3, SIDE, SIDE - 2))


def test_own_numbers_are_taken() -> None:
    tiles = cut_tiles(picture(60, 100), tile_size=20, max_tiles=6, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    assert tiles.shape[:2] == choose_canvas(60, 100, 20, 6) == (3, 2)
    assert float(tiles[:, :, 2].abs().max()) <= 0.5 < float(tiles[:, :, 0].abs().max()) <= 2


@pytest.mark.parametrize(
    ("image", "match"),
    [(Image.new("L", (5, 5)), "in RGB, but got mode L"), ("picture.jpg", "in RGB, but got str")],
)
def test_what_is_no_rgb_picture_is_refused(image: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        cut_tiles(image, tile_size=SIDE, max_tiles=4)


def test_numbers_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="must have pixels, but it is 0 x 5"):
        choose_canvas(0, 5, SIDE, 4)
    with pytest.raises(ValueError, match="max_tiles must be at least 1, but got 0"):
        cut_tiles(picture(5, 5), tile_size=SIDE, max_tiles=0)
