"""Losses that leap: told when it happens, with the rows of the batch, since a week later nobody can find them."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

WINDOW = 64  # losses that a new one is held beside
LEAST = 16  # losses before anything is said
# What makes the median absolute deviation of a normal distribution its standard deviation.
NORMAL = 1.4826


class Spikes:
    """Holds each loss beside the median of those before it; `deviations` is how far away a spike is, 0 for never.

    The scale is the median absolute deviation from that median, which spikes themselves do not widen.
    """

    def __init__(self, deviations: float, losses: Iterable[float] = ()) -> None:
        if deviations < 0:
            raise ValueError(
                f"stage.spike={deviations} is a number of deviations, expected 0 (never) or more"
            )
        self.deviations = deviations
        self._losses = deque(losses, WINDOW)

    def meet(self, loss: float) -> float:
        """Take the loss of a step; return how many times the median it is when it is a spike, else 0."""
        before = list(self._losses)
        self._losses.append(loss)
        if not self.deviations or len(before) < LEAST:
            return 0.0
        median = statistics.median(before)
        scale = NORMAL * statistics.median([abs(one - median) for one in before])
        # Twice the median at least: where losses hardly differ, everything is many deviations away.
        if loss > median + self.deviations * scale and loss > 2 * median > 0:
            return loss / median
        return 0.0
