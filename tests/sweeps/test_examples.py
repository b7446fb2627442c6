"""The sweeps in conf/sweep, and commands of docs/sweeps.md: every point composes, every command line is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from mm_llama import schema
from mm_llama.cli import main
from mm_llama.paths import conf_dir
from mm_llama.sweeps.plan import parse, plan, points, swept
from mm_llama.sweeps.search import distribution
from tests.sweeps.conftest import ROOT

SWEEPS = sorted(path for path in (conf_dir() / "sweep").glob("*.yaml") if path.stem != "none")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_point_of_a_recorded_sweep_is_a_job_of_its_own(path: Path) -> None:
    schema.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        overrides = ["stage=image_sft", f"sweep={path.stem}"]
        cfg = hydra.compose_config("train", overrides, run_mode=RunMode.MULTIRUN)
        given = parse(cfg, hydra.config_loader)
        keys = swept(given)
        assert cfg.hydra.mode == RunMode.MULTIRUN and keys == list(cfg.hydra.sweeper.params)
        if cfg.sweep.trials:
            assert [distribution(override) for override in given if override.is_sweep_override()]
            return
        grid = points(given)
        jobs = plan(cfg, hydra.config_loader, grid, keys, {})
    assert len(grid) > 1 and len({job.folder for job in jobs}) == len(grid)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{8,110}", job.folder) for job in jobs)


def commands() -> list[str]:
    """Command lines of the document and of the first lines of recorded sweeps."""
    text = (ROOT / "docs" / "sweeps.md").read_text("utf-8")
    lines = [
        line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]
    heads = [line.removeprefix("# ") for path in SWEEPS for line in path.read_text("utf-8").splitlines()]
    return [line for line in [*lines, *heads] if line.startswith("mm-llama train ")]


@pytest.mark.parametrize("line", commands())
def test_commands_show_the_config_of_their_first_job(
    line: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(line)[1:], "--cfg", "job"]) == 0
    assert "num_steps" in capfd.readouterr().out
