"""`mm-llama bench train`: a step of training an image adapter on a frozen core, against transformers' Mllama.

Both have the same weights, freeze the same parts, see the same batch and the same masks: rows with one picture each,
of which both get the features ready; targets are the last tokens of a row. A step is forward, backward, clipping and
AdamW. Losses of the first steps must agree before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mm_llama.bench.measure import (
    interleaved,
    machine_facts,
    megabytes,
    positive,
    run_file,
    show_table,
    times_faster,
    write_facts,
)
from mm_llama.bench.sizes import SIZES
from mm_llama.cli.parser import Parser

EXAMPLES = """examples:
  mm-llama bench train
  mm-llama bench train --dtype float32 --rows 8 --text-tokens 64
"""
# Of the loss, at each of the first steps. In bfloat16 each side rounds every product in an order of its own, and
# only ours keeps float32 masters of what trains.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}
CHECKED_STEPS = 3
SIDES = {
    "ours": "ours",
    "remembered": "ours, prefixes remembered",
    "theirs": "transformers, all in its dtype",
    "masters": "transformers, float32 masters",
}
ASKED = 0.6  # of transformers' time, at most


def main(argv: list[str]) -> int:
    """Compare losses, time steps, print a table; exit code 0, or 1 when the losses differ."""
    args = _parser().parse_args(argv)
    for name in ("rows", "text_tokens", "answer_tokens", "media_tokens", "repeats"):
        positive(f"--{name.replace('_', '-')}", getattr(args, name))
    if args.answer_tokens > args.text_tokens:
        raise ValueError(
            f"--answer-tokens {args.answer_tokens} are part of --text-tokens {args.text_tokens}: ask for fewer"
        )
    import torch

    from mm_llama.bench.roofline import flops_of, gemm_flops
    from mm_llama.bench.train_pair import make_sides
    from mm_llama.bench.vision_pair import transformers_version
    from mm_llama.dtypes import choose_dtype, dtype_name

    version = transformers_version()
    if args.threads:
        torch.set_num_threads(positive("--threads", args.threads))
    dtype = choose_dtype(args.dtype, args.device)
    if dtype_name(dtype) not in TOLERANCES:
        raise ValueError(f"--dtype is {dtype_name(dtype)}, expected one of auto, {', '.join(TOLERANCES)}")
    tolerance = TOLERANCES[dtype_name(dtype)]
    ours, theirs = make_sides(args, dtype)
    peers = dict(zip(("theirs", "masters"), theirs, strict=False))
    steppers = {"ours": ours.step} | {side: peer.step for side, peer in peers.items()}
    losses = {side: [step() for _ in range(CHECKED_STEPS)] for side, step in steppers.items()}
    # A peer without float32 masters rounds its updates away: it is compared before the first of them.
    steps = {peer: 1 if "masters" in peers and peer == "theirs" else CHECKED_STEPS for peer in peers}
    difference = max(
        abs(a - b) / abs(b)
        for peer, count in steps.items()
        for a, b in zip(losses["ours"][:count], losses[peer][:count], strict=True)
    )
    facts: dict[str, Any] = {
        "bench": "train",
        "command": " ".join(["mm-llama bench train", *argv]),
        "size": args.size,
        "dtype": dtype_name(dtype),
        "device": args.device,
        "rows": args.rows,
        "text_tokens": args.text_tokens,
        "answer_tokens": args.answer_tokens,
        "media_tokens": args.media_tokens,
        "repeats": args.repeats,
        "transformers": version,
        "machine": machine_facts(),
        "parameters": {
            "frozen": sum(weight.numel() for weight in ours.model.core.parameters()),
            "trained": sum(weight.numel() for weight in ours.trained),
        },
        "losses": losses,
        "difference": difference,
        "tolerance": tolerance,
    }
    if difference <= tolerance:
        calls = {"ours": ours.step, "remembered": ours.remembering}
        calls |= {side: peer.step for side, peer in peers.items()}
        timings = interleaved(calls, args.repeats)
        rate = gemm_flops(dtype, device=args.device)
        facts["gemm_flops"] = rate
        facts["steps"] = {}
        for side, call in calls.items():
            entry: dict[str, Any] = timings[side].record() | {"flops": flops_of(call, training=True)}
            entry["share"] = entry["flops"] / entry["wall_s"] / rate
            if side not in peers:
                entry["of"] = {peer: 1 / times_faster(timings[side], timings[peer])["wall"] for peer in peers}
            facts["steps"][side] = entry
        facts["remembered_bytes"] = ours.memory.num_bytes
    path = args.json or run_file("train")
    write_facts(path, facts)
    show(facts)
    print(f"written to {path}")
    if difference > tolerance:
        print(
            f"error: the losses differ by {difference:.1e}, more than {tolerance:.0e}: "
            f"{'; '.join(', '.join(f'{loss:.5f}' for loss in one) for one in losses.values())}; "
            "steps that compute different things were not timed",
            file=sys.stderr,
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mm-llama bench train",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--size", choices=SIZES, default="smollm2", help="of core and adapter (default: %(default)s)")
    add("--dtype", default="auto", help="auto, float32 or bfloat16 (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--threads", type=int, default=0, help="of torch (default: as torch chooses)")
    add("--rows", type=int, default=16, help="of a batch, a picture each (default: %(default)s)")
    add("--text-tokens", type=int, default=24, help="of a row (default: %(default)s)")
    add("--answer-tokens", type=int, default=3, help="the last of them, the targets (default: %(default)s)")
    add("--media-tokens", type=int, default=49, help="of a picture (default: %(default)s)")
    add(
        "--attention",
        choices=("sdpa", "eager"),
        default="sdpa",
        help="of transformers (default: %(default)s)",
    )
    add("--repeats", type=int, default=7, help="rounds, of which medians are taken (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, features and tokens (default: %(default)s)")
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the numbers here (default: runs/bench_train/TIME.json)",
    )
    return parser


def show(facts: dict[str, Any]) -> None:
    """Print the numbers as a table."""
    machine, count = facts["machine"], facts["parameters"]
    print(
        f"{count['frozen'] / 1e6:.1f}M frozen, {count['trained'] / 1e6:.1f}M trained, {facts['dtype']}; losses of "
        f"{CHECKED_STEPS} steps differ by {facts['difference']:.1e} (at most {facts['tolerance']:.0e}).\n"
    )
    if "steps" not in facts:
        return
    peers = [side for side in ("theirs", "masters") if side in facts["steps"]]
    rows = [
        (
            SIDES[side],
            f"{1e3 * entry['wall_s']:.0f} ms",
            f"{facts['rows'] / entry['wall_s']:.1f}",
            *(f"{entry['of'][peer]:.2f}" if "of" in entry else "" for peer in peers),
            f"{ASKED}" if "of" in entry else "",
            f"{entry['flops'] / 1e9:.0f} G",
            f"{entry['share']:.0%}",
        )
        for side, entry in facts["steps"].items()
    ]
    show_table(
        f"{facts['rows']} rows of {facts['text_tokens']} tokens and a picture of {facts['media_tokens']}; "
        f"{machine['processor']}, {machine['threads']} threads, load {machine['load']}; medians of "
        f"{facts['repeats']}, in turns; transformers {facts['transformers']}",
        (
            "a step of",
            "time",
            "rows/s",
            *("of " + SIDES[peer].replace("transformers, ", "theirs, ") for peer in peers),
            "at most",
            "operations",
            "of the roof",
        ),
        rows,
    )
    print(
        f"Roof: {facts['gemm_flops'] / 1e9:.0f} GFLOP/s in matrix products. Operations are those that were done, "
        "frozen parts included.\n"
        f"Remembered prefixes hold {megabytes(facts['remembered_bytes'])}; every row was seen before."
    )
