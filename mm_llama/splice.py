"""The spliced port: embeddings put in place of media placeholders in the token stream (paper section 8.1).

A placeholder is one position of a rendered row; the medium behind it takes as many as it has embeddings, which only
the model knows. So rows are made longer where they meet the model, and everything else of the batch (targets,
documents, the places of other media) moves along. Batches without spliced media pass through untouched.

Shapes: B rows, S positions, M placeholders, A mel frames, T encoder frames, E encoder width, D core width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mm_llama.batch import Batch, Media


@dataclass
class Inserted:
    """Where the media of one kind stand: row, first slot and embeddings float[n, D] of each placeholder."""

    places: list[tuple[int, int]]
    embeddings: list[Tensor]
    items: tuple[int, ...]  # which medium each is: equal numbers are one medium

    @property
    def end(self) -> int:
        """The first slot past all of them."""
        return max((start + len(part) for (_, start), part in self._all()), default=0)

    def _all(self) -> list[tuple[tuple[int, int], Tensor]]:
        return list(zip(self.places, self.embeddings, strict=True))

    def rows(self, new: Mapping[int, int]) -> Inserted:
        """Return what is left when only the rows that are keys of `new` stay, under their new numbers."""
        kept = [number for number, (row, _) in enumerate(self.places) if row in new]
        return Inserted(
            [(new[self.places[number][0]], self.places[number][1]) for number in kept],
            [self.embeddings[number] for number in kept],
            tuple(self.items[number] for number in kept),
        )

    def put(self, hidden_BSD: Tensor, first: Sequence[int]) -> Tensor:
        """Return the embedded tokens of slots `first[row]`.. with these embeddings in their places."""
        S = hidden_BSD.shape[1]
        index, parts = [], []
        for (row, start), part in self._all():
            low, high = max(start, first[row]), min(start + len(part), first[row] + S)
            if low < high:
                index.append(torch.arange(low, high) + row * S - first[row])
                parts.append(part[low - start : high - start])
        if not index:
            return hidden_BSD
        values = torch.cat(parts).to(hidden_BSD.dtype)
        where = torch.cat(index).to(hidden_BSD.device)
        return hidden_BSD.flatten(0, 1).index_copy(0, where, values).view_as(hidden_BSD)


def computing_in(dtype: torch.dtype, encoder: nn.Module) -> AbstractContextManager[Any]:
    """Return the context in which an encoder that trains, held in float32, computes in the `dtype` of its core.

    The adapters do so by themselves (`core.layers.Linear`). An encoder of which nothing trains computes as it is held.
    """
    trained = next((weight for weight in encoder.parameters() if weight.requires_grad), None)
    if trained is None or trained.dtype != torch.float32 or dtype == torch.float32:
        return nullcontext()
    return torch.autocast(trained.device.type, dtype=dtype)


class Spliced(nn.Module):
    """An encoder and the adapter whose embeddings enter the token stream."""

    # What `CrossAttended` has too: no other modality's encoder, no frames of a clip.
    reads = ""
    num_frames = 0

    def __init__(self, encoder: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        # Both are duck-typed: any module with the methods that `conf/` pairs here.
        self.encoder: Any = encoder
        self.adapter: Any = adapter

    def features(self, items: Sequence[Tensor], encoder: Any) -> list[Tensor]:
        """Encode mels float[A, n] of any lengths together: a float[T, E] for each, no padding in it."""
        if len(items) == 1:
            return [encoder(items[0][None])[0]]
        lengths_M = torch.tensor([len(item) for item in items], device=items[0].device)
        encoded_MTE = encoder(nn.utils.rnn.pad_sequence(list(items), batch_first=True), lengths_M)
        num_frames = encoder.num_frames(lengths_M).tolist()
        return [part[:count] for part, count in zip(encoded_MTE, num_frames, strict=True)]

    def encode(self, media: Media, dtype: torch.dtype, encoder: Any = None) -> list[Tensor]:
        """Return features float[T, E] per item; `encoder` defaults to this modality's own."""
        if media.encoded:
            return [item.to(dtype) for item in media.items]
        encoder = self.encoder if encoder is None else encoder
        parameter = next(encoder.parameters())
        items = [item.to(parameter.dtype) for item in media.items]
        with computing_in(dtype, encoder):
            features = self.features(items, encoder)
        return [part.to(dtype) for part in features]

    def embed(self, media: Media, table_VD: Tensor) -> list[Tensor]:
        """Return float[n, D] of each item, its own tokens around it included; `table_VD` are the core's embeddings."""
        return self.adapter(self.encode(media, table_VD.dtype), table_VD)

    def num_positions(self, num_frames: int) -> int:
        """Return how many positions a medium of so many encoder frames takes, at most."""
        return int(self.adapter.num_positions(num_frames))


def spliced(batch: Batch, embeddings: Mapping[str, list[Tensor]]) -> tuple[Batch, dict[str, Inserted]]:
    """Make room for the embeddings of each kind's media: the longer batch, without them, and where each stands.

    No row gets padding inside; rows differ in length as their media do. Raises ValueError, naming the row, when a
    placeholder is a target.
    """
    B, S = batch.tokens_BS.shape
    device = batch.tokens_BS.device
    counts_BS = torch.ones(B, S, dtype=torch.long)
    for kind, parts in embeddings.items():
        media = batch.media[kind]
        for row, position, item in _placeholders(media):
            if batch.targets_BS is not None and bool(batch.targets_BS[row, position]):
                raise ValueError(
                    f"{batch.source_of(row, position)}: a placeholder of {kind} is a target, but placeholders have no "
                    "token to predict"
                )
            counts_BS[row, position] = len(parts[item])
    lengths = batch.lengths_B.tolist()
    # Slot in which what stood at an old position now begins.
    begins_BS = counts_BS.cumsum(1) - counts_BS
    grown = [int(begins_BS[row, length - 1] + counts_BS[row, length - 1]) if length else 0
             for row, length in enumerate(lengths)]  # fmt: skip
    longest = max(grown)
    source_BS = torch.zeros(B, longest, dtype=torch.long)
    real_BS = torch.zeros(B, longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        source_BS[row, : grown[row]] = torch.repeat_interleave(torch.arange(length), counts_BS[row, :length])
        real_BS[row, : grown[row]] = True
    source_BS, real_BS = source_BS.to(device), real_BS.to(device)

    def moved(values: Tensor | None, padding: int) -> Tensor | None:
        return None if values is None else values.gather(1, source_BS).masked_fill(~real_BS, padding)

    tokens_BS = moved(batch.tokens_BS, 0)
    assert tokens_BS is not None
    begins = begins_BS.tolist()
    inserted = {
        kind: Inserted(
            [(row, begins[row][position]) for row, position, _ in _placeholders(batch.media[kind])],
            [parts[item] for _, _, item in _placeholders(batch.media[kind])],
            tuple(batch.media[kind].items_M.tolist()),
        )
        for kind, parts in embeddings.items()
    }
    others = {
        kind: replace(media, positions_M=begins_BS[media.rows_M.cpu(), media.positions_M.cpu()])
        for kind, media in batch.media.items()
        if kind not in embeddings
    }
    longer = replace(
        batch,
        tokens_BS=tokens_BS,
        lengths_B=torch.tensor(grown, device=batch.lengths_B.device),
        targets_BS=moved(batch.targets_BS, 0),
        documents_BS=moved(batch.documents_BS, -1),
        media=others,
    )
    return longer, inserted


def _placeholders(media: Media) -> list[tuple[int, int, int]]:
    return list(zip(media.rows_M.tolist(), media.positions_M.tolist(), media.items_M.tolist(), strict=True))
