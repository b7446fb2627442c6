"""The ledger: whole lines from several processes, whatever is killed; a job is its config and its code, no more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import mm_llama
from mm_llama.build import compose_config
from mm_llama.stages.lock import run_lock
from mm_llama.sweeps import identity
from mm_llama.sweeps.identity import config_of, hash_of, source_digest
from mm_llama.sweeps.ledger import FAILED, FINISHED, STARTED, Ledger, is_running
from tests.sweeps.conftest import ROOT


def test_lines_about_a_job_are_put_together(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.read() == {}
    ledger.append("a", STARTED, folder="lr-1_a", overrides=["optim.lr=1"])
    ledger.append("b", STARTED, folder="lr-2_b")
    ledger.append("a", FAILED, error="no")
    ledger.append("a", STARTED, folder="lr-1_a", overrides=["optim.lr=1"])
    ledger.append("a", FINISHED, objective=0.25)
    one, other = ledger.read()["a"], ledger.read()["b"]
    assert (one.status, one.error, one.objective, one.folder) == (FINISHED, "", 0.25, "lr-1_a")
    assert (one.overrides, other.status, other.objective) == (["optim.lr=1"], STARTED, None)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_short_is_left_out_and_the_next_one_is_whole(tmp_path: Path, cut: int) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("a", STARTED)
    ledger.append("a", FINISHED)
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-cut])
    assert ledger.read()["a"].status == STARTED
    ledger.append("b", STARTED)
    assert {job: entry.status for job, entry in ledger.read().items()} == {"a": STARTED, "b": STARTED}
    assert len(ledger.path.read_bytes().splitlines()) == 2


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("a", STARTED)
    with ledger.path.open("ab") as file:
        file.write(b"[1]\n")
    ledger_text = str(ledger.path).replace("\\", "\\\\")
    with pytest.raises(ValueError, match=rf"{ledger_text}:2: not a line of a ledger"):
        ledger.read()


def test_several_processes_write_whole_lines(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom mm_llama.sweeps.ledger import Ledger\n"
        "for number in range(40): Ledger(sys.argv[1]).append(f'{sys.argv[2]}-{number}', 'started', text='x' * 300)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number)], cwd=ROOT) for number in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert len(Ledger(tmp_path).read()) == 160
    assert len((tmp_path / "ledger.jsonl").read_bytes().splitlines()) == 160


def test_a_job_runs_while_its_lock_is_held_and_no_longer(tmp_path: Path) -> None:
    assert not is_running(tmp_path)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mm_llama.stages.lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    assert is_running(tmp_path)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert not is_running(tmp_path)
    with run_lock(tmp_path):
        assert is_running(tmp_path)


def hash_with(*overrides: str) -> str:
    return hash_of(config_of(compose_config("train", ["stage=image_sft", "core=tiny", *overrides])))


@pytest.mark.parametrize(
    "override",
    ["name=other", "runs=elsewhere", "threads=3", "loader.num_workers=2", "stage.log_every=3", "stage.save_every=7",
     "stage.keep_last=5", "sweep.retry=true"],
)  # fmt: skip
def test_where_and_how_often_is_no_part_of_a_job(override: str) -> None:
    assert hash_with(override) == hash_with()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "optim.lr=2e-3", "stage.num_steps=7", "modality/image=tiny", "dtype=float32", "core.seed=4",
     "data=easy_vqa_part", "stage.init.image=runs/a"],
)  # fmt: skip
def test_what_is_computed_is_part_of_a_job(override: str) -> None:
    assert hash_with(override) != hash_with()


def test_a_job_that_starts_from_a_run_is_another_once_the_run_has_trained_anew(tmp_path: Path) -> None:
    manifest = tmp_path / "run" / "checkpoints" / "step_00000010" / "MANIFEST.json"
    manifest.parent.mkdir(parents=True)
    override, hashes = (
        f"stage.init.image={tmp_path / 'run'}",
        [hash_with(f"stage.init.image={tmp_path / 'run'}")],
    )
    for adapter in ("aa", "bb"):
        manifest.write_text(json.dumps({"lineage": [{"adapter": adapter}]}))
        hashes.append(hash_with(override))
    assert len(set(hashes)) == 3


def test_dtype_auto_is_the_same_job_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = set()
    for fast in (True, False):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda fast=fast: fast)
        hashes.add(hash_with("dtype=auto"))
    assert len(hashes) == 1


def test_the_code_is_every_source_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("mm_llama", "encoders", "adapters"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "voices")
        )
    digest: Callable[[], str] = source_digest.__wrapped__
    monkeypatch.setattr(mm_llama, "__file__", str(ROOT / "mm_llama" / "__init__.py"))
    here = digest()
    monkeypatch.setattr(mm_llama, "__file__", str(tmp_path / "mm_llama" / "__init__.py"))
    assert digest() == here
    (tmp_path / "mm_llama" / "notes.txt").write_text("not code")
    (tmp_path / "README.md").write_text("not code")
    assert digest() == here
    with (tmp_path / "encoders" / "image_vit.py").open("a") as file:
        file.write("# another comment\n")
    changed = digest()
    (tmp_path / "adapters" / "new.py").write_text("")
    assert len({here, changed, digest()}) == 3


def test_an_identity_is_the_config_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(compose_config("train", ["stage=image_sft", "core=tiny"]))
    assert OmegaConf.create(config) and "sweep" not in config
    one = identity.identity_of(config)
    monkeypatch.setattr(identity, "source_digest", lambda: "0" * 16)
    assert len(one) == 16 and identity.identity_of(config) != one
