"""`mm-llama average RUN... --out DIR`: rank finished runs, average the weights of the best, leave a run folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.cli.parser import Parser

if TYPE_CHECKING:
    from torch import Tensor

    from mm_llama.average import Candidate

EXAMPLES = """examples:
  mm-llama train stage=image_sft sweep=image_sft
  mm-llama average runs/image_sft_sweep --out runs/image_sft_average --top auto
  mm-llama average runs/a runs/b runs/c --out runs/abc --metric loss --top 2
"""


def main(argv: list[str]) -> int:
    """Rank, average, write; exit code 0."""
    args = _parser().parse_args(argv)
    top = _top(args.top)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"{args.out} exists already: choose another --out, or delete it")
    from mm_llama.average import began_alike, find_runs, rank, read_candidate, write_average

    runs, left_out = find_runs(args.runs)
    for text in left_out:
        print(f"left out: {text}", file=sys.stderr)
    lowest = True if args.lowest else False if args.highest else None
    ranking = rank([read_candidate(run) for run in runs], args.metric, lowest=lowest)
    if top is not None and top > len(ranking):
        raise ValueError(f"--top {top}: there are only {len(ranking)} runs to average")
    chosen = ranking if top is None else ranking[:top]
    if not began_alike(chosen):
        print(
            "note: these runs did not start from the same tensors (another seed or stage.init); the average of such "
            "runs is seldom of use",
            file=sys.stderr,
        )
    evaluated = args.eval or args.top == "auto"
    num, tensors, measured = _choose(chosen, args, evaluated)
    ranks = _ranking(ranking, args.metric, num)
    facts = {"ranking": ranks, "metric": args.metric, "left_out": left_out, "averages": measured}
    final = measured[num - 1] if measured else {}
    final = {key: value for key, value in final.items() if key != "top"}
    checkpoint = write_average(args.out, ranking[:num], tensors, metric=args.metric, final=final, facts=facts)
    if args.json:
        print(json.dumps(facts | {"top": num, "out": str(args.out), "checkpoint": str(checkpoint)}, indent=2))
    else:
        _print_tables(ranks, args.metric, measured, num)
        print(f"the average of the best {num} -> {args.out}" if num > 1 else f"the best alone -> {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mm-llama average",
        description="Rank finished runs by a metric and average the weights of the best into a run of their own.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run or of a sweep, or one checkpoint of a run")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the average; must not exist")
    add(
        "--top",
        default="all",
        metavar="K",
        help="how many of the best: a number, all, or auto (the number whose average evaluates best; default: all)",
    )
    add("--metric", default="eval.answers", help="of each run's summary.json (default: %(default)s)")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--lowest", action="store_true", help="less of the metric is better")
    order.add_argument(
        "--highest", action="store_true", help="more of the metric is better (default: by its name)"
    )
    add(
        "--eval",
        action="store_true",
        help="evaluate the average of the best one, two, ... on the stage's own held-out rows",
    )
    add("--device", help="where to evaluate (default: where the best run trained)")
    add("--threads", type=int, help="torch threads of the evaluation (default: as in training)")
    add("--json", action="store_true", help="print the result as JSON instead of tables")
    return parser


def _top(text: str) -> int | None:
    """Return how many to average at most; None: all."""
    if text in ("all", "auto"):
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--top is {text!r}, expected a number from 1 on, all, or auto")
    return int(text)


def _choose(
    chosen: Sequence[Candidate], args: argparse.Namespace, evaluated: bool
) -> tuple[int, Mapping[str, Tensor], list[dict[str, Any]]]:
    """Return how many are averaged, their average, and what the averages of one, two, ... measured."""
    from mm_llama.average import is_less_better, prefix_averages

    averages = prefix_averages(chosen)
    if not evaluated:
        *_, last = averages
        return len(chosen), last, []
    evaluate = _evaluation(chosen[0], args)
    key = args.metric if args.metric.startswith("eval.") else "eval.answers"
    less = is_less_better(key) if key != args.metric or not (args.lowest or args.highest) else args.lowest
    measured: list[dict[str, Any]] = []
    best: tuple[float, int, Mapping[str, Tensor]] | None = None
    for number, tensors in enumerate(averages, start=1):
        found = {f"eval.{name}": float(value) for name, value in evaluate(tensors).items()}
        if key not in found:
            raise ValueError(f"the held-out evaluation of {chosen[0].run} gives {sorted(found)}, not {key}")
        measured.append({"top": number, **found})
        print(f"average of the best {number}: {key} {found[key]:.4f}", file=sys.stderr)
        score = found[key] * (-1 if less else 1)
        # Of equals the smaller number: fewer runs say the same.
        if best is None or score > best[0] or args.top != "auto":
            best = score, number, tensors
    assert best is not None
    return best[1], best[2], measured


def _evaluation(best: Candidate, args: argparse.Namespace) -> Any:
    """Return a function from trained tensors to what the stage's held-out evaluation measures of them."""
    import torch

    from mm_llama.stage_run import held_out_evaluation
    from mm_llama.stages.checkpoint import trained_tensors
    from mm_llama.targets import check_run_config

    config = dict(best.config)
    check_run_config(config, str(best.run))
    if args.device:
        config["device"] = args.device
    if threads := args.threads or config.get("threads"):
        torch.set_num_threads(threads)
    model, evaluate = held_out_evaluation(config)
    targets = trained_tensors(model, best.state["train"])

    def measure(tensors: Mapping[str, Tensor]) -> Mapping[str, float]:
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(tensors[name])
            return evaluate(model)

    return measure


def _ranking(ranking: Sequence[Candidate], metric: str, num: int) -> list[dict[str, Any]]:
    from mm_llama.average import settings_of

    return [
        {"rank": place, "run": str(one.run), "step": one.state["step"], metric: one.metrics[metric]}
        | {"settings": settings, "averaged": place <= num}
        for place, (one, settings) in enumerate(zip(ranking, settings_of(ranking), strict=True), start=1)
    ]


def _print_tables(
    ranks: Sequence[Mapping[str, Any]], metric: str, measured: Sequence[Mapping[str, Any]], num: int
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"runs by {metric}")
    for name in ("", "run", "step", metric, "what differs", "averaged"):
        table.add_column(name, justify="right" if name in ("", "step", metric) else "left")
    for row in ranks:
        settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        cells = (str(row["rank"]), row["run"], str(row["step"]), f"{row[metric]:.4f}", settings)
        table.add_row(*cells, "yes" if row["averaged"] else "", style="bold" if row["averaged"] else None)
    console.print(table)
    if measured:
        keys = [key for key in measured[0] if key != "top"]
        table = Table(title="averages of the best")
        for name in ("runs", *keys):
            table.add_column(name, justify="right")
        for row in measured:
            chosen = "bold" if row["top"] == num else None
            table.add_row(str(row["top"]), *(f"{row[key]:.4f}" for key in keys), style=chosen)
        console.print(table)
