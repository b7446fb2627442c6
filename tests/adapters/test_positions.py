"""Position tables at another resolution: corner to corner, prefixes kept, wrong shapes named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapters.image import ImageAdapter
from adapters.positions import grid_of, resize_positions


def table(num: int, seed: int = 0) -> Tensor:
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(seed))


def planes(rows: int, columns: int) -> Tensor:
    """Linear in row and column, with corners at 0 and 1: every grid of it is exact by bilinear interpolation."""
    y = torch.linspace(0, 1, rows, dtype=torch.float64)[:, None].expand(rows, columns)
    x = torch.linspace(0, 1, columns, dtype=torch.float64)[None].expand(rows, columns)
    return torch.stack([y, x, 2 * y - 3 * x], -1).flatten(0, 1).float()


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((2, 4), (3, 6)), ((6, 6), (3, 3))])
@pytest.mark.parametrize("num_prefix", [0, 2])
def test_planes_stay_planes_from_corner_to_corner_and_prefixes_stay(
    old: tuple[int, int], new: tuple[int, int], num_prefix: int
) -> None:
    prefix = table(num_prefix, seed=7)
    resized = resize_positions(torch.cat([prefix, planes(*old)]), new, num_prefix)
    assert torch.equal(resized[:num_prefix], prefix)
    torch.testing.assert_close(resized[num_prefix:], planes(*new), rtol=0, atol=1e-6)


def test_rows_and_columns_are_not_mistaken_for_each_other() -> None:
    rows_only = torch.arange(4.0).repeat_interleave(4)[:, None]
    resized = resize_positions(rows_only, (7, 7)).view(7, 7)
    assert torch.equal(resized, torch.arange(0, 3.5, 0.5)[:, None].expand(7, 7))


def test_a_table_of_equal_size_comes_back_itself() -> None:
    same = table(17)
    assert resize_positions(same, (4, 4), 1) is same


@pytest.mark.parametrize(
    ("num", "grid", "num_prefix"), [(17, (6, 6), 0), (16, (4, 6), 0), (8, (4, 2), 1), (1, (4, 4), 1)]
)
def test_a_table_of_other_proportions_is_named(num: int, grid: tuple[int, int], num_prefix: int) -> None:
    with pytest.raises(
        ValueError, match=rf"a table of {num} positions, {num_prefix} of them prefixes, cannot be"
    ):
        resize_positions(table(num), grid, num_prefix)


def test_the_grid_is_square_unless_it_is_given() -> None:
    assert grid_of(17, 1, None) == (4, 4) and grid_of(12, 0, (2, 6)) == (2, 6)
    for num, num_prefix, grid in ((17, 0, None), (12, 0, (2, 5)), (1, 1, None)):
        with pytest.raises(ValueError, match=rf"{num} positions, {num_prefix} of them prefixes, are not"):
            grid_of(num, num_prefix, grid)


def adapter(num_positions: int, **options: int) -> ImageAdapter:
    return ImageAdapter(
        6,
        8,
        2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        ffn_dim=8,
        every=1,
        num_positions=num_positions,
        **options,
    )


def test_the_adapter_fits_its_position_table_and_nothing_else() -> None:
    large = adapter(37, num_prefix=1)
    saved = torch.randn(17, 8, generator=torch.Generator().manual_seed(3))
    fitted = large.fit_tensor("positions", saved)
    assert torch.equal(fitted, resize_positions(saved, (6, 6), 1)) and fitted.shape == (37, 8)
    assert large.fit_tensor("positions", fitted) is fitted
    weight = torch.zeros(2, 2)
    assert large.fit_tensor("blocks.0.attention.q.weight", weight) is weight
    assert adapter(0).fit_tensor("positions", saved) is saved
