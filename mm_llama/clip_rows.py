"""The rows that a video run is asked: its own recipe's, of another split, with the options it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_llama.data.sources import Source
from mm_llama.targets import check_run_rows

ROOTS = {
    "openmoji": "asset:openmoji",
    "tuxpaint": "asset:tuxpaint_stamps",
    "fluent": "asset:fluent_emoji_anim",
}


def clip_sources(
    recipe: str,
    split: str,
    adapters: Sequence[str | Path],
    *,
    types: str | None = None,
    sprites: str | None = None,
) -> tuple[Source, Source, Source]:
    """Return clips of a split, the same rows with the middle frame, and the training rows.

    `recipe` is motion or emoji_clips; options come from the config of a run that was trained on it, else from
    conf/data. `types` (with commas) and `sprites` replace its own. Other choices of types are clips of their own.
    """
    from mm_llama.build import build

    node = _trained_on(recipe, adapters) or _shipped(recipe)
    if types:
        node = {**node, "types": [part.strip() for part in types.split(",")]}
    train = build({**node, "split": "train"})
    if sprites:
        if sprites not in ROOTS:
            raise ValueError(f"no set of sprites is named {sprites!r}; sets are {', '.join(ROOTS)}")
        node = {**node, "sprites": sprites, "root": ROOTS[sprites], "num_train": 0, "num_holdout": 0}
    rows = {**node, "split": split}
    return build(rows), build({**rows, "middle_frame": True}), train


def shipped_clips(name: str) -> Source:
    """Return the first rows that conf/data/NAME.yaml holds out."""
    from mm_llama.build import build, compose_config, resolve

    source: Source = build(
        resolve(compose_config("train", ["stage=none", f"data={name}"]))["data"]["eval"][0]
    )
    return source


def _trained_on(recipe: str, adapters: Sequence[str | Path]) -> dict[str, Any] | None:
    from mm_llama.stages.checkpoint_files import read_run_config

    for run in adapters:
        for entry in (read_run_config(run).get("data") or {}).get("train") or []:
            source = entry.get("source") or {}
            if str(source.get("_target_", "")) == f"mm_llama.data.recipes.{recipe}":
                check_run_rows(source, f"{run}: data.train")
                return dict(source)
    return None


def _shipped(recipe: str) -> dict[str, Any]:
    from mm_llama.build import compose_config, resolve

    data: Mapping[str, Any] = resolve(compose_config("train", ["stage=none", f"data={recipe}"]))["data"]
    return dict(data["train"][0]["source"])
