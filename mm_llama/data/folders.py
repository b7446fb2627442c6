"""A made data folder appears whole or not at all, and is reused only for the options it was made with."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STAMP = "dataset.json"


def make_folder(
    out_dir: str | Path, name: str, options: Mapping[str, Any], fill: Callable[[Path], None]
) -> Path:
    """Fill `out_dir` through a temporary folder beside it, unless it was made with the same options before.

    stderr says so: some sets take a minute.

    Raises FileExistsError when `out_dir` holds something else.
    """
    folder = Path(out_dir)
    wanted = {"name": name, "options": dict(options)}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        stamp = folder / STAMP
        found = json.loads(stamp.read_text("utf-8")) if stamp.is_file() else None
        if found == wanted:
            return folder
        raise FileExistsError(
            f"{folder} holds {_describe(found)}, not {_describe(wanted)}; delete it or choose another folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"making {name}, once -> {folder}", file=sys.stderr)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fill(partial)
        (partial / STAMP).write_text(json.dumps(wanted, indent=2) + "\n", "utf-8")
        partial.chmod(0o755)
        os.replace(partial, folder)
    except OSError:
        # Another process may have made the same folder meanwhile; then its work is as good as ours.
        stamp = folder / STAMP
        if not (stamp.is_file() and json.loads(stamp.read_text("utf-8")) == wanted):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _describe(stamp: Mapping[str, Any] | None) -> str:
    if stamp is None:
        return "other files"
    options = ", ".join(f"{key}={value!r}" for key, value in stamp.get("options", {}).items())
    return f"{stamp.get('name')} ({options})"
