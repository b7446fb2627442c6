"""Where configs and caches lie, the same in a checkout, an editable install and a wheel."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """Return the folder of YAML configs: packaged, or beside the package in a checkout."""
    for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"no conf/train.yaml in {_PACKAGE} or beside it: the installation is incomplete; install mm_llama again"
    )


def voices_dir() -> Path:
    """Return the folder of the voices that are shipped; the README.md of each says what made it."""
    return _PACKAGE / "voices"


def cache_dir() -> Path:
    """Return the cache root: MM_LLAMA_CACHE, default ~/.cache/mm_llama."""
    return Path(os.environ.get("MM_LLAMA_CACHE") or Path.home() / ".cache" / "mm_llama").expanduser()


def below(folder: Path, name: str, said: str) -> Path:
    """Return a path below a folder; ValueError, naming what was `said`, for a name that leaves it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{said} leaves {folder}: give a path below it, without `..`")
    return folder / name
