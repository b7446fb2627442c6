"""Motion clips: what is asked is what happens in the decoded frames, and the middle frame says nothing of it."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_llama.cli import main
from mm_llama.data import recipes
from mm_llama.data.clip_writer import Pose, compose, write_clip
from mm_llama.data.motion import COUNTS, QUESTIONS, SPLITS, TYPES, story, write_jsonl
from mm_llama.data.sprites import PHOTOS, emoji_name, photos, random_crop, sprites

ANSWERS = {"direction": 4, "order": 2, "count": 4}
SMALL = {"num_train": 8, "num_holdout": 4, "num_test": 4}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def medium(row: dict[str, Any]) -> dict[str, str]:
    return row["messages"][0]["content"][0]


def frames_of(path: Path) -> np.ndarray:
    """Frames of a clip, float32[F, h, w]: brightness."""
    import av

    with av.open(str(path)) as container:
        return np.stack(
            [frame.to_ndarray(format="gray").astype(np.float32) for frame in container.decode(video=0)]
        )


@pytest.fixture(scope="module")
def roots(asset_dir: Callable[[str], Path]) -> tuple[Path, Path]:
    return asset_dir("openmoji"), asset_dir("scikit_image_photos")


@pytest.fixture(scope="module")
def made(roots: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_jsonl(*roots, tmp_path_factory.mktemp("motion") / "made", **SMALL)


@pytest.mark.parametrize("num_frames", [32, 64])
@pytest.mark.parametrize("kind", TYPES)
def test_every_answer_of_a_story_has_the_same_middle_frame_and_its_own_motion(
    kind: str, num_frames: int
) -> None:
    for seed in range(300):
        told = story(kind, random.Random(seed), num_frames)
        assert len(told.poses) == ANSWERS[kind]
        assert len({poses[num_frames // 2] for poses in told.poses.values()}) == 1
        for answer, poses in told.poses.items():
            assert len(poses) == num_frames
            assert seen_in(told.event, poses) == answer


def seen_in(event: str, poses: list[Pose | None]) -> str:
    """The answer as somebody would read it off the poses."""
    shown = [pose for pose in poses if pose is not None]
    first, last = shown[0], shown[-1]
    if event == "move":
        dx, dy = last.x - first.x, last.y - first.y
        assert (dx == 0) != (dy == 0)
        return ("right" if dx > 0 else "left") if dx else ("down" if dy > 0 else "up")
    if event == "appear":
        dx, dy = last.x - first.x, last.y - first.y
        return ("left" if dx > 0 else "right") if dx else ("top" if dy > 0 else "bottom")
    sizes = [pose.size for pose in shown]
    if event == "resize":
        return "grow" if sizes[1] > sizes[0] else "shrink"
    away = [
        pose is None if event == "vanish" else pose is not None and pose.y < first.y - 1e-9 for pose in poses
    ]
    return COUNTS[sum(now and not before for before, now in zip([False, *away], away)) - 1]  # noqa: B905


def test_pauses_are_long_enough_to_be_seen_in_every_fourth_frame() -> None:
    for seed in range(300):
        told = story("count", random.Random(seed), 64)
        if told.event != "vanish":
            continue
        for answer, poses in told.poses.items():
            assert {seen_in("vanish", poses[offset::4]) for offset in range(4)} == {answer}


def test_all_stays_in_sight() -> None:
    for kind in TYPES:
        for seed in range(300):
            for poses in story(kind, random.Random(seed), 64).poses.values():
                for pose in filter(None, poses):
                    assert 0 < pose.x < 1 and 0 < pose.y < 1 and 0.08 < pose.size < 0.9


def test_answers_are_balanced_within_scenes_and_questions_are_alike(made: dict[str, Path]) -> None:
    for split, number in zip(SPLITS, (8, 4, 4), strict=True):
        rows = read(made[split])
        assert Counter(row["extra"]["type"] for row in rows) == dict.fromkeys(TYPES, number)
        scenes = defaultdict(list)
        for row in rows:
            scenes[row["extra"]["scene"]].append(row)
        for scene in scenes.values():
            assert len({row["messages"][1]["content"] for row in scene}) == ANSWERS[scene[0]["extra"]["type"]]
            assert len({row["messages"][0]["content"][1]["text"] for row in scene}) == 1
            assert len({(row["extra"]["sprite"], row["extra"]["background"]) for row in scene}) == 1
        for row in rows:
            assert row["messages"][1]["content"] == row["extra"]["answer"]
            assert row["messages"][0]["content"][1]["text"] == row["extra"]["question"]
            assert row["extra"]["object"] in row["extra"]["question"]


def test_guessing_from_the_middle_frame_is_chance_whatever_looks_at_it(made: dict[str, Path]) -> None:
    """The best that any function of (picture, question) could reach on a split, even one fitted to it."""
    for split in SPLITS:
        rows, stills = read(made[split]), read(made[f"{split}_frame"])
        assert [row["extra"] for row in rows] == [row["extra"] for row in stills]
        best: dict[str, int] = Counter()
        seen: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
        for row in stills:
            assert medium(row)["type"] == "image"
            picture = hashlib.sha256((made[split].parent / medium(row)["path"]).read_bytes()).hexdigest()
            seen[row["extra"]["type"], picture, row["extra"]["question"]][row["extra"]["answer"]] += 1
        for (kind, _, _), answers in seen.items():
            best[kind] += max(answers.values())
        totals = Counter(row["extra"]["type"] for row in stills)
        assert {kind: totals[kind] / best[kind] for kind in TYPES} == ANSWERS


def test_middle_frames_of_the_clips_are_the_written_ones_but_for_compression(made: dict[str, Path]) -> None:
    folder = made["train"].parent
    for row, still in list(zip(read(made["train"]), read(made["train_frame"]), strict=True))[::5]:
        clip = frames_of(folder / medium(row)["path"])
        with Image.open(folder / medium(still)["path"]) as image:
            assert image.size == (224, 224)
            picture = np.asarray(image.convert("L"), np.float32)
        assert clip.shape == (64, 224, 224)
        # Fine grass loses most; a sprite that is elsewhere changes hundreds of pixels by more than this.
        assert (np.abs(clip[32] - picture) > 60).mean() < 0.002


def test_decoded_clips_show_what_their_answers_say(made: dict[str, Path]) -> None:
    folder = made["train"].parent
    for split in SPLITS:
        for row in read(made[split]):
            extra = row["extra"]
            clip = frames_of(folder / medium(row)["path"])
            changed = np.abs(clip - np.median(clip, axis=0)) > 24
            if extra["event"] == "move":
                assert direction(changed) == extra["answer"], row
            elif extra["event"] == "vanish":
                # A thing at rest most of the time is part of the median; where it vanishes, much changes.
                area = changed.reshape(64, -1).sum(1)
                away = area > area.max() / 2
                assert COUNTS[int((away & ~np.roll(away, 1)).sum()) - 1] == extra["answer"], row
            elif extra["event"] == "appear":
                first = next(mask for mask in changed if mask.sum() > 0.25 * max(m.sum() for m in changed))
                y, x = (axis.mean() for axis in np.nonzero(first))
                seen = {"left": x < 112, "right": x > 112, "top": y < 112, "bottom": y > 112}
                assert seen[extra["answer"]], row


def direction(changed: np.ndarray) -> str:
    """Where the changed pixels of the last frames lie from those of the first."""
    ends = []
    for frames in (changed[:8], changed[-8:]):
        centres = [np.mean(np.nonzero(mask), axis=1) for mask in frames if mask.any()]
        ends.append(np.mean(centres, axis=0))
    dy, dx = ends[1] - ends[0]
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def test_no_thing_and_no_photograph_crosses_the_split(made: dict[str, Path]) -> None:
    for key in ("sprite", "background"):
        shown = {split: {row["extra"][key] for row in read(made[split])} for split in SPLITS}
        assert (
            not shown["train"] & (shown["holdout"] | shown["test"]) and not shown["holdout"] & shown["test"]
        )
    names = [name for split in SPLITS for name in PHOTOS[split]]
    assert len(set(names)) == len(names) == 18


def test_the_same_options_give_the_same_bytes(
    roots: tuple[Path, Path], made: dict[str, Path], tmp_path: Path
) -> None:
    again = write_jsonl(*roots, tmp_path / "again", **SMALL)["train"].parent
    first = made["train"].parent
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(names) == 48 + 16 + 7 and all(
        (first / n).read_bytes() == (again / n).read_bytes() for n in names
    )
    other = write_jsonl(*roots, tmp_path / "other", **SMALL | {"num_holdout": 0, "num_test": 0}, seed=1)
    assert read(other["train"])[0]["extra"] != read(made["train"])[0]["extra"]
    assert read(other["test"]) == []


def test_recipe_chooses_split_types_and_the_single_frame(roots: tuple[Path, Path], tmp_path: Path) -> None:
    def rows(**options: Any) -> list[dict[str, Any]]:
        return read(recipes.motion(*roots, tmp_path, **SMALL | options).path)

    clips = rows(types=["direction"], split="test")
    stills = rows(types=["direction"], split="test", middle_frame=True)
    assert {row["extra"]["type"] for row in clips} == {"direction"} and len(clips) == len(stills) == 4
    assert {medium(row)["type"] for row in clips} == {"video"}
    assert {medium(row)["type"] for row in stills} == {"image"}
    assert len(list(tmp_path.iterdir())) == 1  # both read one folder
    with pytest.raises(ValueError, match="motion has no split 'dev'.*train, holdout, test"):
        rows(types=["direction"], split="dev")


def test_command_makes_the_folder(
    roots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "data",
        "make",
        "motion",
        "--root",
        str(roots[0]),
        "--photos",
        str(roots[1]),
        "--types",
        "order",
    ]
    numbers = ["--train", "4", "--holdout", "2", "--test", "0", "--out", str(tmp_path / "out"), "--json"]
    assert main(command + numbers) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: entry["rows"] for name, entry in told.items()} == {
        "train": 4, "train_frame": 4, "holdout": 2, "holdout_frame": 2, "test": 0, "test_frame": 0,
    }  # fmt: skip
    assert len(read(Path(told["train"]["file"]))) == 4
    assert main([*command, "--test", "-1", "--out", str(tmp_path / "b")]) == 2
    assert "--test -1: a number of clips cannot be negative" in capsys.readouterr().err


def test_mistakes_name_themselves(roots: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no question type 'speed'.*types are direction, order, count"):
        write_jsonl(*roots, tmp_path / "a", types=["speed"])
    with pytest.raises(ValueError, match="at least 32, not 16"):
        write_jsonl(*roots, tmp_path / "a", num_frames=16)
    with pytest.raises(ValueError, match="no set of sprites is named 'emoji'.*openmoji"):
        write_jsonl(*roots, tmp_path / "a", sprites="emoji")
    with pytest.raises(FileNotFoundError, match="lacks the photograph brick.png"):
        write_jsonl(roots[0], tmp_path, tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="holds no OpenMoji font"):
        write_jsonl(roots[1], roots[1], tmp_path / "a")
    with pytest.raises(ValueError, match="at least one frame"):
        write_clip(tmp_path / "a.mp4", [], fps=16)
    assert list(tmp_path.iterdir()) == []


def test_openmoji_sprites_are_drawn_named_and_spread_over_the_splits(roots: tuple[Path, Path]) -> None:
    found = sprites("openmoji", roots[0])
    assert len({sprite.key for sprite in found}) == len({sprite.name for sprite in found}) == len(found) > 350
    share = Counter(sprite.split for sprite in found)
    assert 0.6 < share["train"] / len(found) < 0.8 and share["holdout"] > 20 and share["test"] > 50
    for sprite in found[::10]:
        (look,) = sprite.draw()
        colours = np.asarray(look.convert("RGBa")).reshape(-1, 4)
        assert max(look.size) == 168 and np.ptp(colours[:, :3], axis=0).max() > 100, sprite
        assert 0.05 < (colours[:, 3] > 128).mean() < 1, sprite
    assert emoji_name("🚗") == "car" and emoji_name("🐇") == "rabbit"


def test_stamps_are_cut_out_and_keep_their_groups_on_one_side(
    asset_dir: Callable[[str], Path], roots: tuple[Path, Path], tmp_path: Path
) -> None:
    stamps = asset_dir("tuxpaint_stamps")
    found = sprites("tuxpaint", stamps)
    assert len(found) > 400 and {sprite.split for sprite in found} == set(SPLITS)
    paths = write_jsonl(
        stamps, roots[1], tmp_path / "out", sprites="tuxpaint", types=["direction"],
        num_train=0, num_holdout=0, num_test=4,
    )  # fmt: skip
    rows = read(paths["test"])
    assert len(rows) == 4 and all(
        row["extra"]["object"] in ("animal", "food", "vehicle", "thing") for row in rows
    )


def test_crops_differ_and_are_never_small(roots: tuple[Path, Path]) -> None:
    for _, photo in photos(roots[1], "holdout"):
        crops = [random_crop(photo, 224, random.Random(seed)) for seed in range(6)]
        assert len({crop.tobytes() for crop in crops}) == 6 and {crop.size for crop in crops} == {(224, 224)}


def test_composition_lays_the_sprite_where_the_pose_says_and_cuts_what_sticks_out() -> None:
    ground = Image.new("RGB", (100, 100), (10, 20, 30))
    sprite = Image.new("RGBA", (20, 10), (200, 100, 50, 255))
    sprite.putpixel((0, 0), (255, 255, 255, 0))
    poses = [Pose(0.5, 0.5, 0.2), None, Pose(0.0, 1.0, 0.2), Pose(3.0, -2.0, 0.2)]
    inside, hidden, corner, outside = compose(ground, [sprite], poses)
    assert (inside[45:55, 40:60].reshape(-1, 3) == (200, 100, 50)).all(1).sum() == 199
    assert tuple(inside[45, 40]) == (10, 20, 30) and ((inside != (10, 20, 30)).any(-1)).sum() == 199
    for frame in (hidden, outside):
        assert (frame == (10, 20, 30)).all()
    assert ((corner != (10, 20, 30)).any(-1)).sum() == 50 and tuple(corner[99, 0]) == (200, 100, 50)
    half = Image.new("RGBA", (20, 10), (200, 100, 50, 128))
    assert tuple(compose(ground, [half], poses)[0][50, 50]) == (105, 60, 40)


def test_every_question_fits_its_placeholders() -> None:
    for templates in QUESTIONS.values():
        for template in templates:
            assert "{name}" in template and template.format(name="cat", options="a or b").endswith("?")
