"""The steps of the speech stages: the readout's loss and gradient, what each trains, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from adapters.speech import SpeechAdapter
from mm_llama.batch import Batch, Media
from mm_llama.core.digest import digest_tensors
from mm_llama.core.llama import Llama, LlamaConfig
from mm_llama.core.pieces import Pieces, respelled
from mm_llama.model import MultimodalLlama
from mm_llama.splice import Spliced
from mm_llama.stages.speech import Copy, Readout, Recognise, _edits, ctc_loss
from mm_llama.testing.bytes_tokenizer import BytesTokenizer

CONFIG = LlamaConfig(
    dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=48, vocab_size=300, max_context=128
)
PIECES = 256


class Chat:
    """As much of a chat format as a step is told of."""

    tokenizer = BytesTokenizer()


@pytest.fixture
def model() -> MultimodalLlama:
    """A random core with a speech adapter that has a readout over the bytes."""
    core = Llama(CONFIG)
    core.init_weights(0)
    core.digest = digest_tensors(core.state_dict())
    adapter = SpeechAdapter(
        12,
        CONFIG.dim,
        width=16,
        num_heads=2,
        ffn_width=24,
        emit="tokens",
        num_pieces=PIECES,
        num_begin=2,
        num_end=2,
    )
    model = MultimodalLlama(core, {"speech": Spliced(torch.nn.Identity(), adapter)})
    return model.requires_grad_(False).eval()


def make_batch(
    transcripts: list[tuple[int, ...]] | None = None, lengths: tuple[int, ...] = (40, 30)
) -> Batch:
    """Two rows, a recording each, the first longer than the second."""
    generator = torch.Generator().manual_seed(0)
    items = [torch.randn(length, 12, generator=generator) for length in lengths]
    tokens = torch.randint(1, 200, (2, 9), generator=generator)
    targets = torch.zeros(2, 9, dtype=torch.bool)
    targets[:, 6:] = True
    said = [(5, 6, 6, 7), (9, 8, 7)] if transcripts is None else transcripts
    media = Media(
        items,
        torch.tensor([0, 1]),
        torch.tensor([2, 3]),
        torch.tensor([0, 1]),
        encoded=True,
        transcripts=said,
    )
    return Batch(tokens, torch.tensor([9, 9]), targets, media={"speech": media}, sources=["a:1", "a:2"])


def trained(model: MultimodalLlama) -> dict[str, torch.nn.Parameter]:
    """Let the adapter train."""
    adapter = model.modality["speech"].adapter.requires_grad_(True)
    return dict(adapter.named_parameters())


def test_the_readouts_loss_and_gradient_are_those_of_a_whole_softmax(model: MultimodalLlama) -> None:
    parameters = trained(model)
    adapter, table = model.modality["speech"].adapter, model.core.embedding.weight
    batch = make_batch()
    targets = [[5, 6, 6, 7], [9, 8, 7]]
    found = adapter.hear(batch.media["speech"].items, table)
    loss = ctc_loss(found, targets)
    names = [name for name in parameters if name not in ("begin", "end")]
    ours = torch.autograd.grad(loss, [parameters[name] for name in names], retain_graph=True)
    whole = torch.cat((found.blank_MF[..., None], found.scores_MFP), -1).log_softmax(-1)  # type: ignore[index,list-item]
    expected = F.ctc_loss(
        whole.transpose(0, 1),
        torch.tensor([piece + 1 for row in targets for piece in row]),
        found.lengths_M,
        torch.tensor([4, 3]),
        reduction="sum",
    )
    torch.testing.assert_close(loss, expected)
    theirs = torch.autograd.grad(expected, [parameters[name] for name in names])
    for _name, one, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=5e-5)


def test_a_recording_too_short_for_its_pieces_teaches_nothing(model: MultimodalLlama) -> None:
    parameters = trained(model)
    adapter, table = model.modality["speech"].adapter, model.core.embedding.weight
    items = make_batch().media["speech"].items
    found = adapter.hear([items[0], items[1][:4]], table)
    loss = ctc_loss(found, [[5, 6], [1, 2, 3, 4]])
    alone = ctc_loss(adapter.hear(items[:1], table), [[5, 6]])
    torch.testing.assert_close(loss, alone)
    weight = parameters["output.weight"]
    torch.testing.assert_close(
        torch.autograd.grad(loss, weight)[0], torch.autograd.grad(alone, weight)[0], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("step", [Copy(), Readout(), Recognise(readout_weight=0.5)])
def test_a_batch_is_its_rows(model: MultimodalLlama, step: Copy | Readout | Recognise) -> None:
    step.meet(model, Chat())  # type: ignore[arg-type]
    batch = make_batch()
    together = step(model, batch)
    total = 0.0
    for row in range(2):
        media = batch.media["speech"]
        one = Media(
            [media.items[row]],
            torch.tensor([0]),
            media.positions_M[row : row + 1],
            torch.tensor([0]),
            encoded=True,
            transcripts=[media.transcripts[row]],
        )
        single = Batch(
            batch.tokens_BS[row : row + 1],
            batch.lengths_B[row : row + 1],
            batch.targets_BS[row : row + 1],  # type: ignore[index]
            media={"speech": one},
            sources=["x"],
        )
        total += float(step(model, single).loss_sum)
    assert float(together.loss_sum) == pytest.approx(total, rel=1e-4)


def test_each_step_trains_what_it_says(model: MultimodalLlama) -> None:
    parameters = trained(model)
    with torch.no_grad():
        model.modality["speech"].adapter.blank.bias.fill_(-20)
    everything = set(parameters)
    own = {"begin", "end"}
    for step, expected in ((Copy(0.1), own), (Readout(0.1), everything - own), (Recognise(), everything)):
        step.meet(model, Chat())  # type: ignore[attr-defined,arg-type]
        model.zero_grad(set_to_none=True)
        step(model, make_batch()).loss_sum.backward()  # type: ignore[operator]
        assert {name for name, value in parameters.items() if value.grad is not None} == expected


def test_copied_text_is_the_tables_own(model: MultimodalLlama) -> None:
    step = Copy()
    step.meet(model, Chat())  # type: ignore[arg-type]
    first, second = step.embeddings(model, make_batch())
    adapter, table = model.modality["speech"].adapter, model.core.embedding.weight
    assert torch.equal(first, torch.cat((adapter.begin, table[[5, 6, 6, 7]], adapter.end)))
    assert len(second) == 2 + 3 + 2


def test_copied_text_comes_in_pieces_or_in_own_tokens(smollm2: object) -> None:
    tokenizer = smollm2.tokenizer  # type: ignore[attr-defined]
    core = Llama(replace(CONFIG, vocab_size=tokenizer.vocab_size))
    core.init_weights(0)
    adapter = SpeechAdapter(12, CONFIG.dim, width=16, num_heads=2, ffn_width=24, num_pieces=4096)
    model = MultimodalLlama(core, {"speech": Spliced(torch.nn.Identity(), adapter)}).requires_grad_(False)
    said = [
        tuple(tokenizer.encode(text)) for text in ("An ornithologist in Sacramento.", "Quoth the peregrine.")
    ]
    batch, pieces = make_batch(said), Pieces(tokenizer, 4096)
    chat = type("Chat", (), {"tokenizer": tokenizer})()

    def given(whole: float) -> tuple[bool, ...]:
        """Of each recording, whether it stands there in the core's own tokens."""
        step = Copy(whole=whole)
        step.meet(model, chat)
        found = []
        for inner, tokens in zip(step.embeddings(model, batch), said, strict=True):
            # Own tokens as the search gives them: as an answer begins, without a space.
            whole_tokens = tokenizer.encode(tokenizer.decode(list(tokens)).strip())
            own, smaller = core.embedding.weight[whole_tokens], core.embedding.weight[pieces.split(tokens)]
            assert len(own) < len(smaller)
            found.append(len(inner) == len(own) + 2)
            assert torch.equal(inner[1:-1], own if found[-1] else smaller)
        return tuple(found)

    torch.manual_seed(0)
    assert given(0.0) == (False, False) and given(1.0) == (True, True)
    assert {given(0.5) for _ in range(30)} == {(a, b) for a in (False, True) for b in (False, True)}
    shown: list[list[int]] = []

    class Watched(Copy):
        def embeddings(self, *args: Any) -> list[torch.Tensor]:
            found = super().embeddings(*args)
            shown.append([len(inner) - 2 for inner in found])
            return found

    # What is measured is not drawn: own tokens where these are trained, and training goes on with its share.
    for whole, spelled in ((0.0, pieces.split), (0.3, lambda tokens: respelled(tokens, tokenizer))):
        step = Watched(noise=0.2, whole=whole)
        step.meet(model, chat)
        first, again = (step.evaluate(model, [batch]) for _ in range(2))
        assert first == again and shown[-2:] == [[len(spelled(tokens)) for tokens in said]] * 2
        assert (step.noise, step.whole) == (0.2, whole)
    with pytest.raises(ValueError, match="whole=2 is a share from 0 to 1"):
        Copy(whole=2)


def test_what_was_not_said_cannot_be_learned(model: MultimodalLlama) -> None:
    for step in (Copy(), Readout()):
        step.meet(model, Chat())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="has no transcript .near a:1."):
            step(model, make_batch(transcripts=[]))
    with pytest.raises(ValueError, match="call `meet` first"):
        Readout()(model, make_batch())


def test_a_readout_is_needed(model: MultimodalLlama) -> None:
    adapter = SpeechAdapter(12, CONFIG.dim, width=16, num_heads=2, ffn_width=24)
    model.modality["speech"] = Spliced(torch.nn.Identity(), adapter)
    with pytest.raises(ValueError, match="set modality.speech.adapter.num_pieces"):
        Readout().meet(model, Chat())  # type: ignore[arg-type]
    Recognise().meet(model, Chat())  # type: ignore[arg-type]
    assert Recognise()(model, make_batch(transcripts=[])).num_targets == 6


def test_a_batch_of_text_alone_needs_no_recording(model: MultimodalLlama) -> None:
    batch = make_batch()
    batch.media = {}
    assert Recognise()(model, batch).num_targets == 6


def test_edits() -> None:
    assert _edits([1, 2, 3], [1, 2, 3]) == 0
    assert _edits([], [1, 2]) == 2 and _edits([1, 2], []) == 2
    assert _edits([1, 9, 3, 4], [1, 2, 3]) == 2


def test_pieces_spell_every_token(smollm2: object) -> None:
    tokenizer = smollm2.tokenizer  # type: ignore[attr-defined]
    pieces = Pieces(tokenizer, 4096)
    text = " The peregrination of a Sacramento ornithologist, quoth naïve Zoë."
    tokens = tokenizer.encode(text)
    assert max(tokens) > 4096
    split = pieces.split(tokens)
    assert max(split) < 4096 and tokenizer.decode(split) == text
    assert Pieces(tokenizer, tokenizer.vocab_size).split(tokens) == tokens
    with pytest.raises(ValueError, match="not a part of a vocabulary"):
        Pieces(tokenizer, 0)


class Listening(torch.nn.Module):
    """An encoder that keeps what it is given, as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.heard: list[torch.Tensor] = []

    def forward(self, mels: torch.Tensor, lengths_M: torch.Tensor | None = None) -> torch.Tensor:
        self.heard.append(mels.detach())
        return mels * self.scale

    def num_frames(self, lengths_M: torch.Tensor) -> torch.Tensor:
        return lengths_M


def test_what_an_encoder_in_training_hears_is_hidden_in_part(model: MultimodalLlama) -> None:
    model.modality["speech"].encoder = Listening()
    batch = make_batch()
    batch.media["speech"].encoded = False
    hears: list[torch.Tensor] = model.modality["speech"].encoder.heard
    for hide in (0.0, 0.4):
        step = Readout(hide)
        step.meet(model, Chat())  # type: ignore[arg-type]
        torch.manual_seed(1)
        step(model, batch)
    whole, hidden = hears
    changed = (whole != hidden)[0]
    columns = changed.all(0)
    assert 0 < changed.any(1).sum() and 0 < changed.float().mean() < 1 and columns.sum() > 0
    # Bands stand at the recording's mean; its evaluation hears all of it.
    assert torch.allclose(hidden[0][changed], whole[0].mean(), atol=1e-5)
    step.evaluate(model, [batch])
    assert torch.equal(hears[-1], whole)
