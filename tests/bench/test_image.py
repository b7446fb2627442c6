"""`mm-llama bench image`, tiny: both models give the same logits, and the numbers say what was measured."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mm_llama.bench.image import main
from mm_llama.bench.image_comparison import PICTURES, Comparison
from mm_llama.bench.vision_pair import Ours, Theirs, random_model, same_in_transformers, scaled_sizes
from mm_llama.cli import main as cli


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def comparison() -> Comparison:
    model = random_model(scaled_sizes("tiny"), torch.float32)
    theirs = Theirs(same_in_transformers(model))
    theirs.tap_before()
    return Comparison(Ours(model), theirs, text_tokens=6, new_tokens=3, repeats=1, seed=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_is_measured_of_two_models_that_agree(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "image.json"
    options = [
        "--size",
        "tiny",
        "--threads",
        "1",
        "--text-tokens",
        "6",
        "--new-tokens",
        "3",
        "--repeats",
        "2",
    ]
    assert cli(["bench", "image", *options, "--dtype", dtype, "--json", str(path)]) == 0
    facts = json.loads(path.read_text("utf-8"))
    assert len(facts["equality"]) == 2 * len(PICTURES) and all(entry["ok"] for entry in facts["equality"])
    # Random weights in two orders of summation are never equal to the bit: something was compared.
    assert all(entry["difference"] > 0 for entry in facts["equality"])
    assert [entry["share"] for entry in facts["cache_bytes"]] == [0.25, 1.0]
    width = 2 if dtype == "bfloat16" else 4
    # Two blocks, keys and values, one KV head of width 16, 4 * 4 patches and a class token.
    assert facts["cache_bytes"][0]["ours"] == 2 * 2 * 16 * 17 * width
    times = {entry["case"]: entry for entry in facts["times"]}
    assert {case.split(",")[0] for case in times} == {
        "first token",
        "decoding",
        "answer of 3 tokens",
        "released tower",
        "own tower",
    }
    for entry in times.values():
        assert 0 < entry["ours"]["wall_s"] and 0 < entry["times_faster"]["wall"]
    for name in PICTURES:
        ours = times[f"decoding, {name}"]["ours"]
        assert ours["tokens_per_s"] == pytest.approx(3 / ours["wall_s"])
        assert 0 < ours["share"] < 1
    # Absent tiles cost the released tower one tile of work, and our own none.
    assert (
        times["released tower, one tile"]["ours"]["flops"]
        < times["released tower, one tile"]["theirs"]["flops"]
    )
    own = times["own tower, one tile"]
    assert 3.5 * own["ours"]["flops"] < own["theirs"]["flops"]
    assert facts["early_skip"]["difference"] > 1e-4
    printed = capsys.readouterr().out
    assert "ok" in printed and "FAILED" not in printed and "25.0%" in printed


def test_bytes_of_a_decoded_token_are_those_that_it_reads() -> None:
    run = comparison()
    model = run.ours.model
    with torch.inference_mode():
        state = run.ours.prefill(run.batches["one tile"], len(run.new_N))[1]
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        expected = run.ours.decode(state, run.new_N)
        unread = 0
        for name, weight in model.named_parameters():
            # What decoding does not read may hold anything.
            weight.fill_(float("nan"))
            if name == "core.embedding.weight":
                weight[run.new_N] = before[name][run.new_N]
            if torch.equal(run.ours.decode(state, run.new_N), expected):
                unread += weight.nbytes
            else:
                weight.copy_(before[name])
    read = sum(weight.nbytes for weight in before.values()) - unread
    cached = run.ours.cache_bytes(state) + state[0].keys.nbytes * 2
    assert run._bytes_per_token(state) == pytest.approx(read + cached, rel=0.02)


def test_models_that_differ_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = comparison()
    assert all(entry["ok"] for entry in run.differences(2e-6))
    run.theirs.peer.model.language_model.layers[1].cross_attn_mlp_gate.data += 1e-4
    assert not all(entry["ok"] for entry in run.differences(2e-6))
    # Without the states that the released models tap, transformers computes something else.
    monkeypatch.setattr(Theirs, "tap_before", lambda self: None)
    path = tmp_path / "image.json"
    options = ["--size", "tiny", "--text-tokens", "4", "--new-tokens", "2", "--threads", "1"]
    assert main([*options, "--json", str(path)]) == 1
    said = capsys.readouterr()
    assert "error: the two models differ (prompt, one tile" in said.err and "FAILED" in said.out
    assert "times" not in json.loads(path.read_text("utf-8"))


def test_without_transformers_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name)
    )
    assert cli(["bench", "image", "--size", "tiny"]) == 2
    assert 'not installed: pip install "mm_llama[oracles]"' in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--repeats", "--new-tokens", "--text-tokens"])
def test_numbers_from_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["bench", "image", option, "0"]) == 2
    assert f"{option} takes whole numbers from 1, not 0" in capsys.readouterr().err
