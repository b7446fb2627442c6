"""The search for what was said: against all alignments, against the core's own sums, and what then enters it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.speech import SpeechAdapter
from mm_llama.batch import Batch, Media
from mm_llama.core.llama import Llama
from mm_llama.core.pieces import Pieces, respelled
from mm_llama.generation.beam import BeamSearch, Fluency, Tree, listen_by
from mm_llama.generation.engine import generate
from mm_llama.model import MultimodalLlama
from mm_llama.splice import Spliced
from mm_llama.testing.bytes_tokenizer import BytesTokenizer
from tests.generation.conftest import make_core

LETTERS = "abc "


@pytest.fixture(scope="module")
def core() -> Llama:
    return make_core()


def frames(num_frames: int, seed: int = 0) -> Tensor:
    """Log-probabilities float32[F, 1 + 256] in which the blank and four letters are likely."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.full((num_frames, 257), -30.0)
    scores[:, 0] = torch.randn(num_frames, generator=generator)
    for letter in LETTERS:
        scores[:, 1 + ord(letter)] = torch.randn(num_frames, generator=generator)
    return scores.log_softmax(-1)


def by_alignments(logs_FP: Tensor) -> dict[tuple[int, ...], float]:
    """Return the log-probability of every reading of the letters: the sum over all alignments, one by one."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product([0, *(1 + ord(letter) for letter in LETTERS)], repeat=len(logs_FP)):
        log = float(sum(logs_FP[frame, one] for frame, one in enumerate(path)))
        reading = tuple(one - 1 for one, _ in itertools.groupby(path) if one)
        found[reading] = math.log(math.exp(found.get(reading, -math.inf)) + math.exp(log))
    return found


def log_of_text(core: Llama, tokenizer: BytesTokenizer, text: str) -> tuple[float, int]:
    tokens = tokenizer.encode(text)
    if not tokens:
        return 0.0, 0
    begin = tokenizer.specials["<|begin_of_text|>"]
    with torch.inference_mode():
        logs = core(torch.tensor([[begin, *tokens[:-1]]]))[0].log_softmax(-1)
    return float(logs[range(len(tokens)), tokens].sum()), len(tokens)


def test_a_wide_beam_finds_the_best_of_all_readings(core: Llama, tokenizer: BytesTokenizer) -> None:
    fluency = Fluency(core, tokenizer)
    changed = 0
    for seed in range(4):
        logs_FP = frames(5, seed)
        every = by_alignments(logs_FP)
        alone = BeamSearch(beam=8000, weight=0.0, reward=0.0, margin=20.0).best(logs_FP, fluency)
        assert alone == max(every, key=lambda reading: every[reading])
        total = {}
        for reading, heard in every.items():
            log, count = log_of_text(core, tokenizer, tokenizer.decode(list(reading)).strip())
            total[reading] = heard + 0.7 * log + 1.5 * count
        for asked_every in (2, 12):
            search = BeamSearch(beam=8000, weight=0.7, reward=1.5, margin=20.0, every=asked_every)
            found = search.best(logs_FP, fluency)
            assert found == max(every, key=lambda reading: total[reading])
        changed += found != alone
    assert changed > 1  # what the core says decides


def test_the_core_is_asked_for_whole_words_and_remembers(core: Llama, tokenizer: BytesTokenizer) -> None:
    fluency = Fluency(core, tokenizer, context=100)
    texts = ["a cab", "a cab bca", "a b", "", "c"]
    readings = [tuple(tokenizer.encode(text)) for text in texts]
    with torch.inference_mode():
        part = fluency(readings, whole=False)
        whole = fluency(readings)
    for text, begun, (log, count) in zip(texts, part, whole, strict=True):
        expected, number = log_of_text(core, tokenizer, text)
        assert count == number and log == pytest.approx(expected, abs=1e-3)
        head, number = log_of_text(core, tokenizer, text.rpartition(" ")[0])
        assert begun[1] == number and begun[0] == pytest.approx(head, abs=1e-3)
    # With less before it a token is judged by less, and by the same sum where that is all there is.
    with torch.inference_mode():
        short = Fluency(core, tokenizer, context=2)
        (one,) = short([readings[0]])
        (other,) = Fluency(core, tokenizer, context=2)([tuple(tokenizer.encode("a cab bca"))])
    assert one[0] == pytest.approx(log_of_text(core, tokenizer, "a cab")[0], abs=1e-3) and other[1] == 9


def test_what_is_far_behind_is_not_read_again(core: Llama, tokenizer: BytesTokenizer) -> None:
    fluency = Fluency(core, tokenizer, context=2)
    first, longer, other = (tuple(tokenizer.encode(text)) for text in ("a cab", "a cab bca", "a cab ca"))
    ((before, _),) = fluency([first])
    with torch.inference_mode():
        found = fluency([longer, other])
        # Five tokens are known: the core is given two of them (the beginning counts as one more before), then the rest.
        for reading, (log, count) in zip((longer, other), found, strict=True):
            window = torch.tensor([(fluency.begin, *reading)[3:-1]])
            logs = core(window)[0].log_softmax(-1)
            judged = sum(float(logs[place - 3, reading[place]]) for place in range(5, len(reading)))
            assert count == len(reading) and log == pytest.approx(before + judged, abs=1e-3)
            whole = log_of_text(core, tokenizer, tokenizer.decode(list(reading)))[0]
            assert log != pytest.approx(whole, abs=1e-4)  # all that came before would say something else


def test_readings_that_begin_alike_are_run_once(core: Llama) -> None:
    sequences = [(7, 1, 2, 3), (7, 1, 2, 9, 4), (7, 5), (7, 1, 2, 3)]
    tree = Tree(sequences)
    assert len(tree.tokens) == 7 and tree.paths[0] == tree.paths[3]
    tokens, depths, sees = (part[None] for part in tree.tensors())
    with torch.inference_mode():
        states = core.hidden(tokens, positions_BS=depths, sees_BSS=sees)[0]
        for sequence, path in zip(sequences, tree.paths, strict=True):
            torch.testing.assert_close(states[path], core.hidden(torch.tensor([sequence]))[0])
        # Without the mask a text would see what stands beside it.
        assert not torch.allclose(states, core.hidden(tokens, positions_BS=depths)[0], atol=1e-3)
    with pytest.raises(ValueError, match="sees_BSS stands alone"):
        core.hidden(tokens, documents_BS=torch.zeros_like(tokens), sees_BSS=sees)


def test_a_narrow_search_finds_better_than_the_likeliest_pieces(
    core: Llama, tokenizer: BytesTokenizer
) -> None:
    fluency = Fluency(core, tokenizer)

    def total(reading: tuple[int, ...]) -> float:
        ((log, count),) = fluency([reading])
        targets = torch.tensor([1 + piece for piece in reading])
        lost = torch.nn.functional.ctc_loss(
            logs_FP[:, None], targets[None], [len(logs_FP)], [len(targets)], reduction="sum"
        )
        return 0.5 * log + 2.0 * count - float(lost)

    for seed in range(3):
        logs_FP = frames(40, seed)
        greedy = tuple(int(one) - 1 for one, _ in itertools.groupby(logs_FP.argmax(-1).tolist()) if one)
        assert total(BeamSearch(beam=16, every=4).best(logs_FP, fluency)) > total(greedy)


def test_what_is_spelled_stands_between_own_tokens() -> None:
    adapter = SpeechAdapter(8, 16, width=16, num_heads=2, ffn_width=16, emit="tokens", num_pieces=12)
    table_VD = torch.randn(20, 16)
    one, none = adapter.spelled([(3, 3, 7), ()], table_VD)
    assert torch.equal(one[1:-1], table_VD[[3, 3, 7]]) and torch.equal(one[0], adapter.begin[0])
    assert torch.equal(none, torch.cat((adapter.begin, adapter.end)))
    heard = adapter.hear([torch.randn(9, 8), torch.randn(6, 8)], table_VD)
    logs = heard.log_probabilities()
    assert [list(item.shape) for item in logs] == [[5, 13], [3, 13]]
    assert all(torch.allclose(item.exp().sum(-1), torch.ones(len(item)), atol=1e-5) for item in logs)
    assert torch.equal(logs[1].argmax(-1), heard.best()[1, :3])


def test_what_is_found_is_spelled_as_the_core_spells(smollm2: Any) -> None:
    tokens = smollm2.tokenizer.encode("Please enter the peregrination prudently.")
    split = Pieces(smollm2.tokenizer, 1024).split(tokens)
    assert len(split) > len(tokens) and respelled(tuple(split), smollm2.tokenizer) == tokens


def test_generation_goes_on_from_what_was_searched(core: Llama, tokenizer: BytesTokenizer) -> None:
    adapter = SpeechAdapter(8, 48, width=16, num_heads=2, ffn_width=16, emit="tokens", num_pieces=256)
    model = MultimodalLlama(core, {"speech": Spliced(torch.nn.Identity(), adapter)}).eval()
    generator = torch.Generator().manual_seed(2)
    items = [torch.randn(24, 8, generator=generator), torch.randn(17, 8, generator=generator)]
    at = torch.tensor([0, 1])
    media = Media(items, at, torch.tensor([1, 2]), at, encoded=True)
    batch = Batch(
        torch.randint(1, 200, (2, 6), generator=generator), torch.tensor([6, 6]), media={"speech": media}
    )
    search = BeamSearch(beam=8, margin=50.0)
    found = search.embeddings(model, batch, tokenizer)
    table_VD = core.embedding.weight
    with torch.inference_mode():
        logs = adapter.hear(items, table_VD).log_probabilities()
        fluency = Fluency(core, tokenizer)
        texts = [respelled(search.best(one, fluency), tokenizer) for one in logs]
        for one, other in zip(found["speech"], adapter.spelled(texts, table_VD), strict=True):
            assert torch.equal(one, other)
        # Beside what the adapter gives by itself, which is something else.
        plain = generate(model, batch, max_new_tokens=4)
        given = generate(model, batch, max_new_tokens=4, embeddings=found)
        inner = torch.cat(
            (table_VD[batch.tokens_BS[0, :1]], found["speech"][0], table_VD[batch.tokens_BS[0, 2:]])
        )
        positions = torch.arange(len(inner))[None]
        first = core.logits(core.norm(core.run(inner[None], positions_BS=positions))[0, -1:]).argmax(-1)
    assert given[0].num_prompt_tokens == len(inner) and given[0].tokens[0] == int(first)
    assert [row.tokens for row in plain] != [row.tokens for row in given]
    text = Batch(batch.tokens_BS, batch.lengths_B)
    assert search.embeddings(model, text, tokenizer) == {}
    # A model that listens by a search needs no embeddings from without.
    listen_by(search, model, tokenizer)
    assert [row.tokens for row in generate(model, batch, max_new_tokens=4)] == [row.tokens for row in given]
    mute = SpeechAdapter(8, 48, width=16, num_heads=2, ffn_width=16)
    for modalities in ({}, {"speech": Spliced(torch.nn.Identity(), mute)}):
        with pytest.raises(ValueError, match="only a speech adapter with a readout can be searched"):
            listen_by(search, MultimodalLlama(core, modalities), tokenizer)


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="beam=0, every=12"):
        BeamSearch(beam=0)
