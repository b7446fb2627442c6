"""Samples -> Batch: right padding, and every medium once however many rows show it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from mm_llama.batch import Batch, Media
from mm_llama.data.causes import medium_error
from mm_llama.data.samples import MediaRef, Sample

LoadMedia = Mapping[str, Callable[[MediaRef], Tensor]]


def collate(samples: Sequence[Sample], load_media: LoadMedia, *, encoded: Collection[str] = ()) -> Batch:
    """Pad samples to one Batch.

    `load_media[kind]` gives pixels float[3, h, w], or features float[N, E] for the kinds in `encoded`. A
    medium is loaded once a batch: samples that share its content key share the item. Kinds that no sample
    shows are no keys. Raises ValueError naming the sample whose medium cannot be loaded.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    lengths = [sample.num_tokens for sample in samples]
    tokens_BS = torch.zeros(len(samples), max(lengths), dtype=torch.long)
    targets_BS = torch.zeros(len(samples), max(lengths), dtype=torch.bool)
    for row, sample in enumerate(samples):
        assert len(sample.targets) == sample.num_tokens, sample.source
        tokens_BS[row, : lengths[row]] = torch.tensor(sample.tokens, dtype=torch.long)
        targets_BS[row, : lengths[row]] = torch.tensor(sample.targets, dtype=torch.bool)
    return Batch(
        tokens_BS=tokens_BS,
        lengths_B=torch.tensor(lengths, dtype=torch.long),
        targets_BS=targets_BS,
        media={
            kind: _media(samples, kind, load_media, kind in encoded)
            for kind in sorted({ref.kind for sample in samples for ref in sample.media})
        },
        sources=[sample.source for sample in samples],
        labels=[sample.labels for sample in samples],
    )


def load_item(ref: MediaRef, load_media: LoadMedia, source: str) -> Tensor:
    """Load one medium. Raises ValueError naming the row when it cannot be read."""
    if ref.kind not in load_media:
        raise ValueError(
            f"{source}: no reader for {ref.kind} media here; this run reads {sorted(load_media) or 'text'}"
        )
    try:
        return load_media[ref.kind](ref)
    except (ValueError, OSError, KeyError) as error:
        raise medium_error(source, ref.kind, error) from error


def _media(samples: Sequence[Sample], kind: str, load_media: LoadMedia, encoded: bool) -> Media:
    items: list[Tensor] = []
    numbers: dict[str, int] = {}
    rows, positions, shown, said = [], [], [], []
    for row, sample in enumerate(samples):
        for ref in sample.media:
            if ref.kind != kind:
                continue
            if ref.key not in numbers:
                numbers[ref.key] = len(items)
                items.append(load_item(ref, load_media, sample.source))
                said.append(ref.transcript)
            rows.append(row)
            positions.append(ref.position)
            shown.append(numbers[ref.key])
    return Media(
        items=items,
        rows_M=torch.tensor(rows, dtype=torch.long),
        positions_M=torch.tensor(positions, dtype=torch.long),
        items_M=torch.tensor(shown, dtype=torch.long),
        encoded=encoded,
        transcripts=said if any(said) else [],
    )
