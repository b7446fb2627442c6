"""Exact answers, teacher-forced: a row counts when every target token is the most likely one.

That is the same as greedy generation giving the reference answer and its end token, at the price of one forward
pass; rounding between cached and uncached passes aside.

Shapes: B batch, S positions, T target positions.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mm_llama.batch import Batch
from mm_llama.model import MultimodalLlama


def exact_answers(model: MultimodalLlama, batch: Batch) -> list[bool]:
    """Return, per row, whether every target token has the largest logit at the position before it."""
    with torch.inference_mode():
        batch, media = model.prepare(batch)
    assert batch.targets_BS is not None
    at_BS = torch.nn.functional.pad(batch.targets_BS[:, 1:], (0, 1))
    with torch.inference_mode():
        logits_TV = model(batch.tokens_BS, lengths_B=batch.lengths_B, media=media, at=at_BS)
        hit_T = logits_TV.argmax(-1) == batch.tokens_BS[batch.targets_BS]
        wrong_BS = torch.zeros_like(at_BS)
        wrong_BS[at_BS] = ~hit_T
    return [not wrong for wrong in wrong_BS.any(1).tolist()]


def answer_accuracy(model: MultimodalLlama, batches: Iterable[Batch]) -> dict[str, float]:
    """Return {"answers": share of rows answered exactly} over the batches."""
    rows = [right for batch in batches for right in exact_answers(model, batch)]
    return {"answers": sum(rows) / max(1, len(rows))}
