"""Folders of a demo's stages: which recipe a run is of, and where a run goes that another takes the place of."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any


def recipe_digest(config: Mapping[str, Any]) -> str:
    """Return a digest of what decides the outcome: not where the work is done, nor where the stages before lie."""
    from mm_llama.stages.resume import FREE_KEYS, flat

    free = FREE_KEYS - {"num_steps"}
    kept = {
        key: value
        for key, value in flat(config)
        if key.rsplit(".", 1)[-1] not in free and not key.startswith("stage.init.")
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def adapter_id(run: Path) -> str:
    """Return the SHA-256 of the adapter in a run's newest checkpoint."""
    from mm_llama.stages.checkpoint_files import find_checkpoint

    manifest = json.loads((find_checkpoint(run) / "MANIFEST.json").read_text("utf-8"))
    return str(manifest["files"]["adapter.safetensors"]["sha256"])


def make_way(
    folder: Path, config: Mapping[str, Any], after: Path | None, say: Callable[[str], None]
) -> Path | None:
    """Move aside a run of another recipe, or one after another adapter; return where it is now."""
    from mm_llama.stages.checkpoint_files import newest_checkpoint, read_run_config, read_state
    from mm_llama.stages.resume import differences

    own = newest_checkpoint(folder)
    if own is None:
        return None
    saved = read_run_config(own)
    known = {entry["adapter"] for entry in read_state(own)["lineage"]}
    same = not differences(saved, config) and saved["stage"]["num_steps"] == config["stage"]["num_steps"]
    if same and (after is None or adapter_id(after) in known):
        return None
    aside = next(path for n in count(1) if not (path := folder.with_name(f"{folder.name}.{n}")).exists())
    folder.rename(aside)
    say(f"{folder} is of another recipe, or came after another adapter; it is kept as {aside}")
    return aside


def put_back(folder: Path, aside: Path | None) -> None:
    """Undo `make_way` where nothing was saved in the new run: what cannot begin takes no finished run's place."""
    from mm_llama.stages.checkpoint_files import newest_checkpoint

    if aside is not None and newest_checkpoint(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
