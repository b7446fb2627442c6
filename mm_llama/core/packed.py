"""Attention in packed rows: each document by itself, so its cost follows the documents and not the row.

Documents of like length are attended to together, padded on the right to the longest of them; under a causal mask no
token sees that padding, and its results are not read back. What is in one document takes no part in another's sums.

Shapes: B rows, S positions, T = B * S, n documents of a group, L positions of the longest, H heads, K KV heads, d head
width.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_llama.core.layers import attend

SHORT = 16  # documents up to this length share a group


@dataclass(frozen=True)
class Documents:
    """Where the documents of packed rows stand, by groups of like length."""

    sizes: tuple[tuple[int, int], ...]  # (n, L) of each group
    masks: tuple[Tensor, ...]  # bool[1, L, L] of each group
    order: Tensor  # int64, the n * L positions of all groups, into T
    back_T: Tensor  # int64, where among those each position stands


def find_documents(documents_BS: Tensor) -> Documents:
    """Find the documents of int64[B, S] numbers: a document is a run of equal numbers in a row."""
    B, S = documents_BS.shape
    device = documents_BS.device
    numbers = documents_BS.cpu()
    opens_BS = torch.ones(B, S, dtype=torch.bool)
    opens_BS[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    starts = opens_BS.flatten().nonzero().flatten()
    lengths = torch.diff(starts, append=torch.tensor([B * S]))
    groups: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths.tolist()):
        groups[max(SHORT, 1 << (length - 1).bit_length())].append(number)
    sizes, masks, orders = [], [], []
    back_T = torch.empty(B * S, dtype=torch.long)
    total = 0
    for width in sorted(groups):
        first_n1, length_n1 = starts[groups[width], None], lengths[groups[width], None]
        n, L = len(first_n1), int(length_n1.max())
        columns_L = torch.arange(L)
        real_nL = columns_L < length_n1
        # Padding repeats the document's first position: a real one, so that nothing there is not finite.
        positions_nL = first_n1 + torch.where(real_nL, columns_L, 0)
        back_T[positions_nL[real_nL]] = total + real_nL.flatten().nonzero().flatten()
        total += n * L
        sizes.append((n, L))
        masks.append(torch.ones(L, L, dtype=torch.bool, device=device).tril()[None])
        orders.append(positions_nL.flatten())
    return Documents(tuple(sizes), tuple(masks), torch.cat(orders).to(device), back_T.to(device))


def attend_documents(q_BHSd: Tensor, k_BKSd: Tensor, v_BKSd: Tensor, documents: Documents) -> Tensor:
    """Return float[B, H, S, d]: every position attends to itself and what is before it in its document."""
    B, H, S, d = q_BHSd.shape
    parts = [
        x.transpose(1, 2).reshape(B * S, -1, d).index_select(0, documents.order)
        for x in (q_BHSd, k_BKSd, v_BKSd)
    ]
    results, start = [], 0
    for (n, L), mask in zip(documents.sizes, documents.masks, strict=True):
        q, k, v = (part[start : start + n * L].unflatten(0, (n, L)).transpose(1, 2) for part in parts)
        results.append(attend(q, k, v, mask).transpose(1, 2).reshape(n * L, H, d))
        start += n * L
    return torch.cat(results).index_select(0, documents.back_T).view(B, S, H, d).transpose(1, 2)
