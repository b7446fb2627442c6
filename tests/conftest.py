"""What every test gets: torch threads that suit the machine, and the real models and data as fixtures.

Assets are fetched before the tests (`mm-llama assets fetch --for test`); the tests themselves are offline.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_llama.assets import TOOLS, asset, find_asset, status_of

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Hydra sends logs to the output of the test that called it; later ones would write to what is closed by then."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def asset_dir() -> Callable[[str], Path]:
    """`asset_dir(name)`: folder of an unpacked asset.

    A missing asset that comes through npm or apt-get skips the test where those may be absent or without it;
    in continuous integration, and for anything that pip brings, it fails the test.
    """

    def folder(name: str) -> Path:
        entry = find_asset(name)
        if entry.optional and status_of(entry).state == "missing" and "CI" not in os.environ:
            pytest.skip(f"asset {name} was not fetched; {TOOLS[entry.kind]} brings it where there is one")
        return asset(name, progress=False)

    return folder


@pytest.fixture(scope="session")
def smollm2(asset_dir: Callable[[str], Path]) -> Any:
    """The real default core in fp32, loaded once: a `LoadedCore`. Tests must not change it."""
    from mm_llama.core.weights import load_core

    (path,) = asset_dir("smollm2_135m").glob("*.gguf")
    return load_core(path, dtype=torch.float32)


@dataclass(frozen=True)
class TinyVoice:
    """Runs of the parts of a voice by what they trained, and the rows that its sound learned from."""

    runs: dict[str, Path]
    rows: Path
    prosody: set[str]  # what the prosody stage measured


@pytest.fixture(scope="session")
def tiny_voice(asset_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> TinyVoice:
    """Every part of a voice on the tiny core after two steps: what it says is noise, but it says it."""
    from mm_llama.build import compose_config
    from mm_llama.data.voice_rows import taught_voice
    from mm_llama.stage_run import run_stage

    folder = tmp_path_factory.mktemp("tiny_voice")
    (folder / "texts").mkdir()
    sentences = "They saw the old house again. Nobody came to the garden. The river was cold that day."
    (folder / "texts" / "a.txt").write_text(sentences)
    engine = asset_dir("hibari_tts")
    path = taught_voice(folder / "texts", engine, folder / "out", num_train=2, num_holdout=1).path
    voice = f"{{_target_: mm_llama.data.voice_rows.VoiceRows, path: {path}}}"
    row = {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "Room 12"}],
        "extra": {"labels": {"rules": "PLAIN CARDINAL"}},
    }
    (folder / "rules.jsonl").write_text(json.dumps(row) + "\n")
    rules = f"{{_target_: mm_llama.data.sources.JsonlChat, path: {folder / 'rules.jsonl'}}}"
    runs, measured = {}, set()
    for kind in ("normalization", "prosody", "acoustic", "vocoder"):
        rows = rules if kind == "normalization" else voice
        options = [
            f"stage=tts_{kind}", "core=tiny", f"modality/tts_{kind}=tiny", f"runs={folder}", "dtype=float32",
            "stage.num_steps=2", f"data.train=[{{source: {rows}}}]", f"data.eval=[{rows}]", "loader.batch_size=2",
        ]  # fmt: skip
        result = run_stage(compose_config("train", options))
        runs[kind] = result.run_dir
        measured |= set(result.final) if kind == "prosody" else set()
    return TinyVoice(runs, path, measured)
