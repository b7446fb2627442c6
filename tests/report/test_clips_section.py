"""The section about clips and its figure on top: whole strips in order, gaps named, hostile text kept as text."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mm_llama.cli.report import main
from mm_llama.report import write_report
from mm_llama.report.clips import GAP, HEIGHT, STRIP, WIDEST
from tests.report.material import DIGEST, HOSTILE, Page, accuracy

COLOURS = [(230, 30, 30), (30, 200, 30), (30, 30, 230), (220, 220, 30), (30, 210, 210), (200, 40, 200)]


def write_gif(path: Path, colours: list[tuple[int, int, int]], size: tuple[int, int] = (64, 48)) -> None:
    frames = [Image.new("RGB", size, colour) for colour in colours]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)


def strips(page: Page) -> list[Image.Image]:
    """The strips of the page, in order; their files are JPEG, and pictures beside questions are not."""
    sources = [value for tag, key, value in page.attributes if tag == "img" and key == "src"]
    kind = "data:image/jpeg;base64,"
    found = [
        Image.open(io.BytesIO(base64.b64decode(src.removeprefix(kind)))) for src in sources if kind in src
    ]
    return [picture for picture in found if picture.height <= HEIGHT]


def colours_of(strip: Image.Image, number: int) -> list[tuple[int, int, int]]:
    """For each of `number` equal frames the nearest of COLOURS at its centre."""
    width = (strip.width + GAP) // number
    seen = [
        strip.getpixel((index * width + (width - GAP) // 2, strip.height // 2)) for index in range(number)
    ]
    return [min(COLOURS, key=lambda c: sum((a - b) ** 2 for a, b in zip(c, at, strict=True))) for at in seen]


@pytest.fixture
def clips_run(run_dir: Path) -> Path:
    """The run folder with ten questions about clips of six frames, two of them answered wrong."""
    write_gif(run_dir / "forward.gif", COLOURS)
    write_gif(run_dir / "backward.gif", COLOURS[::-1])
    write_gif(run_dir / "real.gif", COLOURS[:3], size=(96, 48))
    answers = [
        {
            "question": f"Where did thing {index} go?",
            "truth": "left",
            "answer": "left" if index % 5 else "up",
            "image": f"{('forward', 'backward')[index % 2]}.gif",
            "type": ("direction", "order")[index % 2],
            "correct": index % 5 > 0,
        }
        for index in range(10)
    ]
    sides = {
        "model": accuracy(8, 10),
        "majority_by_type": accuracy(3, 10),
        "wrong_picture": accuracy(2, 10),
        "one_frame": accuracy(4, 10),
        "middle_frame": accuracy(1, 10),
    }
    halves = {side: accuracy(found["correct"] // 2, 5) for side, found in sides.items()}
    clips = {
        "overall": sides,
        "types": [{"type": "direction"} | halves, {"type": "order"} | halves],
        "frames": [{"frames": 1, "accuracy": 0.4}, {"frames": 8, "accuracy": 0.8}],
    }
    (run_dir / "clips.json").write_text(json.dumps(clips))
    (run_dir / "clips_answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    change(
        run_dir / "demo.json",
        clips=[
            {
                "path": "real.gif",
                "name": "a lamp",
                "shows": "its light changes",
                "turns": [{"question": "Which colour came first?", "answer": "blue", "truth": "red"}],
            }
        ],
    )
    return run_dir


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_figure_on_top_says_what_each_number_is_about(clips_run: Path, build: Callable[[], Page]) -> None:
    page = build()
    text = page.text("figures")
    assert (
        "Questions about held-out pictures, answered right 66.7 % ± 26.7 12 questions about pictures" in text
    )
    assert "Questions about held-out clips, answered right 80.0 % ± 24.8 10 questions about clips" in text
    sides = "Whole clip 80.0 % One frame of it 40.0 % Image adapter alone 10.0 % Another clip 20.0 %"
    assert sides in text
    assert ("div", "class", "headline four") in page.attributes
    change(clips_run / "vqa.json", overall={})
    text = build().text("figures")
    assert "answered right – not measured in this run" in text and "80.0 % ± 24.8" in text


def test_without_clips_nothing_is_missing(run_dir: Path, build: Callable[[], Page]) -> None:
    page = build()
    assert page.text("clips") == "What moves No clips: this run asked no question about any."
    assert "clip" not in page.text("not-shown").lower()
    assert "clip" not in page.text("figures").lower()
    assert ("div", "class", "headline") in page.attributes


def test_the_table_holds_every_side_and_type(clips_run: Path, build: Callable[[], Page]) -> None:
    text = build().text("clips")
    header = "Video adapter Majority by type Another clip One frame of the clip Image adapter, middle frame"
    assert header in text
    assert "Which way 5 80.0 ± 35.1 20.0 20.0 40.0 0.0" in text
    assert "What came first 5 80.0 ± 35.1" in text
    assert "All 10 80.0 ± 24.8 30.0 20.0 40.0 10.0" in text
    assert "By the number of frames taken of a clip: 1 frame 40.0 % · 8 frames 80.0 %" in text
    assert "one thing that moves over a photograph" in text
    found = json.loads((clips_run / "clips.json").read_text())
    del found["overall"]["middle_frame"], found["frames"]
    found["types"][1]["type"] = "a film"
    (clips_run / "clips.json").write_text(json.dumps(found))
    text = build().text("clips")
    assert "All 10 80.0 ± 24.8 30.0 20.0 40.0" in text and "a film 5 80.0" in text
    assert "Image adapter, middle" not in text and "By the number" not in text
    assert "photograph" not in text, "what clips of an unknown kind show is not for the page to say"


def test_strips_show_the_frames_of_each_clip_in_order(clips_run: Path, build: Callable[[], Page]) -> None:
    page = build()
    drawn = strips(page)
    *cards, real = [strip for strip in drawn if strip.height in (HEIGHT, 48)]
    # At most four right answers of a type: all ten but none left over; then the clip of demo.json.
    assert len(cards) == 10
    answers = [json.loads(line) for line in (clips_run / "clips_answers.jsonl").read_text().splitlines()]
    files = {row["question"]: row["image"] for row in answers}
    alts = [value for tag, key, value in page.attributes if tag == "img" and key == "alt"]
    alts = [value for value in alts if value.startswith("Frames of ")]
    assert len(alts) == 11
    for strip, alt in zip(cards, alts, strict=False):
        assert strip.height == HEIGHT and STRIP == len(COLOURS)
        question = alt.split("“")[1].split("”")[0]
        wanted = COLOURS if files[question] == "forward.gif" else COLOURS[::-1]
        assert colours_of(strip, STRIP) == wanted, alt
    # Three frames, not six: each once.
    assert alts[-1] == "Frames of a lamp: its light changes"
    assert colours_of(real, 3) == COLOURS[:3]
    assert real.width == 3 * 2 * HEIGHT + 2 * GAP


def test_the_draw_says_how_many_of_right_and_wrong(clips_run: Path, build: Callable[[], Page]) -> None:
    text = build().text("clips")
    assert (
        "10 of 10 questions, drawn at random (seed 0) from each type: 8 of the 8 answered right and 2" in text
    )
    assert text.count("✕ wrong") == 2 and text.count("✓ right") == 8
    assert "more often than they occur" not in text
    path = clips_run / "clips_answers.jsonl"
    path.write_text(path.read_text() * 3)
    assert "6 of the 6 answered wrong – so wrong answers are shown more often" in build().text("clips")


def test_real_clips_are_shown_with_answer_and_truth(clips_run: Path, build: Callable[[], Page]) -> None:
    said = "a lamp: its light changes Which colour came first? answer blue truth red"
    assert said in build().text("clips")
    for name in ("clips.json", "clips_answers.jsonl"):
        (clips_run / name).unlink()
    page = build()
    assert page.text("clips").startswith("What moves Real clips, for show") and said in page.text("clips")
    assert "clip" not in page.text("figures").lower()


def test_lost_and_broken_clips_are_named_as_gaps(clips_run: Path, build: Callable[[], Page]) -> None:
    (clips_run / "forward.gif").unlink()
    (clips_run / "backward.gif").write_bytes(b"GIF89a, but no clip")
    change(
        clips_run / "demo.json", clips=[{"turns": [{"question": "q", "answer": "a"}]}, {"path": "x" * 5000}]
    )
    page = build()
    assert page.text("clips").count("clip file not found, or no clip") == 12
    gaps = page.text("not-shown")
    assert "clip forward.gif was not found, so the page lacks frames of a clip" in gaps
    assert "clip backward.gif was not found" in gaps
    assert not strips(page)
    (clips_run / "clips_answers.jsonl").unlink()
    page = build()
    assert "clips_answers.jsonl was not found, so the page lacks frames of held-out clips" in page.text(
        "not-shown"
    )
    assert "All 10 80.0" in page.text("clips") and "drawn at random" not in page.text("clips")


def test_a_very_long_picture_makes_no_large_strip(clips_run: Path, build: Callable[[], Page]) -> None:
    write_gif(clips_run / "real.gif", COLOURS[:2], size=(3000, 2))
    assert max(strip.width for strip in strips(build())) <= STRIP * (WIDEST + GAP)


def test_hostile_text_about_clips_stays_text(clips_run: Path, build: Callable[[], Page]) -> None:
    tame = build()
    path = clips_run / "clips_answers.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    keep = {"image", "type", "correct"}
    rows = [
        {key: value if key in keep else f"{value}{HOSTILE}" for key, value in row.items()} for row in rows
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads((clips_run / "clips.json").read_text())
    for kind in found["types"]:
        kind["type"] += HOSTILE
    (clips_run / "clips.json").write_text(json.dumps(found))
    (clip,) = json.loads((clips_run / "demo.json").read_text())["clips"]
    turn = {key: value + HOSTILE for key, value in clip["turns"][0].items()}
    change(
        clips_run / "demo.json",
        clips=[clip | {"name": HOSTILE, "shows": HOSTILE, "turns": [turn, HOSTILE]}, HOSTILE],
    )
    page = build()
    assert sorted(page.tags) == sorted(tame.tags)
    assert page.text("clips").count(HOSTILE) == 3 * len(rows) + 2 + 5
    for _, key, value in page.attributes:
        assert not key.startswith("on") and (key in {"alt", "aria-label"} or "<script" not in value)
    sources = [value for tag, key, value in page.attributes if tag == "img" and key == "src"]
    assert all(value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for value in sources)


def test_the_video_stage_keeps_what_the_image_stage_trained(
    clips_run: Path, build: Callable[[], Page]
) -> None:
    image = {
        "group": "modality.image.adapter",
        "num_parameters": 89,
        "before": DIGEST[::-1],
        "after": DIGEST[::-1],
    }
    rows = [
        image | {"trained": False},
        image | {"trained": False, "group": "modality.image.encoder"},
        image | {"trained": True, "group": "modality.video.adapter", "after": DIGEST},
    ]
    (clips_run / "video").mkdir()
    (clips_run / "video" / "summary.json").write_text(json.dumps({"minutes": 2.0, "freeze": rows}))
    lines = (clips_run / "image" / "metrics.jsonl").read_text()
    (clips_run / "video" / "metrics.jsonl").write_text(lines)
    change(
        clips_run / "demo.json",
        stages=[{"name": "image", "dir": "image"}, {"name": "video", "dir": "video"}],
    )
    before, _, after = build().text("freeze").partition("Stage video")
    assert "modality.image.adapter 89 trained" in before
    kept, _, trained = after.partition("modality.video.adapter")
    assert kept.count("frozen") == kept.count("✓ unchanged") == 2
    assert trained.count("✓ changed, as meant") == 1


def test_a_page_without_a_reader_of_clips_says_so_once(clips_run: Path, tmp_path: Path) -> None:
    page = Page(write_report(clips_run, tmp_path / "out.html").read_text("utf-8"))
    assert page.text("clips").count("clip not opened") == 11 and not strips(page)
    assert page.text("not-shown").count("made without a reader of clips") == 1


def test_the_report_verb_opens_the_clips(clips_run: Path) -> None:
    assert main([str(clips_run)]) == 0
    page = Page((clips_run / "report.html").read_text("utf-8"))
    assert len(strips(page)) == 11 and "reader of clips" not in page.text()
