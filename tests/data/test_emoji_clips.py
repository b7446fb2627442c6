"""Clips of animated emoji: the thing that is asked about is shown, when it should be, and held out as promised.

Most run on stand-in drawings, a colour each, in real animated WebP files; one reads the package where it was fetched.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_llama.assets import find_asset, status_of
from mm_llama.data import fluent, recipes
from mm_llama.data.emoji_clips import LEFT_OUT, SPLITS, TYPES, Clip, plan, write_jsonl
from mm_llama.data.fluent import KINDS, Thing, looks, read_things, split_of_families
from mm_llama.data.sprites import PHOTOS, sprites

SMALL = {"num_train": 9, "num_holdout": 3, "num_test": 6}


def tables() -> dict[str, str]:
    return {**fluent.ANIMALS, **fluent.PEOPLE, **fluent.HANDS, **fluent.SKY}


def colour(stem: str) -> tuple[int, int, int]:
    """A colour of its own for each drawing, at least 60 from any other."""
    index = [s for stems in tables().values() for s in stems.split()].index(stem)
    return index % 5 * 60, index // 5 % 5 * 60, index // 25 * 60


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with stand-ins: a square of one colour that moves by some pixels over its five frames."""
    folder = tmp_path_factory.mktemp("emoji") / "assets"
    folder.mkdir()
    for stem in (stem for stems in tables().values() for stem in stems.split()):
        frames = []
        for index in range(5):
            frame = Image.new("RGBA", (64, 64))
            frame.paste((*colour(stem), 255), (8 + index, 8, 56 + index, 56))
            frames.append(frame)
        frames[0].save(folder / f"{stem}.webp", save_all=True, append_images=frames[1:], lossless=True)
    return folder.parent


@pytest.fixture(scope="module")
def photos_root(asset_dir: Callable[[str], Path]) -> Path:
    return asset_dir("scikit_image_photos")


@pytest.fixture(scope="module")
def made(root: Path, photos_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_jsonl(root, photos_root, tmp_path_factory.mktemp("clips") / "made", **SMALL)


@pytest.fixture(scope="module")
def things(root: Path) -> list[Thing]:
    return read_things(root)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def frames_of(path: Path) -> np.ndarray:
    """Frames of a clip, float32[F, h, w, 3]."""
    import av

    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24").astype(np.float32) for f in container.decode(video=0)])


def clips(kind: str, things: list[Thing], split: str, number: int = 240) -> list[Clip]:
    return plan(kind, things, split, number)


def test_names_and_drawings_are_unique_and_the_asset_brings_every_drawing(things: list[Thing]) -> None:
    stems = [path.stem for thing in things for path in thing.drawings]
    assert len(set(stems)) == len(stems) > 110 and len({thing.name for thing in things}) == len(things) > 100
    assert {thing.kind for thing in things} == set(KINDS)
    members = find_asset("fluent_emoji_anim").members
    for stem in stems:
        assert any(fnmatchcase(f"package/assets/{stem}.webp", pattern) for pattern in members), stem


def test_families_of_every_kind_are_in_every_split_and_none_is_in_two(things: list[Thing]) -> None:
    splits = split_of_families(things)
    for kind in KINDS:
        assert {splits[thing.family] for thing in things if thing.kind == kind} == set(SPLITS)
    by_name = {thing.name: thing.family for thing in things}
    assert by_name["rat"] == by_name["mouse"] != by_name["cat"]
    assert len({splits[by_name[name]] for name in ("ox", "buffalo", "cow")}) == 1
    assert split_of_families(things, seed=1) != splits


def test_named_animals_are_those_of_training_and_what_is_held_out_is_never_shown_there(
    things: list[Thing],
) -> None:
    taught = [shown for kind in TYPES for clip in clips(kind, things, "train") for shown in clip.shown]
    drawings = {shown.drawing for shown in taught}
    names = {clip.answer for clip in clips("name", things, "train")}
    assert len(names) > 20
    for split in ("holdout", "test"):
        assert {clip.answer for clip in clips("name", things, split)} == names
        assert {clip.answer for clip in clips("order", things, split)} <= names
        for clip in clips("look", things, split):
            assert clip.answer in names and clip.shown[0].drawing not in drawings
        assert len({clip.shown[0].drawing for clip in clips("look", things, split)}) >= 8
        families = {shown.thing.family for clip in clips("category", things, split) for shown in clip.shown}
        assert families and not families & {shown.thing.family for shown in taught}
    assert clips("look", things, "train") == []


def test_times_and_answers_are_balanced(things: list[Thing]) -> None:
    for split in SPLITS:
        parts = Counter(clip.shown[0].part for clip in clips("name", things, split))
        assert parts == {0: 80, 1: 80, 2: 80}  # the middle frame sees a third
        assert Counter(clip.answer for clip in clips("category", things, split)) == dict.fromkeys(KINDS, 60)
        answers = Counter(clip.answer for clip in clips("name", things, split))
        assert max(answers.values()) - min(answers.values()) <= 1


def test_order_scenes_show_the_same_two_in_both_orders_under_one_question(things: list[Thing]) -> None:
    scenes = defaultdict(list)
    for clip in clips("order", things, "train"):
        scenes[clip.scene].append(clip)
    assert len(scenes) == 120 and {clip.event for pair in scenes.values() for clip in pair} == {
        "first",
        "last",
    }
    for one, other in scenes.values():
        assert one.question == other.question and one.answer != other.answer and one.name != other.name
        assert [s.thing for s in one.shown] == [s.thing for s in reversed(other.shown)]
        assert [s.part for s in one.shown] == [s.part for s in other.shown]
        for clip in (one, other):
            (early, late) = clip.shown
            assert early.part < late.part and early.thing.family != late.thing.family
            assert clip.answer == (early if clip.event == "first" else late).thing.name
            assert clip.event in clip.question


def test_decoded_clips_show_each_thing_in_its_part_and_nothing_else(made: dict[str, Path]) -> None:
    folder = made["train"].parent
    for split in SPLITS:
        for row, still in zip(read(made[split]), read(made[f"{split}_frame"]), strict=True):
            assert row["extra"] == still["extra"] and row["messages"][1]["content"] == row["extra"]["answer"]
            (clip_part, text), (still_part, _) = (
                row["messages"][0]["content"],
                still["messages"][0]["content"],
            )
            assert (clip_part["type"], still_part["type"]) == ("video", "image")
            assert text["text"] == row["extra"]["question"]
            clip = frames_of(folder / clip_part["path"])
            assert clip.shape == (64, 224, 224, 3)
            with Image.open(folder / still_part["path"]) as image:
                middle = np.asarray(image.convert("RGB"), np.float32)
            assert np.abs(clip[32] - middle).mean() < 8
            shown = {thing["part"]: thing for thing in row["extra"]["things"]}
            for part in range(3):
                at = part * 64 // 3 + 10
                if part in shown:
                    assert share(clip[at], shown[part]["drawing"]) > 0.12, row
                else:
                    # All empty parts show the photograph, as do the first frames after a thing went.
                    others = [share(clip[at], thing["drawing"]) for thing in shown.values()]
                    seen = [share(clip[p * 64 // 3 + 10], thing["drawing"]) for p, thing in shown.items()]
                    assert all(b - a > 0.08 for a, b in zip(others, seen, strict=True)), row


def share(frame: np.ndarray, drawing: str) -> float:
    """Share of a frame that has about the colour of a stand-in."""
    return float((np.abs(frame - np.array(colour(drawing))).max(-1) < 30).mean())


def test_rows_name_what_they_show_and_photographs_do_not_cross(made: dict[str, Path]) -> None:
    backgrounds = {}
    for split in SPLITS:
        rows = read(made[split])
        backgrounds[split] = {row["extra"]["background"] for row in rows}
        assert backgrounds[split] <= set(PHOTOS[split]) - set(LEFT_OUT)
        for row in rows:
            extra = row["extra"]
            shown = [thing["kind" if extra["type"] == "category" else "name"] for thing in extra["things"]]
            assert extra["answer"] in shown
    assert Counter(row["extra"]["type"] for row in read(made["train"])) == {
        "name": 9,
        "order": 10,
        "category": 12,
    }
    assert "look" in {row["extra"]["type"] for row in read(made["test"])}


def test_the_same_options_give_the_same_bytes(root: Path, photos_root: Path, tmp_path: Path) -> None:
    options = {"types": ["order"], "num_train": 4, "num_holdout": 2, "num_test": 2}
    first, again = (
        write_jsonl(root, photos_root, tmp_path / name, **options)["train"].parent for name in ("a", "b")
    )
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(names) == 8 + 8 + 7
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_recipe_chooses_split_types_and_the_single_frame(
    root: Path, photos_root: Path, tmp_path: Path
) -> None:
    options = {"types": ["name"], "num_train": 3, "num_holdout": 3, "num_test": 3}
    chosen = recipes.emoji_clips(root, photos_root, tmp_path, "test", **options)
    stills = recipes.emoji_clips(root, photos_root, tmp_path, "test", middle_frame=True, **options)
    assert len(chosen) == len(stills) == 3 and len(list(tmp_path.iterdir())) == 1
    assert chosen.row(0).messages[0].parts[0].kind == "video"
    assert stills.row(0).messages[0].parts[0].kind == "image"
    with pytest.raises(ValueError, match="emoji_clips has no split 'dev'"):
        recipes.emoji_clips(root, photos_root, tmp_path, "dev", **options)


def test_mistakes_name_themselves(root: Path, photos_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no question type 'names'.*types are name, look, order, category"):
        write_jsonl(root, photos_root, tmp_path / "a", types=["names"])
    with pytest.raises(ValueError, match="at least 24, not 16"):
        write_jsonl(root, photos_root, tmp_path / "a", num_frames=16)
    with pytest.raises(FileNotFoundError, match=r"lacks 1f400.webp \(rat\)"):
        write_jsonl(photos_root, photos_root, tmp_path / "a")
    Image.new("RGBA", (8, 8)).save(tmp_path / "empty.webp")
    with pytest.raises(ValueError, match="empty.webp is transparent everywhere"):
        looks(tmp_path / "empty.webp")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.webp"]


def test_all_frames_of_a_drawing_are_cut_alike(root: Path) -> None:
    frames = looks(root / "assets" / "1f400.webp")
    assert len(frames) == 5 and len({frame.size for frame in frames}) == 1
    lefts = [frame.getchannel("A").getbbox()[0] for frame in frames]
    assert lefts == sorted(lefts) and lefts[0] == 0 and lefts[-1] > 5  # the motion is kept


def test_animated_emoji_move_in_motion_clips_too(root: Path) -> None:
    found = sprites("fluent", root)
    assert {sprite.kind for sprite in found} == {"animal", "person", "sky"}  # pointing hands would tell
    assert {sprite.split for sprite in found} == set(SPLITS) and len(found[0].draw()) == 10


def test_the_real_drawings_are_animated() -> None:
    status = status_of(find_asset("fluent_emoji_anim"))
    if status.state != "ready":
        pytest.skip("asset fluent_emoji_anim was not fetched: mm-llama assets fetch fluent_emoji_anim")
    things = read_things(status.folder)
    for thing in things[::9]:
        frames = looks(thing.drawings[0])
        assert len(frames) == fluent.NUM_LOOKS and len({frame.tobytes() for frame in frames}) > 8, thing
