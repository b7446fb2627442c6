"""What the tagger of text normalisation is told of a token: its spelling, its shape and its number, hashed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mm_llama.voice.written import Token

SPELLING = 5  # so many of them, the first, say which word it is


def features(tokens: Sequence[Token], num_features: int) -> Tensor:
    """Return int64[N, k]: of each token its features as places in a table of so many rows, always the same ones."""
    named = [[f"{number} {text}" for number, text in enumerate(_of(token))] for token in tokens]
    return torch.tensor([[zlib.crc32(name.encode()) % num_features for name in row] for row in named])


def _of(token: Token) -> list[str]:
    text, lower = token.text, token.text.lower()
    shape = "".join("d" if c.isdigit() else "X" if c.isupper() else "x" if c.isalpha() else c for c in text)
    value = _value(text) if token.is_number else ""
    return [
        lower,
        text if len(text) <= 4 else text[:1].isupper() * "upper",
        lower[:3],
        lower[-3:],
        lower[-2:],
        shape[:4] + (str(len(shape)) if token.is_number else "+" * (len(shape) > 4)),
        value,
        "space" if token.space else "",
        str(min(len(text), 8)),
        "0" * text.startswith("0") + "00" * text.endswith("00"),
    ]


def _value(digits: str) -> str:
    """Return the range of a number: of a month, of a day, of minutes, of years."""
    number = int(digits)
    bounds = (0, 1, 2, 12, 31, 59, 99, 999, 1099, 1899, 2100, 9999)
    return next((str(bound) for bound in bounds if number <= bound), "more")
