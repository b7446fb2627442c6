"""kill -9 at fifty random moments, and signals among them: every run ends as one that nothing happened to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mm_llama.stages.checkpoint_files import newest_checkpoint
from mm_llama.stages.metrics import read_metrics

SCRIPT = Path(__file__).with_name("killed_runs.py")


def chats(folder: Path) -> Path:
    """Twelve questions about six pictures."""
    lines = []
    for number in range(6):
        Image.effect_noise((24, 24), 20 + 30 * number).convert("RGB").save(folder / f"{number}.png")
    for number in range(12):
        shown = {"type": "image", "path": f"{number % 6}.png"}
        question = {"type": "text", "text": "What? " * (1 + number % 4)}
        turns = [
            {"role": "user", "content": [shown, question]},
            {"role": "assistant", "content": "abc"[number % 3]},
        ]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path = folder / "rows.jsonl"
    path.write_text("".join(lines), "utf-8")
    return path


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Final tensors, and the records of all steps without what a clock or the machine says."""
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    records = [
        {key: value for key, value in record.items() if not key.endswith(("_s", "wait", "seconds", "_mb"))}
        for record in read_metrics(run / "metrics.jsonl")
    ]
    return load_file(checkpoint / "adapter.safetensors"), records


@pytest.mark.slow
def test_killed_anywhere_a_run_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    rows = chats(tmp_path)
    source = f"{{_target_: mm_llama.data.sources.JsonlChat, path: {rows}}}"
    overrides = [
        "stage=image_sft",
        "core=tiny",
        "modality/image=tiny",
        "data=jsonl",
        f"data.train.0.source.path={rows}",
        f"+data.eval=[{source}]",
        "+modality.image.adapter.gate_init=0.5",
        "dtype=float32",
        f"runs={tmp_path / 'runs'}",
        "stage.num_steps=12",
        "stage.accumulate=2",
        "stage.eval_every=3",
        "stage.save_every=1",
        "stage.keep_best=1",
        "stage.best=eval.answers",
        "optim.lr=3e-3",
        "loader.batch_size=3",
        "loader.num_workers=1",
        "threads=1",
    ]
    order = {"root": str(tmp_path), "overrides": overrides, "number": 50, "seed": 7}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(order)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    log = (tmp_path / "log.txt").read_text("utf-8")
    assert done.returncode == 0, done.stderr + log[-3000:]
    found = json.loads(done.stdout)
    assert found["whole"] == 0, log[-3000:]
    # 0: finished before its moment came; 75: told to stop; -9: killed. Nothing else may come of it.
    assert set(found["codes"]) <= {0, 75, -9}, (found["codes"], log[-3000:])
    assert found["codes"].count(-9) >= 25 and found["codes"].count(75) >= 3, found["codes"]
    assert len(found["finished"]) >= 2
    tensors, records = outcome(tmp_path / "runs/whole")
    assert [record["step"] for record in records] == list(range(1, 13))
    for name in found["finished"]:
        again, told = outcome(tmp_path / "runs" / name)
        assert told == records, name
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[key], tensors[key]) for key in tensors), name
        best = (tmp_path / "runs" / name / "checkpoints/best").read_text()
        assert best == (tmp_path / "runs/whole/checkpoints/best").read_text()
        assert not list((tmp_path / "runs" / name / "checkpoints").glob(".step*"))
