"""Is this path a vision checkpoint? Answered from its JSON files, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm_llama.core.documents import read_json


def is_vision(path: str | Path) -> bool:
    """Say whether a folder holds a vision checkpoint, in either published form; anything unreadable is none."""
    return vision_form(path) is not None


def vision_form(path: str | Path) -> str | None:
    """Return "Hugging Face", "Meta", or None where the path is no vision checkpoint."""
    folder = Path(path).expanduser()
    if _read(folder / "config.json").get("model_type") == "mllama" and not _only_meta(folder):
        return "Hugging Face"
    if _read(folder / "params.json").get("vision_chunk_size", -1) not in (None, -1):
        return "Meta"
    return None


def _only_meta(folder: Path) -> bool:
    return (
        (folder / "params.json").is_file()
        and any(folder.glob("consolidated*.pth"))
        and not any(folder.glob("*.safetensors"))
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
