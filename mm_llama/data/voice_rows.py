"""A voice to learn: sentences spoken by one teacher, with the phones, how long each is, and how high.

A row is the text, an empty question before it; its labels are `phones` (a string, one character each), `frames` (how
many of 12.5 ms each phone takes, with the silence before and behind), `f0` (Hz of each frame, 0 without voice) and
`audio` (a FLAC file at 24 kHz).
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from mm_llama.data.recipes import _folder, _split
from mm_llama.data.sentences import sentences
from mm_llama.data.sound import Sound
from mm_llama.data.sources import JsonlChat, Row
from mm_llama.data.spoken_rows import too_few, write_flac, write_split
from mm_llama.data.text_to_speech import Hibari

VERSION = 1
LEAST_HZ = 40  # below it the teacher's pitch means that there is no voice


class VoiceRows(JsonlChat):
    """Rows whose recordings stand beside their file; `style` is the name of how, or by whom, they are said."""

    def __init__(self, path: str | Path, style: str = "") -> None:
        super().__init__(path)
        self.style = style

    def row(self, index: int) -> Row:
        """Return a row, the path of its recording whole."""
        row = super().row(index)
        labels = row.extra.get("labels")
        if not isinstance(labels, dict) or "audio" not in labels:
            return row  # who asks for its labels says what is missing
        labels = {**labels, "audio": str(self.path.parent / labels["audio"])}
        if self.style:
            labels["style"] = self.style
        return replace(row, extra={**row.extra, "labels": labels})


def taught_voice(
    root: str | Path | Sequence[str | Path],
    engine: str | Path,
    out: str | Path,
    split: str = "train",
    num_train: int = 4000,
    num_holdout: int = 200,
    seed: int = 0,
    style: str = "",
) -> VoiceRows:
    """Return one split (train, holdout) of sentences below the folders `root`, spoken by the engine's own voice.

    `style` is the name of it for a model that has several.
    Raises ValueError for another split, or when there are too few sentences.
    """
    roots = [root] if isinstance(root, str | Path) else list(root)
    options = repr([VERSION, num_train, num_holdout, seed, [Path(one).name for one in roots]])
    folder = _folder(out, options)
    files = {name: folder / f"{name}.jsonl" for name in ("train", "holdout")}
    path = _split(files, split, "a taught voice")
    if not all(file.is_file() for file in files.values()):
        found, wanted = sentences(roots, seed), num_train + num_holdout
        if len(found) < wanted:
            raise too_few(roots, "sentences that can be said", len(found), num_train, num_holdout)
        write_split(folder, _taught(found[:wanted], folder, Hibari(engine)), num_holdout)
    return VoiceRows(path, style)


def _taught(texts: Sequence[str], folder: Path, engine: Hibari) -> list[dict[str, Any]]:
    told, rows = time.monotonic(), []

    def one(text: str) -> dict[str, Any]:
        phones = engine.phones(text)
        taught = engine.teach(phones)
        name = f"clips/{hashlib.sha256(text.encode()).hexdigest()[:20]}.flac"
        seconds = write_flac(folder / name, Sound(taught.samples, taught.rate), taught.rate)
        f0 = [round(hz) if hz >= LEAST_HZ else 0 for hz in taught.f0_F.tolist()]
        labels = {"phones": phones, "frames": taught.frames, "f0": f0, "audio": name}
        return {
            "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": text}],
            "extra": {"labels": labels, "seconds": round(seconds, 3)},
        }

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for number, row in enumerate(pool.map(one, texts), start=1):
            rows.append(row)
            if number == len(texts) or time.monotonic() - told > 5:
                told = time.monotonic()
                print(f"taught {number:,}/{len(texts):,}", file=sys.stderr)
    return rows
