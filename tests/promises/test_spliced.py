"""The spliced port keeps the promises: no leak, exact in every layout, text rows untouched, ports together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from adapters.speech import SpeechAdapter
from mm_llama.batch import Batch, Media
from mm_llama.core.cache import KVCache
from mm_llama.eval.greedy import answer_greedily
from mm_llama.generation.engine import generate
from mm_llama.modality import CrossAttended
from mm_llama.model import MultimodalLlama
from mm_llama.splice import Spliced
from mm_llama.stages.steps import next_token
from tests.promises.material import CONFIG, features, pictures, tokens

WIDTH = 20


@pytest.fixture
def model(make_model: Callable[..., MultimodalLlama]) -> MultimodalLlama:
    """The core with an image adapter and a speech adapter, in float32."""
    model = make_model()
    adapter = SpeechAdapter(WIDTH, CONFIG.dim, width=16, num_heads=2, ffn_width=24, num_begin=2, num_end=1)
    model.modality["speech"] = Spliced(torch.nn.Identity(), adapter).requires_grad_(False)
    return model


def recordings(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, WIDTH, generator=generator) for length in lengths]


def media(placements: list[tuple[int, int, int]], items: list[torch.Tensor]) -> Media:
    rows, positions, shown = (torch.tensor(column) for column in zip(*placements, strict=True))
    return Media(items, rows, positions, shown, encoded=True)


def make_batch() -> Batch:
    """Speech in rows 0 and 1 (twice in row 1), a picture in rows 1 and 2, and targets at each row's end."""
    tokens_BS = tokens(3, 9)
    targets_BS = torch.zeros_like(tokens_BS, dtype=torch.bool)
    targets_BS[:, -3:] = True
    for row, position in ((0, 2), (1, 1), (1, 4), (1, 3), (2, 2)):
        tokens_BS[row, position] = 0
    return Batch(
        tokens_BS=tokens_BS,
        lengths_B=torch.full((3,), 9),
        targets_BS=targets_BS,
        media={
            "speech": media([(0, 2, 0), (1, 1, 1), (1, 4, 0)], recordings(11, 6)),
            **pictures([(1, 3, 0), (2, 2, 1)], features(2)),
        },
        sources=["a", "b", "c"],
    )


def alone(batch: Batch, row: int) -> Batch:
    """One row of a batch, without padding, with what it shows."""
    length = int(batch.lengths_B[row])
    shown = {}
    for kind, part in batch.media.items():
        here = part.rows_M == row
        if here.any():
            shown[kind] = replace(
                part,
                rows_M=torch.zeros_like(part.rows_M[here]),
                positions_M=part.positions_M[here],
                items_M=part.items_M[here],
            )
    assert batch.targets_BS is not None
    return Batch(
        batch.tokens_BS[row : row + 1, :length],
        batch.lengths_B[row : row + 1],
        batch.targets_BS[row : row + 1, :length],
        media=shown,
        sources=[batch.sources[row]],
    )


def logits_of(model: MultimodalLlama, batch: Batch) -> tuple[Batch, torch.Tensor]:
    longer, state = model.prepare(batch)
    return longer, model(
        longer.tokens_BS,
        lengths_B=longer.lengths_B,
        positions_BS=longer.positions_BS,
        documents_BS=longer.documents_BS,
        media=state,
    )


def test_rows_grow_by_what_is_said_and_nothing_else_moves(model: MultimodalLlama) -> None:
    batch = make_batch()
    longer, state = model.prepare(batch)
    assert state is not None
    # 11 frames give 6 embeddings, 6 give 3; three own tokens each; one position was there already.
    assert longer.lengths_B.tolist() == [9 + 8, 9 + 5 + 8, 9]
    assert longer.tokens_BS[0, :2].tolist() == batch.tokens_BS[0, :2].tolist()
    assert longer.tokens_BS[0, 11:17].tolist() == batch.tokens_BS[0, 3:].tolist()
    assert longer.targets_BS is not None and longer.targets_BS.sum() == batch.targets_BS.sum()  # type: ignore[union-attr]
    assert longer.tokens_BS[longer.targets_BS].tolist() == batch.tokens_BS[batch.targets_BS].tolist()
    assert set(longer.media) == {"image"}
    assert longer.media["image"].positions_M.tolist() == [3 + 5, 2]
    assert state.inserted["speech"].places == [(0, 2), (1, 1), (1, 4 + 5)]


def test_a_batch_without_recordings_passes_untouched(model: MultimodalLlama) -> None:
    batch = make_batch()
    del batch.media["speech"]
    longer, state = model.prepare(batch)
    assert longer is batch and state is not None and not state.inserted


def test_batched_is_single(model: MultimodalLlama) -> None:
    batch = make_batch()
    longer, together = logits_of(model, batch)
    for row in range(3):
        one, single = logits_of(model, alone(batch, row))
        length = int(one.lengths_B[0])
        assert length == int(longer.lengths_B[row])
        torch.testing.assert_close(together[row, :length], single[0], rtol=0, atol=2e-5)


def test_text_and_picture_rows_are_bit_equal_with_speech_attached(
    model: MultimodalLlama, make_model: Callable[..., MultimodalLlama]
) -> None:
    plain = make_model()
    text = tokens(2, 18)
    assert torch.equal(model(text), plain(text))
    shown = pictures([(1, 3, 0)], features(1))
    state, expected = model.attach(shown), plain.attach(shown)
    assert torch.equal(model(text, media=state), plain(text, media=expected))


def test_a_text_row_beside_a_spoken_one_gets_the_plain_cores_operations(model: MultimodalLlama) -> None:
    batch = Batch(tokens(2, 9), torch.tensor([9, 9]), sources=["a", "b"])
    batch.media = {"speech": media([(0, 2, 0)], recordings(11))}
    longer, mixed = logits_of(model, batch)
    padded = torch.nn.functional.pad(batch.tokens_BS[1:], (0, longer.tokens_BS.shape[1] - 9))
    plain = model.core(torch.cat((longer.tokens_BS[:1], padded)))
    assert torch.equal(mixed[1], plain[1])


def test_speech_changes_nothing_before_it_and_no_other_row(model: MultimodalLlama) -> None:
    batch = make_batch()
    _, before = logits_of(model, batch)
    batch.media["speech"].items[0] = batch.media["speech"].items[0] + 1.0
    longer, after = logits_of(model, batch)
    assert torch.equal(before[0, :4], after[0, :4]) and not torch.equal(before[0, 4:], after[0, 4:])
    # Row 1 says it at its second placeholder: all before that stays.
    start = 4 + 5 + 2
    assert torch.equal(before[1, :start], after[1, :start]) and not torch.equal(
        before[1, start:], after[1, start:]
    )
    assert torch.equal(before[2], after[2])
    assert int(longer.lengths_B[2]) == 9


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_cached_in_chunks_is_uncached(model: MultimodalLlama, chunk: int) -> None:
    longer, state = model.prepare(make_batch())
    whole = model(longer.tokens_BS, lengths_B=longer.lengths_B, media=state)
    B, S = longer.tokens_BS.shape
    cache = KVCache(CONFIG, B, S, torch.float32, torch.device("cpu"))
    parts = []
    for start in range(0, S, chunk):
        positions = torch.arange(start, min(start + chunk, S)).expand(B, -1)
        parts.append(
            model(
                longer.tokens_BS[:, start : start + chunk],
                positions_BS=positions,
                cache=cache,
                media=state,
                lengths_B=longer.lengths_B,
            )
        )
    found = torch.cat(parts, 1)
    for row, length in enumerate(longer.lengths_B.tolist()):
        torch.testing.assert_close(found[row, :length], whole[row, :length], rtol=0, atol=2e-5)


def test_packed_documents_are_rows_of_their_own(model: MultimodalLlama) -> None:
    batch = make_batch()
    packed = Batch(
        tokens_BS=batch.tokens_BS[:2].reshape(1, -1),
        lengths_B=torch.tensor([18]),
        targets_BS=batch.targets_BS[:2].reshape(1, -1),  # type: ignore[index]
        documents_BS=torch.tensor([[0] * 9 + [1] * 9]),
        media={
            "speech": media([(0, 2, 0), (0, 10, 1), (0, 13, 0)], batch.media["speech"].items),
            **pictures([(0, 12, 0)], batch.media["image"].items),
        },
        sources=["a", "b"],
    )
    longer, found = logits_of(model, packed)
    assert longer.documents_BS is not None
    assert longer.documents_BS[0].tolist() == [0] * 17 + [1] * 22
    for row, (start, end) in enumerate(((0, 17), (17, 39))):
        _, single = logits_of(model, alone(batch, row))
        torch.testing.assert_close(found[0, start:end], single[0], rtol=0, atol=2e-5)


def test_the_loss_of_a_mixed_batch_is_that_of_its_rows(model: MultimodalLlama) -> None:
    batch = make_batch()
    together = next_token(model, batch)
    rows = [next_token(model, alone(batch, row)) for row in range(3)]
    assert together.num_targets == 9
    torch.testing.assert_close(together.loss_sum, sum(row.loss_sum for row in rows), rtol=1e-5, atol=0)  # type: ignore[arg-type]


def test_generation_alone_is_generation_in_a_batch(model: MultimodalLlama) -> None:
    batch = make_batch()
    together = generate(model, batch, max_new_tokens=6)
    for row in range(3):
        (single,) = generate(model, alone(batch, row), max_new_tokens=6)
        assert single.tokens == together[row].tokens
        assert single.num_prompt_tokens == together[row].num_prompt_tokens == [17, 22, 9][row]
        (chunked,) = generate(model, alone(batch, row), max_new_tokens=6, prefill_chunk=5)
        assert chunked.tokens == single.tokens


def test_short_answers_do_not_share_states_across_recordings(model: MultimodalLlama) -> None:
    """Rows of one text that hear different things are different below every block."""
    row = tokens(1, 7).expand(3, -1).clone()
    row[:, 3] = 0
    heard = media([(0, 3, 0), (1, 3, 1), (2, 3, 0)], recordings(9, 9))
    batch = Batch(row, torch.full((3,), 7), media={"speech": heard}, sources=["a", "b", "c"])
    answers = answer_greedily(model, batch, stop=(), max_new_tokens=5)
    expected = [found.tokens for found in generate(model, batch, max_new_tokens=5)]
    assert answers == expected
    assert answers[0] == answers[2]


def test_a_target_that_is_a_placeholder_is_refused(model: MultimodalLlama) -> None:
    batch = make_batch()
    assert batch.targets_BS is not None
    batch.targets_BS[1, 4] = True
    with pytest.raises(ValueError, match="^b: a placeholder of speech is a target"):
        next_token(model, batch)


def test_attach_refuses_what_is_spliced(model: MultimodalLlama) -> None:
    with pytest.raises(ValueError, match="call `prepare`"):
        model.attach({"speech": media([(0, 1, 0)], recordings(5))})


def test_a_kind_without_an_adapter_is_named(make_model: Callable[..., MultimodalLlama]) -> None:
    with pytest.raises(
        ValueError, match="the input holds speech, but no speech adapter is attached.*speech_sft"
    ):
        make_model().prepare(make_batch())


@pytest.mark.parametrize("port", [Spliced, CrossAttended])
@pytest.mark.parametrize("trains", [True, False])
def test_an_encoder_of_which_a_part_trains_computes_in_the_cores_dtype(
    port: type[Spliced | CrossAttended], trains: bool
) -> None:
    encoder = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 6)).requires_grad_(False)
    encoder[1].requires_grad_(trains)
    seen: list[torch.dtype] = []
    encoder[1].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    items = [torch.randn(3, 4, generator=torch.Generator().manual_seed(0))]
    media = Media(items, torch.zeros(1).long(), torch.zeros(1).long(), torch.zeros(1).long())
    modality = port(encoder, torch.nn.Identity())
    for dtype in (torch.float32, torch.bfloat16):
        (features,) = modality.encode(media, dtype)
        assert features.dtype == dtype and features.requires_grad == trains
        torch.testing.assert_close(features.float(), encoder(items[0]), rtol=0.03, atol=0.03)
    assert seen[::2] == [torch.float32, torch.bfloat16 if trains else torch.float32]
