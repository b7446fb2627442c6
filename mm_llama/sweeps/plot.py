"""Curves of runs over each other, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_llama.sweeps.compare import Group, labels_of
from mm_llama.sweeps.results import Row

SMOOTH = 0.05  # of a run's records a point of the loss curve is the mean of
MOST_NAMES = 12


def write_plot(out: Path, groups: Sequence[Group], keys: Sequence[str], metric: str) -> None:
    """Draw the loss of every run, and a metric of held-out rows, one colour for each group; a PNG, whole or not at all.

    Runs that differ in seeds alone share a colour. ValueError without matplotlib, or without finished runs.
    """
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'mm_llama[sweep]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not groups:
        raise ValueError("--plot: none of these runs is finished, so there is nothing to draw")
    held_out = metric if metric != "loss" else ""
    figure, axes = pyplot.subplots(
        1, 2 if held_out else 1, figsize=(11 if held_out else 7, 4.6), squeeze=False, layout="constrained"
    )
    colours = pyplot.get_cmap("tab10" if len(groups) <= 10 else "turbo")
    # Measured once, at the end, runs stand under each other in the order of the names: equal ones do not hide one.
    several = any(len(_curve(row, held_out)[0]) > 1 for group in groups for row in group.rows.values())
    lines = []
    for number, group in enumerate(groups):
        colour = colours(number if len(groups) <= 10 else number / (len(groups) - 1))
        for row in group.rows.values():
            steps, losses = _curve(row, "loss")
            (line,) = axes[0, 0].plot(steps, _smooth(losses), color=colour, linewidth=1.4)
            if held_out and several:
                axes[0, 1].plot(*_curve(row, held_out), color=colour, marker="o", markersize=4, linewidth=1.2)
            elif held_out:
                axes[0, 1].plot(row.metrics.get(held_out), -number, color=colour, marker="o", clip_on=False)
        lines.append(line)
    for axis, name in zip(axes[0], ("loss", held_out), strict=False):
        axis.set(xlabel="step", title=name)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
    if held_out and not several:
        axes[0, 1].set(
            xlabel=held_out, title=f"{held_out} at the end", yticks=[-n for n in range(len(groups))]
        )
        axes[0, 1].set(yticklabels=[], ylim=(0.5 - len(groups), 0.5))
        axes[0, 1].xaxis.get_major_locator().set_params(integer=False)
    _scale(axes[0, 0])
    names = [
        f"{name}: {group.summary(metric)}"
        for name, group in zip(labels_of(groups, keys), groups, strict=True)
    ]
    if len(names) > MOST_NAMES:
        names = [*names[: MOST_NAMES - 1], f"{len(names) - MOST_NAMES + 1} more"]
    figure.legend(
        lines[: len(names)],
        names,
        loc="outside lower center",
        ncols=1,
        frameon=False,
        fontsize=9,
        title=metric,
    )
    figure.set_figheight(4.4 + 0.22 * len(names))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    figure.savefig(partial, format="png", dpi=110)
    pyplot.close(figure)
    os.replace(partial, out)


def _curve(row: Row, metric: str) -> tuple[list[int], list[float]]:
    points = [(record["step"], record[metric]) for record in row.records if record.get(metric) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values: Sequence[float]) -> list[float]:
    """Return running means over the last few values, so that curves of noisy losses can be told apart."""
    width = max(1, round(SMOOTH * len(values)))
    sums = [sum(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
    return [total / min(width, end) for end, total in enumerate(sums, start=1)]


def _scale(axis: Any) -> None:
    """Show losses of several sizes on a logarithmic axis."""
    low, high = axis.dataLim.y0, axis.dataLim.y1
    if 0 < low and high > 20 * low:
        axis.set_yscale("log")
