"""`mm-llama bench text`, tiny: sides that agree are measured, what differs is not, and the counts are right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mm_llama.bench.roofline import flops_of
from mm_llama.bench.text import main
from mm_llama.bench.text_pair import Ours, Theirs, bytes_per_step, same_in_transformers, text_flops
from mm_llama.cli import main as cli
from mm_llama.core import products
from mm_llama.core.kernels import Blocked
from mm_llama.core.llama import Llama, LlamaConfig, RopeScaling

OPTIONS = ["--core", "tiny", "--threads", "1", "--prompt-tokens", "40", "--new-tokens", "4", "--repeats", "1"]
OPTIONS += ["--quality", "0"]
CASES = [
    "prefill, 40 tokens",
    "first token, 32 tokens",
    "decoding, batch 1",
    "decoding, batch 3",
    "an answer of 4 tokens",
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def core(**changes: object) -> Llama:
    numbers = {
        "dim": 64,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_dim": 96,
        "vocab_size": 120,
    }
    made = Llama(LlamaConfig(**{**numbers, **changes}))  # type: ignore[arg-type]
    made.init_weights(0)
    return made.requires_grad_(False).eval()


def test_all_is_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(["bench", "text", *OPTIONS, "--dtype", "bfloat16", "--rows", "3", "--starts", "1"]) == 0
    (path,) = (tmp_path / "runs" / "bench_text").iterdir()
    facts = json.loads(path.read_text("utf-8"))
    sides = ["ours", "attached", "int8"]
    assert [(e["case"], e["side"]) for e in facts["equality"]] == [
        (f"batch {batch}", side) for batch in (1, 3) for side in sides
    ]
    assert all(entry["ok"] and entry["logits"] > 0 for entry in facts["equality"])
    assert [entry["case"] for entry in facts["times"]] == CASES
    for entry in facts["times"]:
        assert all(entry[side]["wall_s"] > 0 for side in (*sides, "theirs"))
        assert all(entry[side]["times"] > 0 for side in sides) and entry["attached"]["of_plain"] > 0
    for entry in facts["times"][2:4]:
        assert all(0 < entry[side]["share"] < 1 for side in (*sides, "theirs"))
    assert facts["flops"]["formula"] == facts["flops"]["ours"] == facts["flops"]["theirs"]
    start, memory = facts["fresh"]
    assert start["ours"]["wall_s"] > start["ours"]["import_s"] > 0
    assert 5e7 < memory["ours"]["peak_bytes"] < 5e9 and memory["theirs"]["peak_bytes"] > 5e7
    said = capsys.readouterr().out
    assert str(path.relative_to(tmp_path)) in said and "start to first token" in said and "1.4x, 3.0x" in said


def test_sides_that_differ_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Theirs.__init__

    def other(self: Theirs, peer: torch.nn.Module) -> None:
        whole(self, peer)
        peer.get_parameter("model.layers.1.mlp.down_proj.weight").data.mul_(1.5)

    monkeypatch.setattr(Theirs, "__init__", other)
    path = tmp_path / "text.json"
    assert main([*OPTIONS, "--dtype", "float32", "--rows", "2", "--starts", "0", "--json", str(path)]) == 1
    assert "error: the two models differ (ours, batch 1" in capsys.readouterr().err
    facts = json.loads(path.read_text("utf-8"))
    assert "times" not in facts and not any(entry["ok"] for entry in facts["equality"])


@pytest.mark.parametrize("changes", [{}, {"tied": True, "head_dim": 24}, {"rope_scaling": RopeScaling()}])
def test_the_peer_has_the_same_weights(changes: dict[str, object]) -> None:
    ours = core(**changes)
    theirs, tokens = Theirs(same_in_transformers(ours)), torch.randint(0, 120, (2, 40))
    assert (Ours(ours).logits(tokens) - theirs.logits(tokens)).abs().max() <= 1e-6
    first, state = theirs.prefill(tokens)
    mine, cache = Ours(ours).prefill(tokens, 5)
    assert torch.equal(first, mine)
    assert torch.equal(Ours(ours).decode(mine, cache, 4), theirs.decode(first, state, 4))
    assert torch.equal(Ours(ours).answer(tokens, 5), theirs.answer(tokens, 5))


@pytest.mark.parametrize("changes", [{}, {"tied": True, "head_dim": 24, "num_kv_heads": 1}])
@pytest.mark.parametrize(("batch", "length"), [(1, 7), (3, 33)])
def test_operations_by_formula_are_those_counted(
    changes: dict[str, object], batch: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A single row in halves is computed twice over, where that is faster.
    monkeypatch.setattr(products, "halves_pay", lambda: False)
    ours, tokens = core(**changes), torch.zeros(batch, length, dtype=torch.long)
    assert text_flops(ours.config, batch, length, batch) == flops_of(lambda: Ours(ours).prefill(tokens))
    assert text_flops(ours.config, batch, length, batch * length) == flops_of(lambda: ours(tokens))


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_step_are_those_of_what_is_read(tied: bool) -> None:
    ours = core(tied=tied).bfloat16()
    read = [weight for name, weight in ours.named_parameters() if tied or name != "embedding.weight"]
    _, (cache, _) = Ours(ours).prefill(torch.zeros(2, 9, dtype=torch.long), 1)
    cached = (cache.keys.nbytes + cache.values.nbytes) // 10 * 9
    assert bytes_per_step(ours, 2, 9) == sum(weight.nbytes for weight in read) + cached
    norms = sum(weight.nbytes for name, weight in ours.named_parameters() if "norm" in name)
    ours.hold("int8")
    kernels = {id(part._held[0]): part._held[0] for part in ours.modules() if getattr(part, "_held", None)}
    if ours._tied_head is not None:
        kernels[0] = ours._tied_head
    assert not any(isinstance(kernel, Blocked) for kernel in kernels.values())
    held = sum(kernel.nbytes for kernel in kernels.values())
    assert bytes_per_step(ours, 2, 9, "int8") == held + norms + cached


@pytest.mark.parametrize("option", ["--repeats", "--new-tokens", "--prompt-tokens", "--rows"])
def test_numbers_from_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["bench", "text", option, "0"]) == 2
    assert f"{option} takes whole numbers from 1, not 0" in capsys.readouterr().err
