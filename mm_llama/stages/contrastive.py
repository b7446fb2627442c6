"""The step that pre-trains an image encoder: a picture finds its caption among those of the batch, and it its picture.

The losses are exact when rows are shared out over ranks: each rank holds its own rows against everyone's, and what it
finds about another rank's rows goes back to that rank. The sum over ranks is the loss of the whole batch, and the sum
over ranks of a gradient is its gradient. Micro-batches, in contrast, are batches of their own: rows of one are not
held against rows of another.

Shapes: B rows of this rank, G rows of all ranks, S tokens of a caption, J width of the vectors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from mm_llama.batch import Batch
from mm_llama.model import MultimodalLlama
from mm_llama.stages.steps import StepOutput

_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)


class Contrastive:
    """`step(model, batch) -> StepOutput` over rows of one picture and one caption (what the assistant says).

    The adapter of `kind` says which loss. Rows that show the same picture or have the same caption are not held
    against each other.
    """

    def __init__(self, kind: str = "image") -> None:
        self.kind = kind

    def __call__(self, model: MultimodalLlama, batch: Batch) -> StepOutput:
        """Return the loss summed over rows; raises ValueError naming a row without one picture and one caption."""
        adapter = model.modality[self.kind].adapter
        pictures_BJ, captions_BJ, keys_B2 = self.vectors(model, batch)
        if adapter.loss == "softmax":
            loss_sum, num_right = softmax_loss(pictures_BJ, captions_BJ, keys_B2, adapter.scale)
        else:
            loss_sum, num_right = sigmoid_loss(
                pictures_BJ, captions_BJ, keys_B2, adapter.scale, adapter.bias.float()
            )
        rows = len(keys_B2)
        metrics = {"accuracy": int(num_right) / rows, "scale": float(adapter.scale.detach())}
        return StepOutput(loss_sum, rows, metrics)

    def count(self, batch: Batch) -> int:
        """Return the number of terms of a batch's loss: its rows."""
        return len(batch.tokens_BS)

    def vectors(self, model: MultimodalLlama, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit vectors float32[B, J] of pictures and of captions, and int64[B, 2]: what a row shows and says."""
        modality: Any = model.modality[self.kind]
        tokens_BS, lengths_B, items_B = pairs(batch, self.kind, modality.adapter.max_tokens)
        media = batch.media[self.kind]
        features = modality.encode(media, torch.float32, model.encoder_of(self.kind))
        vectors: dict[int, Tensor] = {}
        for length in dict.fromkeys(len(item) for item in features):
            chosen = [index for index, item in enumerate(features) if len(item) == length]
            projected = modality.adapter.pictures(torch.stack([features[index] for index in chosen]))
            vectors.update(zip(chosen, projected, strict=True))
        pictures_BJ = torch.stack([vectors[index] for index in range(len(features))])[items_B]
        captions_BJ = modality.adapter.captions(model.core.embedding(tokens_BS).float(), lengths_B)
        shown_M = torch.stack([content_key(item) for item in media.items])
        said_B = torch.stack([content_key(row[:n]) for row, n in zip(tokens_BS, lengths_B, strict=True)])
        return pictures_BJ, captions_BJ, torch.stack([shown_M[items_B], said_B], dim=1)

    def evaluate(self, model: MultimodalLlama, batches: Iterable[Batch]) -> dict[str, float]:
        """Return how often a picture finds its caption among all distinct captions of the batches, and it a picture."""
        found = [self.vectors(model, batch) for batch in batches]
        pictures, captions, keys = (torch.cat(parts) for parts in zip(*found, strict=True))
        scores: dict[str, float] = {}
        for name, queries, answers, asked, answered in (
            ("image_to_text", pictures, captions, 0, 1),
            ("text_to_image", captions, pictures, 1, 0),
        ):
            scores |= {
                f"{name}_{key}": value
                for key, value in retrieval(queries, answers, keys[:, asked], keys[:, answered]).items()
            }
        return scores


def softmax_loss(
    pictures_BJ: Tensor, captions_BJ: Tensor, keys_B2: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return half the cross-entropy of each own picture over all captions and of each own caption over all pictures.

    Summed over this rank's rows, float32, with the number of pictures whose caption scored highest (arXiv
    2103.00020). Rows alike by `keys_B2` are left out of each other's choice.
    """
    start, sizes = _place(len(keys_B2), keys_B2.device)
    alike_BG = _alike(keys_B2, _gathered(keys_B2, sizes), start)
    own_B = torch.arange(start, start + len(keys_B2), device=keys_B2.device)
    # One exchange for both, so that there is one on the way back too.
    pictures_GJ, captions_GJ = _gathered(torch.cat([pictures_BJ, captions_BJ], 1), sizes).chunk(2, 1)
    of_pictures_BG = (scale * pictures_BJ @ captions_GJ.T).masked_fill(alike_BG, float("-inf"))
    of_captions_BG = (scale * captions_BJ @ pictures_GJ.T).masked_fill(alike_BG, float("-inf"))
    losses = [
        F.cross_entropy(logits_BG, own_B, reduction="sum") for logits_BG in (of_pictures_BG, of_captions_BG)
    ]
    return (losses[0] + losses[1]) / 2, (of_pictures_BG.detach().argmax(1) == own_B).sum()


def sigmoid_loss(
    pictures_BJ: Tensor, captions_BJ: Tensor, keys_B2: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the summed log-loss of "these belong together" for each own picture with each caption of all ranks.

    Float32, with the number of pictures whose caption scored highest (arXiv 2303.15343). Pairs of rows that are alike
    by `keys_B2` are left out.
    """
    start, sizes = _place(len(keys_B2), keys_B2.device)
    alike_BG = _alike(keys_B2, _gathered(keys_B2, sizes), start)
    own_B = torch.arange(start, start + len(keys_B2), device=keys_B2.device)
    logits_BG = scale * pictures_BJ @ _gathered(captions_BJ, sizes).T + bias
    together_BG = torch.zeros_like(alike_BG).scatter(1, own_B[:, None], True)
    losses_BG = -F.logsigmoid(torch.where(together_BG, logits_BG, -logits_BG))
    best_B = logits_BG.detach().masked_fill(alike_BG, float("-inf")).argmax(1)
    return losses_BG.masked_fill(alike_BG, 0.0).sum(), (best_B == own_B).sum()


def pairs(batch: Batch, kind: str, max_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the captions, int64[B, S] and their lengths int64[B], and int64[B] which item each row shows.

    A caption is the row's run of targets, its end token included. Raises ValueError naming the row that does not hold
    exactly one picture and one caption of at most `max_tokens` tokens.
    """
    targets_BS = batch.targets_BS
    if targets_BS is None or batch.documents_BS is not None:
        raise ValueError(
            "contrastive pre-training needs rows with targets, one sample each: leave loader.pack off"
        )
    rises_B = (F.pad(targets_BS, (1, 0))[:, :-1] < targets_BS).sum(1)
    B = len(targets_BS)
    media = batch.media.get(kind)
    shown_B = torch.zeros_like(rises_B)
    if media is not None:
        shown_B = shown_B.index_add(0, media.rows_M, torch.ones_like(media.rows_M))
    lengths_B = targets_BS.sum(1)
    for row, (shown, said, length) in enumerate(
        zip(shown_B.tolist(), rises_B.tolist(), lengths_B.tolist(), strict=True)
    ):
        source = batch.sources[row] if row < len(batch.sources) else f"row {row} of the batch"
        if shown != 1 or said != 1:
            raise ValueError(
                f"{source}: contrastive pre-training needs one {kind} and one answer, its caption, in a row; this row "
                f"has {shown} and {said}"
            )
        if length > max_tokens:
            raise ValueError(
                f"{source}: the caption has {length} tokens, but modality.{kind}.adapter.max_tokens is {max_tokens}"
            )
    assert media is not None
    places_S = torch.arange(int(lengths_B.max()), device=targets_BS.device)
    first_B = targets_BS.int().argmax(1)
    index_BS = (first_B[:, None] + places_S).clamp(max=targets_BS.shape[1] - 1)
    tokens_BS = batch.tokens_BS.gather(1, index_BS).masked_fill(places_S >= lengths_B[:, None], 0)
    items_B = torch.zeros(B, dtype=torch.long, device=targets_BS.device)
    items_B[media.rows_M] = media.items_M
    return tokens_BS, lengths_B, items_B


def content_key(tensor: Tensor) -> Tensor:
    """Return an int64 scalar of a tensor's content: equal for equal values, on every rank and device.

    Two different ones collide with a chance of about 2^-64.
    """
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    values = tensor.detach().contiguous().view(width).flatten().long()
    # The last mixing of splitmix64 over value and place; sums of int64 wrap, so their order is irrelevant.
    mixed = values + _ODD[0] * torch.arange(1, len(values) + 1, device=values.device)
    for shift, factor in ((30, _ODD[1]), (27, _ODD[2])):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return (mixed ^ (mixed >> 31)).sum()


def retrieval(
    queries_QJ: Tensor, answers_QJ: Tensor, asked_Q: Tensor, answered_Q: Tensor
) -> dict[str, float]:
    """Return the share of rows whose query finds an answer of its own among the 1 and the 5 nearest.

    Rows are pairs of a query and an answer; equal `answered_Q` are one candidate, and all answers of equal `asked_Q`
    are right. `chance_1` and `chance_5` are what guessing gives; `candidates` says among how many.
    """
    distinct_C, number_Q = answered_Q.unique(return_inverse=True)
    C, Q = len(distinct_C), len(answered_Q)
    first_C = torch.full((C,), Q, device=number_Q.device).scatter_reduce(
        0, number_Q, torch.arange(Q, device=number_Q.device), "amin"
    )
    same_QQ = asked_Q[:, None] == asked_Q
    right_QC = torch.zeros(Q, C, device=number_Q.device).index_add(1, number_Q, same_QQ.float()) > 0
    nearest_QC = (queries_QJ @ answers_QJ[first_C].T).argsort(1, descending=True)
    hits_QC = right_QC.gather(1, nearest_QC)
    scores: dict[str, float] = {"candidates": C}
    for most in (1, 5):
        scores[str(most)] = float(hits_QC[:, :most].any(1).float().mean())
        # All of k draws without putting back miss with the product of (wrong - i) / (all - i).
        miss_Q = torch.ones(Q, dtype=torch.float64)
        for draw in range(min(most, C)):
            wrong_Q = (C - right_QC.sum(1)).cpu().double() - draw
            miss_Q = miss_Q * wrong_Q.clamp(min=0) / (C - draw)
        scores[f"chance_{most}"] = float(1 - miss_Q.mean())
    return scores


def _alike(keys_B2: Tensor, keys_G2: Tensor, start: int) -> Tensor:
    """Return bool[B, G]: another row with the same picture or the same caption."""
    own_B = torch.arange(start, start + len(keys_B2), device=keys_B2.device)
    return (keys_B2[:, None] == keys_G2).any(-1).scatter(1, own_B[:, None], False)


def _place(rows: int, device: torch.device) -> tuple[int, list[int]]:
    """Return where this rank's rows begin among all, and how many rows each rank has."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return 0, [rows]
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([rows], device=device))
    sizes = [int(count) for count in counts]
    return sum(sizes[: dist.get_rank()]), sizes


def _gathered(rows_B: Tensor, sizes: list[int]) -> Tensor:
    """Return the rows of all ranks in rank order; gradients of this rank's rows come back from all of them."""
    if len(sizes) == 1:
        return rows_B
    gathered: Tensor = _Gather.apply(rows_B, sizes)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_B: Tensor, sizes: list[int]) -> Tensor:
        ctx.start, ctx.rows = sum(sizes[: dist.get_rank()]), len(rows_B)
        # Ranks may have unequally many rows: equal shapes are what the exchange wants.
        padded = rows_B.new_zeros(max(sizes), *rows_B.shape[1:])
        padded[: len(rows_B)] = rows_B
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Every rank found a gradient for everyone's rows; the sum is what the rows of this one get.
        total_G = gradients[0].contiguous()
        dist.all_reduce(total_G)
        return total_G[ctx.start : ctx.start + ctx.rows], None
