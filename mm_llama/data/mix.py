"""Mixtures: which row comes at which place, as a pure function of (seed, epoch, index).

Without weights an epoch is every row of every source once, shuffled together. With weights, sources
alternate in a fixed pattern that keeps each source within one row of its share at every point, and each
source runs through its own shuffles, one after the other, however often its weight asks for it.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from mm_llama.data.order import BlockShuffle, permutation
from mm_llama.data.sources import Row, Source, blocks_of

MAX_PERIOD = 10_000


@dataclass(frozen=True, order=True)
class Place:
    """One row of one source of a mixture."""

    source: int
    row: int


class Mixture:
    """Sources and their weights.

    `weights` None: all rows of all sources once an epoch. Otherwise positive numbers, one a source, as
    shares of the samples; they are kept exactly when they have a common denominator up to 10,000.
    `epoch_size` is the length of an epoch (default: the number of rows of all sources); with weights an
    epoch is only a unit of counting. `buffer` 0 shuffles all rows, exactly; above 0, shards and row groups are
    shuffled, and rows among as many others (`BlockShuffle`): what a network disk reads in order.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epoch_size: int = 0,
        buffer: int = 0,
    ) -> None:
        if not sources:
            raise ValueError("a mixture needs at least one source (data.sources)")
        if seed < 0:
            raise ValueError(f"the data seed must not be negative, got {seed} (data.seed)")
        if buffer < 0:
            raise ValueError(f"loader.shuffle_buffer must be at least 0, got {buffer}")
        self.sources = list(sources)
        self.seed = seed
        self.shuffle = shuffle
        self._ends = list(accumulate(len(source) for source in self.sources))
        self.counts: list[int] = []  # with weights: rows of each source in one period of the pattern
        if weights is None:
            if epoch_size not in (0, self._ends[-1]):
                raise ValueError(
                    "epoch_size needs weights: without them an epoch is every row once (data.weights)"
                )
        else:
            self.counts = _shares(weights, len(self.sources))
            self._pattern = _pattern(self.counts)
            self._ranks = _ranks(self._pattern, len(self.sources))
        self.epoch_size = epoch_size or self._ends[-1]
        self._held: dict[
            int, tuple[int, NDArray[np.int64]]
        ] = {}  # source -> its cycle and the shuffle of that
        # Numbered as the exact shuffles are: the last for all sources together.
        self._blocks: list[BlockShuffle] = []
        if buffer and shuffle:
            ends = [blocks_of(source, buffer) for source in self.sources]
            starts = [0, *self._ends]
            together = [start + end for start, part in zip(starts, ends, strict=False) for end in part]
            self._blocks = [
                BlockShuffle(part, buffer, seed, number) for number, part in enumerate([*ends, together])
            ]
        identity = [seed, shuffle, self.epoch_size, self.counts, [source.digest for source in self.sources]]
        if self._blocks:
            identity.append(buffer)
        self.digest = "sha256:" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def __len__(self) -> int:
        return self.epoch_size

    def place(self, epoch: int, index: int) -> Place:
        """The row that stands at `index` of `epoch`."""
        if not 0 <= index < self.epoch_size or epoch < 0:
            raise IndexError(f"no sample {index} in epoch {epoch} of {self.epoch_size}")
        if not self.counts:
            flat = self._shuffled(self._ends[-1], epoch, len(self.sources), index)
            source = bisect_right(self._ends, flat)
            return Place(source, flat - (self._ends[source - 1] if source else 0))
        period, step = divmod(epoch * self.epoch_size + index, len(self._pattern))
        source = self._pattern[step]
        turn = period * self.counts[source] + self._ranks[step]
        cycle, turn = divmod(turn, len(self.sources[source]))
        return Place(source, self._shuffled(len(self.sources[source]), cycle, source, turn))

    def read_ahead(self, places: Sequence[Place]) -> None:
        """Let the sources that can fetch these rows before they are asked for; only with a bounded `buffer`."""
        for number, source in enumerate(self.sources if self._blocks else ()):
            fetch = getattr(source, "read_ahead", None)
            rows = [place.row for place in places if place.source == number]
            if fetch is not None and rows:
                fetch(rows)

    def row(self, place: Place) -> Row:
        """The row at a place."""
        return self.sources[place.source].row(place.row)

    def name_of(self, place: Place) -> str:
        """`file:line` of a place."""
        return self.sources[place.source].name_of(place.row)

    def _shuffled(self, size: int, cycle: int, source: int, index: int) -> int:
        if self._blocks:
            return self._blocks[source].row(cycle, index)
        if not self.shuffle:
            return index
        held = self._held.get(source)
        if held is None or held[0] != cycle:
            held = self._held[source] = cycle, permutation(size, self.seed, source, cycle)
        return int(held[1][index])


def _shares(weights: Sequence[float], num_sources: int) -> list[int]:
    """Whole-number shares in one period, by largest remainder when the exact period would be too long."""
    if len(weights) != num_sources:
        raise ValueError(f"{num_sources} sources need as many weights, got {len(weights)} (data.weights)")
    for number, weight in enumerate(weights):
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight {number} must be a positive number, got {weight} (data.weights)")
    # Through text: 0.1 means a tenth, not the binary number next to it.
    exact = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    counts = [int(weight * scale) for weight in exact]
    counts = [count // gcd(*counts) for count in counts]
    if sum(counts) > MAX_PERIOD:
        quotas = [Fraction(count * MAX_PERIOD, sum(counts)) for count in counts]
        counts = [int(quota) for quota in quotas]
        by_remainder = sorted(range(num_sources), key=lambda i: (counts[i] - quotas[i], i))
        for i in by_remainder[: MAX_PERIOD - sum(counts)]:
            counts[i] += 1
        if 0 in counts:
            raise ValueError(
                f"weight {weights[counts.index(0)]} is below one {MAX_PERIOD}th of the mixture: "
                "raise it or leave the source out (data.weights)"
            )
    return counts


def _pattern(counts: Sequence[int]) -> list[int]:
    """Order of the sources in one period: earliest deadline first keeps every prefix within one of its quota.

    The k-th row of a source may come from step floor(k P / n) on and must come before step ceil((k + 1) P /
    n), as in proportionate-fair scheduling (Baruah et al. 1996) with one processor.
    """
    period = sum(counts)
    taken = [0] * len(counts)
    pattern = []
    for step in range(period):
        due = [
            (-(-(taken[i] + 1) * period // counts[i]), i)
            for i in range(len(counts))
            if taken[i] < counts[i] and taken[i] * period // counts[i] <= step
        ]
        _, source = min(due)
        taken[source] += 1
        pattern.append(source)
    return pattern


def _ranks(pattern: Sequence[int], num_sources: int) -> list[int]:
    """For each step of the pattern, how often its source came before."""
    seen = [0] * num_sources
    ranks = []
    for source in pattern:
        ranks.append(seen[source])
        seen[source] += 1
    return ranks
