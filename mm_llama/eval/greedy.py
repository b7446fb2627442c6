"""Short answers to many prompts: one prefill per batch of equally long rows, then a few greedy steps.

Rows with the same text differ only above the lowest block that brings media in. Below it each distinct text
is computed once, and its states and cache are copied to the rows that share it: a closed set of questions
about many pictures needs little more than the layers that look at the pictures.

Shapes: B rows, S prompt positions, V vocabulary, D core width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_llama.batch import Batch
from mm_llama.core.cache import KVCache
from mm_llama.modality import MediaState
from mm_llama.model import MultimodalLlama


@dataclass
class Prefilled:
    """A batch after its prompt: what a next step needs."""

    logits_BV: Tensor  # float32, of the token after the prompt
    cache: KVCache
    media: MediaState | None
    length: int  # positions of the prompt


def prefill(model: MultimodalLlama, batch: Batch, *, num_new: int) -> Prefilled:
    """Run equally long prompts through the model, with room for `num_new` tokens more.

    Raises ValueError when rows differ in length.
    """
    batch, media = model.prepare(batch)
    tokens_BS = batch.tokens_BS
    B, S = tokens_BS.shape
    if bool((batch.lengths_B != S).any()):
        raise ValueError(f"prompts of one batch must be equally long, got lengths {batch.lengths_B.tolist()}")
    core = model.core
    slots_BS = torch.arange(S, device=tokens_BS.device).expand(B, S)
    first, share_B = _distinct(batch, media)
    lowest = _lowest_block(model, media)
    hidden = core.embedding(tokens_BS) if media is None else model.embed(tokens_BS, slots_BS, media)
    shared = KVCache(core.config, len(first), S + num_new, hidden.dtype, hidden.device)
    hidden = core.run(hidden[first], positions_BS=slots_BS[first], cache=shared, stop=lowest)
    cache = shared.select(share_B)
    hidden = hidden[share_B]
    if lowest < core.config.num_layers:
        assert media is not None
        between = model._between(media, slots_BS, batch.lengths_B)
        hidden = core.run(hidden, positions_BS=slots_BS, cache=cache, between=between, start=lowest)
    return Prefilled(core.logits(core.norm(hidden[:, -1])), cache, media, S)


def answer_greedily(
    model: MultimodalLlama, batch: Batch, *, stop: Collection[int], max_new_tokens: int
) -> list[list[int]]:
    """Return each row's greedy continuation up to a token of `stop`, which is left out."""
    state = prefill(model, batch, num_new=max_new_tokens)
    rows: list[list[int]] = [[] for _ in batch.tokens_BS]
    open_rows = set(range(len(rows)))
    next_B = state.logits_BV.argmax(-1)
    for step in range(max_new_tokens):
        for row, token in enumerate(next_B.tolist()):
            if row in open_rows:
                if token in stop:
                    open_rows.discard(row)
                else:
                    rows[row].append(token)
        if not open_rows or step == max_new_tokens - 1:
            break
        # Finished rows ride along: their tokens are not read, and no row sees another.
        positions_B1 = torch.full_like(next_B[:, None], state.length + step)
        logits = model(next_B[:, None], positions_BS=positions_B1, cache=state.cache, media=state.media)
        next_B = logits[:, -1].argmax(-1)
    return rows


def score_candidates(model: MultimodalLlama, batch: Batch, candidates: list[list[int]]) -> Tensor:
    """Return the log-likelihood of each candidate continuation (token ids, its end token included).

    float32[B, candidates]. A cache slot is a position, so candidates overwrite each other's slots in turn.
    """
    num_new = max(len(candidate) for candidate in candidates)
    state = prefill(model, batch, num_new=num_new)
    first_BV = state.logits_BV.log_softmax(-1)
    B = len(first_BV)
    scores = []
    for candidate in candidates:
        ids = torch.tensor(candidate, device=first_BV.device)
        score_B = first_BV[:, candidate[0]]
        if len(candidate) > 1:
            inputs = ids[:-1].expand(B, -1)
            positions = (state.length + torch.arange(len(candidate) - 1, device=ids.device)).expand(B, -1)
            logits = model(inputs, positions_BS=positions, cache=state.cache, media=state.media)
            following = logits.log_softmax(-1).gather(-1, ids[1:].expand(B, -1)[..., None])
            score_B = score_B + following.squeeze(-1).sum(-1)
        scores.append(score_B)
    return torch.stack(scores, dim=1)


def _distinct(batch: Batch, media: MediaState | None) -> tuple[Tensor, Tensor]:
    """Return (int64 rows, int64[B]): one row of each distinct text, and which of them every row shares.

    Spliced media are part of the text: rows share it when they hold the same ones.
    """
    places: list[list[tuple[str, int] | tuple[str, int, int]]] = [[] for _ in batch.tokens_BS]
    for kind, inserted in media.inserted.items() if media is not None else ():
        for (row, start), item in zip(inserted.places, inserted.items, strict=True):
            places[row].append((kind, start, item))
    for kind, shown in batch.media.items():
        for row, position in zip(shown.rows_M.tolist(), shown.positions_M.tolist(), strict=True):
            places[row].append((kind, position))
    seen: dict[tuple[object, ...], int] = {}
    first: list[int] = []
    share: list[int] = []
    for row, tokens in enumerate(batch.tokens_BS.tolist()):
        key = (tuple(tokens), tuple(sorted(places[row])))
        if key not in seen:
            seen[key] = len(first)
            first.append(row)
        share.append(seen[key])
    device = batch.tokens_BS.device
    return torch.tensor(first, device=device), torch.tensor(share, device=device)


def _lowest_block(model: MultimodalLlama, media: MediaState | None) -> int:
    """Return the lowest layer that looks at media; the number of layers when there are none."""
    layers = [model.core.config.num_layers]
    for attached in media.attached.values() if media is not None else ():
        layers += attached.keys_values
    return min(layers)
