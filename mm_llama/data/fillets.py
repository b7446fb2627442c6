"""The dialogues of the game Fish Fillets: spoken in Czech and Dutch, written in those and English (GPL-2.0-or-later).

Debian packages `fillets-ng-data` (texts), `-cs` and `-nl` (recordings). A line is known by its level and its name.
Levels are split, so no scene is met on both sides.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_llama.data.folders import make_folder
from mm_llama.data.sound import open_sound
from mm_llama.data.spoken_rows import SPLITS, recognition, translation, write_flac, write_rows

SPOKEN = {"cs": "Czech", "nl": "Dutch"}
SECONDS = (0.3, 29.0)
VERSION = 2

_STRING = r'"((?:[^"\\]|\\.)*)"'
_ID = re.compile(rf"dialogId\(\s*{_STRING}\s*,\s*{_STRING}\s*,\s*{_STRING}\s*\)")
_SAID = re.compile(rf"dialogStr\(\s*{_STRING}\s*\)")


@dataclass(frozen=True)
class Line:
    """A line of dialogue that is spoken in a language."""

    level: str
    name: str
    code: str
    sound: Path
    text: str
    english: str


def read_lines(texts: str | Path, sounds: dict[str, str | Path]) -> list[Line]:
    """Return every line that has a recording, its own text and an English one, in order of level and name.

    `sounds` gives the folder of each language's recordings, by code. Raises FileNotFoundError where a package is not.
    """
    scripts = sorted(Path(texts).rglob("script/*"))
    if not scripts:
        raise FileNotFoundError(f"{texts} holds no dialogues; mm-llama assets fetch fillets_data")
    found = []
    for code, root in sounds.items():
        files = {(path.parts[-3], path.stem): path for path in Path(root).rglob(f"{code}/*.ogg")}
        if not files:
            raise FileNotFoundError(
                f"{root} holds no {SPOKEN[code]} recordings; mm-llama assets fetch fillets_{code}"
            )
        for folder in scripts:
            for name, english, text in _dialogues(folder / f"dialogs_{code}.lua"):
                sound = files.get((folder.name, name))
                if sound is not None and text and english:
                    found.append(Line(folder.name, name, code, sound, text, english))
    return sorted(found, key=lambda line: (line.code, line.level, line.name))


def split_of(level: str) -> str:
    """Return the split of a level: an eighth each for holdout and test."""
    share = hashlib.sha256(level.encode()).digest()[0] % 8
    return {0: "holdout", 1: "test"}.get(share, "train")


def write_jsonl(texts: str | Path, sounds: dict[str, str | Path], out_dir: str | Path) -> dict[str, Path]:
    """Write recordings, and for each a row that asks for what is said and one that asks for it in English.

    The transcript of a row to be translated is its English text: what a readout is to find in the recording.
    """

    def fill(folder: Path) -> None:
        rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        empty = []
        for line in read_lines(texts, sounds):
            try:
                sound = open_sound(line.sound)
            except ValueError as error:  # the packages have recordings without a sample in them
                empty.append(str(error))
                continue
            if not SECONDS[0] <= sound.seconds <= SECONDS[1] or sound.silent:
                continue
            path = f"clips/{line.code}/{line.level}_{line.name}.flac"
            seconds = round(write_flac(folder / path, sound), 3)
            about: dict[str, Any] = {"id": f"{line.code}/{line.level}/{line.name}", "seconds": seconds}
            language = SPOKEN[line.code]
            rows[split_of(line.level)] += [
                recognition(path, line.text, language, **about),
                translation(
                    path,
                    line.text,
                    line.english,
                    "English",
                    transcript=line.english,
                    source_language=language,
                    **about,
                ),
            ]
        if empty:
            print(f"{len(empty)} recordings were left out, the first: {empty[0]}", file=sys.stderr)
        write_rows(folder, rows)

    folder = make_folder(out_dir, "fillets", {"version": VERSION, "codes": sorted(sounds)}, fill)
    return {split: folder / f"{split}.jsonl" for split in SPLITS}


def _dialogues(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (name, English, own text) of the lines of a script."""
    if not path.is_file():
        return
    script = path.read_text("utf-8", errors="replace")
    marks = list(_ID.finditer(script))
    for number, mark in enumerate(marks):
        end = marks[number + 1].start() if number + 1 < len(marks) else len(script)
        said = _SAID.search(script, mark.end(), end)
        if said:
            yield mark[1], _text(mark[3]), _text(said[1])


def _text(quoted: str) -> str:
    return " ".join(re.sub(r"\\(.)", r"\1", quoted).split())
