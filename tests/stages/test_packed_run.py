"""A stage with `loader.pack`: the same documents in fewer rows give the same training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mm_llama.build import compose_config
from mm_llama.stage_run import run_stage
from mm_llama.stages.metrics import read_metrics


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Sixteen rows of 30 to 130 tokens, with none, one or two of four pictures."""
    for level in range(4):
        Image.new("RGB", (20, 20), (60 * level, 90, 10)).save(tmp_path / f"{level}.png")
    lines = []
    for number in range(16):
        shown = [{"type": "image", "path": f"{(number + i) % 4}.png"} for i in range(number % 3)]
        question = {"type": "text", "text": "Which? " * (1 + 3 * (number % 5))}
        turns = [
            {"role": "user", "content": [*shown, question]},
            {"role": "assistant", "content": f"thing {number}"},
        ]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(lines), "utf-8")
    return path


def run(chats: Path, name: str, *overrides: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Metrics by step and the summary of a short run; each batch is all sixteen documents."""
    folder = chats.parent / name
    config = [
        "stage=image_sft",
        "core=tiny",
        "modality/image=tiny",
        "data=jsonl",
        f"data.train.0.source.path={chats}",
        "+modality.image.adapter.gate_init=0.5",
        "dtype=float32",
        "stage.num_steps=5",
        "optim.lr=3e-3",
        "optim.warmup_steps=0",
        "stage.save_every=0",
        "loader.batch_size=16",
        "loader.bucket_batches=1",
        *overrides,
    ]
    result = run_stage(compose_config("train", config), run_dir=folder)
    assert result.exit_code == 0
    return read_metrics(folder / "metrics.jsonl"), json.loads((folder / "summary.json").read_text("utf-8"))


def test_a_packed_run_learns_what_an_unpacked_one_does(
    chats: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MM_LLAMA_CACHE", str(chats.parent / "cache"))
    plain, whole = run(chats, "plain")
    packed, fewer = run(chats, "packed", "loader.pack=true", "loader.pack_tokens=400")
    assert len(plain) == len(packed) == 5
    for one, other in zip(plain, packed, strict=True):
        assert [one[key] for key in ("tokens", "targets", "samples")] == [
            other[key] for key in ("tokens", "targets", "samples")
        ]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert other["padding"] < one["padding"]
    assert packed[-1]["loss"] < packed[0]["loss"] - 0.1  # the weights did move
    assert fewer["totals"]["padding"] < 0.5 * whole["totals"]["padding"]
    assert fewer["totals"]["tokens"] == whole["totals"]["tokens"] == sum(record["tokens"] for record in plain)
    assert '"padding"' in capsys.readouterr().err


def test_a_placeholder_that_does_not_train_lets_packed_documents_remember_their_prefixes(
    chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_LLAMA_CACHE", str(chats.parent / "cache"))
    options = [
        "loader.pack=true",
        "loader.pack_tokens=400",
        "+modality.image.adapter.train_placeholder=false",
    ]
    remembered, _ = run(chats, "remembered", *options)
    monkeypatch.setenv("MM_LLAMA_NO_PREFIXES", "1")
    computed, _ = run(chats, "computed", *options)
    for one, other in zip(remembered, computed, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
