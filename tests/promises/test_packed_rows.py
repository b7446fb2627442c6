"""Promise: packed = unpacked. Documents of a row see neither each other nor each other's media."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mm_llama.batch import Batch
from mm_llama.data.collate import collate
from mm_llama.data.packing import collate_packed
from mm_llama.data.samples import MediaRef, Sample
from mm_llama.modality import visible_spans
from mm_llama.model import MultimodalLlama
from mm_llama.prefixes import Prefixes
from mm_llama.stages.freeze import freeze
from mm_llama.stages.steps import next_token
from tests.promises.material import CONFIG, features

Make = Callable[..., MultimodalLlama]
ITEMS = features(6)

# (tokens, {position: picture}) of each document, by rows. Pictures of neighbours stand on both sides of an edge,
# one picture is shown by documents of one row and of two, some documents show none.
ROWS = [
    [(7, {2: 0}), (5, {}), (9, {0: 1, 1: 2}), (6, {0: 0, 5: 3}), (4, {0: 4})],
    [(11, {}), (8, {1: 1, 2: 0, 3: 5})],
    [(10, {3: 2, 7: 5, 9: 0}), (10, {0: 0, 1: 3}), (3, {}), (5, {1: 4})],
]


def document(length: int, shown: dict[int, int], seed: int, source: str) -> Sample:
    """Random tokens; what is neither first nor a placeholder is a target, but for a few."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, CONFIG.vocab_size, (length,), generator=generator).tolist()
    drawn = (torch.rand(length, generator=generator) < 0.8).tolist()
    targets = [i > 0 and i not in shown and drawn[i] for i in range(length)]
    media = [MediaRef("image", position, None, str(item)) for position, item in shown.items()]
    return Sample([0 if i in shown else t for i, t in enumerate(tokens)], targets, media, source)


def documents(rows: Sequence[Sequence[tuple[int, dict[int, int]]]] = ROWS) -> list[list[Sample]]:
    return [
        [document(length, shown, 10 * r + d, f"rows:{10 * r + d}") for d, (length, shown) in enumerate(row)]
        for r, row in enumerate(rows)
    ]


def packed(rows: Sequence[Sequence[Sample]], items: Sequence[Tensor] = ITEMS) -> Batch:
    return collate_packed(rows, {"image": lambda ref: items[int(ref.key)]}, encoded={"image"})


def unpacked(rows: Sequence[Sequence[Sample]], items: Sequence[Tensor] = ITEMS) -> Batch:
    samples = [sample for row in rows for sample in row]
    return collate(samples, {"image": lambda ref: items[int(ref.key)]}, encoded={"image"})


def logits_of(model: MultimodalLlama, batch: Batch) -> dict[str, Tensor]:
    """Logits [S, V] of each document by its source."""
    logits = model(
        batch.tokens_BS,
        lengths_B=batch.lengths_B,
        positions_BS=batch.positions_BS,
        documents_BS=batch.documents_BS,
        media=model.attach(batch.media, batch.documents_BS),
    )
    if batch.documents_BS is None:
        return {s: logits[r, : int(batch.lengths_B[r])] for r, s in enumerate(batch.sources)}
    return {source: logits[batch.documents_BS == number] for number, source in enumerate(batch.sources)}


def losses_of(model: MultimodalLlama, batch: Batch, rows: list[list[Sample]]) -> dict[str, Tensor]:
    """Loss of each target of each document by its source."""
    losses, logits_by_source = {}, logits_of(model, batch)
    for sample in (sample for row in rows for sample in row):
        logits, targets = logits_by_source[sample.source], torch.tensor(sample.targets)
        labels = torch.tensor(sample.tokens)[targets]
        losses[sample.source] = F.cross_entropy(logits[:-1][targets[1:]], labels, reduction="none")
    return losses


def gradients_of(model: MultimodalLlama, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    output = next_token(model, batch)
    (output.loss_sum / output.num_targets).backward()
    return output.loss_sum.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@torch.no_grad()
def test_every_token_has_the_loss_that_it_has_in_a_row_of_its_own(make_model: Make) -> None:
    model, rows = make_model(), documents()
    got, wanted = losses_of(model, packed(rows), rows), losses_of(model, unpacked(rows), rows)
    assert sum(map(len, got.values())) > 40
    for source, losses in wanted.items():
        torch.testing.assert_close(got[source], losses, rtol=2e-6, atol=0)


def test_loss_and_gradients_are_those_of_the_unpacked_batch(make_model: Make) -> None:
    model, rows = make_model(), documents()
    freeze(model, ["modality.image.adapter"])
    (loss, got), (wanted_loss, wanted) = (gradients_of(model, form(rows)) for form in (packed, unpacked))
    torch.testing.assert_close(loss, wanted_loss, rtol=2e-6, atol=0)
    assert got.keys() == wanted.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, gradient in wanted.items():
        assert gradient.norm() > 0, name
        assert (got[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_in_float64_they_are_the_same_numbers(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the model computes in float32 whatever its dtype is computed in float64 here, to see past rounding.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model, rows = make_model(torch.float64), documents()
    freeze(model, ["modality.image.adapter"])
    (loss, got), (wanted_loss, wanted) = (gradients_of(model, form(rows)) for form in (packed, unpacked))
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-12, atol=0)
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 1e-12 * gradient.norm(), name


@torch.no_grad()
def test_documents_without_pictures_get_the_cores_own_packed_bits(
    make_model: Make, dtype: torch.dtype
) -> None:
    model, rows = make_model(dtype), documents()
    batch = packed(rows)
    got = logits_of(model, batch)
    plain = model.core(batch.tokens_BS, positions_BS=batch.positions_BS, documents_BS=batch.documents_BS)
    text = [sample.source for row in rows for sample in row if not sample.media]
    assert len(text) == 3
    for number, source in enumerate(batch.sources):
        own = plain[batch.documents_BS == number]
        assert torch.equal(got[source], own) == (source in text), source
    # And a row of text alone, with the adapter attached.
    text_rows = [[sample for sample in row if not sample.media] for row in rows]
    batch = packed(text_rows)
    plain = model.core(batch.tokens_BS, positions_BS=batch.positions_BS, documents_BS=batch.documents_BS)
    for number, (source, logits) in enumerate(logits_of(model, batch).items()):
        assert torch.equal(logits, plain[batch.documents_BS == number]), source


@torch.no_grad()
@pytest.mark.parametrize("item", [0, 2, 4])
def test_another_picture_moves_only_the_documents_that_show_it(
    make_model: Make, dtype: torch.dtype, item: int
) -> None:
    model, rows = make_model(dtype), documents()
    other = [*ITEMS[:item], features(1, seed=9)[0], *ITEMS[item + 1 :]]
    one, two = logits_of(model, packed(rows)), logits_of(model, packed(rows, other))
    for sample in (sample for row in rows for sample in row):
        first = min((ref.position for ref in sample.media if ref.key == str(item)), default=sample.num_tokens)
        assert torch.equal(one[sample.source][:first], two[sample.source][:first]), sample.source
        if first < sample.num_tokens:
            assert not torch.equal(one[sample.source][first], two[sample.source][first]), sample.source


@torch.no_grad()
def test_another_text_moves_only_its_own_document(make_model: Make, dtype: torch.dtype) -> None:
    model, rows = make_model(dtype), documents()
    one = logits_of(model, packed(rows))
    for row, place in [(0, 1), (0, 2), (1, 0), (2, 3)]:
        sample = rows[row][place]
        shown = {ref.position for ref in sample.media}
        tokens = [t if i in shown else (t + 1) % CONFIG.vocab_size for i, t in enumerate(sample.tokens)]
        changed = [list(samples) for samples in rows]
        changed[row][place] = replace(sample, tokens=tokens)
        two = logits_of(model, packed(changed))
        assert [source for source in one if not torch.equal(one[source], two[source])] == [sample.source]


@torch.no_grad()
def test_where_a_document_stands_in_its_row_does_not_matter(make_model: Make) -> None:
    model, rows = make_model(), documents()
    one = logits_of(model, packed(rows))
    turned = [list(reversed(row)) for row in reversed(rows)]
    for source, logits in logits_of(model, packed([sum(turned, [])])).items():
        assert torch.allclose(logits, one[source], atol=2e-6), source


@torch.no_grad()
def test_long_packed_rows_go_through_the_fused_kernel_just_so(make_model: Make) -> None:
    """Above 512 positions attention is a fused kernel of its own."""
    model = make_model()
    shapes = [(40 + 17 * (i % 5), {i % 7: i % 6} if i % 3 else {}) for i in range(12)]
    rows = documents([shapes])
    batch = packed(rows)
    assert batch.tokens_BS.shape[1] > 512
    got, wanted = logits_of(model, batch), logits_of(model, unpacked(rows))
    plain = model.core(batch.tokens_BS, positions_BS=batch.positions_BS, documents_BS=batch.documents_BS)
    for number, sample in enumerate(rows[0]):
        assert torch.allclose(got[sample.source], wanted[sample.source], atol=4e-6), sample.source
        if not sample.media:
            assert torch.equal(got[sample.source], plain[batch.documents_BS == number]), sample.source


def test_spans_end_with_their_documents() -> None:
    batch = packed(documents(ROWS[:1]))
    spans = visible_spans(batch.media["image"], batch.documents_BS)
    assert [(span.start, span.end, len(span.items)) for span in spans] == [
        (2, 7, 1),
        (12, 21, 2),
        (21, 26, 1),
        (26, 27, 1),
        (27, 31, 1),
    ]


def test_documents_remember_their_prefixes_packed_or_not(make_model: Make) -> None:
    rows = documents()
    plain, remembering = make_model(), make_model()
    for model in (plain, remembering):
        freeze(model, ["modality.image.adapter"])
        model.modality["image"].adapter.placeholder.requires_grad_(False)
    remembering.prefixes = Prefixes()
    (loss, wanted) = gradients_of(plain, packed(rows))
    first, _ = gradients_of(remembering, unpacked(rows))
    assert (remembering.prefixes.hits, remembering.prefixes.misses) == (0, 11)
    again, got = gradients_of(remembering, packed(rows))
    assert (remembering.prefixes.hits, remembering.prefixes.misses) == (11, 11)
    for other in (first, again):
        torch.testing.assert_close(other, loss, rtol=2e-6, atol=0)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_prefixes_are_not_used_for_positions_that_do_not_begin_anew(make_model: Make) -> None:
    model, batch = make_model(), packed(documents())
    model.prefixes = Prefixes()
    media = model.attach(batch.media, batch.documents_BS)
    with torch.no_grad():
        model(batch.tokens_BS, lengths_B=batch.lengths_B, documents_BS=batch.documents_BS, media=media)
    assert model.prefixes.misses == 0
