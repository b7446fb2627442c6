"""Clips of animated emoji that come and go, with questions about what they were, by name or by kind.

A clip has three parts of equal length. A thing is shown, moving, in one of them over a photograph; so a single
frame from the middle sees the thing in one clip of three, and of two things at most one. Types of questions:

- `name`: one animal; which? All splits have the same animals: a name cannot be known of what was never shown.
  Held out are the clips: other photographs, places, sizes, phases of the animation, times.
- `look`: the same question about a drawing that training never shows (the face of a cat, where it has the whole
  cat). In holdout and test only.
- `order`: two animals; which came first, or last? Scenes of two clips, the same two animals in both orders.
- `category`: an animal, a person, a hand, or something in the sky? Held out are the things themselves, with all
  that look alike (the rat and the mouse); none of them is shown in training under any type.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm_llama.data import fluent, sprites
from mm_llama.data.clip_writer import Pose, compose, write_clip
from mm_llama.data.fluent import Thing
from mm_llama.data.folders import make_folder
from mm_llama.data.motion import SIDE, SPLITS, write_rows
from mm_llama.data.sprites import balanced

if TYPE_CHECKING:
    from PIL import Image

TYPES = ("name", "look", "order", "category")
VERSION = 1  # of what is drawn: clips of another version are made anew

PARTS = (0, 1, 2)
NAME_QUESTIONS = ("Which animal did you see?", "What animal was it?", "Which animal came by?")
OPEN_QUESTIONS = ("Which animal came {when}?", "Which animal did you see {when}?")
CHOICE_QUESTIONS = ("Which came {when}, the {a} or the {b}?", "Did you see the {a} or the {b} {when}?")
KIND_QUESTIONS = (
    "What kind of thing did you see?",
    "Was it an animal, a person, a hand or something in the sky?",
)

# Photographs that show what is asked about: an animal, a person, the sky.
LEFT_OUT = ("chelsea.png", "camera.png", "astronaut.png", "hubble_deep_field.jpg", "moon.png")

Looks = Callable[[Path], "list[Image.Image]"]


@dataclass(frozen=True)
class Shown:
    """A drawing in one part (0, 1, 2) of a clip."""

    thing: Thing
    drawing: Path
    part: int


@dataclass(frozen=True)
class Clip:
    """One clip and its question, before anything is drawn."""

    name: str  # of its files
    scene: str  # clips of one scene share photograph, places and question
    kind: str  # of TYPES
    question: str
    answer: str
    event: str  # "first", "last", or the type
    shown: tuple[Shown, ...]


def write_jsonl(
    root: str | Path,
    photos_root: str | Path,
    out_dir: str | Path,
    *,
    types: Sequence[str] = TYPES,
    num_train: int = 240,
    num_holdout: int = 48,
    num_test: int = 120,
    num_frames: int = 64,
    fps: int = 16,
    seed: int = 0,
) -> dict[str, Path]:
    """Write clips of each type of question and the rows about them: `train`, `holdout`, `test` and `..._frame`.

    The numbers are clips of each type, rounded up to whole scenes. `root` is the unpacked package of the
    emoji. `extra` holds question, answer, type, event, the things with their parts, photograph and scene. The
    folder appears whole or not at all, and is reused when it was made with the same options. Raises ValueError
    for an unknown type or too few frames.
    """
    if unknown := sorted(set(types) - set(TYPES)) or ([] if types else ["(none)"]):
        raise ValueError(
            f"emoji_clips has no question type {unknown[0]!r} (types); types are {', '.join(TYPES)}"
        )
    if num_frames < 24:
        raise ValueError(f"num_frames must be at least 24, not {num_frames}: each of three parts needs eight")
    numbers = {"train": num_train, "holdout": num_holdout, "test": num_test}
    options: dict[str, Any] = {"types": sorted(types), "seed": seed, "version": VERSION}
    options |= {"num_frames": num_frames, "fps": fps, **{f"num_{key}": n for key, n in numbers.items()}}

    def fill(folder: Path) -> None:
        things = fluent.read_things(root)
        looks = cache(fluent.looks)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for split, number in numbers.items():
                photos = [p for p in sprites.photos(photos_root, split) if p[0] not in LEFT_OUT]
                (folder / "clips" / split).mkdir(parents=True)
                (folder / "frames" / split).mkdir(parents=True)
                clips = [
                    c for kind in TYPES if kind in types for c in plan(kind, things, split, number, seed=seed)
                ]
                studio = _Studio(folder, split, photos, looks, num_frames, fps, seed)
                write_rows(folder, split, list(pool.map(studio.make, clips)))

    folder = make_folder(out_dir, "emoji_clips", options, fill)
    names = [f"{split}{ending}" for split in SPLITS for ending in ("", "_frame")]
    return {name: folder / f"{name}.jsonl" for name in names}


def plan(kind: str, things: Sequence[Thing], split: str, number: int, *, seed: int = 0) -> list[Clip]:
    """Return the clips of one type and split: who is shown when, and what is asked."""
    splits = fluent.split_of_families(list(things), seed=seed)
    rng = random.Random(f"{seed}:{split}:{kind}")
    if kind == "category":
        by_kind = [
            [thing for thing in things if thing.kind == name and splits[thing.family] == split]
            for name in fluent.KINDS
        ]
        return list(_categories(by_kind, split, number, rng))
    animals = [thing for thing in things if thing.kind == "animal" and splits[thing.family] == "train"]
    if kind == "order":
        return list(_orders(animals, split, number, rng))
    if kind == "look":
        if split == "train":
            return []
        animals = [thing for thing in animals if len(thing.drawings) > 1]
    return list(_names(kind, animals, split, number, rng))


def _names(
    kind: str, animals: Sequence[Thing], split: str, number: int, rng: random.Random
) -> Iterator[Clip]:
    chosen = balanced(animals, number, rng)
    for index, (thing, part) in enumerate(zip(chosen, balanced(PARTS, len(chosen), rng), strict=True)):
        shown = Shown(thing, thing.drawings[1 if kind == "look" else 0], part)
        name = f"{kind}_{index:04d}"
        yield Clip(name, f"{split}_{name}", kind, rng.choice(NAME_QUESTIONS), thing.name, kind, (shown,))


def _orders(animals: Sequence[Thing], split: str, number: int, rng: random.Random) -> Iterator[Clip]:
    num_scenes = -(-number // 2)
    pairs = balanced(((0, 1), (0, 2), (1, 2)), num_scenes, rng)
    for index, (one, parts) in enumerate(zip(balanced(animals, num_scenes, rng), pairs, strict=True)):
        other = rng.choice([thing for thing in animals if thing.family != one.family])
        when = rng.choice(("first", "last"))
        a, b = rng.sample((one.name, other.name), 2)
        question = rng.choice(rng.choice((OPEN_QUESTIONS, CHOICE_QUESTIONS))).format(when=when, a=a, b=b)
        for turn, pair in enumerate(rng.sample(((one, other), (other, one)), 2)):
            shown = tuple(
                Shown(thing, thing.drawings[0], part) for thing, part in zip(pair, parts, strict=True)
            )
            name = f"order_{index:04d}"
            answer = pair[0 if when == "first" else 1].name
            yield Clip(f"{name}_{turn}", f"{split}_{name}", "order", question, answer, when, shown)


def _categories(
    by_kind: Sequence[Sequence[Thing]], split: str, number: int, rng: random.Random
) -> Iterator[Clip]:
    turns = [balanced(things, -(-number // len(by_kind)), rng) for things in by_kind]
    chosen = [thing for together in zip(*turns, strict=True) for thing in together]
    for index, (thing, part) in enumerate(zip(chosen, balanced(PARTS, len(chosen), rng), strict=True)):
        # Training keeps to first drawings: the others are what `look` asks about.
        shown = Shown(thing, rng.choice(thing.drawings[: 1 if split == "train" else None]), part)
        name = f"category_{index:04d}"
        question = rng.choice(KIND_QUESTIONS)
        yield Clip(name, f"{split}_{name}", "category", question, thing.kind, "category", (shown,))


@dataclass(frozen=True)
class _Studio:
    folder: Path
    split: str
    photos: list[tuple[str, Image.Image]]
    looks: Looks
    num_frames: int
    fps: int
    seed: int

    def make(self, clip: Clip) -> dict[str, Any]:
        """Draw and write one clip and its middle frame; return its row."""
        from PIL import Image

        # By scene, not by clip: what the two clips of a scene differ in is the order alone.
        rng = random.Random(f"{self.seed}:{clip.scene}")
        photo, picture = self.photos[rng.randrange(len(self.photos))]
        ground = sprites.random_crop(picture, SIDE, rng)
        poses = {
            shown.part: self._poses(shown.part, rng) for shown in sorted(clip.shown, key=lambda s: s.part)
        }
        frames = [np.asarray(ground)] * self.num_frames
        for shown in clip.shown:
            looks = [look for look in self.looks(shown.drawing) for _ in range(2)]
            phase = rng.randrange(len(looks))
            drawn = compose(ground, looks[phase:] + looks[:phase], poses[shown.part])
            frames = [
                new if pose is not None else old
                for new, old, pose in zip(drawn, frames, poses[shown.part], strict=True)
            ]
        path = f"clips/{self.split}/{clip.name}.mp4"
        write_clip(self.folder / path, frames, fps=self.fps)
        still = f"frames/{self.split}/{clip.name}.jpg"
        Image.fromarray(frames[self.num_frames // 2]).save(self.folder / still, quality=95, subsampling=0)
        things = [
            {"name": s.thing.name, "kind": s.thing.kind, "drawing": s.drawing.stem, "part": s.part}
            for s in clip.shown
        ]
        extra: dict[str, Any] = {
            "question": clip.question,
            "answer": clip.answer,
            "type": clip.kind,
            "event": clip.event,
        }
        extra |= {"things": things, "background": photo, "scene": clip.scene}
        return {"clip": path, "still": still, "extra": extra}

    def _poses(self, part: int, rng: random.Random) -> list[Pose | None]:
        """Within one part of the clip, a slow straight path; nowhere in the others."""
        start, stop = part * self.num_frames // 3, (part + 1) * self.num_frames // 3
        margin = self.num_frames // 21
        start, stop = start + rng.randint(0, margin), stop - rng.randint(0, margin)
        size = rng.uniform(0.45, 0.75)
        x, y = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)
        dx, dy = rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)
        poses: list[Pose | None] = [None] * self.num_frames
        for t in range(start, stop):
            u = (t - start) / (stop - start) - 0.5
            poses[t] = Pose(x + dx * u, y + dy * u, size)
        return poses
