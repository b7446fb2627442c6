"""Recordings to text through the core: transcription and translation of any length, and of what is still coming.

A recording is cut at pauses (`mm_llama.data.pauses`) into what the encoder was trained on; each piece is asked by
itself with the system prompt of its task, several at once. Nothing is left out: silence alone is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mm_llama.assistant import Assistant
from mm_llama.core.chat import MediaPart, Message, Text
from mm_llama.data.languages import language_named, repeat_prompt, translate_prompt
from mm_llama.data.pauses import Cutter, Piece, cut
from mm_llama.data.sound import RATE, sound_blocks
from mm_llama.data.voice_activity import VoiceActivity
from mm_llama.transcript import Segment, Transcript

if TYPE_CHECKING:
    from mm_llama.generation.beam import BeamSearch

MAX_SECONDS = 15.0
LEAST_SAMPLES = 800  # a shorter piece has no word in it, and no frame for some encoders
TOKENS_A_SECOND, LEAST_TOKENS = 6, 12


class Listener:
    """A model with a speech adapter, and one task: what is said, or the same in another language."""

    def __init__(
        self,
        assistant: Assistant,
        language: str = "English",
        task: str = "transcribe",
        search: BeamSearch | None = None,
        voice_activity: str | Path | None = None,
    ) -> None:
        """`task` is transcribe or translate; `language` is that of the text. Raises ValueError for others.

        With `search` the readout and the core choose together what was said. `voice_activity` is the folder of a
        network that tells speech from noise (the asset `silero_vad`); without it loudness does.
        """
        if "speech" not in assistant.model.modality:
            from mm_llama.model import no_adapter

            raise ValueError(no_adapter("speech", list(assistant.model.modality)))
        prompts = {"transcribe": repeat_prompt, "translate": translate_prompt}
        if task not in prompts:
            raise ValueError(f"a task of listening is {' or '.join(prompts)}, not {task!r}")
        self.assistant, self.search, self.voice_activity = assistant, search, voice_activity
        if search is not None and not assistant.model.modality["speech"].adapter.num_pieces:
            raise ValueError("only a speech adapter with a readout can be searched, and this one has none")
        self.language = language_named(language)
        self.system = prompts[task](language)

    def texts(self, pieces: Sequence[Piece]) -> list[str]:
        """Return what each piece says, "" for silence."""
        from mm_llama.generation.engine import generate
        from mm_llama.generation.prompts import make_batch

        spoken = [piece for piece in pieces if not piece.silent and len(piece.samples) >= LEAST_SAMPLES]
        found: list[str] = []
        if spoken:
            chat, model, tokenizer = (
                self.assistant.chat_format,
                self.assistant.model,
                self.assistant.tokenizer,
            )
            batch = make_batch(
                model,
                [chat.render(self._messages(piece.samples), open_assistant=True) for piece in spoken],
            )
            found_in = self.search.embeddings(model, batch, tokenizer) if self.search else None
            longest = max(len(piece.samples) for piece in spoken) / RATE
            rows = generate(
                model,
                batch,
                max_new_tokens=LEAST_TOKENS + int(TOKENS_A_SECOND * longest),
                stop=chat.stop,
                tokenizer=tokenizer,
                embeddings=found_in,
            )
            found = [row.text.strip() for row in rows]
        rest = iter(found)
        chosen = {id(piece) for piece in spoken}
        return [next(rest) if id(piece) in chosen else "" for piece in pieces]

    def _messages(self, samples: Tensor) -> list[Message]:
        heard = MediaPart("speech", (samples, RATE))
        return [Message("system", (Text(self.system),)), Message("user", (heard,))]

    def _voice(self) -> VoiceActivity | None:
        return VoiceActivity(self.voice_activity) if self.voice_activity else None

    def segments(self, blocks: Iterable[Tensor], batch_size: int = 8) -> Iterator[Segment]:
        """Yield what is said in a recording that comes in blocks of 16 kHz samples, as soon as a batch is full."""
        for batch in _batches(cut(blocks, MAX_SECONDS, self._voice()), batch_size):
            for piece, text in zip(batch, self.texts(batch), strict=True):
                if not piece.silent:
                    yield Segment(piece.start, piece.end, text)

    def file(
        self,
        source: str | Path | bytes,
        batch_size: int = 8,
        on_segment: Callable[[Segment], Any] | None = None,
    ) -> Transcript:
        """Return what is said in a file of any length."""
        total = [0]

        def counted() -> Iterator[Tensor]:
            for block in sound_blocks(source):
                total[0] += len(block)
                yield block

        found = []
        for segment in self.segments(counted(), batch_size):
            found.append(segment)
            if on_segment is not None:
                on_segment(segment)
        name = str(source) if isinstance(source, str | Path) else ""
        return Transcript(tuple(found), total[0] / RATE, self.language, name)

    def stream(self, blocks: Iterable[Tensor], every: float = 1.0) -> Iterator[tuple[Segment, bool]]:
        """Yield (segment, whether it is final) of sound that is still coming.

        After each `every` seconds of an unfinished piece comes what it says so far, which may still change; the final
        segments are those of `segments`.
        """
        cutter, since = Cutter(MAX_SECONDS, voice=self._voice()), 0
        for block in blocks:
            since += len(block)
            for piece in cutter.push(block):
                since = 0
                if not piece.silent:
                    yield Segment(piece.start, piece.end, self.texts([piece])[0]), True
            if since >= every * RATE:
                since, piece = 0, cutter.open
                if not piece.silent:
                    yield Segment(piece.start, piece.end, self.texts([piece])[0]), False
        for piece in cutter.finish():
            if not piece.silent:
                yield Segment(piece.start, piece.end, self.texts([piece])[0]), True


def _batches(pieces: Iterable[Piece], size: int) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    for piece in pieces:
        batch.append(piece)
        if sum(not one.silent for one in batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
