"""Step functions: pure, `step(model, batch) -> StepOutput`; the loop does the rest.

Shapes: B batch, S positions, T target positions, D core width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mm_llama.batch import Batch
from mm_llama.core.llama import Llama
from mm_llama.core.products import likeliest
from mm_llama.modality import MediaState
from mm_llama.model import MultimodalLlama

# Float32 logits of one chunk; more targets than fit are projected chunk by chunk, in the backward pass again.
LOGITS_BYTES = 64 * 2**20


@dataclass
class StepOutput:
    """What a step gives the loop: a sum over targets, so that micro-batches add up to the big batch."""

    loss_sum: Tensor  # float32 scalar
    num_targets: int
    metrics: dict[str, float] = field(default_factory=dict)  # means over the targets


def next_token(model: MultimodalLlama, batch: Batch) -> StepOutput:
    """Cross-entropy of the target tokens, each predicted from the position before it, in float32.

    Logits exist only where a target is predicted. Raises ValueError naming the source of a row whose targets
    cannot be predicted.
    """
    batch, media = model.prepare(batch)
    at_BS = predicting(batch)
    assert batch.targets_BS is not None
    labels_T = batch.tokens_BS[batch.targets_BS]
    states_TD = states(model, batch, media)[at_BS]
    loss_sum, num_correct = cross_entropy(model.core, states_TD, labels_T)
    num_targets = len(labels_T)
    return StepOutput(loss_sum, num_targets, {"accuracy": num_correct / max(1, num_targets)})


def count_targets(batch: Batch) -> int:
    """Return the number of terms of a batch's loss: its targets, or its rows where there are no targets."""
    return len(batch.tokens_BS) if batch.targets_BS is None else int(batch.targets_BS.sum())


def predicting(batch: Batch) -> Tensor:
    """Return bool[B, S]: positions whose next token is a target. Raises ValueError where it cannot be."""
    targets_BS = batch.targets_BS
    if targets_BS is None:
        raise ValueError("the next_token step needs targets, but this batch has none (targets_BS is None)")
    _refuse(
        batch,
        targets_BS[:, :1],
        "its first token is a target, but nothing comes before it to predict it from",
    )
    padding_BS = torch.arange(targets_BS.shape[1], device=targets_BS.device) >= batch.lengths_B[:, None]
    _refuse(batch, targets_BS & padding_BS, "a target lies in the padding, past the row's length")
    if batch.documents_BS is not None:
        changes_BS = batch.documents_BS[:, 1:] != batch.documents_BS[:, :-1]
        _refuse(
            batch,
            targets_BS & F.pad(changes_BS, (1, 0)),
            "the first token of a packed document is a target, but the one before it is another document's",
        )
    for kind, media in batch.media.items():
        placed_BS = torch.zeros_like(targets_BS)
        placed_BS[media.rows_M, media.positions_M] = True
        _refuse(
            batch,
            targets_BS & placed_BS,
            f"a placeholder of {kind} is a target, but placeholders have no token to predict",
        )
    return F.pad(targets_BS[:, 1:], (0, 1))


def cross_entropy(
    core: Llama, states_TD: Tensor, labels_T: Tensor, *, logits_bytes: int = LOGITS_BYTES
) -> tuple[Tensor, int]:
    """Return the summed float32 cross-entropy and the number of labels that have the largest logit.

    More targets than `logits_bytes` of float32 logits hold go in chunks that are projected again in the
    backward pass, so the logits of at most one chunk exist at a time.
    """
    per_chunk = max(1, logits_bytes // (4 * core.config.vocab_size))
    if len(labels_T) <= per_chunk:
        loss_sum, num_correct = _chunk_loss(core, states_TD, labels_T)
        return loss_sum, int(num_correct)
    loss_sum, num_correct = states_TD.new_zeros((), dtype=torch.float32), labels_T.new_zeros(())
    for states, labels in zip(states_TD.split(per_chunk), labels_T.split(per_chunk), strict=True):
        part, correct = checkpoint(
            _chunk_loss, core, states, labels, use_reentrant=False, preserve_rng_state=False
        )
        loss_sum, num_correct = loss_sum + part, num_correct + correct
    return loss_sum, int(num_correct)


def _chunk_loss(core: Llama, states_TD: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    logits_TV = core.logits(states_TD)
    num_correct = (likeliest(logits_TV.detach()) == labels_T).sum()
    return F.cross_entropy(logits_TV, labels_T, reduction="sum"), num_correct


def states(model: MultimodalLlama, batch: Batch, media: MediaState | None) -> Tensor:
    """Return the states after the core's last norm, float[B, S, D], of what `model.prepare` gave."""
    return model.hidden(
        batch.tokens_BS,
        lengths_B=batch.lengths_B,
        positions_BS=batch.positions_BS,
        documents_BS=batch.documents_BS,
        media=media,
    )


def _refuse(batch: Batch, wrong_BS: Tensor, why: str) -> None:
    if bool(wrong_BS.any()):
        row, position = wrong_BS.nonzero()[0].tolist()
        raise ValueError(f"{batch.source_of(row, position)}: {why}")
