"""Five sentences of a LibriVox reading of "Sense and Sensibility" (Debian package `pocketsphinx-testdata`).

Another voice, another century's words, an MP3 before: a test that no recipe here trains on.
"""

from __future__ import annotations

import re
from pathlib import Path

from mm_llama.data.folders import make_folder
from mm_llama.data.sound import open_sound
from mm_llama.data.spoken_rows import recognition, write_flac, write_rows

_LINE = re.compile(r"^<s>\s*(?P<text>.*?)\s*</s>\s*\((?P<name>[^()]+)\)$")


def write_jsonl(root: str | Path, out_dir: str | Path) -> dict[str, Path]:
    """Write the recordings and `test.jsonl` under `out_dir`. Raises FileNotFoundError when the package is not there."""

    def fill(folder: Path) -> None:
        listed = next(Path(root).rglob("librivox/transcription"), None)
        if listed is None:
            raise FileNotFoundError(
                f"{root} holds no LibriVox transcriptions; mm-llama assets fetch librivox_clips"
            )
        rows = []
        for line in listed.read_text("utf-8").splitlines():
            if match := _LINE.match(line.strip()):
                path = f"clips/{match['name']}.flac"
                seconds = write_flac(folder / path, open_sound(listed.parent / f"{match['name']}.wav"))
                rows.append(recognition(path, match["text"], id=match["name"], seconds=round(seconds, 3)))
        write_rows(folder, {"test": rows})

    folder = make_folder(out_dir, "librivox", {}, fill)
    return {"test": folder / "test.jsonl"}
