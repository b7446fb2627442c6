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

from torch import Tensor

from mm_llama.data.sentences import sentences
from mm_llama.data.sources import JsonlChat, Row
from mm_llama.data.spoken_rows import write_split
from mm_llama.data.text_to_speech import Hibari

VERSION = 1
LEAST_HZ = 40  # below it the teacher's pitch means that there is no voice


class VoiceRows(JsonlChat):
    """Rows whose recordings stand beside their file."""

    def row(self, index: int) -> Row:
        """Return a row, the path of its recording whole."""
        row = super().row(index)
        labels = dict(row.extra["labels"])
        labels["audio"] = str(Path(self.path).parent / labels["audio"])
        return replace(row, extra={**row.extra, "labels": labels})


def taught_voice(
    root: str | Path | Sequence[str | Path],
    engine: str | Path,
    out: str | Path,
    split: str = "train",
    num_train: int = 2400,
    num_holdout: int = 200,
    seed: int = 0,
) -> VoiceRows:
    """Return one split (train, holdout) of sentences below the folders `root`, spoken by the engine's own voice.

    Raises ValueError for another split, or when there are too few sentences.
    """
    roots = [root] if isinstance(root, str | Path) else list(root)
    key = repr([VERSION, num_train, num_holdout, seed, [Path(one).name for one in roots]])
    folder = Path(out) / hashlib.sha256(key.encode()).hexdigest()[:12]
    files = {name: folder / f"{name}.jsonl" for name in ("train", "holdout")}
    if split not in files:
        raise ValueError(f"a taught voice has no split {split!r} (data.*.split); it has {', '.join(files)}")
    if not all(path.is_file() for path in files.values()):
        found, wanted = sentences(roots, seed), num_train + num_holdout
        if len(found) < wanted:
            raise ValueError(
                f"{', '.join(map(str, roots))} hold {len(found):,} sentences that can be said, fewer than the "
                f"{wanted:,} asked for"
            )
        write_split(folder, _taught(found[:wanted], folder, Hibari(engine)), num_holdout)
    return VoiceRows(files[split])


def _taught(texts: Sequence[str], folder: Path, engine: Hibari) -> list[dict[str, Any]]:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    told, rows = time.monotonic(), []

    def one(text: str) -> dict[str, Any]:
        phones = engine.phones(text)
        taught = engine.teach(phones)
        name = f"clips/{hashlib.sha256(text.encode()).hexdigest()[:20]}.flac"
        write_flac_at(folder / name, taught.samples, taught.rate)
        f0 = [round(hz) if hz >= LEAST_HZ else 0 for hz in taught.f0_F.tolist()]
        labels = {"phones": phones, "frames": taught.frames, "f0": f0, "audio": name}
        return {
            "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": text}],
            "extra": {"labels": labels, "seconds": round(len(taught.samples) / taught.rate, 3)},
        }

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for number, row in enumerate(pool.map(one, texts), start=1):
            rows.append(row)
            if number == len(texts) or time.monotonic() - told > 5:
                told = time.monotonic()
                print(f"taught {number:,}/{len(texts):,}", file=sys.stderr)
    return rows


def write_flac_at(path: Path, samples: Tensor, rate: int) -> None:
    """Write a recording at any rate. The file appears whole."""
    import soundfile

    partial = path.with_suffix(f".{os.getpid()}.partial")
    soundfile.write(partial, samples.clamp(-1, 1).numpy(), rate, format="FLAC", subtype="PCM_16")
    os.replace(partial, path)
