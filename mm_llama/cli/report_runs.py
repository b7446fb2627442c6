"""`mm-llama report DIR` of a sweep or of runs: one table, the best config as a command, curves, comparisons."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence

from mm_llama.stages.metrics import write_atomically
from mm_llama.sweeps import compare, results
from mm_llama.sweeps.ledger import FAILED, FINISHED
from mm_llama.sweeps.results import Row


def show(args: argparse.Namespace) -> int:
    """Print and write what was asked for; exit code 1 when a run failed."""
    rows = results.find_rows(args.runs)
    metric = args.metric or results.main_metric(rows)
    if not any(metric in row.metrics for row in rows) and any(row.status == FINISHED for row in rows):
        known = sorted({name for row in rows for name in row.metrics})
        raise ValueError(f"--metric {metric}: no run has it; they have {', '.join(known)}")
    lowest = True if args.lowest else False if args.highest else None
    rows, keys = results.rank(rows, metric, lowest), results.columns(rows)
    header, cells = _cells(rows, keys)
    outputs = [(args.csv, _csv(rows, keys)), (args.markdown, _markdown(header, cells, rows))]
    for path, text in outputs:
        if path is not None and str(path) != "-":
            write_atomically(path, text)
        elif path is not None:
            print(text, end="")
    groups = compare.order(compare.groups_of(rows), metric, lowest)
    if args.plot is not None:
        from mm_llama.sweeps.plot import write_plot

        write_plot(args.plot, groups, keys, metric)
    if not any(str(path) == "-" for path, _ in outputs if path is not None):
        _print_table(header, cells, rows)
        if len(rows) > 1:
            _print_best(groups, metric)
        if args.compare:
            _print_comparison(groups, keys, metric)
    return 1 if any(row.status == FAILED for row in rows) else 0


def _cells(rows: Sequence[Row], keys: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    header = ["run", *keys, "step", *metrics, "minutes", "status"]
    cells = [
        [
            row.folder.name,
            *(results.text_of(row.value(key)) for key in keys),
            f"{row.step}/{row.num_steps}" if row.num_steps else str(row.step),
            *(f"{row.metrics[name]:.4f}" if name in row.metrics else "" for name in metrics),
            "" if row.minutes is None else f"{row.minutes:.1f}",
            row.status,
        ]
        for row in rows
    ]
    return header, cells


def _csv(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """Return the table with every digit, for programs."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *keys, "step", "num_steps", *metrics, "minutes", "status", "error"])
    for row in rows:
        settings = [row.value(key) for key in keys]
        measured = [row.metrics.get(name) for name in metrics]
        steps = (row.step, row.num_steps or None)
        writer.writerow([row.folder, *settings, *steps, *measured, row.minutes, row.status, row.error])
    return text.getvalue()


def _markdown(header: Sequence[str], cells: Sequence[Sequence[str]], rows: Sequence[Row]) -> str:
    lines = [header, ["---"] * len(header), *cells]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    errors = [f"- `{row.folder.name}` {row.status}: {row.error}" for row in rows if row.error]
    return "\n".join([*table, *(["", *errors] if errors else [])]) + "\n"


def _print_table(header: Sequence[str], cells: Sequence[Sequence[str]], rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # In a pipe a table is as wide as it is: no cell is cut.
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    table = Table()
    for name in header:
        right = name in ("step", "minutes", "loss") or name.startswith("eval.")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    styles = {FAILED: "red", results.BROKEN: "yellow", results.RUNNING: "cyan"}
    for line, row in zip(cells, rows, strict=True):
        table.add_row(*map(Text, line), style=styles.get(row.status))
    console.print(table)
    for row in rows:
        if row.error:
            print(f"{row.status}: {row.folder}: {row.error}")


def _print_best(groups: Sequence[compare.Group], metric: str) -> None:
    """Name the best config, by its mean where it was run from several seeds, and its command."""
    if not groups or not groups[0].values(metric):
        print("none of these runs is finished")
        return
    best = next(iter(groups[0].rows.values()))
    value = groups[0].summary(metric) if len(groups[0].rows) > 1 else f"{best.metrics[metric]:.4f}"
    print(f"best by {metric}: {value}, {best.folder}")
    if best.overrides:
        parent = best.folder.parent.name if best.folder.parent.name.endswith("_sweep") else best.folder.name
        print(results.command_of(best, f"{parent.removesuffix('_sweep')}_best"))


def _print_comparison(groups: Sequence[compare.Group], keys: Sequence[str], metric: str) -> None:
    if len(groups) < 2:
        print(
            "nothing to compare: the finished runs differ in seeds alone" if groups else "no run is finished"
        )
        for group in groups:
            print(f"  {metric} {group.summary(metric)}")
        return
    labels = compare.labels_of(groups, keys)
    print(f"\n{metric} by config, runs that differ in seeds alone together:")
    for label, group in zip(labels, groups, strict=True):
        print(f"  {label}: {group.summary(metric)}")
    print("\nconfigs differ in:")
    for key, values in compare.differences(groups).items():
        print(f"  {key}: {', '.join(results.text_of(value) for value in values)}")
    print(f"\nagainst the best ({labels[0]}), seed by seed:")
    for label, group in zip(labels[1:], groups[1:], strict=True):
        print(f"  {label}: {compare.verdict(group, groups[0], metric)}")
    if len(groups) > 2:
        print(f"  (each of {len(groups) - 1} comparisons by itself: of many, some look sure by chance)")
