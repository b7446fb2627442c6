"""The captioned pictures of Tux Paint (Debian package `tuxpaint-stamps-default`) as JSONL caption chats.

Splits are by group: stamps with the same caption, the same picture, or stems that differ only by a variant
ending (`frog`, `frog-1`; `b_filled`, `b_outlined`) always stand on the same side.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_llama.data.decode import open_image
from mm_llama.data.folders import make_folder

SPLITS = ("train", "holdout", "test")
PROMPT = "Describe the picture."

_VARIANT = re.compile(r"([-_ ]?\d+|[-_ ](mirror|flip|filled|outlined?|photo|cartoon|profile))+$", re.I)


@dataclass(frozen=True)
class Stamp:
    """One captioned picture. `group` is the name of the group that keeps variants together."""

    image: Path
    stem: str  # path below the stamps folder, without ending
    caption: str
    group: str

    @property
    def category(self) -> str:
        """The top folder: animals, food, symbols, ..."""
        return self.stem.split("/", 1)[0]


def read_stamps(root: str | Path, *, exclude: Iterable[str] = ()) -> list[Stamp]:
    """Every PNG with an English caption, by stem, without the top folders in `exclude`.

    PNGs without a caption file of their own (hand-made mirror images of others) and SVGs are no stamps.
    """
    folder = _stamps_folder(root)
    excluded = frozenset(exclude)
    tops = {path.name for path in folder.iterdir() if path.is_dir()}
    if unknown := sorted(excluded - tops):
        raise ValueError(
            f"no such category of stamps: {', '.join(unknown)}; there are {', '.join(sorted(tops))}"
        )
    found: list[tuple[Path, str, str]] = []
    for image in folder.rglob("*.png"):
        stem = image.relative_to(folder).with_suffix("").as_posix()
        text = image.with_suffix(".txt")
        if stem.split("/", 1)[0] not in excluded and text.is_file():
            # The first line is English, the others are "locale.utf8=translation".
            lines = text.read_text("utf-8").splitlines()
            if lines and lines[0].strip():
                found.append((image, stem, lines[0].strip()))
    found.sort(key=lambda entry: entry[1])
    groups = _groups(found)
    return [Stamp(image, stem, caption, groups[stem]) for image, stem, caption in found]


def split_of(group: str, *, seed: int = 0) -> str:
    """The split of a group: about 10 % holdout (for choosing hyper-parameters), 15 % test, the rest train."""
    share = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
    return "holdout" if share < 0.10 else "test" if share < 0.25 else "train"


def write_jsonl(
    root: str | Path, out_dir: str | Path, *, prompt: str = PROMPT, exclude: Iterable[str] = (), seed: int = 0
) -> dict[str, Path]:
    """Write `train.jsonl`, `holdout.jsonl`, `test.jsonl` and the pictures, on white, under `out_dir`.

    An empty `prompt` leaves the picture alone before its caption. `extra` holds caption, stem, category and
    group. The folder appears whole or not at all, and is reused when it was made with the same options.
    """
    excluded = sorted(exclude)
    options = {"prompt": prompt, "exclude": excluded, "seed": seed}

    def fill(folder: Path) -> None:
        stamps = read_stamps(root, exclude=excluded)
        for stamp in stamps:
            target = folder / "images" / f"{stamp.stem}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            open_image(stamp.image).save(target, compress_level=1)
        for split in SPLITS:
            with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for stamp in stamps:
                    if split_of(stamp.group, seed=seed) == split:
                        file.write(json.dumps(_chat(stamp, prompt), ensure_ascii=False) + "\n")

    folder = make_folder(out_dir, "tuxpaint", options, fill)
    return {split: folder / f"{split}.jsonl" for split in SPLITS}


def _groups(stamps: list[tuple[Path, str, str]]) -> dict[str, str]:
    """Group of each stem: connected by caption, by picture bytes, or by stem without its variant ending."""
    parent = {stem: stem for _, stem, _ in stamps}

    def top(stem: str) -> str:
        while parent[stem] != stem:
            stem = parent[stem]
        return stem

    first: dict[tuple[str, str], str] = {}
    for image, stem, caption in stamps:
        for mark in (
            ("caption", re.sub(r"\W+", " ", caption.casefold()).strip()),
            ("picture", hashlib.sha256(image.read_bytes()).hexdigest()),
            ("stem", base_stem(stem)),
        ):
            other = top(first.setdefault(mark, stem))
            mine = top(stem)
            # The smallest stem names the group, so that the name does not depend on the order of joining.
            parent[max(mine, other)] = min(mine, other)
    return {stem: top(stem) for stem in parent}


def base_stem(stem: str) -> str:
    """A stem without the ending that tells variants of one motif apart, unless nothing else would be left."""
    folder, _, name = stem.rpartition("/")
    return f"{folder}/{_VARIANT.sub('', name) or name}"


def _chat(stamp: Stamp, prompt: str) -> dict[str, Any]:
    content: list[dict[str, str]] = [{"type": "image", "path": f"images/{stamp.stem}.png"}]
    if prompt:
        content.append({"type": "text", "text": prompt})
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": stamp.caption},
        ],
        "extra": {
            "caption": stamp.caption,
            "stem": stamp.stem,
            "category": stamp.category,
            "group": stamp.group,
        },
    }


def _stamps_folder(root: str | Path) -> Path:
    for folder in (Path(root) / "usr" / "share" / "tuxpaint" / "stamps", Path(root) / "stamps", Path(root)):
        if (folder / "animals").is_dir():
            return folder
    raise FileNotFoundError(
        f"{root} holds no Tux Paint stamps (usr/share/tuxpaint/stamps/animals is missing)"
    )
