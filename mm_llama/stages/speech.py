"""What the speech adapter learns from, in turn: copying text, reading recordings without the core, and through it.

A frozen core that was finetuned to repeat and to translate needs the last alone, as in the paper (section 8.2.1). A
small one first has to be told, by the tokens that the adapter puts around a recording, to say what stands there
(`Copy`: true text embeddings in place of the recording's); and where it copies tokens and nothing else, what becomes
one token is found by the readout (`Readout`). `Recognise` is `next_token` with the readout as an aid.

Shapes: B batch, S positions, M recordings, F adapter frames, P pieces, D core width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_llama.batch import Batch, Media
from mm_llama.core.chat import ChatFormat
from mm_llama.core.pieces import Letters, Pieces, respelled
from mm_llama.data.augment import spec_augment
from mm_llama.model import MultimodalLlama
from mm_llama.stages.steps import StepOutput, count_targets, cross_entropy, predicting, states

KIND = "speech"


class Copy:
    """The rows of a batch with the embeddings of what was said in place of what was heard: own tokens learn alone.

    `noise` is the deviation of what is added to each embedding, as a share of the table's: what comes of recordings
    later is not as clean as text. Recordings come in the readout's pieces later, or in the core's own tokens when
    they were searched (`mm_llama.generation.beam`): `whole` is the share of them that are given in own tokens here.
    """

    unread = frozenset({KIND})  # no recording is heard, so none is encoded

    def __init__(self, noise: float = 0.0, whole: float = 0.0) -> None:
        if noise < 0 or not 0 <= whole <= 1:
            raise ValueError(f"noise={noise} is at least 0, whole={whole} is a share from 0 to 1")
        self.noise, self.whole = noise, whole
        self.pieces: Pieces | None = None

    def meet(self, model: MultimodalLlama, chat: ChatFormat) -> None:
        """Be told, before anything else, with whom and in which words."""
        self.pieces = pieces_of(model, chat)

    def __call__(self, model: MultimodalLlama, batch: Batch) -> StepOutput:
        """Return the loss of the targets after copied text."""
        return _through_core(model, batch, {KIND: self.embeddings(model, batch)})

    def evaluate(self, model: MultimodalLlama, batches: Iterable[Batch]) -> dict[str, float]:
        """Return {"answers": share of rows repeated exactly}, each token predicted from the true ones before it.

        Without noise, in own tokens where `whole` trains these, else in pieces: the same each time.
        """
        noise, whole = self.noise, self.whole
        self.noise, self.whole = 0.0, float(whole > 0)
        right, rows = 0, 0
        try:
            for batch in batches:
                with torch.inference_mode():
                    longer, media = model.prepare(batch, {KIND: self.embeddings(model, batch)})
                    at_BS = predicting(longer)
                    best_T = model.core.logits(states(model, longer, media)[at_BS]).argmax(-1)
                wrong_T = best_T != longer.tokens_BS[longer.targets_BS]
                rows += len(at_BS)
                right += len(at_BS) - len(at_BS.nonzero()[:, 0][wrong_T].unique())
        finally:
            self.noise, self.whole = noise, whole
        return {"answers": right / max(1, rows)}

    def embeddings(self, model: MultimodalLlama, batch: Batch) -> list[Tensor]:
        """Return float[n, D] for each recording of the batch: own tokens around what was said in it."""
        adapter, table_VD = model.modality[KIND].adapter, model.core.embedding.weight
        _recordings(batch)
        pieces, found = _met(self.pieces), []
        for said in batch.said(KIND):
            own = self.whole > 0 and float(torch.rand(())) < self.whole
            tokens = respelled(said, pieces.tokenizer) if own else pieces.split(said)
            inner = F.embedding(torch.tensor(tokens, device=table_VD.device), table_VD)
            if self.noise:
                inner = inner + torch.randn_like(inner) * (self.noise * inner.std())
            found.append(torch.cat((adapter.begin.to(inner.dtype), inner, adapter.end.to(inner.dtype))))
        return found


class Readout:
    """The readout alone: no core is run. The loss is that of connectionist temporal classification, per piece."""

    def __init__(self, hide: float = 0.0) -> None:
        """`hide` > 0 hides spans of time and bands of values, up to this share of a recording in all.

        Of the log-mels where the encoder trains (SpecAugment), of its features where these are kept.
        """
        self.hide = hide
        self.pieces: Pieces | Letters | None = None

    def meet(self, model: MultimodalLlama, chat: ChatFormat) -> None:
        """Be told, before anything else, with whom and in which words."""
        letters = getattr(model.modality[KIND].adapter, "letters", "") if KIND in model.modality else ""
        self.pieces = Letters(chat.tokenizer, letters) if letters else pieces_of(model, chat)

    def __call__(self, model: MultimodalLlama, batch: Batch) -> StepOutput:
        """Return the loss of the pieces said in the batch's recordings."""
        heard = _hear(model, batch, self.hide)
        return StepOutput(ctc_loss(heard, _transcripts(batch, self.pieces)), self.count(batch))

    def count(self, batch: Batch) -> int:
        """Return the number of pieces said in the batch."""
        return sum(map(len, _transcripts(batch, self.pieces)))

    def evaluate(self, model: MultimodalLlama, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the readout's loss per piece and its piece errors (insertions, deletions, substitutions)."""
        loss, wrong, total = 0.0, 0, 0
        for batch in batches:
            with torch.inference_mode():
                heard = _hear(model, batch)
            targets = _transcripts(batch, self.pieces)
            loss += float(ctc_loss(heard, targets))
            found, count = piece_errors(heard, targets)
            wrong, total = wrong + found, total + count
        return {"readout_loss": loss / max(1, total), "piece_errors": wrong / max(1, total)}


class Recognise:
    """`next_token` over rows with recordings; `readout_weight` > 0 adds the readout's loss as a training aid."""

    def __init__(self, readout_weight: float = 0.0, hide: float = 0.0) -> None:
        self.readout_weight, self.hide = readout_weight, hide
        self.pieces: Pieces | None = None

    def meet(self, model: MultimodalLlama, chat: ChatFormat) -> None:
        """Be told, before anything else, with whom and in which words."""
        if self.readout_weight:
            self.pieces = pieces_of(model, chat)

    def __call__(self, model: MultimodalLlama, batch: Batch) -> StepOutput:
        """Return the loss of the targets; the readout's is added as a sum over the pieces said."""
        if KIND not in batch.media:
            return _through_core(model, batch, {})
        heard = _hear(model, batch, self.hide)
        adapter, table_VD = model.modality[KIND].adapter, model.core.embedding.weight
        output = _through_core(model, batch, {KIND: adapter.embeddings(heard, table_VD)})
        if self.readout_weight:
            loss = ctc_loss(heard, _transcripts(batch, self.pieces))
            output.metrics["readout_loss"] = float(loss.detach()) / max(1, output.num_targets)
            output.loss_sum = output.loss_sum + self.readout_weight * loss
        return output


def pieces_of(model: MultimodalLlama, chat: ChatFormat) -> Pieces:
    """Return the pieces that the speech adapter's readout knows. Raises ValueError when it has none."""
    if KIND not in model.modality:
        raise ValueError("this step needs a speech adapter: choose modality/speech=NAME")
    num_pieces = getattr(model.modality[KIND].adapter, "num_pieces", 0)
    if not num_pieces:
        raise ValueError(
            "this step needs the adapter's readout: set modality.speech.adapter.num_pieces, for example 4096"
        )
    return Pieces(chat.tokenizer, num_pieces)


def ctc_loss(heard: Any, targets: Sequence[Sequence[int]]) -> Tensor:
    """Return the summed float32 loss of the pieces of each recording; of one too short for its pieces it is zero.

    The loss looks at pieces that are said somewhere in the batch and at no others, so only their scores are taken out.
    """
    assert heard.scores_MFP is not None and heard.blank_MF is not None and heard.normaliser_MF is not None
    device = heard.scores_MFP.device
    said = torch.tensor([piece for pieces in targets for piece in pieces], device=device)
    known, places = said.unique(return_inverse=True)
    scores_MFK = torch.cat((heard.blank_MF[..., None], heard.scores_MFP[..., known].float()), dim=-1)
    logs_MFK = scores_MFK - heard.normaliser_MF[..., None]
    counts_M = torch.tensor([len(pieces) for pieces in targets], device=device)
    loss_M = F.ctc_loss(
        logs_MFK.transpose(0, 1), places + 1, heard.lengths_M, counts_M, reduction="none", zero_infinity=True
    )
    # torch's gradient takes for granted that what it is given sums to one, and adds each probability to the true
    # gradient, which then cancels. Here the rest of the pieces is missing: what was added is taken away.
    frames_F = torch.arange(logs_MFK.shape[1], device=device)
    real_MF = (frames_F < heard.lengths_M[:, None]) & (loss_M.detach() > 0)[:, None]
    added = (logs_MFK.detach().exp() * logs_MFK).sum(-1)[real_MF].sum()
    return loss_M.sum() - (added - added.detach())


def piece_errors(heard: Any, targets: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return how many edits lead from the best pieces to those said, and how many were said."""
    wrong = 0
    for spans, said in zip(heard.best_pieces(), targets, strict=True):
        wrong += _edits([piece for piece, _, _ in spans], list(said))
    return wrong, sum(map(len, targets))


def _edits(found: list[int], said: list[int]) -> int:
    """Levenshtein's distance."""
    before = list(range(len(said) + 1))
    for i, one in enumerate(found, start=1):
        row = [i]
        for j, other in enumerate(said, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (one != other)))
        before = row
    return before[-1]


def _through_core(model: MultimodalLlama, batch: Batch, embeddings: dict[str, list[Tensor]]) -> StepOutput:
    batch, media = model.prepare(batch, embeddings)
    at_BS = predicting(batch)
    assert batch.targets_BS is not None
    labels_T = batch.tokens_BS[batch.targets_BS]
    loss_sum, num_correct = cross_entropy(model.core, states(model, batch, media)[at_BS], labels_T)
    num_targets = count_targets(batch)
    return StepOutput(loss_sum, num_targets, {"accuracy": num_correct / max(1, num_targets)})


def _hear(model: MultimodalLlama, batch: Batch, hide: float = 0.0) -> Any:
    modality, table_VD = model.modality[KIND], model.core.embedding.weight
    media = _recordings(batch)
    if hide and not media.encoded:
        # The encoder trains: what it is given is hidden. Drawn from the generator that checkpoints keep.
        augmented = [spec_augment(item, generator=None, time_share=hide) for item in media.items]
        media = replace(media, items=augmented)
    features = modality.encode(media, table_VD.dtype)
    if hide and media.encoded:
        features = [hidden_spans(item, hide) for item in features]
    return modality.adapter.hear(features, table_VD)


def hidden_spans(features_TE: Tensor, share: float) -> Tensor:
    """Return features with two spans of time and one band of values zero: SpecAugment after the encoder.

    Each span is up to half of `share` of the recording, the band up to a tenth of the values; drawn from torch's
    global generator, which checkpoints keep.
    """
    T, E = features_TE.shape
    hidden = features_TE.clone()
    for _ in range(2):
        width = int(torch.randint(0, int(share * T / 2) + 1, ()))
        start = int(torch.randint(0, T - width + 1, ()))
        hidden[start : start + width] = 0
    width = int(torch.randint(0, E // 10 + 1, ()))
    start = int(torch.randint(0, E - width + 1, ()))
    hidden[:, start : start + width] = 0
    return hidden


def _recordings(batch: Batch) -> Media:
    if KIND not in batch.media:
        raise ValueError(f"no row of this batch has a recording, the first is {batch.source_of(0, 0)}")
    return batch.media[KIND]


def _transcripts(batch: Batch, pieces: Pieces | Letters | None) -> list[list[int]]:
    _recordings(batch)
    met = _met(pieces)
    return [met.split(tokens) for tokens in batch.said(KIND)]


def _met(pieces: Pieces | Letters | None) -> Pieces | Letters:
    if pieces is None:
        raise ValueError("the step was not told of its model and tokenizer: call `meet` first")
    return pieces
