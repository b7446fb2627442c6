"""Cut-out pictures of single things, and photographs to put behind them, split so that none crosses.

Sets of cut-outs: `openmoji` (glyphs of a colour font), `tuxpaint` (stamps that have transparent surroundings),
`fluent` (animated emoji).
A sprite is a thing with its surroundings transparent; near-duplicates (a cow, the face of a cow) are left out.
"""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mm_llama.data import fluent, tuxpaint

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
SETS = ("openmoji", "tuxpaint", "fluent")
MASTER = 160  # pixels of the longer side that sprites are drawn with, before they are scaled
OUTLINE = 4  # pixels of white around a drawn sprite, at that size: black lines must show on a dark photograph

OPENMOJI = {
    "animal": (
        "🐀🐃🐄🐅🐆🐇🐈🐉🐊🐋🐌🐍🐎🐏🐐🐑🐒🐓🐕🐖🐗🐘🐙🐚🐛🐜🐝🐞🐟🐠🐡🐢🐥🐦🐧🐨🐩🐪🐬🐸🐹🐺🐻🐼🐿🦀🦁🦂"
        "🦃🦄🦅🦆🦇🦈🦉🦊🦋🦌🦍🦎🦏🦐🦑🦒🦓🦔🦕🦖🦗🦘🦙🦚🦛🦜🦝🦞🦟🦡🦢🦣🦤🦥🦦🦧🦨🦩🦫🦬🦭🪰🪱🪲🪳🕷🕊"
    ),
    "food": (
        "🌭🌮🌯🌰🌶🍅🍆🍇🍉🍊🍋🍌🍍🍎🍐🍑🍒🍓🍔🍕🍗🍙🍜🍝🍞🍟🍡🍢🍣🍤🍦🍨🍩🍪🍫🍬🍭🍮🍯🍰🍱🍷🍸🍺🍾🍿🥐🥑"
        "🥒🥓🥔🥕🥖🥗🥘🥙🥚🥛🥜🥝🥞🥟🥡🥤🥥🥦🥧🥨🥩🥪🥫🥬🥭🥯🧀🧁🧂🧃🧄🧅🧈🧊🧋🫐🫑🫒🫔🫖"
    ),
    "vehicle": "🚀🚁🚂🚃🚅🚆🚌🚎🚐🚑🚒🚓🚕🚗🚙🚚🚛🚜🛩🛫🛰🛴🛵🛶🛷🛸🛹🛺🛻🛼🚲🏍🏎",
    "thing": (
        "🎀🎁🎃🎄🎈🎒🎤🎥🎧🎨🎩🎪🎫🎬🎭🎮🎯🎱🎲🎳🎷🎸🎺🎻🎾🏀🏆🏈🏐🏏🏓🏠🏰🏹🏺💡💣💰💼💾📀📁📅📌📎📏📕📜"
        "📞📢📦📫📷🔋🔌🔍🔑🔒🔔🔥🔦🔧🔨🔫🔬🔭🔮🔱🕯🥼🥽🥾🧠🧢🧣🧤🧥🧦🧨🧩🧪🧬🧭🧮🧯🧰🧱🧲🧳🧴🧵🧶🧷🧸🧹🧺"
        "🧻🧼🧽🩰🩲🩳🩴🩹🩺🪀🪁🪂🪃🪄🪅🪆🪐🪑🪒🪓🪕🪖🪗🪘🪙🪚🪛🪜🪝🪞🪟🪠🪡🪣🪥👑👒👓👔👖👗👛👜👞👠👢🌲🌳"
        "🌴🌵🌷🌹🌻🌽🌾🍀🍁🍄💎⚓⚽⚾☂⛄⛵"
    ),
}

# Unicode names that nobody would say.
SAID = {
    "articulated lorry": "truck",
    "airplane departure": "airplane",
    "automobile": "car",
    "ball of yarn": "yarn",
    "bar of soap": "soap",
    "basketball and hoop": "basketball",
    "billiards": "billiard ball",
    "black umbrella": "umbrella",
    "bottle with popping cork": "bottle",
    "closed book": "book",
    "closed mailbox with raised flag": "mailbox",
    "cricket bat and ball": "cricket bat",
    "cut of meat": "meat",
    "direct hit": "dart board",
    "dove of peace": "dove",
    "dromedary camel": "camel",
    "ear of maize": "maize",
    "ear of rice": "rice plant",
    "electric light bulb": "light bulb",
    "electric plug": "plug",
    "electric torch": "torch",
    "front-facing baby chick": "chick",
    "game die": "die",
    "high-speed train with bullet nose": "fast train",
    "house building": "house",
    "jigsaw puzzle piece": "puzzle piece",
    "lady beetle": "ladybird",
    "left-pointing magnifying glass": "magnifying glass",
    "mans shoe": "shoe",
    "military helmet": "helmet",
    "performing arts": "masks",
    "public address loudspeaker": "loudspeaker",
    "shallow pan of food": "pan",
    "slice of pizza": "pizza",
    "snowman without snow": "snowman",
    "spool of thread": "thread",
    "table tennis paddle and ball": "table tennis bat",
    "tennis racquet and ball": "tennis ball",
    "trident emblem": "trident",
    "video game": "game controller",
    "womans boots": "boot",
    "womans hat": "hat",
}

# Photographs of the asset `scikit_image_photos`; drawings, charts and those smaller than a clip are left out.
PHOTOS = {
    "train": (
        "brick.png",
        "camera.png",
        "cell.png",
        "chelsea.png",
        "clock_motion.png",
        "grass.png",
        "hubble_deep_field.jpg",
        "moon.png",
        "motorcycle_left.png",
        "page.png",
        "retina.jpg",
    ),
    "holdout": ("coins.png", "rocket.jpg", "text.png"),
    "test": ("astronaut.png", "coffee.png", "gravel.png", "ihc.png"),
}


@dataclass(frozen=True)
class Sprite:
    """One thing to show. `draw()` gives its frames, RGBA, trimmed; stills have one."""

    key: str
    name: str  # what to call it in a question
    kind: str  # animal, food, vehicle, thing, or a folder of the stamps
    split: str
    draw: Callable[[], list[Image.Image]]


def sprites(name: str, root: str | Path, *, seed: int = 0) -> list[Sprite]:
    """Return the sprites of a set by key. `root` is the unpacked package, or the font file of `openmoji`.

    Raises ValueError for an unknown set, FileNotFoundError when `root` holds none.
    """
    if name == "openmoji":
        return _openmoji(Path(root), seed)
    if name == "tuxpaint":
        return _tuxpaint(Path(root), seed)
    if name == "fluent":
        return _fluent(Path(root), seed)
    raise ValueError(f"no set of sprites is named {name!r} (sprites); sets are {', '.join(SETS)}")


def photos(root: str | Path, split: str) -> list[tuple[str, Image.Image]]:
    """Return name and picture, RGB, of the photographs of one split; `root` is the unpacked package."""
    from mm_llama.data.decode import open_image

    folder = Path(root)
    below = folder / "skimage" / "data"
    folder = below if below.is_dir() else folder
    missing = [name for name in PHOTOS[split] if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{root} lacks the photograph {missing[0]} of scikit-image")
    return [(name, open_image(folder / name)) for name in PHOTOS[split]]


def random_crop(photo: Image.Image, size: int, rng: random.Random) -> Image.Image:
    """Return a random square of a photograph, at least 60 % of its smaller side, mirrored half of the time."""
    from PIL import Image

    smaller = min(photo.size)
    side = rng.randint(round(0.6 * smaller), smaller)
    left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
    crop = photo.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def split_of(key: str, *, seed: int = 0) -> str:
    """Split of a sprite: about 10 % holdout, 20 % test, the rest train."""
    share = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64
    return "holdout" if share < 0.10 else "test" if share < 0.30 else "train"


def emoji_name(character: str) -> str:
    """Return what people call an emoji: its Unicode name in small letters, or a plainer one."""
    name = unicodedata.name(character).lower()
    return SAID.get(name, name)


def _openmoji(root: Path, seed: int) -> list[Sprite]:
    from PIL import ImageFont

    fonts = [root] if root.is_file() else sorted(root.rglob("glyf_colr0.ttf"))
    if not fonts:
        raise FileNotFoundError(f"{root} holds no OpenMoji font (glyf_colr0.ttf is missing)")
    font = ImageFont.truetype(fonts[0], MASTER)

    def drawer(character: str) -> Callable[[], list[Image.Image]]:
        def draw() -> list[Image.Image]:
            from PIL import Image, ImageDraw

            canvas = Image.new("RGBA", (2 * MASTER, 2 * MASTER))
            where = (MASTER // 2, MASTER // 2)
            ImageDraw.Draw(canvas).text(where, character, font=font, embedded_color=True)
            return [outlined(trimmed(canvas))]

        return draw

    return [
        Sprite(f"{ord(c):X}", emoji_name(c), kind, split_of(f"openmoji:{ord(c):X}", seed=seed), drawer(c))
        for kind, characters in OPENMOJI.items()
        for c in characters
    ]


def _tuxpaint(root: Path, seed: int) -> list[Sprite]:
    """Stamps that are cut out: at least a tenth of the picture, its corners among it, is transparent."""
    from PIL import Image

    found = []
    for stamp in tuxpaint.read_stamps(root, exclude=("symbols",)):
        with Image.open(stamp.image, formats=("PNG",)) as image:
            if image.mode != "RGBA" or not _cut_out(image):
                continue

        def draw(path: Path = stamp.image) -> list[Image.Image]:
            with Image.open(path, formats=("PNG",)) as image:
                return [trimmed(image.convert("RGBA"))]

        # Stems are no words ("fireman240a"), captions are sentences: the kind of thing is what it is called.
        name = {"animals": "animal", "food": "food", "vehicles": "vehicle"}.get(stamp.category, "thing")
        split = tuxpaint.split_of(stamp.group, seed=seed)
        found.append(Sprite(stamp.stem, name, stamp.category, split, draw))
    return found


def _fluent(root: Path, seed: int) -> list[Sprite]:
    """All drawings of the animated emoji but hands, whose fingers point; each look is shown for two frames."""
    things = [thing for thing in fluent.read_things(root) if thing.kind != "hand"]
    splits = fluent.split_of_families(things, seed=seed)

    def drawer(path: Path) -> Callable[[], list[Image.Image]]:
        return lambda: [look for look in fluent.looks(path) for _ in range(2)]

    return [
        Sprite(path.stem, thing.name, thing.kind, splits[thing.family], drawer(path))
        for thing in things
        for path in thing.drawings
    ]


def _cut_out(image: Image.Image) -> bool:
    alpha = image.getchannel("A")
    width, height = image.size
    corners = [alpha.getpixel((x, y)) for x in (0, width - 1) for y in (0, height - 1)]
    solid = sum(alpha.histogram()[128:])
    return max(corners) < 32 and 0.05 < solid / (width * height) < 0.9 and min(width, height) >= 32  # type: ignore[type-var, operator]


def trimmed(image: Image.Image) -> Image.Image:
    """Cut the transparent surroundings off and scale the longer side to MASTER."""
    from PIL import Image

    box = image.getchannel("A").getbbox()
    if box is None:
        raise ValueError("a sprite that is transparent everywhere cannot be shown")
    image = image.crop(box)
    scale = MASTER / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def outlined(image: Image.Image) -> Image.Image:
    """Put a white rim around a drawing, as around a sticker."""
    from PIL import Image, ImageFilter

    wide = Image.new("RGBA", (image.width + 2 * OUTLINE, image.height + 2 * OUTLINE))
    wide.paste(image, (OUTLINE, OUTLINE))
    rim = wide.getchannel("A").filter(ImageFilter.MaxFilter(2 * OUTLINE + 1))
    white = Image.new("RGBA", wide.size, (255, 255, 255, 0))
    white.putalpha(rim)
    return Image.alpha_composite(white, wide)


def balanced(items: Sequence[T], number: int, rng: random.Random) -> list[T]:
    """Return `number` items, each as often as the others but for one time, in random order."""
    if not items and number:
        raise ValueError("there is nothing to choose from")
    chosen: list[T] = []
    while len(chosen) < number:
        chosen += rng.sample(list(items), len(items))
    return chosen[:number]
