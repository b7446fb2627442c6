"""What is released is small, says what made it, is loaded as a run is, and trains no further."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mm_llama.assistant import load
from mm_llama.build import compose_config
from mm_llama.cli import main
from mm_llama.stage_run import run_stage
from mm_llama.stages.checkpoint_files import InvalidCheckpoint, find_checkpoint
from mm_llama.stages.release import release


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    row = {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "Room 12"}],
        "extra": {"labels": {"rules": "PLAIN CARDINAL"}},
    }
    (folder / "rules.jsonl").write_text(json.dumps(row) + "\n")
    source = f"{{_target_: mm_llama.data.sources.JsonlChat, path: {folder / 'rules.jsonl'}}}"
    options = [
        "stage=tts_normalization", "core=tiny", "modality/tts_normalization=tiny", f"runs={folder}", "dtype=float32",
        "stage.num_steps=2", f"data.train=[{{source: {source}}}]", "data.eval=[]", "loader.batch_size=1",
    ]  # fmt: skip
    return run_stage(compose_config("train", options)).run_dir


def test_a_release_is_loaded_as_its_run_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "voice"
    assert main(["release", str(run), str(out), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    folder = out / "tts_normalization"
    assert {file.name for file in folder.iterdir()} == {
        "adapter.safetensors", "state.json", "config.yaml", "MANIFEST.json",
    }  # fmt: skip
    whole = find_checkpoint(run) / "adapter.safetensors"
    assert 0.45 < facts["bytes"] / whole.stat().st_size < 0.6
    card = (out / "README.md").read_text("utf-8")
    assert facts["adapter"] in card and facts["trained"] in card and "tts_normalization" in card
    one, other = (load("tiny", [path], dtype="float32").model for path in (run, folder))
    for name, tensor in one.modality["tts_normalization"].state_dict().items():
        found = other.modality["tts_normalization"].state_dict()[name]
        torch.testing.assert_close(found, tensor.half().float(), rtol=0, atol=0)
    # What was written is not written over, and half a folder is never left.
    assert main(["release", str(run), str(out)]) == 2
    assert main(["release", str(run), str(run), str(tmp_path / "twice")]) == 2
    error = capsys.readouterr().err
    assert "is there already" in error and "two of the runs trained tts_normalization" in error
    assert list(tmp_path.iterdir()) == [out]


def test_a_release_that_was_changed_is_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    release(run, folder)
    weights = folder / "adapter.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(InvalidCheckpoint, match="another SHA-256"):
        load("tiny", [folder])
