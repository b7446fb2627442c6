"""YAML that anybody may have written: told what it would become before it is read.

The loader builds plain data only. An alias costs its writer two characters and its reader a copy, so a few lines can
name billions of values; those, and nesting without end, are counted from the file's events, which cost nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

MAX_BYTES = 4_000_000
MAX_VALUES = 200_000
MAX_DEPTH = 50
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C, where it was built


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file as plain data, its interpolations as text. ValueError names the file."""
    check_yaml(path)
    try:
        data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # yaml and OmegaConf have a family each, for keys and values of other types
        raise ValueError(f"{path} is no config: {_first_line(error)}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is no config: it holds a {type(data).__name__}, expected keys with values")
    return {str(key): value for key, value in data.items()}


def check_yaml(path: Path) -> None:
    """Raise ValueError, naming the file, for YAML that is damaged, nested too deeply or would become too much."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is no config: it has more than {MAX_BYTES:,} bytes")
    sizes: dict[str, int] = {}  # values below each anchor, aliases counted out
    open_: list[tuple[str | None, int]] = [
        (None, 0)
    ]  # anchor and values so far of every node that has not ended
    try:
        for event in yaml.parse(path.read_bytes().decode("utf-8"), Loader=_LOADER):
            anchor, count = getattr(event, "anchor", None), 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((anchor, 0))
                if len(open_) > MAX_DEPTH:
                    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
                continue
            if isinstance(event, yaml.AliasEvent):
                # One that stands inside of what it names has no end.
                if anchor not in sizes:
                    raise ValueError(f"the alias *{anchor} names what is not there before it")
                count = sizes[anchor]
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, inner = open_.pop()
                count += inner
            elif not isinstance(event, yaml.ScalarEvent):
                continue
            if anchor is not None:
                sizes[anchor] = count
            outer, before = open_.pop()
            open_.append((outer, before + count))
            if before + count > MAX_VALUES:
                raise ValueError(f"its aliases would become more than {MAX_VALUES:,} values")
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is no config: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1})" if mark is not None else ""
    return (str(getattr(error, "problem", None) or error).splitlines() or [type(error).__name__])[0] + where
