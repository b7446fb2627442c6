"""A voice speaks while a text is written: in whatever pieces it comes, the words and the samples are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm_llama.assistant import Assistant, load
from mm_llama.core.cache import KVCache
from mm_llama.core.chat import Message, Text
from mm_llama.data.text_to_speech import Hibari
from mm_llama.spoken import Written
from mm_llama.voice.phones import numbers
from mm_llama.voice.predicted import given as given_to
from mm_llama.voice.predicted import prosody_model_of
from mm_llama.voice.prosody import LENGTH_SCALE, utterance_of
from mm_llama.voice.reading import MOST, SOME, read_aloud, words_of
from mm_llama.voice.speak import Speaker
from mm_llama.voice.tagging import read, written_rows
from mm_llama.voice.uttering import LONGER
from mm_llama.voice.wording import LONGEST, Word, Wording, spoken_signs

TEXT = (
    "Dr. Smith paid $12.50 on 3/4, he said. Nobody came to room 204 — at 3:05 pm!\n\n"
    "\N{GRINNING FACE} Visit www.example.com... They saw it\nand left it there"
)


@pytest.fixture(scope="module")
def assistant(tiny_voice: Any) -> Assistant:
    """The tiny core with every part of a voice, shaken so that each output depends on all that is given."""
    found = load("tiny", list(tiny_voice.runs.values()), dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for modality in found.model.modality.values():
            for weight in modality.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return found


@pytest.fixture(scope="module")
def phones(asset_dir: Callable[[str], Path]) -> Callable[[str], str]:
    return Hibari(asset_dir("hibari_tts")).phones


@pytest.fixture
def speaker(assistant: Assistant, phones: Callable[[str], str]) -> Speaker:
    return Speaker(assistant.model, assistant.tokenizer, assistant.chat_format, phones)


def in_pieces(text: str, size: int) -> Iterator[str]:
    return (text[place : place + size] for place in range(0, len(text), size))


def test_in_whatever_pieces_a_text_comes_the_samples_are_the_same(speaker: Speaker) -> None:
    whole = list(speaker.say(TEXT))
    assert len(whole) >= 3  # lines, and sentences as far as this untrained normaliser leaves their ends
    samples = torch.cat([one.samples for one in whole])
    for size in (1, 7):
        pieces = list(speaker.stream(speaker.read(in_pieces(TEXT, size))))
        assert torch.equal(torch.cat([piece.samples for piece in pieces]), samples)
        said = [piece.said for piece in pieces if piece.said is not None]
        assert [one.words for one in said] == [one.words for one in whole]
        assert len(pieces) > 2 * len(whole)  # sound comes within sentences
    assert set(speaker.seconds) == {"core", "normaliser", "phones", "prosody", "acoustic", "vocoder"}


def test_what_streams_is_what_the_parts_give_of_the_whole(speaker: Speaker, assistant: Assistant) -> None:
    """Rules, prosody and sound of a line as they come, beside those of the whole line run at once."""
    text = "They saw 12 horses, he said, and nobody came to the old house in time."
    model, tokenizer, chat = assistant.model, assistant.tokenizer, assistant.chat_format
    (said,) = speaker.say(text)
    (reading,) = read(model, tokenizer, chat, [text])
    assert said.words == reading.text()
    plain = text.replace("12", "many")
    silent = Speaker(model, tokenizer, chat, speaker.phones)
    silent.normalizer = None
    silent.layers = (0, speaker.layers[1])
    (said,) = silent.say(plain)
    tokens_1S, rows = written_rows([plain], chat)
    with torch.inference_mode():
        asked = given_to(model, tokens_1S, rows, [said.phones], tokenizer)
        (features_P4,) = prosody_model_of(model).adapter.predict(asked.phones, asked.states, asked.owners)
    assert said.phones == speaker.phones(plain)
    torch.testing.assert_close(said.features_P4, features_P4, rtol=1e-3, atol=1e-3)
    longer_P4 = said.features_P4 + torch.tensor([math.log(LONGER) * LENGTH_SCALE, 0, 0, 0])
    utterance = utterance_of(torch.tensor(numbers(said.phones)), longer_P4)
    assert torch.equal(said.frames_P, utterance[1])
    acoustic, vocoder = (model.spoken(f"tts_{part}").adapter for part in ("acoustic", "vocoder"))
    with torch.inference_mode():
        (samples_T,) = vocoder(acoustic([utterance]))
    torch.testing.assert_close(said.samples, samples_T, rtol=1e-3, atol=1e-3 * float(samples_T.abs().max()))


def test_nothing_is_written_ahead_of_who_listens(speaker: Speaker) -> None:
    text, taken = TEXT * 3, 0

    def counted() -> Iterator[str]:
        nonlocal taken
        for character in text:
            taken += 1
            yield character

    pieces = speaker.stream(speaker.read(counted()))
    assert len(next(pieces).samples)
    first = taken
    assert first < len(text) / 4
    next(pieces)
    assert first <= taken < len(text) / 2
    pieces.close()  # in the middle of a sentence
    assert taken < len(text) / 2 and not list(pieces)
    # The core watches itself no longer.
    assert not any(layer._forward_hooks for layer in speaker.model.core.layers)


def test_an_answer_is_spoken_while_it_is_written(assistant: Assistant, speaker: Speaker) -> None:
    plain = assistant.chat("Say something.", max_new_tokens=12, stream=False)
    answer = assistant.chat("Say something.", max_new_tokens=12, stream=True, watch=speaker.layers)
    written: list[Written] = []

    def kept() -> Iterator[Written]:
        for token in answer.written():
            written.append(token)
            yield token

    pieces = list(speaker.stream(kept()))
    assert answer.result.text == plain and len(written) == len(answer.result.tokens)
    assert sum(len(piece.samples) for piece in pieces) > 0
    # The states are those of the conversation run at once.
    chat = assistant.chat_format
    prompt = chat.render([Message("user", (Text("Say something."),))], open_assistant=True).tokens
    tokens_1S = torch.tensor([[*prompt, *answer.result.tokens]])
    (layer, _) = speaker.layers
    core = assistant.model.core
    with torch.inference_mode():
        states_1SD = core.run(core.embedding(tokens_1S), stop=layer)
    found_SD = torch.stack([token.states[layer] for token in written])
    torch.testing.assert_close(found_SD, states_1SD[0, len(prompt) :], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a compiled step tells no states"):
        assistant.chat("Hi", stream=True, compile=True, watch=speaker.layers)


def test_a_text_read_word_by_word_has_the_tokens_of_the_whole(assistant: Assistant) -> None:
    text = 'They saw 12 horses (at 3:05, he said) — and\tit\'s "done"!  Two  spaces.'
    model, tokenizer, chat = assistant.model, assistant.tokenizer, assistant.chat_format
    tokens = list(read_aloud(model, tokenizer, chat, in_pieces(text, 3), [1]))
    whole = " ".join(text.split())
    assert [token.data for token in tokens] == [tokenizer.token_bytes(id) for id in tokenizer.encode(whole)]
    tokens_1S, ((_, places),) = written_rows([whole], chat)
    with torch.inference_mode():
        states_1SD = model.core.run(model.core.embedding(tokens_1S), stop=1)
    found_SD = torch.stack([token.states[1] for token in tokens])
    torch.testing.assert_close(found_SD, states_1SD[0, places], rtol=1e-4, atol=1e-4)


def test_a_long_text_is_read_anew_at_the_ends_of_sentences(assistant: Assistant) -> None:
    """Where the core begins anew, a word has the state of the first word behind the empty question."""
    model, tokenizer, chat = assistant.model, assistant.tokenizer, assistant.chat_format
    prefix = chat.render([Message("user", (Text(""),))], open_assistant=True).tokens
    for unit, least, most in (("They saw it. ", SOME, SOME + 20), ("and so on ", MOST - 20, MOST)):
        ids = tokenizer.encode(" " + unit.strip())
        tokens = list(read_aloud(model, tokenizer, chat, [unit * (2 * MOST // len(ids))], [1]))
        first = ids[0]
        with torch.inference_mode():
            fresh_1SD = model.core.run(model.core.embedding(torch.tensor([[*prefix, first]])), stop=1)
        anew = [
            place
            for place, token in enumerate(tokens)
            if place
            and token.data == tokenizer.token_bytes(first)
            and torch.allclose(token.states[1], fresh_1SD[0, -1], rtol=1e-4, atol=1e-4)
        ]
        assert least <= anew[0] <= most, (unit, anew)


def test_lines_are_read_as_if_alone_and_what_the_core_keeps_is_made_once(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beginning anew overwrites what was kept: a new cache each time, some megabytes, breaks the heap into pieces."""
    model, tokenizer, chat = assistant.model, assistant.tokenizer, assistant.chat_format
    made: list[KVCache] = []
    monkeypatch.setattr(
        "mm_llama.voice.reading.KVCache", lambda *options: made.append(KVCache(*options)) or made[-1]
    )
    lines = ["They saw it and left. " * 150, "Nobody came.", "The end"]
    together = [
        token for token in read_aloud(model, tokenizer, chat, ["\n".join(lines)], [1]) if token.states
    ]
    assert len(made) == 1
    alone = [token for line in lines for token in read_aloud(model, tokenizer, chat, [line], [1])]
    assert [one.data for one in together] == [one.data for one in alone] and len(together) > MOST
    assert all(
        torch.equal(one.states[1], other.states[1]) for one, other in zip(together, alone, strict=True)
    )


@given(st.text(alphabet="ab 1.,!?;:\"'-\n\té€", max_size=700), st.integers(1, 9))
def test_every_letter_is_told_once_and_sentences_end(text: str, size: int) -> None:
    def told(tokens: Iterator[bytes]) -> list[Word | None]:
        wording = Wording(None, (0, 0))
        found = [word for data in tokens for word in wording.push(Written(data, {}))]
        return [*found, *wording.finish()]

    data = text.encode()
    words = told(data[place : place + size] for place in range(0, len(data), size))
    assert [word and word.text for word in words] == [word and word.text for word in told(iter([data]))]
    left = "".join(word.text for word in words if word is not None)
    kept = "".join(part for line in text.splitlines() for part in spoken_signs(line).split())
    assert left == kept and (not words or words[-1] is None)
    length = 0
    for word in words:
        length = 0 if word is None else length + len(word.text) + 1
        assert length <= 2 * LONGEST


def test_numbers_are_words_of_their_own_and_signs_without_a_name_are_none() -> None:
    assert spoken_signs("\N{GRINNING FACE}") == "" and spoken_signs("“so”—(he) 1½") == "“so”—(he) 1½"
    wording = Wording(None, (0, 0))
    words = [*wording.push(Written("a b\N{GRINNING FACE} c\n".encode(), {})), *wording.finish()]
    assert [word.text if word else None for word in words] == ["a", "b", "c", None]
    long = [*Wording(None, (0, 0)).push(Written(b"x" * (2 * LONGEST + 5) + b"\n", {}))]
    assert [len(word.text) if word else None for word in long] == [LONGEST, None, LONGEST, None, 5, None]


def test_what_is_kept_does_not_grow_with_a_line(assistant: Assistant) -> None:
    model = assistant.model
    wording = Wording(model.spoken("tts_normalization").adapter, (1, 1))
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for number in range(600):
            state = torch.randn(model.core.config.dim, generator=generator)
            for _ in wording.push(Written(b" word," if number % 3 else b" 12", {1: state})):
                pass
    line: Any = wording.line
    assert max(map(len, (line.tokens, line.rules, line.ends, wording._core, wording._unread))) < 200
    assert len(line.kept.owners) < 140


def test_words_come_as_they_are_written() -> None:
    assert list(words_of(["a  b", "c\n", "\n d"])) == ["a", " bc", "\n", "d"]


def test_an_engine_takes_the_place_of_our_own_sound(
    assistant: Assistant, speaker: Speaker, asset_dir: Callable[[str], Path]
) -> None:
    engine = Hibari(asset_dir("hibari_tts"))
    parts = assistant.model, assistant.tokenizer, assistant.chat_format, engine.phones
    other = Speaker(*parts, engine=engine)
    said, ours = list(other.say(TEXT)), list(speaker.say(TEXT))
    assert [one.words for one in said] == [one.words for one in ours]
    for one in said:
        assert torch.equal(one.samples, engine.teach(one.phones).samples)
        assert len(one.frames_P) == len(one.phones) + 2 and bool((one.features_P4[:, 2] > 0).any())
    assert other.seconds["engine"] > 0 and "prosody" not in other.seconds
    with pytest.raises(ValueError, match="those of our own voice"):
        Speaker(*parts, rate=1.5, engine=engine)
