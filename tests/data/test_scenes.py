"""Pictures with things at known places: boxes are exact, nothing overlaps, nothing crosses splits."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_llama.cli import main
from mm_llama.data import recipes
from mm_llama.data.formats import Grounded
from mm_llama.data.places import boxes_of
from mm_llama.data.scenes import SIDE, scene, write_jsonl
from mm_llama.data.sources import JsonlChat, validate
from mm_llama.data.sprites import Sprite

SIZES = {"num_train": 8, "num_holdout": 3, "num_test": 3}


def block(name: str, colour: tuple[int, int, int], width: int, height: int) -> Sprite:
    """A solid block inside a transparent margin."""

    def draw() -> list[Image.Image]:
        image = Image.new("RGBA", (width + 40, height + 40))
        image.paste((*colour, 255), (20, 20, 20 + width, 20 + height))
        return [image]

    return Sprite(name, name, name, "train", draw)


THINGS = [
    block("red", (255, 0, 0), 120, 60),
    block("green", (0, 255, 0), 80, 80),
    block("blue", (0, 0, 255), 30, 90),
]


def test_boxes_are_where_the_things_are_seen() -> None:
    channel = {"red": 0, "green": 1, "blue": 2}
    counts = set()
    for seed in range(40):
        picture, boxes = scene(Image.new("RGB", (SIDE, SIDE)), THINGS, random.Random(seed), 3)
        pixels = np.asarray(picture)
        for name, (xmin, ymin, xmax, ymax) in boxes:
            rows, columns = np.nonzero(pixels[..., channel[name]] > 127)
            seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert max(abs(a - b) for a, b in zip(seen, (xmin, ymin, xmax, ymax), strict=True)) <= 1
        places = [place for _, place in boxes]
        assert places == sorted(places) and len({name for name, _ in boxes}) == len(boxes)
        for number, one in enumerate(places):
            for other in places[:number]:
                assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
        counts.add(len(boxes))
    assert counts == {1, 2, 3}


@pytest.fixture(scope="module")
def made(asset_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("grounding") / "made"
    return write_jsonl(asset_dir("tuxpaint_stamps"), asset_dir("scikit_image_photos"), folder, **SIZES)


def test_rows_are_valid_and_their_boxes_lie_in_their_pictures(made: dict[str, Path]) -> None:
    for split, path in made.items():
        assert list(validate(path)) == []
        source = JsonlChat(path)
        assert len(source) == SIZES[f"num_{split}"]
        for index in range(len(source)):
            row = source.row(index)
            boxes = boxes_of(row)
            assert 1 <= len(boxes) <= 3
            assert row.messages[1].parts[0].text == ", ".join(box.label for box in boxes)
            with Image.open(row.messages[0].parts[0].source) as image:
                assert image.size == (SIDE, SIDE)
            grounded = Grounded(source, turns=0).row(index)
            assert len(grounded.messages) == 2 * len({box.label for box in boxes})


def test_photographs_do_not_cross_splits(made: dict[str, Path]) -> None:
    photos = {
        split: {json.loads(line)["extra"]["photo"] for line in path.read_text("utf-8").splitlines()}
        for split, path in made.items()
    }
    assert (
        not photos["train"] & (photos["holdout"] | photos["test"]) and not photos["holdout"] & photos["test"]
    )


def test_the_recipe_and_the_command_make_the_same_rows(
    made: dict[str, Path],
    asset_dir: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    roots = asset_dir("tuxpaint_stamps"), asset_dir("scikit_image_photos")
    source = recipes.grounding(*roots, tmp_path, "holdout", **SIZES)
    assert source.path.read_bytes() == made["holdout"].read_bytes()
    with pytest.raises(ValueError, match=r"grounding has no split 'dev'"):
        recipes.grounding(*roots, tmp_path, "dev", **SIZES)
    command = [
        "data",
        "make",
        "grounding",
        "--out",
        str(tmp_path / "cli"),
        "--rows",
        "8",
        "--things",
        "2",
        "--json",
    ]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["train"]["rows"] == 8 and Path(found["train"]["file"]).is_file()
