"""`mm-llama bench train`, tiny: both sides learn the same, and what differs is not timed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mm_llama.bench.roofline import flops_of
from mm_llama.bench.train import main
from mm_llama.bench.train_pair import Theirs, make_sides
from mm_llama.cli import main as cli
from mm_llama.core import products
from mm_llama.core.digest import digest_tensors

OPTIONS = ["--size", "tiny", "--rows", "3", "--text-tokens", "8", "--media-tokens", "5", "--repeats", "1"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sides(**changes: int) -> tuple[object, object]:
    numbers = {"rows": 3, "text_tokens": 8, "answer_tokens": 3, "media_tokens": 5, "seed": 0} | changes
    args = argparse.Namespace(size="tiny", device="cpu", attention="sdpa", **numbers)
    ours, (theirs,) = make_sides(args, torch.float32)
    return ours, theirs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_that_agree_are_timed_and_kept(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(["bench", "train", *OPTIONS, "--threads", "1", "--dtype", dtype]) == 0
    (path,) = (tmp_path / "runs" / "bench_train").iterdir()
    facts = json.loads(path.read_text("utf-8"))
    assert 0 <= facts["difference"] <= facts["tolerance"]
    # Three steps at one batch: what both learn shows.
    assert all(values[0] > values[1] > values[2] for values in facts["losses"].values())
    peers = ["theirs", "masters"] if dtype == "bfloat16" else ["theirs"]
    assert list(facts["steps"]) == ["ours", "remembered", *peers]
    assert all(entry["wall_s"] > 0 and 0 < entry["share"] < 1 for entry in facts["steps"].values())
    assert all(facts["steps"]["ours"]["of"][peer] > 0 for peer in peers) and facts["remembered_bytes"] > 0
    # Logits at targets alone; and below the lowest block nothing at all where it is remembered.
    flops = {side: entry["flops"] for side, entry in facts["steps"].items()}
    assert flops["remembered"] < flops["ours"] < flops["theirs"]
    assert "ours, prefixes remembered" in capsys.readouterr().out


def test_the_difference_in_operations_is_the_logits_that_nobody_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "halves_pay", lambda: False)
    ours, theirs = sides()
    counted = [flops_of(side.step, training=True) for side in (ours, theirs)]  # type: ignore[attr-defined]
    config = ours.model.core.config  # type: ignore[attr-defined]
    positions, targets = 3 * 9, 3 * 3
    # Forward, and backward to the states: the head itself is frozen.
    assert counted[1] - counted[0] == 2 * 2 * (positions - targets) * config.dim * config.vocab_size


def test_only_the_same_parts_change() -> None:
    ours, theirs = sides()
    model, peer = ours.model, theirs.peer  # type: ignore[attr-defined]
    trained = {id(weight) for side in (ours, theirs) for weight in side.trained}  # type: ignore[attr-defined]
    before = {name: digest_tensors({"": weight}) for name, weight in peer.named_parameters()}
    core = digest_tensors(model.core.state_dict())
    ours.step(), theirs.step()  # type: ignore[attr-defined]
    assert digest_tensors(model.core.state_dict()) == core
    for name, weight in peer.named_parameters():
        assert (digest_tensors({"": weight}) != before[name]) == (id(weight) in trained), name
    counts = [sum(weight.numel() for weight in side.trained) for side in (ours, theirs)]  # type: ignore[attr-defined]
    assert counts[0] == counts[1]


def test_steps_that_differ_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Theirs.__init__

    def causal(self: Theirs, *parts: object) -> None:
        whole(self, *parts)  # type: ignore[arg-type]
        self.masks = {}  # without a mask its blocks see the picture's tokens causally

    monkeypatch.setattr(Theirs, "__init__", causal)
    path = tmp_path / "train.json"
    assert main([*OPTIONS, "--threads", "1", "--dtype", "float32", "--json", str(path)]) == 1
    assert "error: the losses differ by" in capsys.readouterr().err
    assert "steps" not in json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(
    "option", ["--repeats", "--rows", "--text-tokens", "--answer-tokens", "--media-tokens"]
)
def test_numbers_from_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["bench", "train", option, "0"]) == 2
    assert f"{option} takes whole numbers from 1, not 0" in capsys.readouterr().err


def test_an_answer_longer_than_its_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["bench", "train", "--answer-tokens", "9", "--text-tokens", "8"]) == 2
    assert "--answer-tokens 9 are part of --text-tokens 8" in capsys.readouterr().err
