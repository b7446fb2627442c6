"""A demo finds a stage trained only for the recipe, and beside the adapter, that it was trained with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mm_llama.demos.demo import Demo


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


def test_a_stage_that_was_stopped_goes_on(recipe: list[str], tmp_path: Path) -> None:
    import signal
    import threading

    from mm_llama.stages import loop

    demo, saved = Demo(tmp_path / "demo"), loop.save_checkpoint
    long = [*recipe, "stage.num_steps=6", "stage.save_every=2"]

    def stop_once(*arguments: object, **options: object) -> Path:
        loop.save_checkpoint = saved
        signal.raise_signal(signal.SIGTERM)
        return saved(*arguments, **options)  # type: ignore[arg-type]

    assert threading.current_thread() is threading.main_thread()
    loop.save_checkpoint = stop_once
    try:
        with pytest.raises(SystemExit) as stopped:
            demo.train("image", "none", long)
    finally:
        loop.save_checkpoint = saved
    assert stopped.value.code == 75
    run = Demo(tmp_path / "demo").train("image", "none", long)
    assert steps(run) == 6 and not run.with_name("image.1").exists()


def test_what_a_demo_cannot_do_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mm_llama.demos.demo import main

    assert main(["--out", str(tmp_path / "demo"), "dtype=float8"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: dtype is 'float8'")


def test_a_stage_is_not_taken_as_trained_when_the_adapter_beside_it_is_another(
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
