"""`mm-llama eval prosody`: predicted lengths, pitch and power beside those of recordings, and of a second run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mm_llama.cli.eval_tts import add_data, log_mel, source_of


def add_parser(tasks: Any) -> argparse.ArgumentParser:
    """Add the task to `mm-llama eval`."""
    task: argparse.ArgumentParser = tasks.add_parser(
        "prosody",
        help="how long, high and loud phones are predicted to be: errors, and a paired test of two runs",
    )
    add_data(task)
    task.add_argument("--beside", type=Path, metavar="RUN", help="a second prosody run, to be compared with")
    task.add_argument(
        "--style", metavar="NAME", help="in which all is said (default: that of the recordings, or 0)"
    )
    task.add_argument(
        "--beside-style", metavar="NAME", help="the same run, said in this style, to be compared with"
    )
    return task


def run(args: argparse.Namespace, model: Any, tokenizer: Any, chat: Any, progress: Any) -> dict[str, Any]:
    """Predict, print; returns the numbers."""
    import json

    from mm_llama.build import load_model
    from mm_llama.eval.prosody import compared, evaluate_prosody, table_of
    from mm_llama.eval.vqa_result import write_text

    if args.beside and args.beside_style:
        raise ValueError("--beside and --beside-style are both what is compared with: leave one of them out")
    source, mel = source_of(args.data, args.split, args.aligner), log_mel(model)
    rest: dict[str, Any] = {"limit": args.limit, "progress": progress}
    parts = model, tokenizer, chat, source, mel
    results = [(str(args.adapter[-1]), evaluate_prosody(*parts, style=args.style, **rest))]
    if args.beside:
        other = load_model(args.core, [args.beside], model.dtype, args.device)
        results.append((str(args.beside), evaluate_prosody(*other, source, mel, style=args.style, **rest)))
    if args.beside_style:
        other_style = evaluate_prosody(*parts, style=args.beside_style, **rest)
        results.append((f"in style {args.beside_style}", other_style))
    found: dict[str, Any] = {"runs": {name: result.to_json() for name, result in results}}
    if len(results) > 1:
        found["compared"] = compared(results[0][1], results[1][1])
    if args.out:
        write_text(args.out, json.dumps(found, indent=2) + "\n")
    if not args.json:
        from rich.console import Console

        Console().print(table_of(results))
        for name, one in found.get("compared", {}).items():
            print(
                f"{name}: squared error {100 * one['less']:+.1f} % less than the second, p = {one['p']:.4f}"
            )
    return found
