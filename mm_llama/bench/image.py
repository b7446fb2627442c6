"""`mm-llama bench image`: a model of the released vision layout against transformers, on the same weights.

First both must give the same logits; then time to the first token, decoding, the picture's share of the cache, and the
image towers are measured in turns, beside what this machine can do at best. Sizes are the 11B's, scaled down.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mm_llama.bench.measure import machine_facts, megabytes, positive, run_file, show_table, write_facts
from mm_llama.bench.sizes import SIZES
from mm_llama.cli.parser import Parser

EXAMPLES = """examples:
  mm-llama bench image
  mm-llama bench image --threads 1 --dtype bfloat16 --repeats 9 --json image.json
"""
# Of the logits' scale; in bfloat16 each side rounds every product in an order of its own.
TOLERANCES = {"float32": 2e-6, "bfloat16": 5e-2}


def main(argv: list[str]) -> int:
    """Compare, measure, print tables; exit code 0, or 1 when the logits differ."""
    args = _parser().parse_args(argv)
    for name in ("text_tokens", "new_tokens", "repeats"):
        positive(f"--{name.replace('_', '-')}", getattr(args, name))
    import torch

    from mm_llama.bench.image_comparison import Comparison
    from mm_llama.bench.vision_pair import (
        Ours,
        Theirs,
        random_model,
        same_in_transformers,
        scaled_sizes,
        transformers_version,
    )
    from mm_llama.dtypes import DTYPES

    version = transformers_version()
    if args.threads:
        torch.set_num_threads(positive("--threads", args.threads))
    sizes = scaled_sizes(args.size)
    model = random_model(sizes, DTYPES[args.dtype], seed=args.seed)
    ours, theirs = Ours(model), Theirs(same_in_transformers(model))
    theirs.tap_before()
    run = Comparison(ours, theirs, args.text_tokens, args.new_tokens, args.repeats, args.seed)
    facts: dict[str, Any] = {
        "bench": "image",
        "command": "mm-llama bench image " + " ".join(argv),
        "size": args.size,
        "dtype": args.dtype,
        "text_tokens": args.text_tokens,
        "new_tokens": args.new_tokens,
        "repeats": args.repeats,
        "transformers": version,
        "machine": machine_facts(),
        "parameters": {
            "core": _count(model.core),
            "adapter": _count(model.modality["image"].adapter),
            "tower": _count(model.modality["image"].encoder),
        },
        "equality": run.differences(TOLERANCES[args.dtype]),
    }
    wrong = [entry for entry in facts["equality"] if not entry["ok"]]
    if not wrong:
        facts |= {
            "cache_bytes": run.cache_bytes(),
            "times": [*run.first_token(), *run.decoding(), *run.answers(), *run.towers(args.seed)],
            "early_skip": run.early_skip(),
        }
        facts["roofline"] = run.roofline(facts["times"])
    path = args.json or run_file("image")
    write_facts(path, facts)
    show(facts)
    print(f"written to {path}")
    if wrong:
        print(
            f"error: the two models differ ({', '.join(entry['case'] for entry in wrong)}), so their speeds are not "
            "comparable and were not measured",
            file=sys.stderr,
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mm-llama bench image",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size", choices=SIZES, default="small", help="how far the 11B is scaled down (default small)"
    )
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32", help="of weights and compute")
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: as torch chooses)")
    parser.add_argument("--text-tokens", type=int, default=64, help="behind the picture (default 64)")
    parser.add_argument("--new-tokens", type=int, default=64, help="to decode (default 64)")
    parser.add_argument(
        "--repeats", type=int, default=7, help="rounds, of which medians are taken (default 7)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, pictures and tokens (default 0)")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the numbers here (default: runs/bench_image/TIME.json)",
    )
    return parser


def _count(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


def show(facts: dict[str, Any]) -> None:
    """Print the numbers as tables."""
    machine = facts["machine"]
    millions = ", ".join(f"{name} {count / 1e6:.1f}M" for name, count in facts["parameters"].items())
    show_table(
        f"Same weights in mm_llama and transformers {facts['transformers']} ({millions}; {facts['dtype']}): logits",
        ("case", "difference / scale", "at most", ""),
        [
            (
                entry["case"],
                f"{entry['difference']:.1e}",
                f"{entry['tolerance']:.0e}",
                "ok" if entry["ok"] else "FAILED",
            )
            for entry in facts["equality"]
        ],
    )
    if "times" not in facts:
        return
    rows = []
    for entry in facts["times"]:
        speed = [
            f"{entry[side]['tokens_per_s']:.0f} tok/s"
            if "tokens_per_s" in entry[side]
            else _ms(entry[side]["wall_s"])
            for side in ("ours", "theirs")
        ]
        share = f"{entry['ours']['share']:.0%}" if "share" in entry["ours"] else ""
        asked = f"{entry['asked']:.1f}x" if entry["asked"] else ""
        faster = entry["times_faster"]
        rows.append((entry["case"], *speed, f"{faster['wall']:.2f}x", f"{faster['cpu']:.2f}x", asked, share))
    show_table(
        f"{facts['text_tokens']} text tokens behind a picture; {machine['processor']}, {machine['threads']} threads, "
        f"load {machine['load']}; medians of {facts['repeats']}",
        ("case", "ours", "transformers", "faster", "by CPU time", "asked", "of the roof"),
        rows,
    )
    show_table(
        "Keys and values of one picture",
        ("case", "ours", "transformers", "share"),
        [
            (e["case"], megabytes(e["ours"]), megabytes(e["theirs"]), f"{e['share']:.1%}")
            for e in facts["cache_bytes"]
        ],
    )
    roof = facts["roofline"]
    print(f"Roof: {roof['gemm_flops'] / 1e9:.0f} GFLOP/s in matrix products", end="")
    for case, rate in roof["read_bytes_per_s"].items():
        bound = next(entry["bound_tokens_per_s"] for entry in facts["times"] if entry["case"] == case)
        print(f"; reads {rate / 1e9:.1f} GB/s, so at most {bound:.0f} tokens/s ({case})", end="")
    skip = facts["early_skip"]
    print(
        f".\nEarly skip (drop_absent), one tile: {_ms(skip['ours']['wall_s'])} to the first token rather than "
        f"{_ms(skip['theirs']['wall_s'])}; logits change by {skip['difference']:.1e} of their scale, the best "
        f"token stays at {skip['same_best_token']:.0%} of the positions."
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
