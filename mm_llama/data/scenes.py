"""Photographs with cut-out things pasted in at known places: pictures with exact boxes, for grounding.

Things do not overlap, and one picture holds no two of one name. Things and photographs are split: nothing that is shown
in training is shown in holdout or test.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.data.folders import make_folder
from mm_llama.data.sprites import Sprite, photos, random_crop, sprites

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "holdout", "test")
SIDE = 224
SMALLEST, LARGEST = 0.25, 0.55  # of the picture's side: the longer side of a thing
PROMPT = "What is in the picture, from left to right?"
VERSION = 1  # of what is drawn: pictures of another version are made anew

Place = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax in pixels


def write_jsonl(
    sprites_root: str | Path,
    photos_root: str | Path,
    out_dir: str | Path,
    *,
    cut_outs: str = "tuxpaint",
    num_train: int = 2000,
    num_holdout: int = 240,
    num_test: int = 400,
    max_things: int = 3,
    seed: int = 0,
) -> dict[str, Path]:
    """Write `train.jsonl`, `holdout.jsonl`, `test.jsonl` and their pictures under `out_dir`.

    A row's text names what is there from left to right; `extra.boxes` says where, in pixels. The folder appears whole
    or not at all, and is reused when it was made with the same options.
    """
    numbers = {"train": num_train, "holdout": num_holdout, "test": num_test}
    if min(numbers.values()) < 1 or max_things < 1:
        raise ValueError(
            f"every split and every picture needs at least one thing to show, got {numbers}, max_things={max_things}"
        )
    options = {"cut_outs": cut_outs, **numbers, "max_things": max_things, "seed": seed, "version": VERSION}

    def fill(folder: Path) -> None:
        things = sprites(cut_outs, sprites_root, seed=seed)
        for split in SPLITS:
            (folder / "images" / split).mkdir(parents=True)
            of_split = [thing for thing in things if thing.split == split]
            make = partial(_make, folder, split, of_split, photos(photos_root, split), max_things, seed)
            with (
                ThreadPoolExecutor(os.cpu_count()) as pool,
                (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file,
            ):
                file.writelines(pool.map(make, range(numbers[split])))

    folder = make_folder(out_dir, "grounding", options, fill)
    return {split: folder / f"{split}.jsonl" for split in SPLITS}


def _make(
    folder: Path,
    split: str,
    things: Sequence[Sprite],
    backgrounds: Sequence[tuple[str, Image.Image]],
    max_things: int,
    seed: int,
    number: int,
) -> str:
    """Save one picture; returns its line."""
    rng = random.Random(f"{seed}:{split}:{number}")
    name, photo = backgrounds[number % len(backgrounds)]
    picture, boxes = scene(random_crop(photo, SIDE, rng), things, rng, max_things)
    path = f"images/{split}/{number}.jpg"
    picture.save(folder / path, quality=92)
    return json.dumps(_chat(path, boxes, name), ensure_ascii=False) + "\n"


def scene(
    background: Image.Image, things: Sequence[Sprite], rng: random.Random, max_things: int
) -> tuple[Image.Image, list[tuple[str, Place]]]:
    """Return the picture with one to `max_things` things of different names, and (name, place) of each, by place."""
    picture = background.copy()
    by_name: dict[str, list[Sprite]] = {}
    for thing in things:
        by_name.setdefault(thing.name, []).append(thing)
    names = rng.sample(sorted(by_name), min(rng.randint(1, max_things), len(by_name)))
    placed: list[tuple[str, Place]] = []
    for name in names:
        cut_out = _scaled(rng.choice(by_name[name]).draw()[0], rng)
        # Where alpha is below a half, what is seen is the photograph.
        inner = cut_out.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
        if inner is None:
            continue
        for _ in range(40):
            left = rng.randint(0, picture.width - cut_out.width)
            top = rng.randint(0, picture.height - cut_out.height)
            place = (left + inner[0], top + inner[1], left + inner[2], top + inner[3])
            if not any(_meet(place, other) for _, other in placed):
                picture.paste(cut_out, (left, top), cut_out)
                placed.append((name, place))
                break
    return picture, sorted(placed, key=lambda entry: entry[1])


def _scaled(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    from PIL import Image

    scale = rng.uniform(SMALLEST, LARGEST) * SIDE / max(cut_out.size)
    size = (max(1, round(cut_out.width * scale)), max(1, round(cut_out.height * scale)))
    return cut_out.resize(size, Image.Resampling.LANCZOS)


def _meet(one: Place, other: Place) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _chat(path: str, boxes: Sequence[tuple[str, Place]], photo: str) -> dict[str, Any]:
    image = {"type": "image", "path": path}
    return {
        "messages": [
            {"role": "user", "content": [image, {"type": "text", "text": PROMPT}]},
            {"role": "assistant", "content": ", ".join(name for name, _ in boxes)},
        ],
        "extra": {
            "boxes": [{"label": name, "box": list(place)} for name, place in boxes],
            "size": [SIDE, SIDE],
            "photo": photo,
        },
    }
