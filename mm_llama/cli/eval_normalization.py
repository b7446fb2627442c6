"""`mm-llama eval normalization`: written text read by a normaliser, beside how it should be read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_llama.data.sources import Source

RECIPE = "normalization"
HAND_CHECKED = "hand_checked"


def add_parser(tasks: Any) -> argparse.ArgumentParser:
    """Add the task to `mm-llama eval`."""
    task: argparse.ArgumentParser = tasks.add_parser(
        RECIPE, help="written text to spoken: texts with every rule right, by class"
    )
    task.add_argument(
        "--data",
        default=RECIPE,
        help=f"{RECIPE}, {HAND_CHECKED} (200 sentences, by their words), or a JSONL file of texts with rules "
        "(default: %(default)s)",
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
    if args.data == HAND_CHECKED:
        return _hand_checked(args, model, tokenizer, chat)
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


def _hand_checked(args: argparse.Namespace, model: Any, tokenizer: Any, chat: Any) -> dict[str, Any]:
    from mm_llama.eval.hand_checked import evaluate_hand_checked, summary
    from mm_llama.eval.vqa_result import write_text

    checked = evaluate_hand_checked(model, tokenizer, chat)
    found = summary(checked)
    if args.out:
        write_text(args.out, json.dumps(found | {"found": [vars(one) for one in checked]}, indent=2) + "\n")
    if not args.json:
        for name, what in (
            ("right", "said as a person says them"),
            ("agree", "said as nemo-text-processing does"),
            ("grammars_right", "of nemo-text-processing said as a person says them"),
        ):
            print(f"{what}: {found[name]['correct']} of {found['sentences']}")
        for one in [one for one in checked if not one.right][: args.show]:
            print(f"{one.text}\n  said   {one.said}\n  truth  {one.truth}")
    return found


def source_of(data: str, split: str) -> Source:
    """Return the rows that `--data` names: the recipe's split, or those of a file."""
    from mm_llama.data.sources import JsonlChat

    if data != RECIPE:
        return JsonlChat(data)
    from mm_llama.assets import asset
    from mm_llama.data.normalization import normalization
    from mm_llama.paths import cache_dir

    return normalization(asset("llamafactory_data"), cache_dir() / "data" / RECIPE, split)
