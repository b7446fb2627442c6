"""Shuffles as pure functions of a key: which row comes at which place, without going through the ones before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """A shuffle of range(size), int64[size], that depends on the key alone.

    Argsort of raw PCG64 output, because only bit generators (not `Generator.permutation`) promise the same
    stream in every numpy version.
    """
    order = np.argsort(np.random.PCG64(np.random.SeedSequence(list(key))).random_raw(size), kind="stable")
    order.setflags(write=False)
    return order


class BlockShuffle:
    """A shuffle whose reads stay close together: blocks in another order, then rows within a bounded buffer.

    A block is a shard, or a row group: a stretch that is cheap to read from its start to its end. The blocks are put
    behind each other in a shuffled order, and every `buffer` rows of that sequence are shuffled among themselves. So at
    any time the rows of at most `buffer` places are wanted, and a place's row is known without those before: there is
    nothing to refill when a run is resumed.
    """

    def __init__(self, ends: Sequence[int], buffer: int, *key: int) -> None:
        bounds = np.array([0, *ends], np.int64)
        self._starts, self._sizes = bounds[:-1], np.diff(bounds)
        self.buffer, self.key = buffer, key
        # Rows are asked for in their order: the last of each is enough.
        self._cycle, self._window = -1, (-1, -1)
        self._order = self._ends = self._within = np.zeros(0, np.int64)

    def row(self, cycle: int, index: int) -> int:
        """The row at place `index` of shuffle number `cycle`."""
        window, place = divmod(index, self.buffer)
        if cycle != self._cycle:
            self._order = permutation(len(self._sizes), *self.key, cycle, 0)
            self._ends = np.cumsum(self._sizes[self._order])
            self._cycle = cycle
        if (cycle, window) != self._window:
            size = min(self.buffer, int(self._ends[-1]) - window * self.buffer)
            self._within = permutation(size, *self.key, cycle, window + 1)
            self._window = (cycle, window)
        at = window * self.buffer + int(self._within[place])
        block = int(np.searchsorted(self._ends, at, side="right"))
        return int(self._starts[self._order[block]]) + at - (int(self._ends[block - 1]) if block else 0)
