"""Texts spoken by an engine, kept as recordings: what was made stays, and a call that was cut off goes on.

Voices are drawn for each text from the text and the seed, so the same texts give the same recordings whatever was made
before.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from mm_llama.data.sound import Sound
from mm_llama.data.spoken_rows import write_flac

PITCHES = (0.82, 0.9, 1.0, 1.0, 1.1, 1.2)
SPEEDS = (0.85, 1.2)


class Engine(Protocol):
    """What speaks."""

    def speak(self, text: str, speed: float = 1.0, pitch: float = 1.0, seed: int = 0) -> Sound:
        """Return a text spoken, at 16 kHz."""
        ...


def say_all(
    texts: Sequence[str],
    folder: Path,
    engine: Callable[[], Engine],
    *,
    seed: int = 0,
    one_voice: bool = False,
    say: bool = True,
    workers: int = 0,
) -> dict[str, tuple[str, float]]:
    """Speak each text into `folder/clips`; returns {text: (path below the folder, seconds)}.

    `clips.jsonl` is the list of what is there; a recording is listed when its file is whole. `engine` is called when
    there is something to say, once for each of `workers` threads (0: one a core, at most eight). `one_voice` leaves the
    engine's own voice and tempo.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "clips.jsonl"
    known = _read(listed)
    missing = [text for text in dict.fromkeys(texts) if _name(text, seed, one_voice) not in known]
    if missing:
        own = threading.local()

        def speak(text: str) -> tuple[str, float]:
            if not hasattr(own, "engine"):
                own.engine = engine()
            name = _name(text, seed, one_voice)
            speed, pitch = (1.0, 1.0) if one_voice else _voice(text, seed)
            sound = own.engine.speak(text, speed=speed, pitch=pitch, seed=seed)
            return name, round(write_flac(folder / name, sound), 3)

        told = time.monotonic()
        with listed.open("a", encoding="utf-8") as file:
            for number, (text, name, seconds) in enumerate(_spoken(missing, speak, workers), start=1):
                file.write(
                    json.dumps({"path": name, "seconds": seconds, "text": text}, ensure_ascii=False) + "\n"
                )
                file.flush()
                known[name] = seconds
                if say and (number == len(missing) or time.monotonic() - told > 5):
                    told = time.monotonic()
                    end = "\n" if number == len(missing) or not sys.stderr.isatty() else "\r"
                    print(f"spoken {number:,}/{len(missing):,}", end=end, file=sys.stderr, flush=True)
    names = {text: _name(text, seed, one_voice) for text in texts}
    return {text: (name, known[name]) for text, name in names.items()}


def _spoken(
    texts: Sequence[str], speak: Callable[[str], tuple[str, float]], workers: int
) -> Iterator[tuple[str, str, float]]:
    """Yield (text, name, seconds) in the order of the texts; what fails, or leaves, lets no more texts begin."""
    pool = ThreadPoolExecutor(workers)
    try:
        for text, spoken in zip(texts, pool.map(speak, texts), strict=True):
            yield (text, *spoken)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(listed: Path) -> dict[str, float]:
    """Return path and seconds of what is listed and there; a last line that was cut off is taken off the file."""
    if not listed.is_file():
        return {}
    found, kept = {}, []
    text = listed.read_text("utf-8")
    for line in text.splitlines():
        try:
            entry: Any = json.loads(line)
        except json.JSONDecodeError:
            continue
        if (listed.parent / entry["path"]).is_file():
            found[entry["path"]] = entry["seconds"]
            kept.append(line)
    whole = "".join(f"{line}\n" for line in kept)
    if whole != text:  # another call may be adding to the file: what is whole is left as it is
        partial = listed.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(whole, "utf-8")
        os.replace(partial, listed)
    return found


def _name(text: str, seed: int, one_voice: bool) -> str:
    said = f"{'one' if one_voice else seed}:{text}"
    return f"clips/{hashlib.sha256(said.encode()).hexdigest()[:20]}.flac"


def _voice(text: str, seed: int) -> tuple[float, float]:
    """Draw a speed and a pitch for a text."""
    rng = random.Random(f"{seed}:{text}")
    return round(rng.uniform(*SPEEDS), 3), rng.choice(PITCHES)
