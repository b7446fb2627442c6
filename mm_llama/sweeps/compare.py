"""Runs beside each other: those that differ in nothing but seeds are one group, groups are compared seed by seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_llama.average import is_less_better
from mm_llama.eval.statistics import ENOUGH_SEEDS, PairedSeeds, paired_seeds
from mm_llama.sweeps.ledger import FINISHED
from mm_llama.sweeps.results import Row, differing, text_of


@dataclass(frozen=True)
class Group:
    """Finished runs of one config, by their seeds."""

    rows: Mapping[str, Row]
    settings: Mapping[str, Any]

    def values(self, metric: str) -> dict[str, float]:
        """Return what each seed measured."""
        return {seed: row.metrics[metric] for seed, row in self.rows.items() if metric in row.metrics}

    def summary(self, metric: str) -> str:
        """Return mean and standard deviation over seeds in words."""
        values = list(self.values(metric).values())
        if not values:
            return f"no {metric}"
        if len(values) == 1:
            return f"{values[0]:.4f} (one seed)"
        return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} ({len(values)} seeds)"


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """Put finished runs together that differ in seeds alone. Of two with the same seeds the later one counts."""
    found: dict[str, dict[str, Row]] = {}
    plain: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.status != FINISHED:
            continue
        seeds = {key: value for key, value in row.settings.items() if _is_seed(key)}
        rest = {key: value for key, value in row.settings.items() if not _is_seed(key)}
        key = json.dumps(rest, sort_keys=True, default=str)
        found.setdefault(key, {})[json.dumps(seeds, sort_keys=True)] = row
        plain[key] = rest
    return [Group(members, plain[key]) for key, members in found.items()]


def labels_of(groups: Sequence[Group], keys: Sequence[str]) -> list[str]:
    """Name groups by their settings; `keys` are those that a table has columns for."""
    shown = [key for key in keys if not _is_seed(key)]
    named = [
        ", ".join(f"{key}={text_of(next(iter(group.rows.values())).value(key))}" for key in shown) or "all"
        for group in groups
    ]
    return [
        name if named.count(name) == 1 else f"{name} ({next(iter(group.rows.values())).folder.name})"
        for name, group in zip(named, groups, strict=True)
    ]


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Return every setting in which groups differ, with the value of each."""
    settings = [group.settings for group in groups]
    return {key: [one.get(key) for one in settings] for key in differing(settings)}


def order(groups: Sequence[Group], metric: str, lowest: bool | None = None) -> list[Group]:
    """Order groups by the mean of a metric, the best first; those without it last."""
    less = is_less_better(metric) if lowest is None else lowest

    def place(group: Group) -> tuple[bool, float]:
        values = list(group.values(metric).values())
        return not values, (statistics.mean(values) if values else 0.0) * (1 if less else -1)

    return sorted(groups, key=place)


def verdict(ours: Group, theirs: Group, metric: str) -> str:
    """Say in a sentence how sure it is that two groups differ in a metric, or why that cannot be said."""
    if metric.startswith("eval.") and _held_out(ours) != _held_out(theirs):
        return "not comparable: measured on other held-out rows"
    left, right = ours.values(metric), theirs.values(metric)
    common = sorted(left.keys() & right.keys())
    if not common:
        return "no seed in common, so runs cannot be paired"
    found = paired_seeds([left[seed] for seed in common], [right[seed] for seed in common])
    if found.num == 1:
        return f"{found.difference:+.4f} on one seed: what another seed would change is not known"
    return f"{found.difference:+.4f} ± {found.deviation:.4f} on {found.num} common seeds, {_how_sure(found)}"


def _how_sure(found: PairedSeeds) -> str:
    if found.num < ENOUGH_SEEDS:
        return (
            f"p = {found.p_value:.3f}, which {found.num} seeds cannot bring below {found.smallest_p:.3f}: "
            f"{ENOUGH_SEEDS} or more could show a difference at 5 %"
        )
    return (
        f"p = {found.p_value:.3f} (exact sign-flip test), 95 % interval {found.low:+.4f} to {found.high:+.4f}"
    )


def _is_seed(key: str) -> bool:
    return key.rsplit(".", 1)[-1] == "seed"


def _held_out(group: Group) -> str:
    rows = {key: value for key, value in group.settings.items() if key.startswith("data.eval")}
    return json.dumps(rows, sort_keys=True, default=str)
