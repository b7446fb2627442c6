"""The rows that an evaluation of pictures asks: a recipe's, in the words that the adapter knows, or those of a file.

And where an evaluation keeps what it has found until it is whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.released.detect import is_vision

if TYPE_CHECKING:
    from mm_llama.data.sources import Source

SPOKEN = "spoken_easy_vqa"  # questions of easy-VQA asked aloud, by a picture and a speech adapter together


def source_of(data: str, adapters: Sequence[Path], split: str) -> Source:
    """The rows to ask: a recipe's split, with the prompt that the adapter was trained with, or a file."""
    from mm_llama.data import recipes, speech_recipes
    from mm_llama.data.opening import open_data

    named: dict[str, tuple[str, Any]] = {
        "easy_vqa": ("easy_vqa", recipes.easy_vqa),
        "tuxpaint": ("tuxpaint_stamps", recipes.tuxpaint),
    }
    from mm_llama.assets import asset
    from mm_llama.paths import cache_dir

    if data == SPOKEN:
        pictures = "easy_vqa"
        spoken: Source = speech_recipes.spoken_easy_vqa(
            asset(pictures),
            asset("hibari_tts"),
            cache_dir() / "data" / SPOKEN,
            cache_dir() / "data" / pictures,
            split,
            **_trained_with(adapters, pictures),
        )
        return spoken
    if data not in named:
        return open_data(data)
    package, recipe = named[data]
    source: Source = recipe(
        asset(package), cache_dir() / "data" / data, split, **_trained_with(adapters, data)
    )
    return source


def _trained_with(adapters: Sequence[Path], recipe: str) -> dict[str, Any]:
    """Options of the recipe in a run's own config, such as its question template: ask as was trained."""
    from mm_llama.stages.checkpoint_files import read_run_config

    for run in adapters:
        if is_vision(run):
            continue  # a released checkpoint that lends its adapter: no run of ours
        for entry in (read_run_config(run).get("data") or {}).get("train") or []:
            source = entry.get("source") or {}
            words: dict[str, Any] = {}
            while isinstance(source.get("source"), Mapping):
                words = _first_words(source, recipe) or words
                source = source["source"]
            if str(source.get("_target_", "")).endswith(f"recipes.{recipe}"):
                return {key: source[key] for key in ("template", "prompt") if key in source} | words
    return {}


def _first_words(wrapper: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """Of a source in several wordings the first, as the recipe's own option; nothing where it has no such option."""
    from mm_llama.data.formats import TEMPLATES

    task = str(wrapper.get("task", "short_answer"))
    if not str(wrapper.get("_target_", "")).endswith("formats.Formatted") or task == "multiple_choice":
        return {}
    first = (wrapper.get("templates") or TEMPLATES[task])[0]
    if recipe == "tuxpaint":
        return {"prompt": first} if task == "caption" else {}
    return {"template": first} if task != "caption" else {}


def journal_of(args: argparse.Namespace) -> Path:
    """Return where the answers of this very command are kept until it ends well: same weights, same settings."""
    from mm_llama.paths import cache_dir
    from mm_llama.stages.checkpoint_files import find_checkpoint
    from mm_llama.stages.metrics import environment

    told = {
        key: str(value)
        for key, value in vars(args).items()
        if key not in ("out", "answers", "json", "threads")
    }
    manifests = [(find_checkpoint(run) / "MANIFEST.json").read_text("utf-8") for run in args.adapter]
    name = hashlib.sha256(json.dumps([told, manifests, environment()], sort_keys=True).encode()).hexdigest()[
        :16
    ]
    return cache_dir() / "answers" / f"{name}.jsonl"
