"""States below the lowest media block, remembered across steps: no medium can change them.

Questions repeat over pictures and epochs, and up to its lowest block a row depends on its tokens alone. Each row
is computed by itself, so what is remembered does not depend on the batch that asked first, and a continued run
equals an unbroken one.

Shapes: B batch, S positions, D core width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mm_llama.modality import MediaState
    from mm_llama.model import MultimodalLlama


class Prefixes:
    """A bounded memo of the states that enter the lowest block, by row; least recently used rows go first.

    Valid while the core and the placeholder embeddings stay as they are: for stages that train neither.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self._rows: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()

    def __call__(
        self,
        model: MultimodalLlama,
        tokens_BS: Tensor,
        lengths_B: Tensor | None,
        media: MediaState,
        documents_BS: Tensor | None = None,
    ) -> tuple[int, Tensor]:
        """Return the lowest layer with a block and float[B, S, D] states that enter it, zero in the padding.

        Of packed rows, each document is remembered as the row that it would be by itself.
        """
        start = min(layer for attached in media.attached.values() for layer in attached.keys_values)
        B, S = tokens_BS.shape
        lengths = [S] * B if lengths_B is None else lengths_B.tolist()
        placeholders: list[list[tuple[int, str]]] = [[] for _ in range(B)]
        for kind, attached in media.attached.items():
            for row, slot in attached.placeholders:
                placeholders[row].append((slot, kind))
        states = torch.zeros(B, S, model.core.config.dim, dtype=model.dtype, device=model.device)
        for row, first, end in _pieces(lengths, documents_BS):
            shown = tuple(
                sorted((slot - first, kind) for slot, kind in placeholders[row] if first <= slot < end)
            )
            tokens_S = tokens_BS[row, first:end]
            key = (tuple(tokens_S.tolist()), shown, start)
            found = self._rows.get(key)
            if found is None:
                found = self._compute(model, tokens_S, shown, start)
                self._keep(key, found)
            else:
                self.hits += 1
                self._rows.move_to_end(key)
            states[row, first:end] = found
        return start, states

    def _compute(
        self, model: MultimodalLlama, tokens_S: Tensor, shown: Iterable[tuple[int, str]], start: int
    ) -> Tensor:
        self.misses += 1
        with torch.no_grad():
            states = model.core.embedding(tokens_S)
            for slot, kind in shown:
                states[slot] = model.modality[kind].adapter.placeholder.to(states.dtype)
            return model.core.run(states[None], stop=start)[0]

    def _keep(self, key: tuple[object, ...], states: Tensor) -> None:
        self._rows[key] = states
        self.num_bytes += states.nbytes
        while self.num_bytes > self.max_bytes and len(self._rows) > 1:
            _, dropped = self._rows.popitem(last=False)
            self.num_bytes -= dropped.nbytes


def _pieces(lengths: list[int], documents_BS: Tensor | None) -> Iterator[tuple[int, int, int]]:
    """Yield (row, first slot, end) of what is independent: each row, or each document of packed rows."""
    for row, length in enumerate(lengths):
        opens = [0]
        if documents_BS is not None:
            numbers = documents_BS[row, :length]
            opens += (1 + (numbers[1:] != numbers[:-1]).nonzero().flatten()).tolist()
        yield from ((row, first, end) for first, end in zip(opens, [*opens[1:], length], strict=True))
