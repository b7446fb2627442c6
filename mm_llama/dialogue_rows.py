"""Dialogues asked aloud: what the text core itself answers becomes what a speech adapter learns from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_llama.core.messages import MediaPart
from mm_llama.data.recipes import _folder, _split
from mm_llama.data.sources import JsonlChat
from mm_llama.data.spoken import say_all
from mm_llama.data.spoken_dialogue import Answer, answers_to, instructions
from mm_llama.data.spoken_rows import by_hash, dialogue, write_rows
from mm_llama.data.text_to_speech import Hibari


def spoken_dialogues(
    root: str | Path | Sequence[str | Path],
    engine: str | Path,
    out: str | Path,
    core: str = "smollm2_135m",
    split: str = "train",
    num_train: int = 240,
    num_holdout: int = 40,
) -> JsonlChat:
    """Return one split (train, holdout) of what may be asked, asked aloud, with the core's own short answers."""
    folder = _folder(out, core)
    files = {name: folder / f"{num_train}_{num_holdout}_{name}.jsonl" for name in ("train", "holdout")}
    if not all(path.is_file() for path in files.values()):
        roots = [root] if isinstance(root, str | Path) else list(root)
        write_dialogues(
            roots,
            engine,
            folder,
            core,
            num_train=num_train,
            num_holdout=num_holdout,
            name=f"{num_train}_{num_holdout}_",
        )
    return JsonlChat(_split(files, split, "spoken dialogues"))


def write_dialogues(
    roots: Sequence[str | Path],
    engine: str | Path,
    folder: Path,
    core: str,
    *,
    num_train: int,
    num_holdout: int,
    name: str = "",
) -> dict[str, Path]:
    """Have a core answer instructions and questions below `roots`, speak these, write rows; returns {split: file}.

    A call that was cut off goes on where it was. Raises ValueError when too few have a short answer.
    """
    wanted = num_train + num_holdout
    asked = by_hash(instructions(roots))[: wanted * 2]
    found = answers_to(asked, folder, core, lambda: answering(core))
    pairs = [(text, found[text]) for text in asked if found[text]][:wanted]
    if len(pairs) < wanted:
        raise _too_few(roots, "instructions", len(pairs), num_train, num_holdout)
    made = say_all([text for text, _ in pairs], folder, lambda: Hibari(engine))
    rows = [
        dialogue(made[text][0], text, answer, language="English", seconds=made[text][1])
        for text, answer in pairs
    ]
    return _write(folder, rows, num_holdout, name)


def write_answered(
    recordings: str | Path, folder: Path, core: str, *, num_train: int, num_holdout: int
) -> dict[str, Path]:
    """Have a core answer what is said in recordings, by their transcripts, write rows; returns {split: file}.

    `recordings` is a JSONL chat file. A call that was cut off goes on where it was. Raises ValueError when too few
    have a transcript and a short answer to it.
    """
    spoken: dict[str, MediaPart] = {}
    source = JsonlChat(recordings)
    for index in range(len(source)):
        for message in source.row(index).messages:
            for part in message.parts:
                if isinstance(part, MediaPart) and part.kind == "speech" and part.transcript:
                    spoken.setdefault(part.transcript, part)
    wanted = num_train + num_holdout
    asked = by_hash(spoken)[: wanted * 2]
    found = answers_to(asked, folder, core, lambda: answering(core)) if asked else {}
    pairs = [(text, found[text]) for text in asked if found[text]][:wanted]
    if len(pairs) < wanted:
        raise _too_few([recordings], "recordings with a transcript", len(pairs), num_train, num_holdout)
    rows = [
        dialogue(os.path.relpath(str(spoken[text].source), folder), text, answer, language="English")
        for text, answer in pairs
    ]
    return _write(folder, rows, num_holdout)


def _too_few(
    roots: Sequence[str | Path], what: str, count: int, num_train: int, num_holdout: int
) -> ValueError:
    return ValueError(
        f"{', '.join(map(str, roots))}: {count:,} {what} with a short answer, fewer than the "
        f"{num_train + num_holdout:,} asked for ({num_train:,} to train on, {num_holdout:,} held out)"
    )


def _write(folder: Path, rows: Sequence[dict[str, Any]], num_holdout: int, name: str = "") -> dict[str, Path]:
    files = write_rows(folder, {f"{name}holdout": rows[:num_holdout], f"{name}train": rows[num_holdout:]})
    return {split: files[f"{name}{split}"] for split in ("train", "holdout")}


def answering(core: str, max_new_tokens: int = 36) -> Answer:
    """Return what answers texts with a plain core, greedily."""
    from mm_llama.build import load_model
    from mm_llama.core.chat import Message, Text
    from mm_llama.dtypes import choose_dtype
    from mm_llama.generation.engine import generate

    model, tokenizer, chat = load_model(core, (), choose_dtype("auto"))

    def answer(texts: Sequence[str]) -> list[str]:
        prompts = [chat.render([Message("user", (Text(text),))], open_assistant=True) for text in texts]
        rows = generate(model, prompts, max_new_tokens=max_new_tokens, stop=chat.stop, tokenizer=tokenizer)
        return [row.text for row in rows]

    return answer
