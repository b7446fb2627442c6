"""Pictures in two colours, and what makes a sweep of them a matter of seconds: a tiny core, a tiny encoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mm_llama.stages.checkpoint_files import find_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `colours.jsonl` and a cache of its own."""
    folder = tmp_path_factory.mktemp("sweeps")
    rows = []
    for number, (name, colour) in enumerate([("red", (220, 20, 20)), ("blue", (20, 20, 220))] * 2):
        Image.new("RGB", (40 + number, 40), colour).save(folder / f"{number}.png")
        content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "Which colour?"}]
        rows.append([{"role": "user", "content": content}, {"role": "assistant", "content": name}])
    (folder / "colours.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MM_LLAMA_CACHE", str(folder / "cache"))
        yield folder
    torch.set_num_threads(threads)


def overrides(folder: Path, *more: str) -> list[str]:
    """`mm-llama train ...` on the two colours, a few steps long; `more` says what else."""
    rows = folder / "colours.jsonl"
    return [
        "train",
        "stage=image_sft",
        "core=tiny",
        "modality/image=tiny",
        "data=jsonl",
        f"data.train.0.source.path={rows}",
        f"data.eval=[{{_target_:mm_llama.data.sources.JsonlChat,path:{rows}}}]",
        f"runs={folder / 'runs'}",
        "dtype=float32",
        "optim.warmup_steps=5",
        "optim.gate_lr_multiple=10.0",
        "loader.batch_size=4",
        *more,
    ]


@pytest.fixture(scope="module")
def start(folder: Path) -> Callable[..., subprocess.Popen[str]]:
    """`start(argv, **environment)`: the command line in a process, and a process group, of its own."""

    def begin(argv: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        return subprocess.Popen(
            [sys.executable, "-m", "mm_llama", *argv],
            env=os.environ | {"PYTHONPATH": path} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return begin


def lines_of(sweep: Path) -> list[dict[str, object]]:
    """The lines of a ledger that are whole."""
    path = sweep / "ledger.jsonl"
    text = path.read_text("utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def folders_of(sweep: Path) -> dict[str, Path]:
    """The folder of each job by the start of its name, up to the hash."""
    return {
        path.name.rpartition("_")[0]: path for path in sorted(sweep.iterdir()) if (path / "hydra").is_dir()
    }


def tensors_of(run: Path) -> dict[str, Tensor]:
    """What a run has trained, as its newest checkpoint holds it."""
    return load_file(find_checkpoint(run) / "adapter.safetensors")
