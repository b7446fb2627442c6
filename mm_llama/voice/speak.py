"""Text to sound while it is written: what the core writes is read, its phones are found, timed, and made to sound.

Rules: a sign that no rule gives a name is not said (an emoji, say); a letter of a script that the voice does not know
is an error, and for a text that is there as a whole one before anything is said, as no word is left out in silence.

Nothing runs ahead of who listens: what is said is made when it is asked for, and with it what is written.

Shapes: T samples.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm_llama.core.chat import ChatFormat
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.model import MultimodalLlama
from mm_llama.spoken import Spoken, Written
from mm_llama.voice import check_factor
from mm_llama.voice.engines import Engine, EngineSentence
from mm_llama.voice.predicted import prosody_model_of
from mm_llama.voice.reading import read_aloud
from mm_llama.voice.tagging import KIND as NORMALIZER
from mm_llama.voice.tagging import normalizer_of
from mm_llama.voice.uttering import Said, Sentence
from mm_llama.voice.wording import Wording, check_script

__all__ = ["Piece", "Said", "Speaker"]


# Convolutions that are kept compiled, one for each number of frames: by default 1,024 of them, 70 KB or more each, so
# that a process grows for ten minutes of speech. With so few it takes 4 % more time.
COMPILED = 64


@dataclass(frozen=True)
class Piece:
    """Samples float32[T] that follow those before; with the last ones of a sentence comes the sentence."""

    samples: Tensor
    said: Said | None = None


class Speaker:
    """A model with the parts of a voice, and `phones`, which finds the phones of words.

    `rate` and `pitch` are factors from a half to two, `style` a number or a name of the prosody model's. What is
    not `english` is read by `phones` alone, in any script. An `engine` takes the place of prosody model, acoustic
    model and vocoder, sentence by sentence, in its own way alone (neither rate nor pitch nor style). `seconds`
    counts what each part has taken, the core's reading or writing as "core". Raises ValueError, naming it, for a
    missing part.
    """

    def __init__(
        self,
        model: MultimodalLlama,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        phones: Callable[[str], str],
        rate: float = 1.0,
        pitch: float = 1.0,
        style: int | str = 0,
        english: bool = True,
        engine: Engine | None = None,
    ) -> None:
        check_factor("rate", rate)
        check_factor("pitch", pitch)
        keep_few_compiled()
        self.engine = engine
        self.normalizer = normalizer_of(model) if english and NORMALIZER in model.modality else None
        self.english = english
        self.prosody = None if engine is not None else prosody_model_of(model)
        if self.prosody is not None:
            self.acoustic: Any = model.spoken("tts_acoustic").adapter
            self.vocoder: Any = model.spoken("tts_vocoder").adapter
            style = self.prosody.adapter.style_of(style)
        elif (rate, pitch, str(style)) != (1.0, 1.0, "0"):
            raise ValueError("rate, pitch and style are those of our own voice: an engine speaks as it does")
        self.model, self.tokenizer, self.chat, self.phones = model, tokenizer, chat, phones
        self.rate, self.pitch, self.style = rate, pitch, int(style)
        self.seconds: dict[str, float] = defaultdict(float)
        # Of the core the layer that the normaliser reads, and the one that the prosody model reads; 0: none.
        self.layers = self._layer(self.normalizer), self._layer(self.prosody)

    @property
    def samples_a_second(self) -> int:
        """Return the rate of the samples."""
        return int(self.vocoder.rate if self.engine is None else self.engine.rate)

    def say(self, text: str) -> Iterator[Said]:
        """Yield the sentences of a text as soon as each is spoken; their words together are all that is said.

        Raises ValueError, before anything is said, for letters of a script that this voice does not know.
        """
        if self.english:
            check_script(text)
        with closing(self.stream(self.read([text]))) as pieces:
            yield from (piece.said for piece in pieces if piece.said is not None)

    def read(self, texts: Iterable[str]) -> Generator[Written, None, None]:
        """Yield the tokens of a text that comes in pieces, read by the core as far as a part of the voice needs it."""
        return read_aloud(self.model, self.tokenizer, self.chat, texts, self.layers)

    def stream(self, written: Iterator[Written]) -> Generator[Piece, None, None]:
        """Yield what is said of tokens as they are written, as soon as it can be said.

        Each piece is made when it is asked for; when no more are asked for (`close`), nothing more is written either.
        Raises ValueError for letters of a script that this voice does not know, when they are written.
        """
        try:
            yield from self._pieces(written)
        finally:
            if isinstance(written, Generator):
                written.close()

    def _layer(self, part: Spoken | None) -> int:
        return part.layer_of(self.model.core) if part is not None and part.adapter.uses_core else 0

    def _pieces(self, written: Iterator[Written]) -> Iterator[Piece]:
        normalizer = None if self.normalizer is None else self.normalizer.adapter
        wording = Wording(normalizer, self.layers, any_script=not self.english)
        sentence = self._sentence()
        while True:
            began = time.perf_counter()
            token = next(written, None)
            self.seconds["core"] += time.perf_counter() - began
            steps = wording.finish() if token is None else wording.push(token)
            while True:
                began = time.perf_counter()
                with torch.inference_mode():
                    found: Any = next(steps, StopIteration)
                self.seconds["normaliser"] += time.perf_counter() - began
                if found is StopIteration:
                    break
                with torch.inference_mode():
                    if found is not None:
                        samples, said = sentence.push(found).cpu(), None
                    else:
                        given = sentence.num_samples
                        said = sentence.finish()
                        samples = said.samples[given:] if said is not None else torch.zeros(0)
                        sentence = self._sentence()
                if len(samples) or said is not None:
                    yield Piece(samples, said)
            if token is None:
                return

    def _sentence(self) -> Sentence | EngineSentence:
        if self.engine is not None:
            return EngineSentence(self.engine, self.seconds)
        assert self.prosody is not None
        parts = self.phones, self.prosody.adapter, self.acoustic, self.vocoder
        return Sentence(*parts, self.rate, self.pitch, self.style, self.seconds)


def keep_few_compiled() -> None:
    """Have oneDNN keep `COMPILED` of its programs, unless `ONEDNN_PRIMITIVE_CACHE_CAPACITY` is set.

    It is asked for once, before the first of them is compiled: later in a process this changes nothing.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(COMPILED))
