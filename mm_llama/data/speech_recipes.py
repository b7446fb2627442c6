"""Speech that registry packages carry or an engine makes, as sources a config can name; made once, then read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_llama.data import asterisk as asterisk_data
from mm_llama.data import fillets as fillets_data
from mm_llama.data import librivox as librivox_data
from mm_llama.data.recipes import Subset, _folder, _split, easy_vqa
from mm_llama.data.sentences import sentences
from mm_llama.data.sources import JsonlChat, Source
from mm_llama.data.spoken import say_all
from mm_llama.data.spoken_rows import recognition, too_few, write_rows, write_split
from mm_llama.data.text_to_speech import Hibari

VERSION = 1


def asterisk(root: str | Path, texts: str | Path, out: str | Path, split: str = "train") -> JsonlChat:
    """Return one split (train, holdout, test) of the Asterisk prompts, to be recognised."""
    return JsonlChat(
        _split(
            asterisk_data.write_jsonl(root, texts, _folder(out, str(asterisk_data.VERSION))),
            split,
            "Asterisk",
        )
    )


def librivox(root: str | Path, out: str | Path, split: str = "test") -> JsonlChat:
    """Return the LibriVox sentences, to be recognised; there is a test split alone."""
    return JsonlChat(_split(librivox_data.write_jsonl(root, _folder(out)), split, "LibriVox"))


def fillets(
    root: str | Path,
    czech: str | Path,
    dutch: str | Path,
    out: str | Path,
    split: str = "train",
    tasks: Sequence[str] = ("translation",),
) -> Source:
    """Return one split (train, holdout, test) of game dialogues spoken in Czech and Dutch.

    `tasks` are translation (into English) and recognition.
    """
    unknown = sorted(set(tasks) - {"translation", "recognition"})
    if unknown or not tasks:
        raise ValueError(
            f"tasks of fillets are translation and recognition, not {(unknown or ['(none)'])[0]}"
        )
    files = fillets_data.write_jsonl(
        root, {"cs": czech, "nl": dutch}, _folder(out, str(fillets_data.VERSION))
    )
    source = JsonlChat(_split(files, split, "Fillets"))
    chosen = [index for index in range(len(source)) if source.row(index).extra["task"] in tasks]
    return Subset(source, chosen)


def spoken_sentences(
    root: str | Path | Sequence[str | Path],
    engine: str | Path,
    out: str | Path,
    split: str = "train",
    num_train: int = 2000,
    num_holdout: int = 60,
    seed: int = 0,
    clauses: bool = False,
) -> JsonlChat:
    """Return one split (train, holdout) of sentences below the folders `root`, spoken in several voices.

    With `clauses` those of long sentences too. What is said once is kept: with a larger `num_train` only the new ones
    are spoken.
    """
    folder = Path(out)
    roots = [root] if isinstance(root, str | Path) else list(root)
    key = hashlib.sha256(
        repr([num_train, num_holdout, seed, VERSION, [Path(r).name for r in roots]]).encode()
    )
    name = key.hexdigest()[:12]
    files = {split: folder / f"{name}_{split}.jsonl" for split in ("train", "holdout")}
    if not all(path.is_file() for path in files.values()):
        write_spoken(
            roots,
            engine,
            folder,
            num_train=num_train,
            num_holdout=num_holdout,
            seed=seed,
            clauses=clauses,
            name=f"{name}_",
        )
    return JsonlChat(_split(files, split, "spoken sentences"))


def write_spoken(
    roots: Sequence[str | Path],
    engine: str | Path,
    folder: Path,
    *,
    num_train: int,
    num_holdout: int,
    seed: int = 0,
    clauses: bool = False,
    name: str = "",
) -> dict[str, Path]:
    """Speak sentences of texts below `roots` and write them as rows; returns {split: file}.

    A call that was cut off goes on where it was. Raises ValueError when there are too few sentences.
    """
    found = sentences(roots, seed, clauses=clauses)
    wanted = num_train + num_holdout
    if len(found) < wanted:
        raise too_few(roots, "sentences that can be said", len(found), num_train, num_holdout)
    made = say_all(found[:wanted], folder, lambda: Hibari(engine), seed=seed)
    rows = [recognition(path, text, seconds=seconds) for text, (path, seconds) in made.items()]
    return write_split(folder, rows, num_holdout, name)


def spoken_easy_vqa(
    root: str | Path,
    engine: str | Path,
    out: str | Path,
    easy_vqa_out: str | Path,
    split: str = "test",
    **options: Any,
) -> JsonlChat:
    """Return one split of easy-VQA with its questions asked aloud: the picture, then a recording, no text.

    `options` are those of `easy_vqa`. `extra` is that of the typed rows.
    """
    typed = easy_vqa(root, easy_vqa_out, split, **options)
    rows = [typed.row(index) for index in range(len(typed))]
    folder = _folder(out, *(f"{key}={value}" for key, value in sorted(options.items())))
    questions = sorted({row.extra["question"] for row in rows})
    made = say_all(
        [_spoken(question) for question in questions], folder, lambda: Hibari(engine), one_voice=True
    )
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        write_rows(folder, {split: [_asked_aloud(row, made[_spoken(row.extra["question"])]) for row in rows]})
    return JsonlChat(file)


def _spoken(question: str) -> str:
    """A question as it is written where sentences begin: what the adapter heard in training."""
    return question[:1].upper() + question[1:]


def _asked_aloud(row: Any, clip: tuple[str, float]) -> dict[str, Any]:
    from mm_llama.core.messages import MediaPart

    (picture,) = (part.source for part in row.messages[0].parts if isinstance(part, MediaPart))
    path, seconds = clip
    content = [
        {"type": "image", "path": picture},
        {"type": "audio", "path": path, "transcript": _spoken(row.extra["question"])},
    ]
    answer = "".join(part.text for part in row.messages[-1].parts)
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        "extra": {**row.extra, "seconds": seconds},
    }
