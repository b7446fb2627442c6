"""Words of a sentence to samples, as they come: phones, how each is said, log-mels, sound.

What is run when is settled by the words alone and not by when they come: the samples are the same bits however a text
arrives. Each part looks ahead as it states, so sound begins some words into a sentence, and behind its last word all
that is left is given.

Shapes: P phones, S core positions, D core width, T samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm_llama.voice.phones import SILENCE, numbers, spoken
from mm_llama.voice.prosody import LENGTH_SCALE, Utterance, utterance_of
from mm_llama.voice.wording import Word

# Of a word the phones depend on words around it: on two behind it (stress, "the" before a vowel), as the tagger of the
# engine does, and on three before it, which changes none of 1,578 words. The first words of a sentence, for which one
# waits, are told one behind them: that changes six of a thousand.
BEHIND, BEFORE = 2, 3
EARLY, EARLY_BEHIND = 4, 1
GROUPS = (2, 1, 1)  # phones that are made to sound at once at the beginning of a sentence, then
GROUP = 4
# A length is predicted by the mean of its logarithm, from which true ones deviate by 0.28: their own mean is longer by
# half the square of that, and without it speech is 3.7 % shorter than what was learned from.
LONGER = 1.04
STOP, MARKS = ".", ';:,.!?—…"()“”'


@dataclass(frozen=True)
class Said:
    """A sentence that was said: its words, phones, how each is said, and its samples float32[T]."""

    words: str
    phones: str
    features_P4: Tensor
    frames_P: Tensor
    samples: Tensor


class Sentence:
    """One sentence, to be told its words. `phones` finds the phones of words, `seconds` counts what each part takes.

    `rate` and `pitch` are factors; `style` is a number of the prosody model's.
    """

    def __init__(
        self,
        phones: Callable[[str], str],
        prosody: Any,
        acoustic: Any,
        vocoder: Any,
        rate: float,
        pitch: float,
        style: int,
        seconds: dict[str, float],
    ) -> None:
        self.find_phones, self.prosody, self.acoustic, self.vocoder = phones, prosody, acoustic, vocoder
        self.rate, self.pitch, self.seconds = rate, pitch, seconds
        self.words: list[Word] = []
        self.phones = ""
        self._numbers: list[int] = []
        self._spoken = 0  # words whose phones were found
        self._timing = prosody.start(style)
        self._sounding, self._waving = acoustic.start(), vocoder.start()
        self._features: list[Tensor] = []
        self._waiting: Utterance = utterance_of(
            torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), rate, pitch
        )
        self._frames: list[Tensor] = []
        self._samples: list[Tensor] = []
        self._groups = 0
        self._base = 0  # position of the core's token in which the first word begins

    def push(self, word: Word) -> Tensor:
        """Return the samples float32[t] that one more word completes."""
        if not self.words:
            self._base = word.first
        self.words.append(word)
        states_SD = word.states_SD
        if states_SD is not None:
            states_SD = states_SD[max(0, self._base - word.at) :]
        return self._more(states_SD, last=False)

    def finish(self) -> Said | None:
        """Return the sentence, its last samples with it; None when nothing of it can be said."""
        if not self.words:
            return None
        self._more(None, last=True)
        if not self.phones.strip():
            return None
        text = " ".join(word.text for word in self.words)
        parts = torch.cat(self._features), torch.cat(self._frames), torch.cat(self._samples)
        return Said(text, self.phones, *(part.cpu() for part in parts))

    @property
    def num_samples(self) -> int:
        """Return how many samples were given so far."""
        return sum(map(len, self._samples))

    def _more(self, states_SD: Tensor | None, last: bool) -> Tensor:
        began = time.perf_counter()
        ids, owners = self._found_phones(last)
        began = self._took("phones", began)
        device = self.vocoder.window.device
        phones_P = torch.tensor(ids, dtype=torch.long, device=device)
        self._numbers += ids
        if last and not self.phones.strip():
            return torch.zeros(0)
        if self.prosody.uses_core:
            if states_SD is None:
                states_SD = torch.zeros(0, self.prosody.dim, device=device)
            owners_P = torch.tensor(owners, dtype=torch.long, device=device)
            features_p4 = self.prosody.more(self._timing, phones_P, states_SD, owners_P, last=last)
        else:
            features_p4 = self.prosody.more(self._timing, phones_P, last=last)
        done = sum(map(len, self._features))
        self._features.append(features_p4)
        settled = torch.tensor(self._numbers[done : done + len(features_p4)], dtype=torch.long, device=device)
        began = self._took("prosody", began)
        longer_p4 = features_p4 + features_p4.new_tensor([math.log(LONGER) * LENGTH_SCALE, 0, 0, 0])
        more = utterance_of(settled, longer_p4, self.rate, self.pitch)
        self._frames.append(more[1])
        self._waiting = _joined(self._waiting, more)
        found = [torch.zeros(0)]
        while len(self._waiting[0]) >= self._group() or (last and len(self._waiting[0])):
            size = self._group()
            part, self._waiting = _cut(self._waiting, 0, size), _cut(self._waiting, size, None)
            self._groups += 1
            end = last and not len(self._waiting[0])
            mel_Fn = self.acoustic.more(self._sounding, part, last=end)
            began = self._took("acoustic", began)
            found.append(self.vocoder.more(self._waving, mel_Fn, last=end))
            began = self._took("vocoder", began)
        self._samples += found
        return torch.cat(found)

    def _group(self) -> int:
        return GROUPS[self._groups] if self._groups < len(GROUPS) else GROUP

    def _took(self, part: str, began: float) -> float:
        now = time.perf_counter()
        self.seconds[part] += now - began
        return now

    def _found_phones(self, last: bool) -> tuple[list[int], list[int]]:
        """Return numbers of the phones that can be told, and for each the position of its word's first token."""
        ids: list[int] = []
        owners: list[int] = []
        while self._spoken < len(self.words):
            place = self._spoken
            if not last and place + _behind(place) >= len(self.words):
                break
            found = spoken(self._phones_of(place))
            first, before = (
                self.words[place].first - self._base,
                self.words[max(0, place - 1)].first - self._base,
            )
            text = (" " if self.phones and found else "") + found
            numbered = numbers(text)[1:-1]
            if place == 0:
                numbered, owners = [SILENCE, *numbered], [first]
            ids += numbered
            owners += [
                before if phone == " " and number == 0 and place else first
                for number, phone in enumerate(text)
            ]
            self.phones += text
            self._spoken += 1
        if last and self.words:
            if self.phones and self.phones[-1] not in MARKS:
                self.phones += STOP  # every sentence that was learned from ends with a mark
                ids += numbers(STOP)[1:-1]
                owners.append(self.words[-1].first - self._base)
            ids.append(SILENCE)
            owners.append(self.words[-1].first - self._base)
        return ids, owners

    def _phones_of(self, place: int) -> str:
        first = max(0, place - BEFORE)
        window = [word.text for word in self.words[first : place + _behind(place) + 1]]
        groups = self.find_phones(" ".join(window)).split(" ")
        if len(groups) == len(window):
            return groups[place - first]
        return self.find_phones(
            window[place - first]
        ).strip()  # words that are found as fewer or more: each alone


def _behind(place: int) -> int:
    """Return how many words behind the one at a place of a sentence its phones may depend on."""
    return EARLY_BEHIND if place < EARLY else BEHIND


def _joined(first: Utterance, second: Utterance) -> Utterance:
    a, b, c = (torch.cat((one.to(other.device), other)) for one, other in zip(first, second, strict=True))
    return a, b, c


def _cut(utterance: Utterance, start: int, stop: int | None) -> Utterance:
    phones_P, frames_P, prosody_P3 = utterance
    return phones_P[start:stop], frames_P[start:stop], prosody_P3[start:stop]
