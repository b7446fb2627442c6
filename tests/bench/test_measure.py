"""What all measurements share: turns, ratios within a round, operations counted, a child's memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mm_llama.bench.measure import (
    Timing,
    interleaved,
    machine_facts,
    peak_of_child,
    positives,
    times_faster,
    write_facts,
)
from mm_llama.bench.roofline import flops_of, gemm_flops, read_bandwidth


def test_contestants_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    timings = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 3, warmup=1)  # type: ignore[misc]
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert all(len(timing.wall) == len(timing.cpu) == 3 for timing in timings.values())


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine slows down fourfold in the last round: both sides suffer, the ratio does not.
    ours, theirs = Timing([1, 1, 4], [1, 1, 1]), Timing([2, 2, 8], [3, 3, 3])
    assert times_faster(ours, theirs) == {"wall": 2, "cpu": 3}
    assert ours.record() == {"wall_s": 1, "cpu_s": 1}


def test_operations_of_products_and_attention_are_counted() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert flops_of(lambda: left @ right) == 2 * 3 * 5 * 7
    q, k = torch.ones(1, 2, 6, 8), torch.ones(1, 2, 9, 8)
    assert flops_of(lambda: F.scaled_dot_product_attention(q, k, k)) == 2 * 2 * (2 * 6 * 9 * 8)


def test_the_machine_is_measured() -> None:
    assert gemm_flops(torch.float32, side=64, seconds=0.02) > 1e6
    assert read_bandwidth(1 << 20, seconds=0.02) > 1e6
    facts = machine_facts()
    assert facts["cores"] >= 1 and facts["threads"] == torch.get_num_threads() and facts["processor"]


def test_a_child_reports_its_own_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "measured_child.py").write_text(
        "import json, sys\n"
        "from mm_llama.bench.measure import peak_bytes\n"
        "before = peak_bytes()\n"
        "block = bytearray(int(sys.argv[1]))\n"
        "print(json.dumps({'peak': peak_bytes() - before}))\n",
        "utf-8",
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    grown = peak_of_child("measured_child", [str(64 << 20)])["peak"]
    assert 60 << 20 < grown < 90 << 20
    with pytest.raises(
        ValueError, match="`python -m measured_child x` ended with code 1: ValueError: invalid literal"
    ):
        peak_of_child("measured_child", ["x"])


def test_lists_of_numbers_rise() -> None:
    assert positives("--counts", "1, 2,8") == [1, 2, 8]
    for text in ("2,1", "1,1", "0,1", "1,x", ""):
        with pytest.raises(ValueError, match="--counts takes"):
            positives("--counts", text)


def test_numbers_are_written_whole(tmp_path: Path) -> None:
    write_facts(tmp_path / "new" / "facts.json", {"a": 1.5})
    assert json.loads((tmp_path / "new" / "facts.json").read_text("utf-8")) == {"a": 1.5}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["facts.json"]
    write_facts(None, {})
