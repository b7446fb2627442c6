"""A page on which people choose between two voices: pairs in random order, which is which not told before the vote.

The page is one file with its sounds in it. Votes stay in the browser (local storage) until they are copied out; the
count at the end has the 95 % interval of the share that prefers the first, ties left out (paper Table 35).
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import wave
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any


def write_preference_page(
    path: str | Path, names: Mapping[str, str], pairs: Sequence[tuple[str, Any, Any]], rate: int
) -> Path:
    """Write the page; `names` are those of "a" and "b", a pair is a text and float samples of both.

    The file appears whole or not at all. Raises ValueError when there is no pair.
    """
    if not pairs:
        raise ValueError("there are no pairs of sounds to choose from")
    path = Path(path)
    data = [
        {"text": text, "a": _sound(first, rate), "b": _sound(second, rate)} for text, first, second in pairs
    ]
    # Votes of one page do not mix with those of another.
    key = hashlib.sha256(json.dumps([names, [row["text"] for row in data]]).encode()).hexdigest()[:12]
    page = (files("mm_llama.report") / "preference.html").read_text("utf-8")
    content = json.dumps({"key": key, "names": dict(names), "pairs": data}).replace("<", "\\u003c")
    page = page.replace("{{title}}", html.escape("Which voice sounds better?")).replace("{{data}}", content)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, "utf-8")
    os.replace(partial, path)
    return path


def _sound(samples: Any, rate: int) -> str:
    """Return samples as the base64 of a 16-bit WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples.clamp(-1, 1) * 32767).round().short().numpy().astype("<i2").tobytes())
    return base64.b64encode(buffer.getvalue()).decode()
