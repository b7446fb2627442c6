"""A run folder with every file of a page about pictures, and the page made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mm_llama.data.video import open_clip
from mm_llama.eval.statistics import paired_difference
from mm_llama.report import write_report
from tests.report.material import DIGEST, Page, accuracy


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder with every file, twelve questions about three pictures."""
    run = tmp_path / "demo"
    (run / "image").mkdir(parents=True)
    for number, colour in enumerate(("red", "teal", "black")):
        Image.new("RGB", (64, 64), colour).save(run / f"{number}.png")
    Image.new("RGB", (900, 600), "orange").save(run / "photo.jpg")
    answers = []
    for index in range(12):
        kind, right = ("color", "yesno")[index % 2], index % 3 != 0
        truth = "red" if kind == "color" else "yes"
        answers.append(
            {
                "question": f"question number {index}?",
                "truth": truth,
                "answer": truth if right else "no",
                "image": f"{index % 3}.png",
                "type": kind,
                "correct": right,
            }
        )
    sides = {
        "model": accuracy(8, 12),
        "majority_by_question": accuracy(5, 12),
        "majority_by_type": accuracy(4, 12),
        "no_picture": accuracy(3, 12),
        "wrong_picture": accuracy(2, 12),
    }
    half = {side: accuracy(found["correct"] // 2, 6) for side, found in sides.items()}
    marks = [row["correct"] for row in answers]
    vqa = {
        "overall": sides,
        "types": [{"type": "color"} | half, {"type": "yesno"} | half],
        "comparisons": {"no_picture": paired_difference(marks, [not mark for mark in marks]).to_json()},
    }
    rows = [
        {"group": "core", "trained": False, "num_parameters": 1234567, "before": DIGEST, "after": DIGEST},
        {
            "group": "modality.image.adapter",
            "trained": True,
            "num_parameters": 89,
            "before": DIGEST,
            "after": DIGEST[::-1],
        },
    ]
    metrics: list[dict[str, Any]] = [
        {"step": step, "loss": 3 / step, "accuracy": 1 - 1 / step} for step in range(1, 41)
    ]
    metrics[-1]["eval.answers"] = 0.75
    proof = {
        "identical": True,
        "dtype": "float32",
        "core": {"recorded": DIGEST, "checkpoint": DIGEST, "plain": DIGEST, "attached": DIGEST},
        "cases": [{"name": "one text of 5 tokens", "num_values": 4321, "max_delta": 0.0, "equal": True}],
        "control": {"max_delta": 2.5},
        "mmlu": {
            "num_items": 570,
            "identical": True,
            "plain": accuracy(150, 570) | {"digest": DIGEST},
            "attached": accuracy(150, 570) | {"digest": DIGEST},
        },
    }
    demo = {
        "title": "Eyes for a frozen text model",
        "command": "make demo",
        "stages": [{"name": "image_sft", "dir": "image"}],
        "phases": [
            {"name": "training", "seconds": 240.0, "detail": "400 steps"},
            {"name": "proof", "seconds": 60},
        ],
        "training_seconds": 240.0,
        "machine": {"cores": 2},
        "versions": {"torch": "2.14.1"},
        "config": {"stage": {"num_steps": 400}},
        "seed": 7,
        "photos": [
            {
                "image": "photo.jpg",
                "name": "an orange",
                "turns": [{"question": "what?", "answer": "a circle"}],
            }
        ],
        "notes": ["A note of the demo."],
    }
    for name, value in (("demo", demo), ("vqa", vqa), ("proof", proof)):
        (run / f"{name}.json").write_text(json.dumps(value))
    (run / "vqa_answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    (run / "image" / "summary.json").write_text(json.dumps({"minutes": 4.0, "freeze": rows}))
    (run / "image" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return run


@pytest.fixture
def build(run_dir: Path, tmp_path: Path) -> Callable[[], Page]:
    """Write the page of the run folder as it is now, and parse it."""
    return lambda: Page(write_report(run_dir, tmp_path / "out.html", open_clip=open_clip).read_text("utf-8"))
