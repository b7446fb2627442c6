"""Recordings as they lie in folders, without a word about what is said: what an encoder is pre-trained on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from mm_llama.core.messages import MediaPart, Message, Text
from mm_llama.data.sound import SOUND_SUFFIXES
from mm_llama.data.sources import Row


class Recordings:
    """Every sound file below some folders, by name; a row is one recording and an empty answer.

    `every` > 1 keeps one of so many, and `skip` leaves those out instead: a held-out part and the rest.
    """

    def __init__(
        self,
        folders: str | Path | Sequence[str | Path],
        suffixes: Sequence[str] = SOUND_SUFFIXES,
        every: int = 1,
        skip: bool = False,
    ) -> None:
        roots = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
        if every < 1 or (skip and every < 2):
            raise ValueError(f"every={every}, skip={skip}: one of 2 or more is kept or left out")
        files = [
            path
            for root in roots
            for path in sorted(root.rglob("*"))
            if path.suffix.lower() in suffixes and path.is_file()
        ]
        self.files = [path for path in files if (_number(path) % every == 0) != skip]
        if not self.files:
            raise FileNotFoundError(
                f"there is no recording below {', '.join(map(str, roots))} (endings: {', '.join(suffixes)})"
            )

    @property
    def digest(self) -> str:
        """Identity of the files, by name, size and time."""
        stats = [(str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in self.files]
        return f"sha256:{hashlib.sha256(repr(stats).encode()).hexdigest()}"

    def __len__(self) -> int:
        return len(self.files)

    def row(self, index: int) -> Row:
        """Return one recording."""
        heard = Message("user", (MediaPart("speech", str(self.files[index])),))
        return Row((heard, Message("assistant", (Text(""),))), self.name_of(index))

    def name_of(self, index: int) -> str:
        """Return the file's path."""
        return str(self.files[index])


def _number(path: Path) -> int:
    return int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "big")
