"""Is a checkpoint's state what this package writes? What is read of it later is there then, and of its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def check_state(state: Mapping[str, Any], where: Path) -> None:
    """Raise ValueError, naming the keys, where a state lacks what every state has."""
    lineage = state.get("lineage")
    right = {
        "stage": _is_word(state.get("stage")),
        "step": type(state.get("step")) is int and 0 <= state["step"] < 10**8,
        "core": _is_word(state.get("core")),
        "train": _are(state.get("train"), lambda one: _is_word(one) and "." in one),
        "encoders": isinstance(state.get("encoders"), dict)
        and all(_is_word(digest) for digest in state["encoders"].values()),
        "lineage": _are(lineage, lambda one: isinstance(one, dict) and _is_word(one.get("stage")))
        and all(_is_word(one.get("adapter")) for one in lineage or ()),
    }
    wrong = [name for name, fine in right.items() if not fine]
    if wrong:
        raise ValueError(
            f"{where}: {', '.join(wrong)}: not what mm_llama writes there; the file was changed, get it again"
        )


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) < 1000


def _are(value: Any, right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(right, value))
