"""`mm-llama data make motion` and `... emoji_clips`: clips with questions, drawn from what packages carry."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Made = Callable[[dict[str, Path], bool], int]  # tells what was written
SPRITE_ASSETS = {"openmoji": "openmoji", "tuxpaint": "tuxpaint_stamps", "fluent": "fluent_emoji_anim"}


def add_clip_makers(sets: Any, made: Made) -> None:
    """Add the two data sets to the parsers of `data make`."""
    motion = sets.add_parser("motion", help="clips of one moving thing: where to, what first, how often")
    motion.add_argument(
        "--sprites", choices=sorted(SPRITE_ASSETS), default="openmoji", help="what moves (default openmoji)"
    )
    motion.set_defaults(run=lambda options: _motion(options, made))
    emoji = sets.add_parser("emoji_clips", help="clips of animated emoji that come and go: which, what kind")
    emoji.set_defaults(run=lambda options: _emoji_clips(options, made))
    for maker, numbers in ((motion, (400, 80, 200)), (emoji, (240, 48, 120))):
        maker.add_argument("--types", nargs="+", metavar="TYPE", help="types of questions (default: all)")
        for split, number in zip(("train", "holdout", "test"), numbers, strict=True):
            help_ = f"clips of each type in {split} (default {number})"
            maker.add_argument(f"--{split}", type=int, default=number, metavar="N", help=help_)
        maker.add_argument(
            "--frames", type=int, default=64, metavar="N", help="frames of a clip (default 64)"
        )
        maker.add_argument("--out", type=Path, required=True, metavar="DIR")
        maker.add_argument("--root", type=Path, metavar="DIR", help="unpacked package (default: the asset)")
        maker.add_argument(
            "--photos", type=Path, metavar="DIR", help="unpacked scikit-image (default: the asset)"
        )
        maker.add_argument("--seed", type=int, default=0, help="seed of the split and the clips (default 0)")
        maker.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _motion(options: argparse.Namespace, made: Made) -> int:
    from mm_llama.assets import asset
    from mm_llama.data.motion import TYPES, write_jsonl

    root = options.root or asset(SPRITE_ASSETS[options.sprites])
    photos = options.photos or asset("scikit_image_photos")
    paths = write_jsonl(root, photos, options.out, sprites=options.sprites, **_shared(options, TYPES))
    return made(paths, options.json)


def _emoji_clips(options: argparse.Namespace, made: Made) -> int:
    from mm_llama.assets import asset
    from mm_llama.data.emoji_clips import TYPES, write_jsonl

    root = options.root or asset("fluent_emoji_anim")
    photos = options.photos or asset("scikit_image_photos")
    return made(write_jsonl(root, photos, options.out, **_shared(options, TYPES)), options.json)


def _shared(options: argparse.Namespace, types: tuple[str, ...]) -> dict[str, Any]:
    numbers = {f"num_{split}": getattr(options, split) for split in ("train", "holdout", "test")}
    if wrong := [f"--{key.removeprefix('num_')} {n}" for key, n in numbers.items() if n < 0]:
        raise ValueError(f"{wrong[0]}: a number of clips cannot be negative")
    return {"types": options.types or types, "num_frames": options.frames, "seed": options.seed, **numbers}
