"""Several recordings said one after the other, as one: long utterances of a set that has short ones."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from mm_llama.core.messages import MediaPart, Message, Text
from mm_llama.data.sound import RATE, open_sound
from mm_llama.data.sources import Row, Source

PAUSE = 0.35  # seconds between two of them


class Joined:
    """Rows of recognition joined in their order, `several` to one, as far as `max_seconds` reach.

    Each row of the source must be a recording and what is said in it. The last of a group that would be too long are
    left out of it.
    """

    def __init__(self, source: Source, several: int = 4, max_seconds: float = 25.0) -> None:
        if several < 2 or max_seconds <= 0:
            raise ValueError(f"several={several} is at least 2, max_seconds={max_seconds} above 0")
        self.source, self.several, self.max_seconds = source, several, max_seconds
        said = f"joined {several} {max_seconds} {source.digest}"
        self.digest = f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"

    def __len__(self) -> int:
        return len(self.source) // self.several

    def name_of(self, index: int) -> str:
        """Return "file:line" of the first of the rows."""
        return self.source.name_of(index * self.several)

    def row(self, index: int) -> Row:
        """Return a joined row. Raises ValueError, naming it, for a row that is no recording with what is said."""
        parts: list[torch.Tensor] = []
        texts: list[str] = []
        length = 0
        first: Row | None = None
        for number in range(index * self.several, (index + 1) * self.several):
            row = self.source.row(number)
            heard = [
                part for message in row.messages for part in message.parts if isinstance(part, MediaPart)
            ]
            text = row.messages[-1].parts[0] if row.messages[-1].parts else None
            if len(heard) != 1 or heard[0].kind != "speech" or not isinstance(text, Text):
                raise ValueError(f"{row.source}: to be joined, a row is one recording and what is said in it")
            samples = open_sound(heard[0].source).samples
            if parts and length + len(samples) > self.max_seconds * RATE:
                break
            first = first or row
            parts += [samples, torch.zeros(int(PAUSE * RATE))]
            texts.append(text.text)
            length += len(samples) + int(PAUSE * RATE)
        assert first is not None
        said = " ".join(texts)
        whole = MediaPart("speech", (torch.cat(parts[:-1]), RATE), said)
        messages = tuple(_with(message, whole) for message in first.messages[:-1])
        return replace(first, messages=(*messages, Message("assistant", (Text(said),))))


def _with(message: Message, whole: MediaPart) -> Message:
    parts = tuple(whole if isinstance(part, MediaPart) else part for part in message.parts)
    return replace(message, parts=parts)
