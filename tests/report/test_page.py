"""The page: every section, every gap named, nothing fetched, nothing executed, hostile text kept as text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mm_llama.cli.report import main
from mm_llama.report import write_report
from mm_llama.report.inputs import WHAT
from mm_llama.report.page import SECTIONS
from mm_llama.report.pictures import draw_answers
from tests.report.material import DIGEST, HOSTILE, Page


def test_every_section_is_there_in_order_with_its_figures(build: Callable[[], Page]) -> None:
    page = build()
    sections = ["figures", *[section[0] for section in SECTIONS]]
    assert [found for found in page.ids if found in sections] == sections
    assert sections == [
        "figures",
        "curves",
        "types",
        "pictures",
        "clips",
        "speech",
        "voice",
        "photos",
        "freeze",
        "proof",
        "times",
        "made",
        "not-shown",
    ]
    assert len(page.ids) == len(set(page.ids))
    links = [value for tag, key, value in page.attributes if tag == "a" and key == "href"]
    assert [link for link in links[1:] if link.startswith("#")] == [f"#{section}" for section in sections]
    assert "66.7 % ± 26.7" in page.text("figures")
    assert "Majority by question 41.7 % No picture 25.0 % Another picture 16.7 %" in page.text("figures")
    assert "4.0 minutes" in page.text("figures")
    assert "Yes bit for bit" in page.text("figures")
    assert "4,321 logits" in page.text("figures")
    assert "Which colour 6 66.7 ± 37.7" in page.text("types")
    assert "All questions 12 66.7 ± 26.7 41.7 33.3 25.0 16.7" in page.text("types")
    # Right and wrong are exchanged on the other side: 8 against 4.
    assert "No picture: +33.3 points for the adapter (95 % interval \N{MINUS SIGN}" in page.text("types")
    assert "8 times, wrong where the other was right 4 times" in page.text("types")
    assert "what? a circle" in page.text("photos")
    assert "core 1,234,567 frozen 0123abcd…0123abcd" in page.text("freeze")
    assert "✓ unchanged" in page.text("freeze") and "✓ changed, as meant" in page.text("freeze")
    assert "one text of 5 tokens 4,321 0 ✓ equal" in page.text("proof")
    assert "moved by up to 2.5" in page.text("proof")
    assert "identical to the last digit" in page.text("proof")
    assert "training 4.0 min 80.0 % 400 steps" in page.text("times")
    assert "make demo" in page.text("made") and '"num_steps": 400' in page.text("made")
    assert "A note of the demo." in page.text("not-shown")
    assert "this is one run" in page.text("not-shown")


# Without clips.json a page lacks nothing, and then nobody asks for the answers about clips.
WANTED = set(WHAT) - {"clips_answers.jsonl", "speech_answers.jsonl"}


@pytest.mark.parametrize("name", sorted(WANTED - {"freeze.json"}))
def test_a_missing_file_is_named_where_it_belongs_and_at_the_end(
    name: str, run_dir: Path, build: Callable[[], Page]
) -> None:
    if name == "metrics.jsonl" or name == "summary.json":
        (run_dir / "image" / name).unlink()
        shown = f"image/{name}"
    else:
        (run_dir / name).unlink()
        shown = name
    page = build()
    if name != "demo.json":  # without it nobody knows of the stage's folder
        assert f"{shown} was not found, so the page lacks {WHAT[name]}" in page.text("not-shown")
    home = {section[4]: section[0] for section in SECTIONS if section[4]}.get(name)
    if home:
        assert f"Missing: {shown} was not found" in page.text(home)
    assert [found for found in page.ids if found in {s[0] for s in SECTIONS}] == [s[0] for s in SECTIONS]


def test_a_missing_freeze_table_is_named(run_dir: Path, build: Callable[[], Page]) -> None:
    (run_dir / "image" / "summary.json").write_text('{"minutes": 1.0}')
    page = build()
    assert "Missing: image/freeze.json was not found" in page.text("freeze")


def test_an_empty_run_folder_gives_a_page_of_gaps(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    page = Page(write_report(tmp_path / "empty", tmp_path / "out.html").read_text("utf-8"))
    for name in WANTED:
        assert f"{name} was not found" in page.text("not-shown")
    assert "not measured in this run" in page.text("figures")
    assert "not proven in this run" in page.text("figures")
    assert "Yes" not in page.text("figures")


def test_nothing_is_fetched_and_nothing_runs(build: Callable[[], Page], tmp_path: Path) -> None:
    page = build()
    for tag, key, value in page.attributes:
        if key in ("src", "href", "srcset", "action", "data", "poster"):
            assert value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#")), (
                tag,
                key,
                value,
            )
        assert not key.startswith("on")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    text = (tmp_path / "out.html").read_text("utf-8")
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text
    policy = [value for tag, key, value in page.attributes if key == "content" and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"]


def test_hostile_text_stays_text_everywhere(run_dir: Path, build: Callable[[], Page]) -> None:
    """Every string of every file is replaced by markup; the page keeps the elements of the tame one."""
    tame = build()

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: poison(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [poison(item, key) for item in value]
        keep = {"type", "image", "dir", "before", "after", "started"}
        return value + HOSTILE if isinstance(value, str) and key not in keep else value

    for path in (*run_dir.glob("*.json"), run_dir / "image" / "summary.json"):
        path.write_text(json.dumps(poison(json.loads(path.read_text()))))
    for path in (run_dir / "vqa_answers.jsonl", run_dir / "image" / "metrics.jsonl"):
        lines = [json.dumps(poison(json.loads(line))) for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
    page = build()
    assert sorted(page.tags) == sorted(tame.tags)
    assert page.text().count(HOSTILE) > 30
    for _, key, value in page.attributes:
        assert key in {"alt", "title", "aria-label"} or "<script" not in value


def test_hostile_type_names_stay_text(run_dir: Path, build: Callable[[], Page]) -> None:
    path = run_dir / "vqa_answers.jsonl"
    path.write_text(path.read_text().replace('"color"', json.dumps("</style>" + HOSTILE)))
    page = build()
    assert "script" not in page.tags
    assert page.tags.count("style") == 2


def test_wrong_answers_are_marked_by_words_and_signs(build: Callable[[], Page]) -> None:
    page = build()
    text = page.text("pictures")
    assert text.count("✕ wrong") == 4 and text.count("✓ right") == 8
    assert "8 of the 8 answered right and 4 of the 4 answered wrong" in text
    assert "all (12) right (8) wrong (4)" in text


def test_every_picture_and_chart_has_words_for_it(build: Callable[[], Page]) -> None:
    page = build()
    named = {tag for tag, key, value in page.attributes if key in ("alt", "aria-label") and value}
    assert {"img", "svg"} <= named
    images = [value for tag, key, value in page.attributes if tag == "img" and key == "alt"]
    assert page.tags.count("img") == len(images) == 13
    assert all(images)
    labels = [value for tag, key, value in page.attributes if tag == "svg" and key == "aria-label"]
    assert any("Loss at the answer tokens. training: from 3 at step 1 to" in label for label in labels)
    assert page.tags.count("caption") == page.tags.count("table")


def test_a_lost_picture_is_said_and_not_fatal(run_dir: Path, build: Callable[[], Page]) -> None:
    (run_dir / "1.png").unlink()
    (run_dir / "2.png").write_bytes(b"no picture")
    page = build()
    assert page.text("pictures").count("picture file not found") == 8
    assert "picture 1.png was not found" in page.text("not-shown")


def test_a_difference_in_the_proof_raises_an_alarm_on_top(run_dir: Path, build: Callable[[], Page]) -> None:
    proof = json.loads((run_dir / "proof.json").read_text())
    proof["identical"] = False
    proof["cases"][0] |= {"equal": False, "max_delta": 0.25}
    (run_dir / "proof.json").write_text(json.dumps(proof))
    page = build()
    assert page.text("figures").startswith("Figures The text model has changed.")
    assert ("p", "role", "alert") in page.attributes
    assert "0.25 ✕ DIFFERENT" in page.text("proof")


def test_a_frozen_group_that_changed_is_shown_as_such(run_dir: Path, build: Callable[[], Page]) -> None:
    path = run_dir / "image" / "summary.json"
    summary = json.loads(path.read_text())
    summary["freeze"][0]["after"] = DIGEST[::-1]
    summary["freeze"][1]["after"] = summary["freeze"][1]["before"]
    path.write_text(json.dumps(summary))
    text = build().text("freeze")
    assert "✕ CHANGED" in text and "✕ did not change" in text


def test_stages_follow_each_other_on_one_axis(run_dir: Path, build: Callable[[], Page]) -> None:
    (run_dir / "second").mkdir()
    for name in ("summary.json", "metrics.jsonl"):
        (run_dir / "second" / name).write_text((run_dir / "image" / name).read_text())
    demo = json.loads((run_dir / "demo.json").read_text())
    del demo["training_seconds"]
    demo["stages"].append({"name": "more", "dir": "second"})
    (run_dir / "demo.json").write_text(json.dumps(demo))
    page = build()
    labels = [value for tag, key, value in page.attributes if tag == "svg" and key == "aria-label"]
    assert any("at step 1 to" in label and "at 80" in label for label in labels)
    assert "image_sft more" in page.text("curves")
    assert "8.0 minutes" in page.text("figures")
    assert "Stage image_sft" in page.text("freeze") and "Stage more" in page.text("freeze")


def test_a_cut_off_last_line_is_left_out_and_said(run_dir: Path, build: Callable[[], Page]) -> None:
    path = run_dir / "image" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 41, "lo')
    assert "The last line of image/metrics.jsonl is incomplete" in build().text("not-shown")
    path.write_text('{"step": 1, "lo\n' + path.read_text())
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: not JSON"):
        build()


def test_a_broken_file_is_an_error_that_leaves_the_old_page(run_dir: Path, tmp_path: Path) -> None:
    out = write_report(run_dir, tmp_path / "out.html")
    before = out.read_text()
    (run_dir / "vqa.json").write_text("{")
    with pytest.raises(ValueError, match=r"vqa\.json: not JSON"):
        write_report(run_dir, out)
    assert out.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "out.html"]
    with pytest.raises(FileNotFoundError, match="there is no run folder"):
        write_report(tmp_path / "nowhere", out)


def test_drawn_answers_are_seeded_and_limited_by_type() -> None:
    answers = [{"question": str(i), "type": "ab"[i % 2], "correct": i % 5 > 0} for i in range(400)]
    drawn = draw_answers(answers, num_right=6, num_wrong=4)
    assert drawn == draw_answers(answers, num_right=6, num_wrong=4)
    assert drawn != draw_answers(answers, num_right=6, num_wrong=4, seed=1)
    for kind in "ab":
        assert sum(row["type"] == kind and row["correct"] for row in drawn) == 6
        assert sum(row["type"] == kind and not row["correct"] for row in drawn) == 4


def test_colours_have_enough_contrast_in_both_schemes() -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1 for text, on the page and on cards."""
    from importlib.resources import files

    style = (files("mm_llama.report") / "style.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for text in ("ink", "soft", "ours", "base", "other", "wrong"):
            for ground in ("paper", "card", "wash"):
                light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_report_verb_writes_beside_the_run_and_prints_the_path(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir / "report.html")
    assert (run_dir / "report.html").is_file()
