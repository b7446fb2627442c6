"""A run as a stage leaves it: a tiny core's adapter that has learned to tell red from blue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mm_llama.batch import Batch
from mm_llama.build import build_model, compose_config, resolve
from mm_llama.core.chat import messages_from_dicts
from mm_llama.generation.prompts import make_batch
from mm_llama.stages.loop import train

QUESTION = "Which colour?"
COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}


class SameBatch:
    """A loader whose every batch is the one it was given."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`coloured("red")`: a picture file of that colour."""
    folder = tmp_path_factory.mktemp("pictures")

    def picture(name: str) -> Path:
        path = folder / f"{name}.png"
        if not path.exists():
            Image.new("RGB", (40, 30), COLOURS[name]).save(path)
        return path

    return picture


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, coloured: Callable[[str], Path]) -> Path:
    """The folder of a finished run of `stage=image_sft core=tiny`."""
    config = resolve(
        compose_config(
            "train", ["core=tiny", "modality/image=tiny", "stage=image_sft", "data=none", "dtype=float32"]
        )
    )
    model, _, chat = build_model(config)
    rendered = []
    for colour in COLOURS:
        parts = [{"type": "image", "path": str(coloured(colour))}, {"type": "text", "text": QUESTION}]
        rows = [{"role": "user", "content": parts}, {"role": "assistant", "content": colour}]
        rendered.append(chat.render(messages_from_dicts(rows)))
    batch = make_batch(model, rendered)
    batch.targets_BS = torch.zeros_like(batch.tokens_BS, dtype=torch.bool)
    for row, one in enumerate(rendered):
        batch.targets_BS[row, : len(one.targets)] = torch.tensor(one.targets)
    folder = tmp_path_factory.mktemp("runs") / "image"
    summary = train(
        model,
        SameBatch(batch),
        run_dir=folder,
        name="image_sft",
        train=config["stage"]["train"],
        num_steps=20,
        lr=3e-3,
        gate_lr_multiple=10.0,
        warmup_steps=5,
        config=config,
        tensorboard=False,
    )
    assert summary.final["accuracy"] == 1.0
    return folder


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """The tiny core is too small for a second thread to pay."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
