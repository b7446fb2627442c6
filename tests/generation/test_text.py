"""Streamed text is the whole text, and no character comes in halves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mm_llama.core.llama import Llama
from mm_llama.core.tokenizer import Tokenizer, load_tokenizer
from mm_llama.generation.engine import generate, stream
from mm_llama.generation.sampling import Sampling
from mm_llama.generation.text import TextPieces, text_of
from mm_llama.model import MultimodalLlama
from mm_llama.testing.bytes_tokenizer import BytesTokenizer

SAYING = "né 日本 🙂👩‍👩‍👧 done"


@pytest.fixture(scope="module")
def real_tokenizer(asset_dir: Callable[[str], Path]) -> Tokenizer:
    return load_tokenizer(asset_dir("smollm2_135m"))


def pieces_of(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    pieces = TextPieces(tokenizer)
    return [*map(pieces.push, tokens), pieces.finish()]


def test_an_emoji_that_spans_tokens_comes_whole(real_tokenizer: Tokenizer) -> None:
    tokens = real_tokenizer.encode("ok 🐈 🫠!")
    pieces = pieces_of(real_tokenizer, tokens)
    assert len(real_tokenizer.encode("🫠")) > 1
    assert "🫠" in pieces and "" in pieces[:-1]
    assert "".join(pieces) == "ok 🐈 🫠!"


@settings(deadline=None)
@given(st.text())
def test_pieces_join_to_the_text_without_replacement_marks(text: str) -> None:
    tokenizer = BytesTokenizer()
    pieces = pieces_of(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert all(len(piece) <= 1 for piece in pieces)


@settings(deadline=None)
@given(st.lists(st.integers(0, 264)))
def test_any_tokens_give_what_decoding_them_at_once_gives(tokens: list[int]) -> None:
    tokenizer = BytesTokenizer()
    assert "".join(pieces_of(tokenizer, tokens)) == tokenizer.decode(tokens) == text_of(tokenizer, tokens)


def test_a_character_cut_short_is_marked_at_the_end() -> None:
    tokenizer = BytesTokenizer()
    assert pieces_of(tokenizer, list("é🙂".encode()[:-1])) == ["", "é", "", "", "", "\ufffd"]


def test_special_tokens_give_no_text() -> None:
    tokenizer = BytesTokenizer()
    assert pieces_of(tokenizer, [72, tokenizer.specials["<|eot_id|>"], 105]) == ["H", "", "i", ""]


def test_a_stream_joined_is_the_whole_answer(core: Llama, tokenizer: BytesTokenizer) -> None:
    for seed in range(5):
        sampling = Sampling(temperature=1.2, seed=seed)
        prompt = tokenizer.encode("Say something")
        (whole,) = generate(core, [prompt], max_new_tokens=40, sampling=sampling, tokenizer=tokenizer)
        streamed = stream(core, prompt, max_new_tokens=40, sampling=sampling, tokenizer=tokenizer)
        pieces = list(streamed)
        assert len(pieces) > 5 and all(pieces)
        assert "".join(pieces) == streamed.result.text == whole.text == tokenizer.decode(whole.tokens)
        assert streamed.result.tokens == whole.tokens
        assert streamed.result.stop_reason == whole.stop_reason


@pytest.fixture(scope="module")
def speaker(tokenizer: BytesTokenizer) -> Llama:
    """A tiny core that has learned one saying by heart, characters of two to four bytes in it."""
    from mm_llama.core.llama import LlamaConfig

    core = Llama(LlamaConfig(dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=64, vocab_size=265))
    core.init_weights(0)
    row = torch.tensor([tokenizer.encode("> " + SAYING) + [tokenizer.specials["<|eot_id|>"]]])
    optimizer = torch.optim.AdamW(core.parameters(), lr=1e-2)
    for _ in range(150):
        loss = F.cross_entropy(core(row[:, :-1])[0], row[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    return core.eval()


def test_characters_of_several_tokens_are_streamed_whole(speaker: Llama, tokenizer: BytesTokenizer) -> None:
    stop = {tokenizer.specials["<|eot_id|>"]}
    streamed = stream(speaker, tokenizer.encode("> "), max_new_tokens=99, stop=stop, tokenizer=tokenizer)
    assert list(streamed) == list(SAYING)
    assert streamed.result.stop_reason == "stop"
    assert len(streamed.result.tokens) == len(SAYING.encode())


def test_pieces_come_while_the_answer_is_made(speaker: Llama, tokenizer: BytesTokenizer) -> None:
    passes: list[int] = []
    handle = speaker.register_forward_hook(lambda _m, _args, _out: passes.append(1))
    try:
        streamed = stream(speaker, tokenizer.encode("> "), max_new_tokens=30, tokenizer=tokenizer)
        assert passes == []
        assert next(streamed) == "n" and len(passes) == 1
        assert next(streamed) == "é" and len(passes) == 3
    finally:
        handle.remove()


def test_a_closed_stream_keeps_what_was_made(speaker: Llama, tokenizer: BytesTokenizer) -> None:
    speaker.train()
    streamed = stream(speaker, tokenizer.encode("> "), max_new_tokens=30, tokenizer=tokenizer)
    assert next(streamed) == "n"
    assert not speaker.training
    streamed.close()
    assert speaker.training
    speaker.eval()
    assert (streamed.result.text, streamed.result.stop_reason) == ("n", "")
    assert list(streamed) == []


def test_errors_of_a_stream_come_when_it_is_asked_for(core: Llama, tokenizer: BytesTokenizer) -> None:
    with pytest.raises(ValueError, match="more than the core's context"):
        stream(core, [1] * 120, max_new_tokens=9, tokenizer=tokenizer)


def test_a_stream_works_with_a_model_of_modalities(model: MultimodalLlama, tokenizer: BytesTokenizer) -> None:
    streamed = stream(model, tokenizer.encode("hello"), max_new_tokens=8, tokenizer=tokenizer)
    assert "".join(streamed) == tokenizer.decode(streamed.result.tokens)
