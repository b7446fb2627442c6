"""Dialogues asked aloud: what the text core itself answers becomes what a speech adapter learns from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_llama.core.messages import MediaPart
from mm_llama.data.recipes import _folder, _split
from mm_llama.data.sound import open_sound
from mm_llama.data.sources import JsonlChat
from mm_llama.data.spoken import say_all
from mm_llama.data.spoken_dialogue import Answer, answers_to, instructions
from mm_llama.data.spoken_rows import by_hash, dialogue, too_few, write_flac, write_split
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
        raise too_few(roots, "instructions with a short answer", len(pairs), num_train, num_holdout)
    made = say_all([text for text, _ in pairs], folder, lambda: Hibari(engine))
    rows = [
        dialogue(made[text][0], text, answer, language="English", seconds=made[text][1])
        for text, answer in pairs
    ]
    return write_split(folder, rows, num_holdout, name)


def write_answered(
    recordings: str | Path, folder: Path, core: str, *, num_train: int, num_holdout: int
) -> dict[str, Path]:
    """Have a core answer what is said in recordings, by their transcripts, write rows; returns {split: file}.

    `recordings` is a JSONL chat file. A call that was cut off goes on where it was. Raises ValueError when too few
    have a transcript and a short answer to it.
    """
    spoken: dict[str, tuple[Any, str]] = {}  # transcript: recording, language
    source = JsonlChat(recordings)
    for index in range(len(source)):
        row = source.row(index)
        language = str(row.extra.get("language", "English"))
        for message in row.messages:
            for part in message.parts:
                if isinstance(part, MediaPart) and part.kind == "speech" and part.transcript:
                    spoken.setdefault(part.transcript, (part.source, language))
    wanted = num_train + num_holdout
    asked = by_hash(spoken)[: wanted * 2]
    found = answers_to(asked, folder, core, lambda: answering(core)) if asked else {}
    pairs = [(text, found[text]) for text in asked if found[text]][:wanted]
    if len(pairs) < wanted:
        raise too_few(
            [recordings],
            "recordings with a transcript and a short answer",
            len(pairs),
            num_train,
            num_holdout,
        )
    rows = []
    for text, answer in pairs:
        recording, language = spoken[text]
        if isinstance(recording, bytes):  # it stood in the row itself
            path = f"clips/{hashlib.sha256(recording).hexdigest()[:20]}.flac"
            write_flac(folder / path, open_sound(recording))
        else:
            path = os.path.relpath(recording, folder)
        rows.append(dialogue(path, text, answer, language=language))
    return write_split(folder, rows, num_holdout)


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
