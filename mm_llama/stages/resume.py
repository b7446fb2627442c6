"""Where a stage starts from: its own checkpoints, another run's, or the adapters of earlier stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mm_llama.model import MultimodalLlama
from mm_llama.stages.checkpoint import load_adapter
from mm_llama.stages.checkpoint_files import find_checkpoint, newest_checkpoint, read_run_config, read_state
from mm_llama.stages.freeze import shorten, under
from mm_llama.stages.identity import is_encoder

# What may differ when a run continues: how long and how often, what is kept and told, what becomes of a batch or
# a row that ended the run, and where the work is done, but not what is computed.
FREE_KEYS = frozenset(
    (
        "num_steps",
        "log_every",
        "eval_every",
        "save_every",
        "keep_last",
        "keep_best",
        "best",
        "max_nonfinite",
        "spike",
        "replay",
        "resume",
        "num_workers",
        "on_error",
        "on_too_long",
        "max_skipped",
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
    if own is not None:
        _refuse_average(own)
    if resume == "never" and own is not None:
        raise ValueError(
            f"stage.resume=never, but {run_dir} holds {own.name}: choose another name=... or delete it"
        )
    if resume == "must" and own is None:
        raise ValueError(f"stage.resume=must, but {run_dir} holds no valid checkpoint")
    if own is not None:
        check_same(run_dir, read_run_config(own), config)
        return own
    if resume in ("auto", "never", "must"):
        return None
    if not Path(resume).expanduser().is_dir():
        raise FileNotFoundError(
            f"stage.resume={resume} does not exist: expected auto, never, must, or the folder of a run to continue from"
        )
    other = find_checkpoint(resume)
    _refuse_average(other)
    return other


def load_init(
    model: MultimodalLlama,
    init: Mapping[str, str | Path],
    allow_core_swap: bool,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Load the adapters of earlier stages; returns their lineages, joined. `say` is told of a swap of the core.

    A key is a dotted prefix below `modality`: `image` takes all that a run trained, which must lie there;
    `image.encoder` takes the encoder out of a run, whatever else that run trained. Parts are loaded before wholes.
    """
    lineage: list[dict[str, Any]] = []
    for key, source in sorted(init.items(), key=lambda entry: -entry[0].count(".")):
        prefix = f"modality.{key}"
        if not Path(source).expanduser().is_dir():
            raise FileNotFoundError(
                f"stage.init.{key}={source} does not exist: give the folder of a run, or train one first"
            )
        trained = read_state(find_checkpoint(source))["train"]
        if "." not in key and not all(under(name, [prefix]) for name in trained):
            raise ValueError(f"stage.init.{key}={source} holds {trained}, not {prefix}")
        loaded = load_adapter(model, source, allow_core_swap=allow_core_swap, prefix=prefix)
        if say is not None and loaded.state["core"] != model.core.digest and not is_encoder(prefix):
            say(
                f"core swap, as declared: {source} was trained on the core {loaded.state['core']} and goes on "
                f"on {model.core.digest}"
            )
        lineage += [entry for entry in loaded.state["lineage"] if entry not in lineage]
    return lineage


def _refuse_average(checkpoint: Path) -> None:
    if "average_of" in read_state(checkpoint):
        raise ValueError(
            f"{checkpoint} is an average of runs: it has no optimizer state, so no training can be continued there; "
            "give this run another name=... and start it from the average with stage.init"
        )


def check_same(run_dir: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the keys, unless a run was begun with this config."""
    differing = differences(saved, now)
    if differing:
        raise ValueError(
            f"{run_dir} was begun with another config: {shorten(differing)}; continue it with the same "
            "command, or give the new settings a run of their own with name=..."
        )


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return "key=new (was old)" for every value that may not differ when a run continues."""
    # Through JSON, so that tuples and lists, which YAML does not tell apart, compare equal.
    # A group that holds nothing is one that was not there, as in a run begun before there was such a group.
    before, after = (
        {key: value for key, value in flat(json.loads(json.dumps(node))) if value != {}}
        for node in (saved, now)
    )
    return [
        f"{key}={after.get(key)!r} (was {before.get(key)!r})"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key.rsplit(".", 1)[-1] not in FREE_KEYS
    ]


def flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested mappings with its dotted key; lists are values."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
