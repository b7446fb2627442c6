"""Tux Paint stamps: which pictures count, groups that never cross a split, the JSONL they become."""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from mm_llama.data.tuxpaint import base_stem, read_stamps, split_of, write_jsonl


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def stamp(root: Path, stem: str, caption: str, *, color=(200, 10, 10, 255), corner=(0, 0, 0, 0)) -> None:
    path = root / "stamps" / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (6, 4), color)
    image.putpixel((0, 0), corner)
    image.save(path)
    if caption:
        path.with_suffix(".txt").write_text(f"{caption}\nde.utf8=Etwas.\n", "utf-8")


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "root"
    stamp(folder, "animals/frog", "A frog.", color=(0, 200, 0, 255))
    stamp(folder, "animals/frog-2", "Another green frog.", color=(0, 210, 0, 255))
    stamp(folder, "animals/toad", "a FROG", color=(0, 220, 0, 255))
    stamp(folder, "food/toad_too", "Toad in the hole", color=(0, 220, 0, 255))
    stamp(folder, "food/pear", "A pear.", color=(200, 200, 0, 128))
    stamp(folder, "food/pear_mirror", "", color=(200, 200, 0, 255))
    stamp(folder, "symbols/7", "The number seven.", color=(1, 1, 1, 255))
    return folder


def test_stamps_are_the_captioned_pngs_with_their_first_line(root):
    assert [(s.stem, s.caption, s.category) for s in read_stamps(root)] == [
        ("animals/frog", "A frog.", "animals"),
        ("animals/frog-2", "Another green frog.", "animals"),
        ("animals/toad", "a FROG", "animals"),
        ("food/pear", "A pear.", "food"),
        ("food/toad_too", "Toad in the hole", "food"),
        ("symbols/7", "The number seven.", "symbols"),
    ]


def test_same_caption_same_picture_and_same_base_stem_are_one_group(root):
    groups = {s.stem: s.group for s in read_stamps(root)}
    assert groups == {
        "animals/frog": "animals/frog",
        "animals/frog-2": "animals/frog",  # by stem
        "animals/toad": "animals/frog",  # by caption, whatever its case and punctuation
        "food/toad_too": "animals/frog",  # by picture, through the toad
        "food/pear": "food/pear",
        "symbols/7": "symbols/7",
    }


@pytest.mark.parametrize(
    ("stem", "base"),
    [
        ("plants/flower10", "plants/flower"),
        ("a/b_filled", "a/b"),
        ("a/guitar_2", "a/guitar"),
        ("a/tree_photo_2", "a/tree"),
        ("money/005", "money/005"),
        ("music/note_a", "music/note_a"),
        ("animals/crab", "animals/crab"),
    ],
)
def test_variant_endings_are_left_off_but_never_the_whole_name(stem, base):
    assert base_stem(stem) == base


def test_categories_can_be_left_out_and_a_misspelt_one_is_named(root):
    assert {s.category for s in read_stamps(root, exclude=["symbols", "food"])} == {"animals"}
    with pytest.raises(
        ValueError, match="no such category of stamps: symbol; there are animals, food, symbols"
    ):
        read_stamps(root, exclude=["symbol"])


def test_rows_show_the_picture_on_white_and_answer_with_the_caption(root, tmp_path):
    paths = write_jsonl(root, tmp_path / "out")
    rows = {row["extra"]["stem"]: row for path in paths.values() for row in read(path)}
    assert sorted(rows) == sorted(s.stem for s in read_stamps(root))
    user, assistant = rows["food/pear"]["messages"]
    assert user["content"] == [
        {"type": "image", "path": "images/food/pear.png"},
        {"type": "text", "text": "Describe the picture."},
    ]
    assert assistant == {"role": "assistant", "content": "A pear."}
    assert rows["animals/toad"]["extra"] == {
        "caption": "a FROG",
        "stem": "animals/toad",
        "category": "animals",
        "group": "animals/frog",
    }
    with Image.open(tmp_path / "out" / "images/food/pear.png") as image:
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((3, 3)) == (227, 227, 127)  # half yellow, half white


def test_an_empty_prompt_leaves_the_picture_alone(root, tmp_path):
    paths = write_jsonl(root, tmp_path / "out", prompt="")
    row = next(row for path in paths.values() for row in read(path))
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image"]


def test_a_folder_without_stamps_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no Tux Paint stamps"):
        read_stamps(tmp_path)


def test_no_caption_picture_or_motif_of_the_real_stamps_crosses_the_split(asset_dir):
    stamps = read_stamps(asset_dir("tuxpaint_stamps"))
    assert len(stamps) == 785
    for mark in (lambda s: s.caption.casefold(), lambda s: s.image.read_bytes(), lambda s: base_stem(s.stem)):
        splits = {}
        for s in stamps:
            splits.setdefault(mark(s), set()).add(split_of(s.group))
        assert all(len(found) == 1 for found in splits.values())
    assert Counter(split_of(s.group) for s in stamps) == {"train": 599, "test": 116, "holdout": 70}
