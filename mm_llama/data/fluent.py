"""The animated Fluent Emoji (npm `@lobehub/fluent-emoji-anim-1`): which drawings, what they show, their frames.

A thing has one name and one or more drawings (`cat`: the whole animal, its face). Things that look much alike
share a family, and families are what splits keep together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("animal", "person", "hand", "sky")
NUM_LOOKS = 24  # of the 48 to 73 frames of an animation; three seconds at the speed it is drawn for
SIDE = 160  # pixels; drawings are 256 wide

# name -> file stems; "a+b" before the name: its family, where that is not the name itself
ANIMALS = {
    "rodent+rat": "1f400",
    "rodent+mouse": "1f401 1f42d",
    "rodent+hamster": "1f439",
    "cattle+ox": "1f402",
    "cattle+buffalo": "1f403",
    "cattle+cow": "1f404 1f42e",
    "tiger": "1f405 1f42f",
    "leopard": "1f406",
    "rabbit": "1f407 1f430",
    "cat": "1f408 1f431",
    "dragon": "1f409 1f432",
    "crocodile": "1f40a",
    "whale": "1f40b 1f433",
    "snail": "1f40c",
    "snake": "1f40d",
    "horse": "1f40e 1f434",
    "sheep+ram": "1f40f",
    "goat": "1f410",
    "sheep+sheep": "1f411",
    "monkey": "1f412 1f435",
    "hen+rooster": "1f413",
    "hen+chicken": "1f414",
    "dog": "1f415 1f436",
    "pig": "1f416 1f437",
    "boar": "1f417",
    "elephant": "1f418",
    "octopus": "1f419",
    "caterpillar": "1f41b",
    "ant": "1f41c",
    "bee": "1f41d",
    "ladybug": "1f41e",
    "fish": "1f41f 1f420",
    "blowfish": "1f421",
    "turtle": "1f422",
    "chick": "1f424 1f425",
    "bird": "1f426",
    "penguin": "1f427",
    "koala": "1f428",
    "poodle": "1f429",
    "camel": "1f42a 1f42b",
    "dolphin": "1f42c",
    "frog": "1f438",
    "wolf": "1f43a",
    "bear+bear": "1f43b",
    "bear+panda": "1f43c",
    "squirrel": "1f43f-fe0f",
}
PEOPLE = {
    "snowboarder": "1f3c2",
    "runner": "1f3c3",
    "surfer": "1f3c4",
    "rider": "1f3c7",
    "swimmer": "1f3ca",
    "weightlifter": "1f3cb-fe0f",
    "golfer": "1f3cc-fe0f",
    "child+boy": "1f466",
    "child+girl": "1f467",
    "farmer": "1f468-200d-1f33e",
    "cook": "1f468-200d-1f373",
    "father": "1f468-200d-1f37c",
    "student": "1f468-200d-1f393",
    "singer": "1f468-200d-1f3a4",
    "artist": "1f468-200d-1f3a8",
    "teacher": "1f468-200d-1f3eb",
    "welder": "1f468-200d-1f3ed",
    "programmer": "1f468-200d-1f4bb",
    "office worker": "1f468-200d-1f4bc",
    "mechanic": "1f468-200d-1f527",
    "scientist": "1f468-200d-1f52c",
    "astronaut": "1f468-200d-1f680",
    "firefighter": "1f468-200d-1f692",
    "blind man": "1f468-200d-1f9af",
    "hair+red hair": "1f468-200d-1f9b0",
    "hair+curly hair": "1f468-200d-1f9b1",
    "hair+bald man": "1f468-200d-1f9b2",
    "hair+white hair": "1f468-200d-1f9b3",
    "wheelchair+electric wheelchair": "1f468-200d-1f9bc",
    "wheelchair+wheelchair": "1f468-200d-1f9bd",
    "doctor": "1f468-200d-2695-fe0f",
    "judge": "1f468-200d-2696-fe0f",
    "pilot": "1f468-200d-2708-fe0f",
}
HANDS = {
    "finger+finger up": "1f446",
    "finger+finger down": "1f447",
    "finger+finger left": "1f448",
    "finger+finger right": "1f449",
    "fist": "1f44a",
    "waving hand": "1f44b",
    "OK": "1f44c",
    "thumb+thumb up": "1f44d",
    "thumb+thumb down": "1f44e",
    "clapping": "1f44f",
    "open hands": "1f450",
}
SKY = {
    "rainbow": "1f308",
    "moon+new moon": "1f31a",
    "moon+crescent": "1f31b 1f31c",
    "moon+full moon": "1f31d",
    "sun": "1f31e",
    "star": "1f31f",
    "cloud+sunny": "1f324-fe0f",
    "cloud+cloudy": "1f325-fe0f",
    "cloud+shower": "1f326-fe0f",
    "cloud+rain": "1f327-fe0f",
    "snow": "1f328-fe0f",
    "lightning": "1f329-fe0f",
    "tornado": "1f32a-fe0f",
}


@dataclass(frozen=True)
class Thing:
    """Something with a name, and the files that show it."""

    name: str
    kind: str  # one of KINDS
    family: str
    drawings: tuple[Path, ...]


def read_things(root: str | Path) -> list[Thing]:
    """Return all things, by kind; `root` is the unpacked package.

    Raises FileNotFoundError, naming a drawing that is missing.
    """
    folder = Path(root)
    folder = folder / "assets" if (folder / "assets").is_dir() else folder
    things = []
    for kind, table in zip(KINDS, (ANIMALS, PEOPLE, HANDS, SKY), strict=True):
        for key, stems in table.items():
            family, _, name = key.rpartition("+")
            drawings = tuple(folder / f"{stem}.webp" for stem in stems.split())
            for path in drawings:
                if not path.is_file():
                    raise FileNotFoundError(f"{root} lacks {path.name} ({name}) of the animated Fluent Emoji")
            things.append(Thing(name, kind, f"{kind}:{family or name}", drawings))
    return things


def split_of_families(things: list[Thing], *, seed: int = 0) -> dict[str, str]:
    """Return the split of each family: of every kind about 15 % holdout, 25 % test, and some of each.

    The smallest hashes of a kind are held out, rather than all below a bound: some kinds have few families.
    """
    splits = {}
    for kind in KINDS:
        families = sorted(
            {thing.family for thing in things if thing.kind == kind},
            key=lambda family: hashlib.sha256(f"{seed}:{family}".encode()).digest(),
        )
        num_holdout, num_test = max(1, round(0.15 * len(families))), max(2, round(0.25 * len(families)))
        for index, family in enumerate(families):
            splits[family] = (
                "holdout" if index < num_holdout else "test" if index < num_holdout + num_test else "train"
            )
    return splits


def looks(drawing: Path) -> list[Image.Image]:
    """Return NUM_LOOKS frames of an animation at even strides, RGBA, SIDE pixels wide, all cut to what moves."""
    from PIL import Image

    frames = []
    with Image.open(drawing, formats=("WEBP",)) as image:
        total = getattr(image, "n_frames", 1)
        for index in sorted({number * total // NUM_LOOKS for number in range(NUM_LOOKS)}):
            image.seek(index)
            frames.append(image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BOX))
    boxes = [frame.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox() for frame in frames]
    found = [box for box in boxes if box is not None]
    if not found:
        raise ValueError(f"{drawing} is transparent everywhere; get a whole copy")
    left, top = min(box[0] for box in found), min(box[1] for box in found)
    right, bottom = max(box[2] for box in found), max(box[3] for box in found)
    return [frame.crop((left, top, right, bottom)) for frame in frames]
