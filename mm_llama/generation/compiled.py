"""The repeated step of generation under `torch.compile`: one shape for the whole answer, no number read back.

The plain step sees as many slots as are in use, which is least work but a new shape each time. The compiled one
always sees the whole cache, masked, so it is compiled once for a batch size and a cache length.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from mm_llama.core.cache import KVCache, Slots

_ROUND = 256  # cache lengths are rounded up to this, so that answers of like length share compiled code


class FixedShapeCache(KVCache):
    """A cache whose single new positions see every slot, later ones masked, whatever is in use."""

    def slots(self, positions_BS: Tensor) -> Slots:
        """Plan a pass; several new positions at once (a prompt) are planned as in any cache."""
        if positions_BS.shape[1] > 1:
            return super().slots(positions_BS)
        return Slots(self, positions_BS, self.length, None)


def rounded_length(length: int, max_context: int) -> int:
    """The cache length to use for `length` positions."""
    return min(-(-length // _ROUND) * _ROUND, max_context)


@functools.cache
def compiled(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`step` compiled; one function for all calls and models, so that what was compiled is found again."""
    return torch.compile(step, dynamic=False)
