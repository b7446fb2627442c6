"""Where a stage starts from: its own checkpoints, another run's, or the adapters of earlier stages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mm_llama.model import MultimodalLlama
from mm_llama.stages.checkpoint import find_checkpoint, load_adapter, newest_checkpoint, read_run_config
from mm_llama.stages.freeze import shorten, under

# What may differ when a run continues: how long and how often, and where the work is done, but not what is
# computed.
FREE_KEYS = frozenset(
    (
        "num_steps",
        "log_every",
        "eval_every",
        "save_every",
        "keep_last",
        "resume",
        "num_workers",
        "threads",
        "runs",
    )
)


def find_resume(run_dir: Path, resume: str, config: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint to continue from, or None to begin.

    `auto` continues this run if it has a valid checkpoint; `must` demands one; `never` refuses a folder that
    has one; anything else is the path of another run or checkpoint, used while this run has none of its own.
    Raises ValueError when this run was begun with another config, naming the keys.
    """
    own = newest_checkpoint(run_dir)
    if resume == "never" and own is not None:
        raise ValueError(
            f"stage.resume=never, but {run_dir} holds {own.name}: choose another name=... or delete it"
        )
    if resume == "must" and own is None:
        raise ValueError(f"stage.resume=must, but {run_dir} holds no valid checkpoint")
    if own is not None:
        _check_same(run_dir, read_run_config(own), config)
        return own
    return None if resume in ("auto", "never", "must") else find_checkpoint(resume)


def load_init(
    model: MultimodalLlama, init: Mapping[str, str | Path], allow_core_swap: bool
) -> list[dict[str, Any]]:
    """Load the adapters of earlier stages; returns their lineages, joined."""
    lineage: list[dict[str, Any]] = []
    for kind, source in init.items():
        loaded = load_adapter(model, source, allow_core_swap=allow_core_swap)
        if not all(under(prefix, [f"modality.{kind}"]) for prefix in loaded.state["train"]):
            raise ValueError(f"stage.init.{kind}={source} holds {loaded.state['train']}, not modality.{kind}")
        lineage += [entry for entry in loaded.state["lineage"] if entry not in lineage]
    return lineage


def _check_same(run_dir: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # Through JSON, so that tuples and lists, which YAML does not tell apart, compare equal.
    before, after = dict(_flat(json.loads(json.dumps(saved)))), dict(_flat(json.loads(json.dumps(now))))
    differing = [
        f"{key}={after.get(key)!r} (was {before.get(key)!r})"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key.rsplit(".", 1)[-1] not in FREE_KEYS
    ]
    if differing:
        raise ValueError(
            f"{run_dir} was begun with another config: {shorten(differing)}; continue it with the same "
            "command, or give the new settings a run of their own with name=..."
        )


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
