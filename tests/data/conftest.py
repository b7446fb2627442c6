"""ChatML over bytes, and small chat files with real pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
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
