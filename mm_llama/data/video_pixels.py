"""Decoded frames -> upright RGB arrays, with FFmpeg's own filters, so that every backend has equal pixels."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The linear part of a display matrix -> the filters that turn a stored frame upright.
_UPRIGHT: dict[tuple[int, int, int, int], tuple[tuple[str, str | None], ...]] = {
    (1, 0, 0, 1): (),
    (0, 1, -1, 0): (("transpose", "clock"),),
    (-1, 0, 0, -1): (("transpose", "clock"), ("transpose", "clock")),
    (0, -1, 1, 0): (("transpose", "cclock"),),
    (-1, 0, 0, 1): (("hflip", None),),
    (1, 0, 0, -1): (("vflip", None),),
    (0, 1, 1, 0): (("transpose", "cclock_flip"),),
    (0, -1, -1, 0): (("transpose", "clock_flip"),),
}


class Converter:
    """Turns PyAV frames into uint8[h, w, 3]. A frame of another size is scaled to the clip's.

    Chroma is interpolated as FFmpeg's scale filter does by default; PyAV's own conversion places it
    differently where sizes are odd or samples have more than 8 bits. Angles between the quarter turns are
    taken as they lie.
    """

    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._graphs: dict[tuple[Any, ...], Any] = {}

    def rgb(self, frame: Any) -> NDArray[np.uint8]:
        """One frame."""
        filters = _UPRIGHT.get(_matrix(frame), ())
        key = (frame.width, frame.height, frame.format.name, filters)
        if key not in self._graphs:
            self._graphs = {key: self._graph(frame, filters)}
        graph = self._graphs[key]
        graph.push(frame)
        pixels: NDArray[np.uint8] = graph.pull().to_ndarray()
        return pixels

    def _graph(self, frame: Any, filters: tuple[tuple[str, str | None], ...]) -> Any:
        from fractions import Fraction

        from av.filter import Graph

        width, height = self._size
        if sum(name == "transpose" for name, _ in filters) % 2:
            width, height = height, width
        graph = Graph()
        nodes = [graph.add_buffer(None, frame.width, frame.height, frame.format, None, Fraction(1, 1000))]
        nodes += [graph.add(name, how) for name, how in filters]
        nodes.append(graph.add("scale", f"{width}:{height}"))
        nodes.append(graph.add("format", "pix_fmts=rgb24"))
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes).configure()
        return graph


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """The linear part of the frame's display matrix, each entry -1, 0 or 1."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return (1, 0, 0, 1)
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data)[:36])
    size = max(abs(a), abs(b), abs(c), abs(d), 1)
    return (round(a / size), round(b / size), round(c / size), round(d / size))
