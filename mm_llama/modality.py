"""How media join the core. The cross-attended port: blocks called between layers, on the positions that see media.

Which positions see what follows from message structure alone (the released rule, Llama 3.2): a placeholder at
position p opens [p, next placeholder of the row), consecutive placeholders share the later end, the last ones
reach the end of their document. Token ids are never searched.

Shapes: B batch, S positions, T gathered positions, G groups, L positions of a group, M media items, N media
tokens, D core width, K KV heads, d head width.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mm_llama.batch import Media

END = 2**62  # an open end: to wherever the row grows


@dataclass(frozen=True)
class Span:
    """Slots [start, end) of a row, and the media that they see."""

    row: int
    start: int
    end: int
    items: tuple[int, ...]


def visible_spans(media: Media, documents_BS: Tensor | None = None) -> list[Span]:
    """Return who sees what: spans of slots with the media that they see, in order.

    With packed rows (`documents_BS` int64[B, S]) a span ends with its document.
    """
    by_row: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row, position, item in zip(
        media.rows_M.tolist(), media.positions_M.tolist(), media.items_M.tolist(), strict=True
    ):
        by_row[row].append((position, item))
    spans = []
    for row, placeholders in sorted(by_row.items()):
        placeholders.sort()
        documents = None if documents_BS is None else documents_BS[row].tolist()
        for first, run in _runs(placeholders, documents):
            following = [position for position, _ in placeholders if position > run[-1][0]]
            end = following[0] if following else END
            if documents is not None:
                end = min(end, _document_end(documents, first))
            # Of consecutive placeholders, each sees those up to itself; what follows sees them all.
            items = tuple(item for _, item in run)
            for number, (position, _) in enumerate(run[:-1], start=1):
                spans.append(Span(row, position, position + 1, items[:number]))
            spans.append(Span(row, run[-1][0], end, items))
    return spans


def _runs(
    placeholders: list[tuple[int, int]], documents: list[int] | None
) -> list[tuple[int, list[tuple[int, int]]]]:
    """Group placeholders at consecutive positions of one document."""
    runs: list[tuple[int, list[tuple[int, int]]]] = []
    for position, item in placeholders:
        last = runs[-1][1][-1][0] if runs else None
        if last == position:
            raise ValueError(
                f"two media were put at position {position} of one row; each needs its own placeholder"
            )
        same = documents is None or last is None or documents[last] == documents[position]
        if last is not None and last == position - 1 and same:
            runs[-1][1].append((position, item))
        else:
            runs.append((position, [(position, item)]))
    return runs


def _document_end(documents: list[int], start: int) -> int:
    """Return the first slot past the document that holds `start`."""
    end = start
    while end < len(documents) and documents[end] == documents[start]:
        end += 1
    return end


@dataclass
class Plan:
    """One forward pass's gathered positions: T of them, in G groups."""

    index_T: Tensor  # int64 into the flattened [B * S] states
    ragged: (
        tuple[Tensor, Tensor] | None
    )  # int64[G, L] into T, int64[T] into G * L; None: equally long, in order
    items_GM: Tensor  # int64, each group's media
    present_GM: Tensor | None  # bool; None when all groups see equally many


def plan(spans: list[Span], slots_BS: Tensor, lengths_B: Tensor | None) -> Plan | None:
    """Find the positions of this pass that see media; None when there are none, and nothing is then called.

    `slots_BS` int64 are the row slots being computed; positions at or past `lengths_B` are padding.
    """
    rows = slots_BS.cpu()
    limits = None if lengths_B is None else lengths_B.tolist()
    S = rows.shape[1]
    groups: list[Tensor] = []
    seen: list[tuple[int, ...]] = []
    for span in spans:
        end = span.end if limits is None else min(span.end, limits[span.row])
        columns = ((rows[span.row] >= span.start) & (rows[span.row] < end)).nonzero().flatten()
        if len(columns):
            groups.append(columns + span.row * S)
            seen.append(span.items)
    if not groups:
        return None
    device = slots_BS.device
    lengths = [len(group) for group in groups]
    ragged = None
    if len(set(lengths)) > 1:
        longest, offset = max(lengths), 0
        queries, back = [], []
        for group, length in enumerate(lengths):
            columns = torch.arange(longest)
            # Padding queries repeat the group's first one; they are never read back.
            queries.append(offset + torch.where(columns < length, columns, 0))
            back.append(group * longest + torch.arange(length))
            offset += length
        ragged = (torch.stack(queries).to(device), torch.cat(back).to(device))
    widest = max(map(len, seen))
    items = torch.tensor([[*ids, *[ids[0]] * (widest - len(ids))] for ids in seen])
    present = None
    if any(len(ids) < widest for ids in seen):
        present = torch.tensor([[True] * len(ids) + [False] * (widest - len(ids)) for ids in seen]).to(device)
    return Plan(torch.cat(groups).to(device), ragged, items.to(device), present)


@dataclass
class AttachedMedia:
    """Media of one kind, encoded once: keys and values per layer, who sees them, where their placeholders are."""

    modality: CrossAttended
    spans: list[Span]
    keys_values: dict[int, tuple[Tensor, Tensor]]  # layer -> float[M, K, N, d] twice
    num_tokens_M: Tensor | None  # int64; None when all items have equally many tokens
    placeholders: list[tuple[int, int]]  # (row, slot)


@dataclass
class MediaState:
    """Everything a forward pass needs of the media of a batch."""

    attached: dict[str, AttachedMedia] = field(default_factory=dict)


class CrossAttended(nn.Module):
    """An encoder and the adapter that brings its features in between the core's layers."""

    def __init__(self, encoder: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        # Both are duck-typed: any module with the methods that `conf/` pairs here.
        self.encoder: Any = encoder
        self.adapter: Any = adapter

    def encode(self, media: Media, dtype: torch.dtype) -> list[Tensor]:
        """Return features float[N, E] per item; pictures of equal size are encoded together."""
        if media.encoded:
            return [item.to(dtype) for item in media.items]
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, item in enumerate(media.items):
            by_shape[item.shape].append(index)
        features: dict[int, Tensor] = {}
        for indices in by_shape.values():
            stacked = torch.stack([media.items[index] for index in indices])
            parameter = next(self.encoder.parameters(), None)
            if parameter is not None:
                stacked = stacked.to(parameter.dtype)
            features.update(zip(indices, self.encoder(stacked).to(dtype), strict=True))
        return [features[index] for index in range(len(media.items))]

    def attach(self, media: Media, dtype: torch.dtype, documents_BS: Tensor | None = None) -> AttachedMedia:
        """Encode, project and turn into keys and values, once per medium."""
        features = self.encode(media, dtype)
        counts = [len(item) for item in features]
        num_tokens = None
        if len(set(counts)) > 1:
            num_tokens = torch.tensor(counts, device=features[0].device)
        if num_tokens is None:
            tokens_MND = self.adapter.project(torch.stack(features))
        else:
            projected = [self.adapter.project(item[None])[0] for item in features]
            tokens_MND = nn.utils.rnn.pad_sequence(projected, batch_first=True)
        return AttachedMedia(
            modality=self,
            spans=visible_spans(media, documents_BS),
            keys_values=self.adapter.keys_values(tokens_MND),
            num_tokens_M=num_tokens,
            placeholders=list(zip(media.rows_M.tolist(), media.positions_M.tolist(), strict=True)),
        )

    def between(self, layer: int, hidden_BSD: Tensor, attached: AttachedMedia, plan: Plan) -> Tensor:
        """Return the states with this layer's block applied to the planned positions and to no others."""
        block = self.adapter.block(layer)
        if block is None:
            return hidden_BSD
        keys, values = attached.keys_values[layer]
        keys_G, values_G = _gather(keys, plan.items_GM), _gather(values, plan.items_GM)
        mask = _token_mask(plan, attached.num_tokens_M, keys.shape[2])
        flat = hidden_BSD.flatten(0, 1)
        new = block(flat.index_select(0, plan.index_T), keys_G, values_G, plan.ragged, mask)
        return flat.index_copy(0, plan.index_T, new.to(flat.dtype)).view_as(hidden_BSD)


def _gather(media_MKNd: Tensor, items_GM: Tensor) -> Tensor:
    """Lay each group's media side by side: float[G, K, m * N, d]."""
    if items_GM.shape[1] == 1:
        return media_MKNd.index_select(0, items_GM[:, 0])
    return media_MKNd[items_GM].permute(0, 2, 1, 3, 4).flatten(2, 3)


def _token_mask(plan: Plan, num_tokens_M: Tensor | None, N: int) -> Tensor | None:
    """Return bool[G, 1, m * N], or None when every gathered media token is real."""
    if num_tokens_M is None and plan.present_GM is None:
        return None
    G, m = plan.items_GM.shape
    mask = torch.ones(G, m, N, dtype=torch.bool, device=plan.items_GM.device)
    if num_tokens_M is not None:
        mask &= torch.arange(N, device=mask.device) < num_tokens_M[plan.items_GM][..., None]
    if plan.present_GM is not None:
        mask &= plan.present_GM[..., None]
    return mask.flatten(1)[:, None]
