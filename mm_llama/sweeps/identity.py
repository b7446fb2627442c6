"""What a job of a sweep is: its resolved config, where it starts from, and the code that runs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import mm_llama
from mm_llama.build import resolve
from mm_llama.stages.metrics import config_hash
from mm_llama.stages.resume import FREE_KEYS, flat

# Beside where and how often: the name. Of the keys that may differ when a run continues, the number of steps is part
# of what a job is, and so are another run to go on from and updates that may be left out.
NO_PART = (FREE_KEYS - {"num_steps", "resume", "max_nonfinite"}, {"name"})


def config_of(cfg: DictConfig) -> dict[str, Any]:
    """Return a train config as plain data, without what is not the job's own (Hydra's and the sweep's keys).

    `dtype` stays as written: `auto` is the same job on every machine. Raises ValueError for a value that is missing.
    """
    own = [str(key) for key in cfg if key not in ("hydra", "sweep")]
    return resolve(OmegaConf.masked_copy(cfg, own)) | {"dtype": cfg.get("dtype")}


def hash_of(config: Mapping[str, Any]) -> str:
    """Return a hash of all that decides a job's result but the code, 16 hexadecimal digits.

    A run that `stage.init` names counts with what it has trained, not with its path alone.
    """
    free, root = NO_PART
    parts = {
        key: value
        for key, value in flat(json.loads(json.dumps(config, default=str)))
        if key.rsplit(".", 1)[-1] not in free and key not in root
    }
    starts = {kind: _trained(run) for kind, run in (config["stage"].get("init") or {}).items() if run}
    return config_hash({"config": parts, "starts": starts}).removeprefix("sha256:")[:16]


def identity_of(config: Mapping[str, Any]) -> str:
    """Return what a job is called in the ledger: the hash of its config and of the code, 16 hexadecimal digits."""
    return hashlib.sha256(f"{hash_of(config)} {source_digest()}".encode()).hexdigest()[:16]


@cache
def source_digest() -> str:
    """Return a digest of every source file of the three packages: the same in a checkout and installed.

    Unlike a commit it knows what is not committed, and does not change with what no run executes (docs, tests).
    """
    home = Path(mm_llama.__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in ("adapters", "encoders", "mm_llama"):
        for path in sorted((home / package).rglob("*.py")):
            digest.update(f"{path.relative_to(home).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _trained(run: str) -> str | None:
    """Return the digest of the newest adapter of a run or checkpoint folder, if there is one."""
    folder = Path(run).expanduser()
    manifests = sorted(folder.glob("checkpoints/step_*/MANIFEST.json")) or [folder / "MANIFEST.json"]
    try:
        return str(json.loads(manifests[-1].read_text("utf-8"))["lineage"][-1]["adapter"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
