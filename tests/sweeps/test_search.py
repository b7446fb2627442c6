"""Optuna proposes, the ledger remembers: a search goes on where it was, on the points an unbroken one would ask."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from mm_llama.cli import main
from mm_llama.sweeps.search import distribution
from tests.sweeps.conftest import folders_of, lines_of, overrides


def argv(folder: Path, trials: int, runs: Path, *more: str) -> list[str]:
    return overrides(folder, "threads=1", "stage.num_steps=3", "sweep=optuna", f"sweep.trials={trials}", "name=search",
                     f"runs={runs}", *more)  # fmt: skip


def test_a_search_that_goes_on_asks_what_an_unbroken_one_asks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv(folder, 4, tmp_path / "whole")) == 0
    assert main(argv(folder, 2, tmp_path / "parts")) == 0
    first = len(lines_of(tmp_path / "parts" / "search_sweep"))
    capsys.readouterr()
    assert main(argv(folder, 4, tmp_path / "parts")) == 0
    assert capsys.readouterr().out.count("finished already") == 2
    whole, parts = (folders_of(tmp_path / name / "search_sweep") for name in ("whole", "parts"))
    assert first == 4 and len(whole) == 4 and whole.keys() == parts.keys()
    assert all(re.fullmatch(r"lr-[\de.-]+_weight_decay-0(\.0?1)?", name) for name in whole)


def test_a_failed_trial_tells_the_search_nothing(folder: Path, tmp_path: Path) -> None:
    wild = argv(folder, 2, tmp_path, "optim.lr=interval(1e29,1e30)", "optim.weight_decay=0.0")
    assert main(wild) == 1
    assert [line["status"] for line in lines_of(tmp_path / "search_sweep")] == ["started", "failed"] * 2


def test_a_search_needs_something_to_search(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(overrides(folder, f"runs={tmp_path}", "sweep.trials=3", "-m")) == 2
    assert "sweep.trials finds nothing to search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a=interval(1,3)", FloatDistribution(1.0, 3.0)),
        ("a=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("a=int(interval(1,8))", IntDistribution(1, 8)),
        ("a=int(tag(log,interval(1,8)))", IntDistribution(1, 8, log=True)),
        ("a=1,none,x", CategoricalDistribution(["1", "none", "x"])),
        ("a=range(1,7,3)", CategoricalDistribution(["1", "4"])),
    ],
)
def test_what_hydra_writes_is_what_optuna_draws_from(text: str, wanted: object) -> None:
    (override,) = OverridesParser.create().parse_overrides([text])
    assert distribution(override) == wanted
