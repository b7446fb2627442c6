"""Short clips of one thing moving over a photograph, with questions that no single frame answers.

Three types of questions: `direction` (left, right, up, down), `order` (which of two events comes first) and
`count` (one to four repetitions). Clips come in scenes: the same thing, photograph, place, size and question,
once for each answer, with *the same middle frame* in all of them. Whoever sees the middle frame alone is right
as often as guessing, by construction; `..._frame.jsonl` are the same rows with that frame in the clip's place.

Things and photographs are split: nothing that is shown in training is shown in holdout or test.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.data import sprites as sprite_sets
from mm_llama.data.clip_writer import Pose, compose, write_clip
from mm_llama.data.folders import make_folder
from mm_llama.data.sprites import Sprite

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "holdout", "test")
TYPES = ("direction", "order", "count")
COUNTS = ("one", "two", "three", "four")
SIDE = 224
VERSION = 2  # of what is drawn: clips of another version are made anew

Poses = list[Pose | None]

# In the past tense, which is the same for one thing and for several ("the cherries").
QUESTIONS = {
    "move": (
        "Which way did the {name} move?",
        "In which direction did the {name} move: {options}?",
        "Where did the {name} go, {options}?",
    ),
    "appear": (
        "Where did the {name} appear first, {options}?",
        "Where did you see the {name} first: {options}?",
    ),
    "resize": (
        "What did the {name} do first, {options}?",
        "Did the {name} {options} first?",
    ),
    "jump": ("How many times did the {name} jump?", "How often did the {name} jump?"),
    "vanish": ("How many times did the {name} disappear?", "How often did the {name} disappear?"),
}


@dataclass(frozen=True)
class Story:
    """What happens in the clips of a scene: for each answer, the poses of all frames."""

    event: str  # key of QUESTIONS
    poses: dict[str, Poses]


def story(kind: str, rng: random.Random, num_frames: int) -> Story:
    """Return a random story of a type of question; the middle frame's pose is the same for every answer."""
    return {"direction": _direction, "order": _order, "count": _count}[kind](rng, num_frames)


def write_jsonl(
    sprites_root: str | Path,
    photos_root: str | Path,
    out_dir: str | Path,
    *,
    sprites: str = "openmoji",
    types: Sequence[str] = TYPES,
    num_train: int = 400,
    num_holdout: int = 80,
    num_test: int = 200,
    num_frames: int = 64,
    fps: int = 16,
    seed: int = 0,
) -> dict[str, Path]:
    """Write clips of each type of question and the rows about them: `train`, `holdout`, `test` and `..._frame`.

    The numbers are clips of each type, rounded up to whole scenes. `extra` holds question, answer, type,
    event, name and kind of the thing, photograph and scene. The folder appears whole or not at all, and is
    reused when it was made with the same options. Raises ValueError for an unknown type or too few frames.
    """
    if unknown := sorted(set(types) - set(TYPES)) or ([] if types else ["(none)"]):
        raise ValueError(f"motion has no question type {unknown[0]!r} (types); types are {', '.join(TYPES)}")
    if num_frames < 32:
        raise ValueError(f"num_frames must be at least 32, not {num_frames}: four events need room")
    numbers = {"train": num_train, "holdout": num_holdout, "test": num_test}
    options: dict[str, Any] = {"sprites": sprites, "types": sorted(types), "seed": seed, "version": VERSION}
    options |= {"num_frames": num_frames, "fps": fps, **{f"num_{key}": n for key, n in numbers.items()}}

    def fill(folder: Path) -> None:
        found = sprite_sets.sprites(sprites, sprites_root, seed=seed)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for split, number in numbers.items():
                things = [sprite for sprite in found if sprite.split == split]
                photos = sprite_sets.photos(photos_root, split)
                makers = [
                    _Scene(kind, index, thing, photos, folder, split, num_frames, fps, seed)
                    for kind in sorted(types)
                    for index, thing in _cast(kind, things, number, f"{seed}:{split}:{kind}")
                ]
                (folder / "clips" / split).mkdir(parents=True)
                (folder / "frames" / split).mkdir(parents=True)
                rows = [row for scene in pool.map(_Scene.make, makers) for row in scene]
                write_rows(folder, split, rows)

    folder = make_folder(out_dir, "motion", options, fill)
    names = [f"{split}{ending}" for split in SPLITS for ending in ("", "_frame")]
    return {name: folder / f"{name}.jsonl" for name in names}


def _cast(kind: str, things: Sequence[Sprite], number: int, seed: str) -> Iterator[tuple[int, Sprite]]:
    """Number the scenes that hold `number` clips, and choose the thing of each."""
    clips_a_scene = 2 if kind == "order" else 4
    num_scenes = -(-number // clips_a_scene)
    return enumerate(sprite_sets.balanced(things, num_scenes, random.Random(seed)))


@dataclass(frozen=True)
class _Scene:
    kind: str
    index: int
    thing: Sprite
    photos: list[tuple[str, Image.Image]]
    folder: Path
    split: str
    num_frames: int
    fps: int
    seed: int

    def make(self) -> list[dict[str, Any]]:
        """Write the clips and the middle frame of the scene; return its rows."""
        from PIL import Image

        rng = random.Random(f"{self.seed}:{self.split}:{self.kind}:{self.index}")
        photo, picture = self.photos[rng.randrange(len(self.photos))]
        ground = sprite_sets.random_crop(picture, SIDE, rng)
        looks = self.thing.draw()
        if rng.random() < 0.5:  # which way a thing faces says nothing about where it goes
            looks = [look.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for look in looks]
        told = story(self.kind, rng, self.num_frames)
        answers = list(told.poses)
        rng.shuffle(answers)  # neither the order of the options nor a file's name gives the answer away
        question = _question(told, self.thing.name, answers, rng)
        name = f"{self.kind}_{self.index:04d}"
        rows = []
        for number, answer in enumerate(rng.sample(answers, len(answers))):
            frames = compose(ground, looks, told.poses[answer])
            clip = f"clips/{self.split}/{name}_{number}.mp4"
            write_clip(self.folder / clip, frames, fps=self.fps)
            still = f"frames/{self.split}/{name}.png"
            if number == 0:
                Image.fromarray(frames[self.num_frames // 2]).save(self.folder / still, compress_level=1)
            extra = {"question": question, "answer": answer, "type": self.kind, "event": told.event}
            extra |= {"object": self.thing.name, "kind": self.thing.kind, "sprite": self.thing.key}
            extra |= {"background": photo, "scene": f"{self.split}_{name}"}
            rows.append({"clip": clip, "still": still, "extra": extra})
        return rows


def _question(told: Story, name: str, answers: Sequence[str], rng: random.Random) -> str:
    words = [f"at the {a}" if a in ("top", "bottom") else a for a in answers]
    if told.event == "appear" and "left" in answers:
        words = [f"on the {a}" for a in answers]
    options = f"{', '.join(words[:-1])} or {words[-1]}"
    return rng.choice(QUESTIONS[told.event]).format(name=name, options=options)


def write_rows(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    """Write `SPLIT.jsonl` and `SPLIT_frame.jsonl`; a row has the paths `clip` and `still`, and its `extra`."""
    for ending, kind, key in (("", "video", "clip"), ("_frame", "image", "still")):
        with (folder / f"{split}{ending}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                medium = {"type": kind, "path": row[key]}
                text = {"type": "text", "text": row["extra"]["question"]}
                messages = [
                    {"role": "user", "content": [medium, text]},
                    {"role": "assistant", "content": row["extra"]["answer"]},
                ]
                line = {"messages": messages, "extra": row["extra"]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _direction(rng: random.Random, num_frames: int) -> Story:
    """A straight path; where it is half-way is drawn alike for all four directions."""
    x, y = rng.uniform(0.34, 0.66), rng.uniform(0.34, 0.66)
    size, length = rng.uniform(0.22, 0.38), rng.uniform(0.36, 0.60)
    steps = [length * (t - num_frames // 2) / num_frames for t in range(num_frames)]
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    return Story(
        "move",
        {way: [Pose(x + dx * step, y + dy * step, size) for step in steps] for way, (dx, dy) in ways.items()},
    )


def _order(rng: random.Random, num_frames: int) -> Story:
    return rng.choice((_appearing, _resizing))(rng, num_frames)


def _appearing(rng: random.Random, num_frames: int) -> Story:
    """Seen for a while on one side, later on the other; half-way, nowhere."""
    first, second = _halves(num_frames)
    times = [
        _intervals(rng, half, 1, (num_frames // 8, num_frames * 5 // 16), 0)[0] for half in (first, second)
    ]
    away, along, size = rng.uniform(0.18, 0.30), rng.uniform(0.3, 0.7), rng.uniform(0.24, 0.40)
    if rng.random() < 0.5:
        places = {"left": Pose(away, along, size), "right": Pose(1 - away, along, size)}
    else:
        places = {"top": Pose(along, away, size), "bottom": Pose(along, 1 - away, size)}
    poses: dict[str, Poses] = {}
    for answer, other in zip(places, reversed(places), strict=True):
        poses[answer] = [None] * num_frames
        for place, (start, stop) in zip((answer, other), times, strict=True):
            poses[answer][start:stop] = [places[place]] * (stop - start)
    return Story("appear", poses)


def _resizing(rng: random.Random, num_frames: int) -> Story:
    """Grows then shrinks, or the other way round; the size half-way is drawn alike for both."""
    x, y = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6)
    size, factor = rng.uniform(0.26, 0.36), rng.uniform(1.7, 2.2)
    middle = num_frames // 2
    ends = [abs(t - middle) / middle for t in range(num_frames)]
    return Story(
        "resize",
        {
            answer: [Pose(x, y, size * factor ** (sign * end)) for end in ends]
            for answer, sign in (("grow", -1), ("shrink", 1))
        },
    )


def _count(rng: random.Random, num_frames: int) -> Story:
    """One to four jumps or disappearances, at most two in each half; at rest half-way."""
    event = rng.choice(("jump", "vanish"))
    rest = Pose(rng.uniform(0.3, 0.7), rng.uniform(0.55, 0.75), rng.uniform(0.22, 0.36))
    height = rng.uniform(0.22, 0.34)
    shares = {1: ((0, 1), (1, 0)), 2: ((1, 1), (2, 0), (0, 2)), 3: ((1, 2), (2, 1)), 4: ((2, 2),)}
    poses: dict[str, Poses] = {}
    for number, answer in enumerate(COUNTS, start=1):
        path: Poses = [rest] * num_frames
        lengths, gap = (num_frames // 8, num_frames * 5 // 32), num_frames * 5 // 64
        for half, share in zip(_halves(num_frames), rng.choice(shares[number]), strict=True):
            for start, stop in _intervals(rng, half, share, lengths, gap):
                for t in range(start, stop):
                    u = (t - start + 1) / (stop - start + 1)
                    up = Pose(rest.x, rest.y - height * 4 * u * (1 - u), rest.size)
                    path[t] = up if event == "jump" else None
        poses[answer] = path
    return Story(event, poses)


def _halves(num_frames: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The frames before and after the middle, without those next to it and the first and last."""
    middle, margin = num_frames // 2, num_frames // 16
    return (1, middle - margin + 1), (middle + margin, num_frames - 1)


def _intervals(
    rng: random.Random, room: tuple[int, int], number: int, lengths: tuple[int, int], gap: int
) -> list[tuple[int, int]]:
    """Return `number` random intervals [start, stop) within `room`, at least `gap` apart."""
    chosen = [rng.randint(*lengths) for _ in range(number)]
    slack = room[1] - room[0] - sum(chosen) - gap * max(0, number - 1)
    before = sorted(rng.randint(0, slack) for _ in range(number))
    found, used = [], room[0]
    for offset, length in zip(before, chosen, strict=True):
        found.append((used + offset, used + offset + length))
        used += length + gap
    return found
