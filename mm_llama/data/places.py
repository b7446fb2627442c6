"""Where things are in a picture: boxes of a row as shares of its width and height, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mm_llama.data.sources import Row

KEYS = ("label", "box", "size")


@dataclass(frozen=True)
class Box:
    """A thing and its place; the sides are shares of the picture, from its left and its top."""

    label: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float


def boxes_of(row: Row) -> list[Box]:
    """Return the boxes of `extra.boxes`: each {label, box: [xmin, ymin, xmax, ymax], size: [width, height]}.

    With a size, in the entry or in `extra.size`, numbers are pixels, otherwise shares. Raises ValueError naming file,
    line and key for everything that is no box inside the picture.
    """
    entries = row.extra.get("boxes")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{row.source}: extra.boxes must be a list of boxes, not {entries!r}")
    return [_box(row, number, entry) for number, entry in enumerate(entries)]


def overlap(one: Box, other: Box) -> float:
    """Return intersection over union of two boxes."""
    width = min(one.xmax, other.xmax) - max(one.xmin, other.xmin)
    height = min(one.ymax, other.ymax) - max(one.ymin, other.ymin)
    common = max(0.0, width) * max(0.0, height)
    return common / (_area(one) + _area(other) - common)


def _box(row: Row, number: int, entry: Any) -> Box:
    where = f"{row.source}: extra.boxes[{number}]"
    if not isinstance(entry, Mapping) or not {"label", "box"} <= entry.keys() <= set(KEYS):
        raise ValueError(f"{where} must be an object with label, box and perhaps size, not {entry!r}")
    label = entry["label"]
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{where}.label must be a text, not {label!r}")
    size = entry.get("size", row.extra.get("size", [1, 1]))
    width, height = _numbers(size, 2, f"{where}.size")
    xmin, ymin, xmax, ymax = _numbers(entry["box"], 4, f"{where}.box")
    if width <= 0 or height <= 0:
        raise ValueError(f"{where}.size must be positive, not {size}")
    if not (0 <= xmin < xmax <= width and 0 <= ymin < ymax <= height):
        unit = "as shares, for want of a size" if (width, height) == (1, 1) else f"in {size} pixels"
        raise ValueError(
            f"{where}.box {entry['box']} is no [xmin, ymin, xmax, ymax] inside the picture ({unit}): minima must be "
            "below maxima"
        )
    return Box(label.strip(), xmin / width, ymin / height, xmax / width, ymax / height)


def _numbers(value: Any, count: int, where: str) -> list[float]:
    right = isinstance(value, list) and len(value) == count
    if not right or any(
        isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in value
    ):
        raise ValueError(f"{where} must be {count} numbers, not {value!r}")
    return [float(number) for number in value]


def _area(box: Box) -> float:
    return (box.xmax - box.xmin) * (box.ymax - box.ymin)
