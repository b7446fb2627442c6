"""`mm-llama proof --adapter RUN`: is the text model unchanged, to the bit? Exit code 0 for yes, 1 for no."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mm_llama.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Compare the plain core with the core under the adapters; print a table or one JSON object."""
    parser = Parser(
        prog="mm-llama proof",
        description="Compare the plain text model with the same model under trained adapters: SHA-256 of its "
        "weights, every logit of several texts (alone, in batches, cached, beside pictures), and MMLU.",
    )
    parser.add_argument(
        "--adapter", action="append", type=Path, required=True, metavar="RUN", help="repeatable"
    )
    parser.add_argument("--core", default="smollm2_135m", help="name or checkpoint (default: %(default)s)")
    parser.add_argument("--mmlu", type=int, default=0, metavar="N", help="MMLU questions too (2850: all)")
    parser.add_argument("--dtype", default="", help="default: the one the adapter was trained in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the whole result there as well")
    args = parser.parse_args(argv)
    if args.mmlu < 0:
        raise ValueError(f"--mmlu is {args.mmlu}, expected a number of questions")

    import torch

    from mm_llama.eval.vqa_result import write_text
    from mm_llama.proof import prove_text_unchanged

    if args.threads:
        torch.set_num_threads(args.threads)
    proof = prove_text_unchanged(
        args.adapter,
        core=args.core,
        num_mmlu=args.mmlu,
        dtype=args.dtype,
        device=args.device,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    text = json.dumps(proof, indent=2) + "\n"
    if args.out:
        write_text(args.out, text)
    if args.json:
        print(text, end="")
    else:
        _print(proof)
    return 0 if proof["identical"] else 1


def _print(proof: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"text with and without the adapter, {proof['dtype']}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("compared")
    table.add_column("logits", justify="right")
    table.add_column("difference", justify="right")
    table.add_column("")
    for case in proof["cases"]:
        result = "equal" if case["equal"] else "DIFFERENT"
        table.add_row(case["name"], f"{case['num_values']:,}", f"{case['max_delta']:.3g}", result)
    console = Console()
    console.print(table)
    core = proof["core"]
    print(f"core weights, plain     {core['plain']}")
    print(f"core weights, attached  {core['attached']}")
    print(f"checkpoint              {core['checkpoint']}")
    print(f"recorded at training    {core['recorded'] or 'nothing'}")
    if core["num_tensors_known_before_training"]:
        changed = core["changed_since_training"]
        said = f"{len(changed)} CHANGED: {', '.join(changed[:5])}" if changed else "all as before training"
        print(f"single tensors          {core['num_tensors_known_before_training']} compared, {said}")
    if proof["control"]:
        print(
            "control                 where pictures are seen, logits move by up to "
            f"{proof['control']['max_delta']:.3g}"
        )
    if "mmlu" in proof:
        mmlu = proof["mmlu"]
        for key in ("plain", "attached"):
            side = mmlu[key]
            print(f"MMLU {mmlu['num_items']} {key:<9}      {100 * side['accuracy']:.2f} %  {side['digest']}")
    print(f"\ntext unchanged: {'yes, bit for bit' if proof['identical'] else 'NO'}")
