"""A text read by the core word by word, as if it were writing it: its tokens, and the states behind them.

The text stands as the answer to an empty question (paper section 8.3), each line as one of its own, and a long line
begins anew now and then at the end of a sentence: what is kept does not grow with the text.

Shapes: S positions, D core width.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator

import torch

from mm_llama.core.cache import KVCache
from mm_llama.core.chat import ChatFormat, Message, Text
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.model import MultimodalLlama
from mm_llama.spoken import Watch, Written

SOME, MOST = 384, 640  # tokens of a line after which it begins anew: behind a sentence, behind any word
AT_ONCE = 32  # tokens
_ENDS = re.compile(r"[.!?…][\"')\]”’]*$")


def read_aloud(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    texts: Iterable[str],
    layers: Iterable[int] = (),
) -> Generator[Written, None, None]:
    """Yield the tokens of a text that comes in pieces, with the states behind `layers` of the core (0: none).

    In which pieces it comes makes no difference: it is read by words, white space between them as one space.
    """
    wanted = sorted({layer for layer in layers if layer})
    reader = None
    prefix = chat.render([Message("user", (Text(""),))], open_assistant=True).tokens
    with Watch(model.core, wanted) as watch:
        for word in words_of(texts):
            if word == "\n":
                if reader is not None:
                    reader.begin_anew()
                yield Written(b"\n", {})
                continue
            if not wanted:
                yield Written(word.encode(), {})
                continue
            if reader is None:
                reader = _Reader(model, prefix, wanted[-1])
            elif reader.is_long:
                reader.begin_anew()
            ids = tokenizer.encode(word)
            for first in range(0, len(ids), AT_ONCE):
                part = ids[first : first + AT_ONCE]
                if not reader.has_room(len(part)):
                    reader.begin_anew()
                reader.run(part)
                states = [watch.at(place) for place in range(len(part))]
                for id, state in zip(part, states, strict=True):
                    yield Written(tokenizer.token_bytes(id), state)
            reader.ended = bool(_ENDS.search(word))


def words_of(texts: Iterable[str]) -> Iterator[str]:
    """Yield the words of a text in pieces, each with a space before it unless it begins a line, and "\\n"."""
    word, gap, begun = "", False, False
    for text in texts:
        for character in text:
            if not character.isspace():
                word += character
                continue
            if word:
                yield " " * gap + word
                word, begun = "", True
            gap = begun
            if character in "\r\n" and begun:
                yield "\n"
                gap = begun = False
    if word:
        yield " " * gap + word


class _Reader:
    """The core at a place in a line. What it keeps is as large as at first, however often it begins anew."""

    def __init__(self, model: MultimodalLlama, prefix: list[int], stop: int) -> None:
        self.core, self.stop = model.core, stop
        weight = self.core.embedding.weight
        self.room = min(len(prefix) + MOST, self.core.config.max_context)
        self.cache = KVCache(self.core.config, 1, self.room, weight.dtype, weight.device)
        self.start = self.place = 0
        self.ended = False
        self.run(prefix)
        self.start = self.place

    def begin_anew(self) -> None:
        """Go back to behind the question; what was read since is overwritten, and not seen before it is."""
        self.place, self.ended = self.start, False

    @property
    def is_long(self) -> bool:
        """Whether this is where to begin anew."""
        return self.ended and self.place - self.start >= SOME

    def has_room(self, count: int) -> bool:
        """Whether so many tokens more can be read."""
        return self.place + count <= self.room

    def run(self, ids: list[int]) -> None:
        """Read more tokens, up to the last layer whose state is wanted."""
        device = self.core.embedding.weight.device
        positions = torch.arange(self.place, self.place + len(ids), device=device)[None]
        with torch.inference_mode():
            embedded = self.core.embedding(torch.tensor([ids], device=device))
            self.core.run(embedded, positions_BS=positions, cache=self.cache, stop=self.stop)
        self.place += len(ids)
