"""ChatML over bytes, and small chat files with real pictures."""

from __future__ import annotations

import io
import json
import math
import struct
import tarfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mm_llama.core.chat import ChatFormat, chat_format
from mm_llama.testing.bytes_tokenizer import BytesTokenizer


@pytest.fixture(scope="session")
def chat() -> ChatFormat:
    """ChatML over single bytes: a text of n ASCII characters is n tokens."""
    return chat_format("chatml", BytesTokenizer())


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., str]:
    """`picture(name, level)`: a small grey PNG in the test's folder; gives its name."""

    def make(name: str, level: int) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (level, level, level)).save(path)
        return name

    return make


def turn(answer: str, *pictures: str, question: str = "?") -> dict[str, Any]:
    """A row: the pictures, a question, an answer."""
    images = [{"type": "image", "path": name} for name in pictures]
    return {
        "messages": [
            {"role": "user", "content": [*images, {"type": "text", "text": question}]},
            {"role": "assistant", "content": answer},
        ]
    }


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    return turn


@pytest.fixture
def chat_file(tmp_path: Path) -> Callable[..., Path]:
    """`chat_file(rows, name)`: a JSONL file of rows (dicts, or lines as they are)."""

    def write(rows: list[dict[str, Any] | str], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), "utf-8")
        return path

    return write


@dataclass(frozen=True)
class RealMedia:
    """Whole files of each kind as bytes: a photograph-like JPEG, a tone in a WAV, a clip in an MP4."""

    jpeg: bytes
    wav: bytes
    mp4: bytes

    def of(self, kind: str) -> tuple[str, bytes]:
        """(ending, bytes) of a kind of medium."""
        return {"image": ("jpg", self.jpeg), "audio": ("wav", self.wav), "video": ("mp4", self.mp4)}[kind]


@pytest.fixture(scope="session")
def real_media() -> RealMedia:
    from mm_llama.testing.clips import encode_clip, moving_pictures

    pictures = moving_pictures(12, (64, 48))
    still, sound = io.BytesIO(), io.BytesIO()
    pictures[0].save(still, "JPEG", quality=90)
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(b"".join(struct.pack("<h", round(9000 * math.sin(t / 6))) for t in range(16_000)))
    return RealMedia(still.getvalue(), sound.getvalue(), encode_clip(pictures))


@pytest.fixture
def tar_file(tmp_path: Path) -> Callable[..., Path]:
    """`tar_file(members, name, format)`: a tar of (name, bytes) pairs, or of tarfile's own entries."""

    def write(
        members: list[tuple[str, bytes] | tarfile.TarInfo],
        name: str = "rows.tar",
        form: int = tarfile.PAX_FORMAT,
    ) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w", format=form) as tar:
            for member in members:
                if isinstance(member, tarfile.TarInfo):
                    tar.addfile(member)
                    continue
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
        return path

    return write
