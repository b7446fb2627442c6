"""Text to sound, sentence by sentence: what is written is read, its phones are found, timed, and made to sound.

Rules: a sign that no rule gives a name is not said (an emoji, say); a letter of a script that the voice does not know
is an error before anything is said, as no word is ever left out in silence.

Shapes: P phones, T samples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm_llama.core.chat import ChatFormat
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.model import MultimodalLlama
from mm_llama.voice import check_factor
from mm_llama.voice.predicted import given, prosody_model_of
from mm_llama.voice.prosody import utterance_of
from mm_llama.voice.tagging import KIND as NORMALIZER
from mm_llama.voice.tagging import read, written_rows

LONGEST = 300  # characters that are spoken in one breath
_ENDS = re.compile(r"(?<=[.!?…])[\"')\]”’]*\s+")
_PAUSES = re.compile(r"(?<=[,;:—–)])\s+")


@dataclass(frozen=True)
class Said:
    """A part of a text, at most a sentence: its words, phones, how each is said, and its samples float32[T]."""

    words: str
    phones: str
    features_P4: Tensor
    frames_P: Tensor
    samples: Tensor


class Speaker:
    """A model with the parts of a voice, and `phones`, which finds the phones of words.

    `rate` and `pitch` are factors from a half to two. Raises ValueError, naming it, for a part that is missing.
    """

    def __init__(
        self,
        model: MultimodalLlama,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        phones: Callable[[str], str],
        rate: float = 1.0,
        pitch: float = 1.0,
    ) -> None:
        check_factor("rate", rate)
        check_factor("pitch", pitch)
        prosody_model_of(model)
        self.acoustic: Any = model.spoken("tts_acoustic").adapter
        self.vocoder: Any = model.spoken("tts_vocoder").adapter
        self.model, self.tokenizer, self.chat, self.phones = model, tokenizer, chat, phones
        self.rate, self.pitch = rate, pitch

    @property
    def samples_a_second(self) -> int:
        """Return the rate of the samples."""
        return int(self.vocoder.rate)

    def say(self, text: str) -> Iterator[Said]:
        """Yield the parts of a text as soon as each is spoken; their words together are all that is said.

        Raises ValueError, before anything is said, for letters of a script that this voice does not know.
        """
        check_script(text)
        for words in self.words(text):
            phones = self.phones(words)
            if phones.strip():
                yield self.spoken(words, phones)

    def words(self, text: str) -> list[str]:
        """Return what is said of a text, in parts: read by the normaliser where there is one, then cut at its ends."""
        paragraphs = [" ".join(part.split()) for part in text.splitlines() if part.strip()]
        if NORMALIZER in self.model.modality:
            paragraphs = [one.text() for one in read(self.model, self.tokenizer, self.chat, paragraphs)]
        return [part for one in paragraphs for part in parts_of(one)]

    def spoken(self, words: str, phones: str) -> Said:
        """Return words of one breath with their sound."""
        tokens_1S, rows = written_rows([words], self.chat)
        with torch.inference_mode():
            asked = given(self.model, tokens_1S.to(self.model.device), rows, [phones], self.tokenizer)
            adapter = prosody_model_of(self.model).adapter
            (features_P4,) = adapter.predict(asked.phones, asked.states, asked.owners)
            utterance = utterance_of(asked.phones[0], features_P4, self.rate, self.pitch)
            (mel_Fn,) = self.acoustic([utterance])
            (samples_T,) = self.vocoder([mel_Fn])
        return Said(words, phones, features_P4.cpu(), utterance[1].cpu(), samples_T.cpu())


def parts_of(words: str) -> list[str]:
    """Return words cut at the ends of sentences; a longer one at its pauses, and where it has none between words."""
    found: list[str] = []
    for sentence in _ENDS.split(words):
        rest = sentence.strip()
        while len(rest) > LONGEST:
            pauses = [place.start() for place in _PAUSES.finditer(rest, 1) if place.start() <= LONGEST]
            cut = pauses[-1] if pauses else rest.rfind(" ", 1, LONGEST)
            if cut <= 0:  # one word without an end
                cut = LONGEST
            found.append(rest[:cut].strip())
            rest = rest[cut:].strip()
        if rest:
            found.append(rest)
    return found


def check_script(text: str) -> None:
    """Raise ValueError, naming it, for a letter that is not of the Latin script."""
    for character in text:
        if character.isalpha() and not unicodedata.name(character, "").startswith(
            ("LATIN", "FEMININE", "MASCULINE")
        ):
            raise ValueError(
                f"this voice speaks English, and {character!r} ({unicodedata.name(character, 'no name').lower()}) is "
                "not of its script: leave it out, or write it in Latin letters"
            )
