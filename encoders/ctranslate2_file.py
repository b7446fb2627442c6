"""Tensors of a CTranslate2 `model.bin`: a flat list of named arrays, read by its published layout, nothing run."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_DTYPES = {
    0: torch.float32,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.float16,
    5: torch.bfloat16,
}
_VERSIONS = (5, 6)  # of the file's layout
_MOST = 100_000  # arrays, and characters of a name


def read_ctranslate2(path: str | Path | Sequence[str | Path], prefix: str = "") -> dict[str, Tensor]:
    """Return the arrays whose names begin with `prefix`, by what follows it; the others are passed over.

    A file that was cut into parts is given as its parts, in order. Raises ValueError, naming the file, where it is of
    another layout, cut short, or a name comes twice.
    """
    parts = [Path(path)] if isinstance(path, str | Path) else [Path(part) for part in path]
    path = parts[0]
    found: dict[str, Tensor] = {}
    with _opened(parts) as file:
        size = sum(part.stat().st_size for part in parts)
        reader = _Reader(file, path)
        (version,) = reader.unpack("I")
        if version not in _VERSIONS:
            raise ValueError(
                f"{path} begins with version {version}, expected a CTranslate2 model of version 5 or 6: convert it anew"
            )
        reader.text()  # the name of the architecture
        _, count = reader.unpack("II")
        if count > _MOST:
            raise ValueError(f"{path} says that it holds {count:,} arrays: it is damaged")
        for _ in range(count):
            name = reader.text()
            (rank,) = reader.unpack("B")
            dims = reader.unpack(f"{rank}I")
            kind, num_bytes = reader.unpack("BI")
            if kind not in _DTYPES or num_bytes > size - file.tell():
                raise ValueError(f"{path} is cut short or damaged at {name}")
            if not name.startswith(prefix):
                file.seek(num_bytes, 1)
                continue
            if name.removeprefix(prefix) in found:
                raise ValueError(f"{path} holds {name} twice: it is damaged")
            values = torch.frombuffer(bytearray(file.read(num_bytes)), dtype=_DTYPES[kind])
            if values.numel() != torch.Size(dims).numel():
                raise ValueError(f"{path} is damaged at {name}: {values.numel()} values, shape {list(dims)}")
            found[name.removeprefix(prefix)] = values.view(dims)
    return found


def _opened(parts: Sequence[Path]) -> BinaryIO:
    if len(parts) == 1:
        return parts[0].open("rb")
    return io.BytesIO(b"".join(part.read_bytes() for part in parts))


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def unpack(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(f"<{form}")
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError(f"{self._path} is cut short: it ends within its list of arrays")
        return struct.unpack(f"<{form}", data)

    def text(self) -> str:
        (length,) = self.unpack("H")
        data = self._file.read(length)
        if len(data) < length or not length or data[-1]:
            raise ValueError(f"{self._path} is cut short or damaged: a name in it does not end")
        return data[:-1].decode("utf-8", "replace")
