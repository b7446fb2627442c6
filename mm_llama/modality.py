"""How media join the core. The cross-attended port: blocks called between layers, on the positions that see media.

Which positions see what follows from message structure alone (the released rule, Llama 3.2): a placeholder at
position p opens [p, next placeholder of the row), consecutive placeholders share the later end, the last ones
reach the end of their document. Token ids are never searched.

Media of a kind see no other kind: a clip's span goes on through a picture, and each kind has blocks of its own.

Shapes: B batch, S positions, T gathered positions, G groups, L positions of a group, M media items, m items of a
group, F frames, N media tokens, E encoder width, D core width, K KV heads, d head width.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mm_llama.batch import Media
from mm_llama.core.fan_out import take
from mm_llama.splice import Inserted, computing_in

END = 2**62  # an open end: to wherever the row grows


# A clip's frames go through the encoder this many at a time: its peak memory does not grow with the clip.
FRAMES_AT_ONCE = 32


@dataclass(frozen=True)
class Span:
    """Slots [start, end) of a row, and the media that they see: slot s sees the first s - start + 1 of `items`.

    So of consecutive placeholders each sees those up to itself, and what follows sees them all.
    """

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
            spans.append(Span(row, run[0][0], end, tuple(item for _, item in run)))
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
    """Gathered positions of one forward pass: T of them, in G groups that see equally many media."""

    index_T: Tensor  # int64 into the flattened [B * S] states
    ragged: (
        tuple[Tensor, Tensor] | None
    )  # int64[G, L] into T, int64[T] into G * L; None: equally long, in order
    items: tuple[tuple[int, ...], ...]  # each group's media, m of them
    seen_GL: Tensor | None  # int64, how many of the m each query sees; None: all
    everywhere: bool = False  # the T positions are all there are, in order: nothing need be gathered


def plan(spans: list[Span], slots_BS: Tensor, lengths_B: Tensor | None) -> list[Plan]:
    """Find the positions of this pass that see media; empty when there are none, and nothing is then called.

    `slots_BS` int64 are the row slots being computed; positions at or past `lengths_B` are padding.
    """
    # Numbers read back would be compiled anew at every position.
    if slots_BS.shape[1] == 1 and lengths_B is None and not torch.compiler.is_compiling():
        return _plan_of_step(spans, slots_BS)
    rows = slots_BS.cpu()
    limits = None if lengths_B is None else lengths_B.tolist()
    S = rows.shape[1]
    # Groups of unlike size apart: beside a long run of media a single one would be padded to as many.
    found: dict[int, list[tuple[Tensor, Tensor, tuple[int, ...]]]] = defaultdict(list)
    for span in spans:
        end = span.end if limits is None else min(span.end, limits[span.row])
        columns = ((rows[span.row] >= span.start) & (rows[span.row] < end)).nonzero().flatten()
        if len(columns):
            seen = (rows[span.row][columns] - span.start + 1).clamp(max=len(span.items))
            items = span.items[: int(seen.max())]
            found[len(items)].append((columns + span.row * S, seen, items))
    return [_plan_of(found[width], slots_BS.device) for width in sorted(found)]


def _plan_of_step(spans: list[Span], slots_B1: Tensor) -> list[Plan]:
    """Plan one position of every row, as each decoding step has it: what `plan` finds, without tensors."""
    slots = slots_B1.flatten().tolist()
    found: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        if span.start <= slots[span.row] < span.end:
            found[min(slots[span.row] - span.start + 1, len(span.items))].append(span)
    return [
        Plan(
            index_T=torch.tensor([span.row for span in found[width]], device=slots_B1.device),
            ragged=None,
            items=tuple(span.items[:width] for span in found[width]),
            seen_GL=None,
            everywhere=[span.row for span in found[width]] == list(range(len(slots))),
        )
        for width in sorted(found)
    ]


def _plan_of(groups: list[tuple[Tensor, Tensor, tuple[int, ...]]], device: torch.device) -> Plan:
    lengths = [len(index) for index, _, _ in groups]
    longest, width = max(lengths), len(groups[0][2])
    seen_T = torch.cat([seen for _, seen, _ in groups])
    ragged, offset = None, 0
    queries, back = [], []
    for group, length in enumerate(lengths):
        columns = torch.arange(longest)
        # Padding queries repeat the group's first one; they are never read back.
        queries.append(offset + torch.where(columns < length, columns, 0))
        back.append(group * longest + torch.arange(length))
        offset += length
    index_GL = torch.stack(queries)
    if len(set(lengths)) > 1:
        ragged = (index_GL.to(device), torch.cat(back).to(device))
    return Plan(
        index_T=torch.cat([index for index, _, _ in groups]).to(device),
        ragged=ragged,
        items=tuple(items for _, _, items in groups),
        seen_GL=None if bool((seen_T == width).all()) else seen_T[index_GL].to(device),
    )


@dataclass
class AttachedMedia:
    """Media of one kind, encoded once: keys and values per layer, who sees them, where their placeholders are."""

    modality: CrossAttended
    spans: list[Span]
    keys_values: dict[int, tuple[Tensor, Tensor]]  # layer -> float[M, K, N, d] twice
    num_tokens_M: Tensor | None  # int64; None when all items have equally many tokens
    placeholders: list[tuple[int, int]]  # (row, slot)
    # What the last pass gathered, by layer: a decoding step sees what the one before it saw.
    gathered: dict[int, tuple[tuple[tuple[int, ...], ...], Tensor, Tensor]] = field(default_factory=dict)

    def gather(self, layer: int, items: tuple[tuple[int, ...], ...]) -> tuple[Tensor, Tensor]:
        """Return each group's keys and values side by side, float[G, K, m * N, d] twice; copied only if need be."""
        keys, values = self.keys_values[layer]
        if items == tuple((item,) for item in range(len(keys))):
            return keys, values
        if len(items) == len(items[0]) == 1:
            (item,) = items[0]
            return keys[item : item + 1], values[item : item + 1]
        known = self.gathered.get(layer)
        if known is not None and known[0] == items:
            return known[1], known[2]
        index_GM = torch.tensor(items, device=keys.device)
        keys_G, values_G = (
            take(part, index_GM).permute(0, 2, 1, 3, 4).flatten(2, 3) for part in (keys, values)
        )
        if not torch.is_grad_enabled():
            self.gathered[layer] = (items, keys_G, values_G)
        return keys_G, values_G


@dataclass
class MediaState:
    """Everything a forward pass needs of the media of a batch."""

    attached: dict[str, AttachedMedia] = field(default_factory=dict)
    inserted: dict[str, Inserted] = field(default_factory=dict)


class CrossAttended(nn.Module):
    """An encoder and the adapter that brings its features in between the core's layers.

    With `reads` there is no encoder here: the features come from the encoder of the modality of that name, which
    stays the one copy. With `num_frames` the media are clips, of that many pictures each when they are read.
    """

    def __init__(
        self, encoder: nn.Module | None, adapter: nn.Module, *, reads: str = "", num_frames: int = 0
    ) -> None:
        super().__init__()
        if (encoder is None) != bool(reads):
            raise ValueError(
                "a modality has an encoder of its own or `reads` another one's, not both or none"
            )
        # Both are duck-typed: any module with the methods that `conf/` pairs here.
        self.encoder: Any = encoder
        self.adapter: Any = adapter
        self.reads = reads
        self.num_frames = num_frames

    def features(self, stacked: Tensor, encoder: Any) -> Tensor:
        """Encode equally shaped media: float[M, *picture] to [M, N, E], or clips [M, F, *picture] to [M, F, N, E]."""
        if not self.num_frames:
            return encoder(stacked)
        frames = stacked.flatten(0, 1)
        parts = [encoder(part) for part in frames.split(FRAMES_AT_ONCE)]
        return torch.cat(parts).unflatten(0, stacked.shape[:2])

    def encode(self, media: Media, dtype: torch.dtype, encoder: Any = None) -> list[Tensor]:
        """Return features per item, float[N, E] of a picture, float[F, N, E] of a clip; equal shapes go together.

        `encoder` defaults to this modality's own.
        """
        if media.encoded:
            return [item.to(dtype) for item in media.items]
        encoder = self.encoder if encoder is None else encoder
        parameter = next(encoder.parameters(), None)
        features: dict[int, Tensor] = {}
        for indices in _by_shape(media.items):
            stacked = torch.stack([media.items[index] for index in indices])
            if parameter is not None:
                stacked = stacked.to(parameter.dtype)
            with computing_in(dtype, encoder):
                encoded = self.features(stacked, encoder)
            features.update(zip(indices, encoded.to(dtype), strict=True))
        return [features[index] for index in range(len(media.items))]

    def attach(
        self, media: Media, dtype: torch.dtype, documents_BS: Tensor | None = None, encoder: Any = None
    ) -> AttachedMedia:
        """Encode, project and turn into keys and values, once per medium; arguments as in `encode`."""
        features = self.encode(media, dtype, encoder)
        groups = _by_shape(features)
        num_tokens = None
        if len(groups) == 1:
            tokens_MND = self.adapter.project(torch.stack(features))
        else:
            projected: dict[int, Tensor] = {}
            for indices in groups:
                tokens = self.adapter.project(torch.stack([features[index] for index in indices]))
                projected.update(zip(indices, tokens, strict=True))
            parts = [projected[index] for index in range(len(features))]
            tokens_MND = nn.utils.rnn.pad_sequence(parts, batch_first=True)
            if len({len(part) for part in parts}) > 1:
                num_tokens = torch.tensor([len(part) for part in parts], device=tokens_MND.device)
        return AttachedMedia(
            modality=self,
            spans=visible_spans(media, documents_BS),
            keys_values=self.adapter.keys_values(tokens_MND),
            num_tokens_M=num_tokens,
            placeholders=list(zip(media.rows_M.tolist(), media.positions_M.tolist(), strict=True)),
        )

    def between(self, layer: int, hidden_BSD: Tensor, attached: AttachedMedia, plans: list[Plan]) -> Tensor:
        """Return the states with this layer's block applied to the planned positions and to no others."""
        block = self.adapter.block(layer)
        if block is None:
            return hidden_BSD
        flat = hidden_BSD.flatten(0, 1)
        for found in plans:
            keys_G, values_G = attached.gather(layer, found.items)
            mask = _token_mask(found, attached.num_tokens_M, keys_G.shape[2])
            states_TD = flat if found.everywhere else flat.index_select(0, found.index_T)
            new = block(states_TD, keys_G, values_G, found.ragged, mask).to(flat.dtype)
            flat = new if found.everywhere else flat.index_copy(0, found.index_T, new)
        return flat.view_as(hidden_BSD)


def _by_shape(items: list[Tensor]) -> list[list[int]]:
    """Return the indices of equally shaped tensors together, in order of first appearance."""
    found: dict[torch.Size, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        found[item.shape].append(index)
    return list(found.values())


def _token_mask(plan: Plan, num_tokens_M: Tensor | None, total: int) -> Tensor | None:
    """Return bool[G, 1 or L, m * N], or None when every query sees every gathered media token."""
    if num_tokens_M is None and plan.seen_GL is None:
        return None
    device = plan.index_T.device
    G, m = len(plan.items), len(plan.items[0])
    mask_G1mN = torch.ones(G, 1, m, total // m, dtype=torch.bool, device=device)
    if num_tokens_M is not None:
        items_GM = torch.tensor(plan.items, device=device)
        mask_G1mN = torch.arange(total // m, device=device) < num_tokens_M[items_GM][:, None, :, None]
    if plan.seen_GL is not None:
        seen_GLm1 = torch.arange(m, device=device)[:, None] < plan.seen_GL[..., None, None]
        mask_G1mN = mask_G1mN & seen_GLm1
    return mask_G1mN.flatten(2)
