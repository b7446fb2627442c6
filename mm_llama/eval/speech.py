"""Recordings put to a model: what it makes of each, beside what was said, and beside another recording's."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mm_llama.batch import Batch
from mm_llama.core.chat import ChatFormat, MediaPart, Text
from mm_llama.core.pieces import respelled
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.data.collate import LoadMedia, collate
from mm_llama.data.media import KEYS
from mm_llama.data.samples import MediaRef, Sample, content_key, said_in
from mm_llama.data.sources import Row, Source, evenly
from mm_llama.eval.journal import clock, recall
from mm_llama.eval.speech_scores import (
    ErrorRate,
    TranslationScore,
    Utterance,
    align,
    chrf_paired_p,
    error_rate,
    paired_p,
    translation_score,
)
from mm_llama.eval.vqa_result import write_text
from mm_llama.generation.beam import BeamSearch
from mm_llama.generation.engine import generate
from mm_llama.model import MultimodalLlama

if TYPE_CHECKING:
    from rich.table import Table

KIND = "speech"
# What is said in a second is at most about this many tokens, and an answer may be longer than what it answers.
TOKENS_A_SECOND, LEAST_TOKENS = 6, 12
LONG = 8.0
Progress = Callable[[str, int, int], None]
Embed = Callable[[MultimodalLlama, Batch, Tokenizer], dict[str, list[Tensor]]]
InPieces = Callable[[Any, str, BeamSearch | None], str]


@dataclass(frozen=True)
class Asked:
    """One row: what is asked, the recording, the truth."""

    row: Row
    truth: str
    task: str
    language: str
    seconds: float

    @property
    def recording(self) -> Any:
        """The source of the first recording."""
        return next(
            part.source
            for message in self.row.messages
            for part in message.parts
            if isinstance(part, MediaPart) and part.kind == KIND
        )


@dataclass
class SpeechResult:
    """What was heard, by side.

    `model`, `searched` (what was said chosen by readout and core together), `readout` (what the adapter alone reads),
    `told` (its very transcript in the recording's place: what is wrong here was lost by repeating, not by hearing),
    `other` (another row's recording).
    """

    asked: list[Asked]
    heard: dict[str, list[str]]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Tasks and languages, in order of first appearance."""
        return list(dict.fromkeys((one.task, one.language) for one in self.asked))

    def chosen(self, task: str, language: str) -> list[int]:
        """Return the rows of a task and language."""
        return [index for index, one in enumerate(self.asked) if (one.task, one.language) == (task, language)]

    def utterances(self, side: str, rows: Sequence[int]) -> list[Utterance]:
        """Return the errors of a side in rows."""
        return [
            align(self.asked[index].truth, self.heard[side][index], self.asked[index].language)
            for index in rows
        ]

    def error_rate(
        self, side: str = "model", task: str = "recognition", language: str = "English"
    ) -> ErrorRate:
        """Return a side's errors over the rows of a task and language."""
        return error_rate(self.utterances(side, self.chosen(task, language)), language)

    def translation(self, side: str, language: str) -> TranslationScore:
        """Return a side's BLEU and chrF over the rows translated into a language."""
        rows = self.chosen("translation", language)
        return translation_score(
            [self.asked[row].truth for row in rows], [self.heard[side][row] for row in rows]
        )

    def records(self) -> list[dict[str, Any]]:
        """Return every row with what was heard, the worst first."""
        found = []
        for index, one in enumerate(self.asked):
            (utterance,) = self.utterances("model", [index])
            source = one.recording
            found.append(
                {
                    "id": one.row.extra.get("id", one.row.source),
                    "source": one.row.source,
                    "audio": str(source) if isinstance(source, str | Path) else "",
                    "seconds": one.seconds,
                    "task": one.task,
                    "language": one.language,
                    "said": one.truth,
                    "heard": {side: heard[index] for side, heard in self.heard.items()},
                    "errors": utterance.errors,
                    "length": utterance.length,
                    "edits": [[edit.op, edit.said, edit.heard] for edit in utterance.edits],
                }
            )
        return sorted(found, key=lambda one: (-one["errors"] / max(1, one["length"]), one["source"]))

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        tasks = []
        for task, language in self.groups:
            rows = self.chosen(task, language)
            entry: dict[str, Any] = {"task": task, "language": language, "rows": len(rows), "sides": {}}
            entry["seconds"] = sum(self.asked[row].seconds for row in rows)
            for side in self.heard:
                if task == "translation":
                    if side != "readout":
                        entry["sides"][side] = self.translation(side, language).to_json()
                else:
                    entry["sides"][side] = self.error_rate(side, task, language).to_json()
            if "other" in self.heard:
                entry["p_against_other"] = self._p(task, rows)
            tasks.append(entry)
        return {"tasks": tasks, "seconds": self.seconds}

    def _p(self, task: str, rows: Sequence[int]) -> float:
        if task != "translation":
            return paired_p(self.utterances("model", rows), self.utterances("other", rows))
        sides = ([self.heard[side][row] for row in rows] for side in ("model", "other"))
        return chrf_paired_p([self.asked[row].truth for row in rows], *sides)

    def table(self) -> Table:
        """Return the numbers as a table to print."""
        from rich.table import Table

        names = {
            "model": "through the core",
            "searched": "with a search",
            "readout": "readout alone",
            "told": "told in writing",
            "other": "another's recording",
        }
        table = Table("task", "language", "rows", "heard", "result")
        for entry in self.to_json()["tasks"]:
            task, language = entry["task"], entry["language"]
            first = [task, language, str(entry["rows"])]
            for side in entry["sides"]:
                of = self.translation(side, language) if task == "translation" else None
                table.add_row(*first, names[side], str(of or self.error_rate(side, task, language)))
                first = ["", "", ""]
        return table

    def write(self, path: Path, answers: Path) -> None:
        """Write the numbers as JSON and every row as JSONL beside it, the worst first."""
        write_text(path, json.dumps(self.to_json(), indent=2) + "\n")
        write_text(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.records()))


def read_asked(source: Source, *, limit: int = 0) -> list[Asked]:
    """Read rows with a recording: the last assistant message is the truth, all before it is asked.

    `limit` > 0 takes that many at even strides. Raises ValueError for a row without a recording.
    """
    found = []
    for row in map(source.row, evenly(len(source), limit)):
        parts = [part for message in row.messages[:-1] for part in message.parts]
        if not any(isinstance(part, MediaPart) and part.kind == KIND for part in parts):
            raise ValueError(f"{row.source}: there is no recording in what is asked here")
        truth = "".join(part.text for part in row.messages[-1].parts if isinstance(part, Text))
        extra = row.extra
        found.append(
            Asked(
                row,
                truth,
                str(extra.get("task", "recognition")),
                str(extra.get("language", "English")),
                float(extra.get("seconds", 0.0)),
            )
        )
    return found


def evaluate_speech(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    asked: Sequence[Asked],
    *,
    load_media: LoadMedia,
    encoded: Collection[str] = (),
    sides: Collection[str] = ("readout",),
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    in_pieces: InPieces | None = None,
    search: BeamSearch | None = None,
) -> SpeechResult:
    """Put every row to the model, greedily; `load_media` and `encoded` as in `collate`.

    `in_pieces(recording, language, search)` writes down what is said in a long recording, which is then cut at pauses
    as `mm-llama transcribe` does: it is asked for recognition of those longer than LONG seconds.

    `search` adds the side `searched`; `sides` adds `readout` (where the adapter has one), `told` (each row with its
    transcript in the recording's place) and `other` (each row with another row's recording). Raises ValueError when
    there is nothing to ask, and for `told` when a recording has no transcript.
    """
    if not asked:
        raise ValueError("there are no recordings to ask about")
    result = SpeechResult(list(asked), {})
    samples = [_sample(one, chat) for one in asked]
    reader: dict[str, Any] = {"load_media": load_media, "encoded": encoded}
    start = clock()
    result.heard["model"] = _answers(
        model, tokenizer, chat, asked, samples, batch_size, progress, "model", reader
    )
    _write_down_long(result, "model", in_pieces, None)
    result.seconds["model"] = clock() - start
    if search is not None:
        start = clock()
        result.heard["searched"] = _answers(
            model,
            tokenizer,
            chat,
            asked,
            samples,
            batch_size,
            progress,
            "searched",
            reader,
            search.embeddings,
        )
        _write_down_long(result, "searched", in_pieces, search)
        result.seconds["searched"] = clock() - start
    if "readout" in sides and model.modality[KIND].adapter.num_pieces:
        result.heard["readout"] = _readout(model, tokenizer, samples, batch_size, reader)
    if "told" in sides:
        result.heard["told"] = _answers(
            model, tokenizer, chat, asked, samples, batch_size, progress, "told", reader, _told
        )
    if "other" in sides:
        shifted = list(range(len(samples)))
        random.Random(seed).shuffle(shifted)
        new = dict(zip(shifted, [*shifted[1:], shifted[0]], strict=True))
        others = [
            replace_recording(sample, samples[new[index]].media) for index, sample in enumerate(samples)
        ]
        result.heard["other"] = _answers(
            model, tokenizer, chat, asked, others, batch_size, progress, "other", reader
        )
    return result


def _write_down_long(
    result: SpeechResult, side: str, in_pieces: InPieces | None, search: BeamSearch | None
) -> None:
    for index, one in enumerate(result.asked):
        if in_pieces is not None and one.task == "recognition" and one.seconds > LONG:
            result.heard[side][index] = in_pieces(one.recording, one.language, search)


def replace_recording(sample: Sample, media: Sequence[MediaRef]) -> Sample:
    """Return a sample with the first recording of `media` in place of its own."""
    other = next(ref for ref in media if ref.kind == KIND)
    changed = [
        replace(ref, source=other.source, key=other.key) if ref.kind == KIND else ref for ref in sample.media
    ]
    return replace(sample, media=changed)


def _sample(one: Asked, chat: ChatFormat) -> Sample:
    rendered = chat.render(one.row.messages[:-1], open_assistant=True)
    media = []
    for part in rendered.media:
        key, said = content_key(KEYS[part.kind], part.source), said_in(part.transcript, chat.tokenizer)
        media.append(MediaRef(part.kind, part.position, part.source, key, said))
    return Sample(rendered.tokens, [False] * len(rendered.tokens), media, one.row.source)


def _answers(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    asked: Sequence[Asked],
    samples: Sequence[Sample],
    batch_size: int,
    progress: Progress | None,
    side: str,
    reader: Mapping[str, Any],
    embed: Embed | None = None,
) -> list[str]:
    order = sorted(range(len(samples)), key=lambda index: (asked[index].seconds, index))
    found: dict[int, str] = {}

    def answer(chunk: Sequence[int]) -> list[str]:
        longest = max(asked[index].seconds for index in chunk) or 30.0
        batch = collate([samples[index] for index in chunk], **reader).to(model.device)
        rows = generate(
            model,
            batch,
            max_new_tokens=LEAST_TOKENS + int(TOKENS_A_SECOND * longest),
            stop=chat.stop,
            tokenizer=tokenizer,
            embeddings=embed(model, batch, tokenizer) if embed else None,
        )
        return [row.text.strip() for row in rows]

    for first in range(0, len(order), batch_size):
        chunk = order[first : first + batch_size]
        key = [(samples[index].tokens, [ref.key for ref in samples[index].media]) for index in chunk]
        found.update(zip(chunk, recall(("speech", side, key), partial(answer, chunk)), strict=True))
        if progress is not None:
            progress(side, len(found), len(order))
    return [found[index] for index in range(len(samples))]


def _told(model: MultimodalLlama, batch: Batch, tokenizer: Tokenizer) -> dict[str, list[Tensor]]:
    tokens = [respelled(said, tokenizer) for said in batch.said(KIND)]
    return {KIND: model.modality[KIND].adapter.spelled(tokens, model.core.embedding.weight)}


def _readout(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    batch_size: int,
    reader: Mapping[str, Any],
) -> list[str]:
    modality, table_VD = model.modality[KIND], model.core.embedding.weight
    texts: list[str] = []
    for first in range(0, len(samples), batch_size):
        batch = collate(samples[first : first + batch_size], **reader).to(model.device)
        media = batch.media[KIND]
        with torch.inference_mode():
            heard = modality.adapter.hear(modality.encode(media, table_VD.dtype), table_VD)
        read = [tokenizer.decode([piece for piece, _, _ in row]) for row in heard.best_pieces()]
        # One recording a row, as everywhere here; several rows may show one.
        by_row = dict(zip(media.rows_M.tolist(), media.items_M.tolist(), strict=True))
        texts += [read[by_row[row]].strip() for row in range(len(batch.tokens_BS))]
    return texts
