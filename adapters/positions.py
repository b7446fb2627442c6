"""Learned position tables at another resolution: the values trained on one grid, interpolated on another.

Shapes: N positions of a table, D width, h w rows and columns of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def grid_of(num_positions: int, num_prefix: int, grid: Sequence[int] | None) -> tuple[int, int]:
    """Return the rows and columns of a table whose first `num_prefix` entries stand outside the grid.

    Without `grid` it is square. Raises ValueError when the numbers do not agree.
    """
    inner = num_positions - num_prefix
    if grid is None:
        side = math.isqrt(max(0, inner))
        rows, columns = side, side
    else:
        rows, columns = grid
    if num_prefix < 0 or inner < 1 or rows * columns != inner:
        shape = "a square" if grid is None else f"{rows}x{columns}"
        raise ValueError(
            f"{num_positions} positions, {num_prefix} of them prefixes, are not {shape} grid of tokens: set num_prefix "
            "and grid (rows, columns) of modality.image.adapter to the encoder's"
        )
    return rows, columns


def resize_positions(table_ND: Tensor, grid: tuple[int, int], num_prefix: int = 0) -> Tensor:
    """Return the table float[N, D] on another `grid` of the same proportions, bilinear from corner to corner.

    Prefix entries are kept, and a table of the same size is returned as it is. Corner to corner is how the released
    Llama 3.2 vision model resizes its tables. Raises ValueError when the table is no grid of these proportions.
    """
    rows, columns = grid
    inner = len(table_ND) - num_prefix
    if inner == rows * columns:
        return table_ND
    scale = math.sqrt(max(0, inner) / (rows * columns))
    old_rows, old_columns = round(rows * scale), round(columns * scale)
    if inner < 1 or old_rows * old_columns != inner or old_rows * columns != old_columns * rows:
        raise ValueError(
            f"a table of {len(table_ND)} positions, {num_prefix} of them prefixes, cannot be resized to a "
            f"{rows}x{columns} grid: its grid has other proportions or other prefixes"
        )
    map_1Dhw = table_ND[num_prefix:].float().T.reshape(1, -1, old_rows, old_columns)
    resized_1Dhw = F.interpolate(map_1Dhw, size=grid, mode="bilinear", align_corners=True)
    resized_ND = resized_1Dhw.flatten(2)[0].T.to(table_ND.dtype)
    return torch.cat([table_ND[:num_prefix], resized_ND])
