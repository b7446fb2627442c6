"""The type between data and model: token rows, right-padded, and the media that they show.

Shapes: B batch, S positions, M placeholders, N media tokens, E encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Media:
    """The media of one kind in a batch; several placeholders, also of several rows, may show one item."""

    items: list[Tensor]  # pixels float[3, h, w], mels float[A, n], or features float[N, E] when `encoded`
    rows_M: Tensor  # int64, sample row of each placeholder
    positions_M: Tensor  # int64, its position in the row
    items_M: Tensor  # int64, the item it shows
    encoded: bool = False
    transcripts: list[tuple[int, ...]] = field(default_factory=list)  # tokens said in each item, where known

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Media:
        """Move the items (and cast them when `dtype` is given)."""
        return replace(self, items=[item.to(device, dtype) for item in self.items])

    def of_row(self, row: int) -> Media:
        """Return what one row shows, the row counted as the first."""
        here = (self.rows_M == row).nonzero()[:, 0]
        shown = self.items_M[here].unique()
        return replace(
            self,
            items=[self.items[item] for item in shown.tolist()],
            rows_M=torch.zeros_like(here),
            positions_M=self.positions_M[here],
            items_M=torch.searchsorted(shown, self.items_M[here]),
            transcripts=[self.transcripts[item] for item in shown.tolist()] if self.transcripts else [],
        )


@dataclass
class Batch:
    """Rows of one step. A kind of media that is absent is not a key of `media`.

    In packed rows several documents follow each other, numbered through the batch by `documents_BS`.
    """

    tokens_BS: Tensor  # int64, right-padded with 0; placeholders hold 0 too
    lengths_B: Tensor  # int64
    targets_BS: Tensor | None = None  # bool: this token is to be predicted, from the position before it
    documents_BS: Tensor | None = None  # int64, of packed rows: the document's number, -1 in the padding
    media: dict[str, Media] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)  # "file:line" of each row, or document, for messages
    # What a row, or document, says of itself to a step that asks for more than tokens.
    labels: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def positions_BS(self) -> Tensor | None:
        """Return int64[B, S] positions that begin anew with every document; None when rows are not packed."""
        return None if self.documents_BS is None else restarting(self.documents_BS)

    @property
    def num_samples(self) -> int:
        """Return the number of rows, or of the documents in packed ones."""
        return len(self.lengths_B) if self.documents_BS is None else int(self.documents_BS.max()) + 1

    def source_of(self, row: int, position: int) -> str:
        """Return the "file:line" of what stands at a position, or words for it where none was given."""
        number = row if self.documents_BS is None else int(self.documents_BS[row, position])
        return self.sources[number] if 0 <= number < len(self.sources) else f"row {row} of the batch"

    def said(self, kind: str) -> list[tuple[int, ...]]:
        """Return the tokens of what is said in each medium of a kind. Raises ValueError when that of one is unknown."""
        media = self.media[kind]
        if len(media.transcripts) != len(media.items) or not all(media.transcripts):
            raise ValueError(
                f"a recording of this batch has no transcript (near {self.source_of(0, 0)}), but what is said is "
                'needed here; give {"type": "audio", "path": ..., "transcript": ...}'
            )
        return media.transcripts

    def alone(self, row: int) -> Batch:
        """Return one row, unpadded, with the media that it shows, as a batch of its own."""
        length = int(self.lengths_B[row])
        kept, numbers = slice(row, row + 1), [row]
        documents_1S = None
        if self.documents_BS is not None:
            documents_1S = self.documents_BS[kept, :length]
            numbers = list(range(int(documents_1S.min()), int(documents_1S.max()) + 1))
            documents_1S = documents_1S - numbers[0]
        return Batch(
            self.tokens_BS[kept, :length],
            self.lengths_B[kept],
            None if self.targets_BS is None else self.targets_BS[kept, :length],
            documents_1S,
            {kind: part for kind, media in self.media.items() if (part := media.of_row(row)).items},
            [self.sources[number] for number in numbers] if self.sources else [],
            [self.labels[number] for number in numbers] if self.labels else [],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Move every tensor; `dtype` casts the media items."""
        move = {
            name: None if value is None else value.to(device)
            for name, value in (
                ("tokens_BS", self.tokens_BS),
                ("lengths_B", self.lengths_B),
                ("targets_BS", self.targets_BS),
                ("documents_BS", self.documents_BS),
            )
        }
        media = {kind: item.to(device, dtype) for kind, item in self.media.items()}
        return replace(self, media=media, **move)  # type: ignore[arg-type]


def restarting(documents_BS: Tensor) -> Tensor:
    """Return int64[B, S] positions that count from 0 in every document of packed rows."""
    places_S = torch.arange(documents_BS.shape[1], device=documents_BS.device)
    opens_BS = F.pad(documents_BS[:, 1:] != documents_BS[:, :-1], (1, 0), value=True)
    return places_S - torch.where(opens_BS, places_S, 0).cummax(1).values
