"""Attention in packed rows: each document by itself, so its cost follows the documents and not the row.

Documents of like length are attended to together, padded on the right to the longest of them; under a causal mask no
token sees that padding, and its results are not read back. What is in one document takes no part in another's sums.

Shapes: B rows, S positions, n documents of a group, L positions of the longest, H heads, K KV heads, d head width.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mm_llama.core.layers import attend

SHORT = 16  # documents up to this length share a group


@dataclass(frozen=True)
class Order:
    """Where vectors [B, S, heads] go in groups [n, heads, L], end to end, and where they come back from."""

    there: Tensor  # int64[sum of n * heads * L] into B * S * heads; padding repeats its document's first position
    back: Tensor  # int64[B * S * heads]
    padding: Tensor  # bool[sum of n * heads * L, 1]


@dataclass(frozen=True)
class Documents:
    """The documents of packed rows, by groups of like length."""

    groups: tuple[
        tuple[Tensor, Tensor], ...
    ]  # of each: int64[n, L] positions into B * S, bool[n, L] real ones
    masks: tuple[Tensor, ...]  # bool[1, L, L] of each group
    orders: dict[int, Order] = field(default_factory=dict)  # by number of heads, the same in every layer

    def order(self, heads: int) -> Order:
        """Return the order of vectors of so many heads."""
        if heads not in self.orders:
            self.orders[heads] = _order(self.groups, heads)
        return self.orders[heads]


def find_documents(documents_BS: Tensor) -> Documents:
    """Find the documents of int64[B, S] numbers: a document is a run of equal numbers in a row."""
    B, S = documents_BS.shape
    device = documents_BS.device
    numbers = documents_BS.cpu()
    opens_BS = torch.ones(B, S, dtype=torch.bool)
    opens_BS[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    starts = opens_BS.flatten().nonzero().flatten()
    lengths = torch.diff(starts, append=torch.tensor([B * S]))
    by_width: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths.tolist()):
        by_width[max(SHORT, 1 << (length - 1).bit_length())].append(number)
    groups, masks = [], []
    for _, members in sorted(by_width.items()):
        columns_L = torch.arange(int(lengths[members].max()))
        real_nL = columns_L < lengths[members, None]
        # Padding repeats a position of its own document: what is not finite elsewhere stays there.
        positions_nL = starts[members, None] + torch.where(real_nL, columns_L, 0)
        groups.append((positions_nL.to(device), real_nL.to(device)))
        masks.append(columns_L.to(device)[None, :, None] >= columns_L.to(device))
    return Documents(tuple(groups), tuple(masks))


def attend_documents(q_BHSd: Tensor, k_BKSd: Tensor, v_BKSd: Tensor, documents: Documents) -> Tensor:
    """Return float[B, H, S, d]: every position attends to itself and what is before it in its document."""
    B, H, S, d = q_BHSd.shape
    parts = []
    for x in (q_BHSd, k_BKSd, v_BKSd):
        order, heads = documents.order(x.shape[1]), x.shape[1]
        grouped = _Rearranged.apply(x.transpose(1, 2).reshape(-1, d), order.there, order.back, None)
        sizes = [positions_nL.numel() * heads for positions_nL, _ in documents.groups]
        parts.append(grouped.split(sizes))
    results = []
    for (positions_nL, _), mask, q, k, v in zip(documents.groups, documents.masks, *parts, strict=True):
        n, L = positions_nL.shape
        q_nHLd, k_nKLd, v_nKLd = (x.view(n, -1, L, d) for x in (q, k, v))
        results.append(attend(q_nHLd, k_nKLd, v_nKLd, mask).reshape(-1, d))
    order = documents.order(H)
    out = _Rearranged.apply(torch.cat(results), order.back, order.there, order.padding)
    return out.view(B, S, H, d).transpose(1, 2)


def _order(groups: tuple[tuple[Tensor, Tensor], ...], heads: int) -> Order:
    there, padding = [], []
    for positions_nL, real_nL in groups:
        head_h1 = torch.arange(heads, device=positions_nL.device)[:, None]
        there.append((positions_nL[:, None] * heads + head_h1).flatten())
        padding.append(~real_nL[:, None].expand(-1, heads, -1).flatten())
    all_there, all_padding = torch.cat(there), torch.cat(padding)
    places = (~all_padding).nonzero().flatten()
    back = torch.empty_like(places)
    back[all_there[places]] = places
    return Order(all_there, back, all_padding[:, None])


class _Rearranged(torch.autograd.Function):
    """`x[there]`, whose gradient is `gradient[back]`: both ways only read, nothing is added up.

    Rows that padding repeats get the gradient of the original alone, because that of padding is zero: `padding` makes
    it so where results come back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, padding: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, padding)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        back, padding = ctx.saved_tensors
        before = gradient.index_select(0, back)
        return before if padding is None else before.masked_fill(padding, 0), None, None, None
