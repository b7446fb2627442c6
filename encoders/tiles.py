"""Pictures cut into tiles, as the released Llama 3.2 Vision models do (section 7.2 of "The Llama 3 Herd of Models").

A picture keeps its proportions: a canvas of at most `max_tiles` square tiles is chosen for it, it is resized to
fit, padded with black at the bottom and on the right, and cut row by row.

Shapes: r c rows and columns of tiles, s tile side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@lru_cache(maxsize=16)
def tilings(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Return every (rows, columns) of at most `max_tiles` tiles, in the order of the released tables' rows 1 to 8."""
    if max_tiles < 1:
        raise ValueError(f"max_tiles must be at least 1, but got {max_tiles}")
    sides = range(1, max_tiles + 1)
    return tuple((rows, columns) for rows in sides for columns in sides if rows * columns <= max_tiles)


def choose_canvas(width: int, height: int, tile_size: int, max_tiles: int) -> tuple[int, int]:
    """Return (rows, columns) of the canvas for a picture: the least enlargement that holds all of its detail.

    If every canvas shrinks the picture, the one that shrinks it least is chosen; of equals, the smallest.
    """
    _check_sides(width, height)
    scales = {
        (rows, columns): min(rows * tile_size / height, columns * tile_size / width)
        for rows, columns in tilings(max_tiles)
    }
    enlarging = [scale for scale in scales.values() if scale >= 1]
    best = min(enlarging) if enlarging else max(scales.values())
    fitting = [tiling for tiling, scale in scales.items() if scale == best]
    return min(fitting, key=lambda tiling: tiling[0] * tiling[1])


def fit_size(width: int, height: int, rows: int, columns: int, tile_size: int) -> tuple[int, int]:
    """Return (width, height) of the picture on its canvas: proportions kept, enlarged to one tile's side at most."""
    _check_sides(width, height)
    most_width = min(max(width, tile_size), columns * tile_size)
    most_height = min(max(height, tile_size), rows * tile_size)
    scale_width, scale_height = most_width / width, most_height / height
    # The side that the proportions give is rounded down, and a needle keeps one pixel.
    if scale_width < scale_height:
        return most_width, min(max(1, math.floor(height * scale_width)), most_height)
    return min(max(1, math.floor(width * scale_height)), most_width), most_height


def cut_tiles(
    image: Image.Image,
    *,
    tile_size: int,
    max_tiles: int,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """Return float32[r, c, 3, s, s] of one RGB picture: its real tiles, (x / 255 - mean) / std.

    Padding is black before it is normalised, so it is not zero afterwards. The resize is Pillow's bilinear one.
    """
    if not isinstance(image, Image.Image) or image.mode != "RGB":
        found = f"mode {image.mode}" if isinstance(image, Image.Image) else type(image).__name__
        raise ValueError(f"a picture to tile must be a PIL picture in RGB, but got {found}")
    rows, columns = choose_canvas(image.width, image.height, tile_size, max_tiles)
    size = fit_size(image.width, image.height, rows, columns, tile_size)
    canvas = Image.new("RGB", (columns * tile_size, rows * tile_size))
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR))
    pixels_rscs3 = torch.from_numpy(np.array(canvas)).view(rows, tile_size, columns, tile_size, 3)
    tiles_rc3ss = pixels_rscs3.permute(0, 2, 4, 1, 3).to(torch.float32, memory_format=torch.contiguous_format)
    shape = (3, 1, 1)
    mean_3, std_3 = torch.tensor(mean).view(shape), torch.tensor(std).view(shape)
    return tiles_rc3ss.div_(255).sub_(mean_3).div_(std_3)


def _check_sides(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"a picture to tile must have pixels, but it is {width} x {height}")
