"""`mm-llama eval normalization`: written text read by a normaliser, beside how it should be read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_llama.data.sources import Source

RECIPE = "normalization"


def add_parser(tasks: Any) -> argparse.ArgumentParser:
    """Add the task to `mm-llama eval`."""
    task: argparse.ArgumentParser = tasks.add_parser(
        RECIPE, help="written text to spoken: texts with every rule right, by class"
    )
    task.add_argument(
        "--data", default=RECIPE, help=f"{RECIPE}, or a JSONL file of texts with rules (default: %(default)s)"
    )
    task.add_argument("--split", default="test", help="of the recipe: test or holdout (default: %(default)s)")
    task.add_argument(
        "--show", type=int, default=5, metavar="N", help="print N wrong ones (default: %(default)s)"
    )
    task.add_argument(
        "--answers", type=Path, metavar="FILE", help="every text as JSONL (default: beside --out)"
    )
    return task


def run(args: argparse.Namespace, model: Any, tokenizer: Any, chat: Any, progress: Any) -> dict[str, Any]:
    """Read, print, write; returns the numbers."""
    from mm_llama.eval.normalization import evaluate_normalization

    result = evaluate_normalization(
        model, tokenizer, chat, source_of(args.data, args.split), limit=args.limit, progress=progress
    )
    if args.out:
        result.write(args.out, args.answers or args.out.with_name(f"{args.out.stem}_answers.jsonl"))
    if not args.json:
        from rich.console import Console

        Console().print(result.table())
        for record in [one for one in result.records() if not one["right"]][: args.show]:
            print(f"{record['text']}\n  said   {record['said']}\n  truth  {record['truth']}")
    return result.to_json()


def source_of(data: str, split: str) -> Source:
    """Return the rows that `--data` names: the recipe's split, or those of a file."""
    from mm_llama.data.sources import JsonlChat

    if data != RECIPE:
        return JsonlChat(data)
    from mm_llama.assets import asset
    from mm_llama.data.normalization import normalization
    from mm_llama.paths import cache_dir

    return normalization(asset("llamafactory_data"), cache_dir() / "data" / RECIPE, split)
