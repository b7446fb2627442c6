"""From overrides to jobs: every point of a grid is composed, so that a wrong one is told before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from mm_llama.sweeps.identity import config_of, hash_of, identity_of
from mm_llama.sweeps.ledger import Entry


@dataclass(frozen=True)
class Job:
    """One point: what is typed for it, what it is called in the ledger, and the name of its folder."""

    overrides: tuple[str, ...]
    identity: str
    folder: str
    threads: int


def parse(cfg: DictConfig, loader: ConfigLoader) -> list[Override]:
    """Return the overrides of a sweep's jobs: those of its config (`hydra.sweeper.params`), then those typed."""
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(
        [*params, *cfg.hydra.overrides.task]
    )
    return list({override.get_key_element(): override for override in overrides}.values())


def points(overrides: Sequence[Override]) -> list[list[str]]:
    """Return every combination of the choices of overrides, each as overrides of one job."""
    (grid,) = BasicSweeper.split_arguments(list(overrides), None)
    return grid


def swept(overrides: Sequence[Override]) -> list[str]:
    """Return the keys that have several values."""
    return [override.get_key_element() for override in overrides if override.is_sweep_override()]


def plan(
    cfg: DictConfig,
    loader: ConfigLoader,
    grid: Sequence[Sequence[str]],
    keys: Sequence[str],
    known: Mapping[str, Entry],
) -> list[Job]:
    """Compose every point of a grid and return the job of each; points that say the same are the same job.

    A job that the ledger (`known`) holds keeps its folder, whatever is swept now. With `sweep.code=any` it is known by
    its config alone. Raises ValueError for a point whose config does not resolve, Hydra's errors for one that does not
    compose.
    """
    by_config = {entry.config: entry for entry in known.values()}
    jobs: list[Job] = []
    for overrides in grid:
        composed = loader.load_sweep_config(cfg, list(overrides))
        config = config_of(composed)
        identity = identity_of(config)
        entry = known.get(identity)
        if entry is None and composed.sweep.code == "any":
            entry = by_config.get(hash_of(config))
        if entry is not None:
            identity, folder = entry.job, entry.folder
        else:
            folder = f"{_label(overrides, keys)}{identity[:8]}"
        jobs.append(Job(tuple(overrides), identity, folder, composed.threads))
    return jobs


def _label(overrides: Sequence[str], keys: Sequence[str]) -> str:
    """Return what a person knows a job by: the swept settings, without anything that a shell or Hydra reads."""
    texts = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in keys:
            name = re.split(r"[./]", key.lstrip("+"))[-1]
            texts.append(f"{name}-{re.sub(r'[^A-Za-z0-9._-]+', '', _short(value))}"[:32])
    label = "_".join(texts)[:96]
    return f"{label}_" if label else ""


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return Path(value).name
