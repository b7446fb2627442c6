"""Packed rows: several documents in one row, none of which sees another, so that little of a batch is padding.

A document keeps what it has in a row of its own: positions from 0, a block of the attention mask, spans of its own
media. Its states, loss and gradients are those of the unpacked batch, up to the order of float sums.

Shapes: B packed rows, S positions.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from mm_llama.batch import Batch
from mm_llama.data.collate import LoadMedia, collate
from mm_llama.data.samples import Sample

T = TypeVar("T")
Row = tuple[T, ...]


def collate_packed(
    rows: Sequence[Sequence[Sample]], load_media: LoadMedia, *, encoded: Collection[str] = ()
) -> Batch:
    """Collate rows of several documents each; a medium that several of them show is one item. As `collate`.

    Documents are numbered through the batch, in the order of `sources`; padding has the number -1.
    """
    batch = collate([_joined(row) for row in rows], load_media, encoded=encoded)
    documents_BS = torch.full_like(batch.tokens_BS, -1)
    number = 0
    for row, samples in enumerate(rows):
        start = 0
        for sample in samples:
            documents_BS[row, start : start + sample.num_tokens] = number
            start, number = start + sample.num_tokens, number + 1
    samples = [sample for row in rows for sample in row]
    return replace(
        batch,
        documents_BS=documents_BS,
        sources=[sample.source for sample in samples],
        labels=[sample.labels for sample in samples],
    )


def _joined(samples: Sequence[Sample]) -> Sample:
    """One long sample of several: tokens end to end, media where their documents went."""
    joined = Sample([], [], [], ", ".join(sample.source for sample in samples))
    for sample in samples:
        start = joined.num_tokens
        joined.media += [replace(ref, position=start + ref.position) for ref in sample.media]
        joined.tokens += sample.tokens
        joined.targets += sample.targets
    return joined


def cut(
    documents: Iterable[tuple[int, int, T]],
    *,
    batch_size: int,
    batch_tokens: int = 0,
    sort: bool = True,
    pack_tokens: int = 0,
    count: int = 0,
) -> list[tuple[Row[T], ...]]:
    """Cut (length, index, what) triples into batches of rows; without `pack_tokens` a row is one document.

    A batch has at most `batch_size` rows and `batch_tokens` padded positions (0: no limit). `sort` puts rows of like
    length together. `count` asks for that many batches, even ones, as far as there are rows. The rows of a batch, and
    the documents of a row, are otherwise in order of their indices.
    """
    rows = [(length, index, (what,)) for length, index, what in documents]
    if pack_tokens:
        rows = [_row(row) for row in evened(first_fit_decreasing(rows, pack_tokens))]
    if sort:
        rows.sort(key=lambda row: row[:2])
    if not pack_tokens and not count:
        return _greedy(rows, batch_size, batch_tokens)
    # A window gives few packed rows, so batches of equal size instead of full ones and a small last one.
    longest = max((length for length, _, _ in rows), default=1)
    most = min(batch_size, batch_tokens // longest) if batch_tokens else batch_size
    count = min(count, len(rows)) or -(-len(rows) // most)
    edges = [number * len(rows) // count for number in range(count + 1)] if count else [0]
    return [tuple(row for _, _, row in rows[start:end]) for start, end in zip(edges, edges[1:], strict=False)]


def first_fit_decreasing(
    documents: Iterable[tuple[int, int, T]], capacity: int
) -> list[list[tuple[int, int, T]]]:
    """Pack (length, index, what) triples into bins of `capacity`: the longest first, each where it first fits.

    Never more than 11/9 of the fewest possible bins, plus one (Dósa 2007). The result depends on lengths and indices
    alone. Raises ValueError for a document that fits in no bin.
    """
    bins: list[list[tuple[int, int, T]]] = []
    ordered = sorted(documents, key=lambda document: (-document[0], document[1]))
    left = np.zeros(len(ordered), dtype=np.int64)
    for document in ordered:
        if document[0] > capacity:
            raise ValueError(f"a document of {document[0]} tokens does not fit in a row of {capacity}")
        found = int(np.argmax(left[: len(bins)] >= document[0])) if bins else 0
        if not bins or left[found] < document[0]:
            found = len(bins)
            bins.append([])
            left[found] = capacity
        bins[found].append(document)
        left[found] -= document[0]
    return bins


def evened(bins: list[list[tuple[int, int, T]]]) -> list[list[tuple[int, int, T]]]:
    """Spread the contents of bins evenly over as many; bins whose longest would be longer come back as they are.

    A batch is as long as its longest row, so full bins beside a last one that is half empty waste half of that one.
    """
    longest = max((sum(length for length, _, _ in found) for found in bins), default=0)
    spread: list[list[tuple[int, int, T]]] = [[] for _ in bins]
    shortest = [(0, number) for number in range(len(bins))]
    documents = sorted((document for found in bins for document in found), key=lambda one: (-one[0], one[1]))
    for document in documents:
        load, number = heapq.heappop(shortest)
        if load + document[0] > longest:
            return bins
        spread[number].append(document)
        heapq.heappush(shortest, (load + document[0], number))
    return spread


def waste(
    lengths: Sequence[int],
    batch_size: int,
    *,
    bucket_batches: int = 1,
    batch_tokens: int = 0,
    pack_tokens: int = 0,
) -> float:
    """Return the share of the positions of an epoch's batches that hold no token, as the loader would cut them.

    `lengths` are those of the documents in the order of the mixture; the other arguments as in `Loader`.
    """
    window = batch_size * bucket_batches
    tokens = positions = 0
    for start in range(0, len(lengths), window):
        documents = [(length, index, length) for index, length in enumerate(lengths[start : start + window])]
        for batch in cut(
            documents,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            sort=bucket_batches > 1,
            pack_tokens=pack_tokens,
        ):
            rows = [sum(row) for row in batch]
            tokens += sum(rows)
            positions += len(rows) * max(rows)
    return 1 - tokens / max(1, positions)


def _row(documents: list[tuple[int, int, Any]]) -> tuple[int, int, Any]:
    """One packed row: its length, the index of its first document, the documents in their order."""
    documents = sorted(documents, key=lambda document: document[1])
    whole: Row[Any] = tuple(part for _, _, parts in documents for part in parts)
    return sum(length for length, _, _ in documents), documents[0][1], whole


def _greedy(
    rows: Sequence[tuple[int, int, Row[T]]], batch_size: int, batch_tokens: int
) -> list[tuple[Row[T], ...]]:
    """Consecutive rows to batches, each as full as the limits allow."""
    batches: list[tuple[Row[T], ...]] = []
    current: list[Row[T]] = []
    longest = 0
    for length, _, row in rows:
        longest = max(longest, length)
        if current and (
            len(current) == batch_size or (batch_tokens and longest * (len(current) + 1) > batch_tokens)
        ):
            batches.append(tuple(current))
            current, longest = [], length
        current.append(row)
    if current:
        batches.append(tuple(current))
    return batches
