"""A demo finds a stage trained only for the recipe, and beside the adapter, that it was trained with."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from PIL import Image

from mm_llama.demos.demo import Demo
from mm_llama.stages import loop


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))
    rows = []
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
        content = [{"type": "image", "path": f"{colour}.png"}, {"type": "text", "text": "which?"}]
        answer = {"role": "assistant", "content": colour}
        rows.append({"messages": [{"role": "user", "content": content}, answer]})
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = f"data.train.0.source.path={tmp_path / 'chats.jsonl'}"
    return [
        *("stage=image_sft", "core=tiny", "modality/image=tiny", "data=jsonl", data),
        *("stage.num_steps=1", "loader.batch_size=2", "dtype=float32"),
    ]


def steps(run: Path) -> int:
    return sum('"step"' in line for line in (run / "metrics.jsonl").read_text("utf-8").splitlines())


def test_a_stage_is_trained_once_for_each_recipe(
    recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Demo(tmp_path / "demo").train("image", "none", recipe)
    assert steps(run) == 1
    capsys.readouterr()
    assert Demo(tmp_path / "demo").train("image", "none", recipe) == run
    assert "image: reused, the adapter is the same" in capsys.readouterr().err
    assert steps(run) == 1
    longer = [*recipe, "stage.num_steps=2"]
    Demo(tmp_path / "demo").train("image", "none", longer)
    assert steps(run) == 2
    # Nothing of the run that made way is lost, and what is begun anew is told apart once more.
    assert steps(run.with_name("image.1")) == 1
    assert f"kept as {run.with_name('image.1')}" in capsys.readouterr().err
    Demo(tmp_path / "demo").train("image", "none", [*longer, "optim.lr=1e-4"])
    assert steps(run.with_name("image.2")) == 2
    assert sorted(path.name for path in (tmp_path / "demo").iterdir() if path.is_dir()) == [
        "image",
        "image.1",
        "image.2",
    ]


def test_a_stage_that_was_stopped_goes_on(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo, save = Demo(tmp_path / "demo"), loop.save_checkpoint
    long = [*recipe, "stage.num_steps=6", "stage.save_every=2"]

    def save_and_be_stopped(*arguments: Any, **options: Any) -> Path:
        signal.raise_signal(signal.SIGTERM)
        return save(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(loop, "save_checkpoint", save_and_be_stopped)
        demo.train("image", "none", long)
    assert stopped.value.code == 75
    (tmp_path / "demo" / "phases.json").unlink(missing_ok=True)  # a run says itself what it is of
    run = Demo(tmp_path / "demo").train("image", "none", long)
    assert "continuing after step 2 of 6" in capsys.readouterr().err
    assert steps(run) == 6 and not run.with_name("image.1").exists()


def test_how_the_work_is_done_makes_no_other_stage(
    recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Demo(tmp_path / "demo").train("image", "none", recipe)
    capsys.readouterr()
    Demo(tmp_path / "demo").train("image", "none", [*recipe, "threads=1", "stage.log_every=3"])
    assert "image: reused" in capsys.readouterr().err
    (tmp_path / "demo").rename(tmp_path / "moved")
    Demo(tmp_path / "moved").train("image", "none", recipe)
    assert "image: reused" in capsys.readouterr().err
    # Finished but not noted: nothing is trained again, and how long it took is not made up.
    run = tmp_path / "moved" / "image"
    state = json.loads((tmp_path / "moved" / "phases.json").read_text("utf-8"))
    noted = state["image"] | {"seconds": 1234.5, "option": "as an earlier version wrote it"}
    (tmp_path / "moved" / "phases.json").write_text(json.dumps({"image": noted}), "utf-8")
    Demo(tmp_path / "moved").train("image", "none", [*recipe, f"runs={tmp_path / 'demo'}"])
    state = json.loads((tmp_path / "moved" / "phases.json").read_text("utf-8"))
    assert state["image"]["seconds"] == 1234.5 and steps(run) == 1


def test_what_cannot_begin_takes_no_finished_runs_place(recipe: list[str], tmp_path: Path) -> None:
    run = Demo(tmp_path / "demo").train("image", "none", recipe)
    for wrong in ("dtype=float8", "data.train.0.source.path=nothing.jsonl"):
        with pytest.raises((ValueError, OSError, HydraException)):
            Demo(tmp_path / "demo").train("image", "none", [*recipe, wrong])
        assert steps(run) == 1 and not run.with_name("image.1").exists()


def test_what_a_demo_cannot_do_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mm_llama.demos.demo import main

    assert main(["--out", str(tmp_path / "demo"), "dtype=float8"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: dtype is 'float8'")


def test_a_stage_is_trained_anew_after_another_adapter(
    recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = Demo(tmp_path / "demo")
    first = demo.train("first", "none", recipe)
    demo.train("second", "none", recipe, after=first)
    demo.train("first", "none", [*recipe, "stage.num_steps=2"])
    capsys.readouterr()
    demo.train("second", "none", recipe, after=first)
    assert "stage second: training" in capsys.readouterr().err
    capsys.readouterr()
    demo.train("second", "none", recipe, after=first)
    assert "second: reused" in capsys.readouterr().err
