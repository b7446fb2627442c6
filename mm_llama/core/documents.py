"""JSON that anybody may have written: what is wrong with it is one ValueError that names the file and the key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 28
# Sizes of models are far below it, and it fits everywhere that a size goes.
MAX_NUMBER = (1 << 31) - 1


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError names the file, and the line where it is not JSON."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {size:,} bytes, more than a JSON file of a model has ({MAX_BYTES:,})")
    data = parse_json(path.read_bytes(), str(path))
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def parse_json(text: bytes | str, where: str) -> Any:
    """Return what a JSON text holds; ValueError, that begins with `where`, for NaN, infinity and deep nesting too."""
    try:
        data = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(data, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}:{error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not JSON: not UTF-8 text") from None
    except RecursionError:
        raise ValueError(f"{where}: not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None


def whole_number(
    data: Mapping[str, Any],
    key: str,
    where: Path | str,
    default: int | None = None,
    most: int = MAX_NUMBER,
) -> int:
    """Return a number of a config; ValueError where it is missing without a default, or not from 1 to `most`."""
    value = data.get(key)
    if value is None:
        if default is None:
            raise ValueError(f"{where}: {key} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        end = "" if most == MAX_NUMBER else f" up to {most}"
        raise ValueError(f"{where}: {key} is {_shown(value)}; expected a positive whole number{end}")
    return value


def decimal(data: Mapping[str, Any], key: str, where: Path | str, default: float | None = None) -> float:
    """Return a number above zero of a config; ValueError where it is none, or missing without a default."""
    value = data.get(key)
    if value is None:
        if default is None:
            raise ValueError(f"{where}: {key} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{where}: {key} is {_shown(value)}; expected a number above 0")
    return float(value)


@contextmanager
def named(where: Path | str) -> Iterator[None]:
    """Begin every ValueError from inside with the file that it is about, unless it names it already."""
    try:
        yield
    except ValueError as error:
        if str(where) in str(error):
            raise
        raise ValueError(f"{where}: {error}") from None


def mapping(data: Mapping[str, Any], key: str, where: Path | str) -> dict[str, Any]:
    """Return an object inside of a config, empty where it is missing; ValueError where it is something else."""
    value = data.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where}: {key} is {_shown(value)}; expected an object")
    return dict(value or {})


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of very many digits"
    return text if len(text) <= 80 else text[:77] + "..."


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in it")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value
