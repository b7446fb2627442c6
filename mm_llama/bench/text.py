"""`mm-llama bench text`: a core against transformers' Llama on the same weights, and against what the machine can do.

First all sides must give the same logits and tokens; then reading a prompt, the first token, decoding one row and
eight, whole answers, a fresh process and its memory are measured in turns. int8 is measured beside them, with what it
changes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from mm_llama.bench.measure import machine_facts, megabytes, positive, run_file, show_table, write_facts
from mm_llama.cli.parser import Parser

EXAMPLES = """examples:
  mm-llama bench text
  mm-llama bench text --threads 1 --dtype float32
  mm-llama bench text --device cuda --core llama3_2_1b --random --starts 0
"""
# Of the logits' scale; in bfloat16 each side rounds every product in an order of its own.
TOLERANCES = {"float32": 1e-5, "bfloat16": 5e-2}
SIDES = {"ours": "ours", "attached": "with adapter", "int8": "int8", "theirs": "transformers"}


def main(argv: list[str]) -> int:
    """Compare, measure, print tables; exit code 0, or 1 when what should be equal differs."""
    args = _parser().parse_args(argv)
    for name in ("prompt_tokens", "new_tokens", "rows", "repeats"):
        positive(f"--{name.replace('_', '-')}", getattr(args, name))
    import torch

    from mm_llama.bench.text_comparison import SHORT, Comparison
    from mm_llama.bench.vision_pair import transformers_version
    from mm_llama.core.export import export_hf
    from mm_llama.dtypes import choose_dtype, dtype_name

    version = transformers_version()
    if args.threads:
        torch.set_num_threads(positive("--threads", args.threads))
    dtype = choose_dtype(args.dtype, args.device)
    if dtype_name(dtype) not in TOLERANCES:
        raise ValueError(f"--dtype is {dtype_name(dtype)}, expected one of auto, {', '.join(TOLERANCES)}")
    model, tokenizer, chat = _model(args, dtype)
    length = max(SHORT, args.prompt_tokens)
    tokens = prompts(tokenizer, model.core.config.vocab_size, args.rows, length)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "core"
        if args.starts:
            export_hf(model.core, tokenizer, folder, chat=chat.name if chat else "plain")
        run = Comparison(
            model,
            tokens,
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            repeats=args.repeats,
            attention=args.attention,
        )
        facts: dict[str, Any] = {
            "bench": "text",
            "command": " ".join(["mm-llama bench text", *argv]),
            "core": args.core,
            "dtype": dtype_name(dtype),
            "device": args.device,
            "prompt_tokens": args.prompt_tokens,
            "new_tokens": args.new_tokens,
            "rows": args.rows,
            "repeats": args.repeats,
            "transformers": version,
            "attention": args.attention,
            "machine": machine_facts(),
            "parameters": sum(weight.numel() for weight in model.core.parameters()),
            "flops": run.flops,
            "equality": run.equality(TOLERANCES[dtype_name(dtype)]),
        }
        wrong = [entry for entry in facts["equality"] if not entry["ok"]]
        if not wrong:
            facts["times"] = run.times()
            facts["roofline"] = run.roofline(facts["times"], dtype)
            if args.quality and tokenizer is not None:
                facts["quality"] = run.quality(documents(tokenizer, args.quality))
            if args.starts:
                facts["fresh"] = run.fresh(folder, dtype_name(dtype), args.threads, args.starts)
    path = args.json or run_file("text")
    write_facts(path, facts)
    show(facts)
    print(f"written to {path}")
    if wrong:
        which = ", ".join(f"{SIDES[entry['side']]}, {entry['case']}" for entry in wrong)
        print(
            f"error: the two models differ ({which}), so their speeds are not comparable and were not measured",
            file=sys.stderr,
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mm-llama bench text",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--core", default="smollm2_135m", help="a name of conf/core (default: %(default)s)")
    add("--random", action="store_true", help="random weights of that core's shape, drawn on the device")
    add("--image", default="", help="modality/image to attach (default: one that suits the core)")
    add("--dtype", default="auto", help="auto, float32 or bfloat16 (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--threads", type=int, default=0, help="of torch (default: as torch chooses)")
    add("--prompt-tokens", type=int, default=256, help="of the prompt that is read (default: %(default)s)")
    add("--new-tokens", type=int, default=64, help="to decode (default: %(default)s)")
    add("--rows", type=int, default=8, help="of the larger batch (default: %(default)s)")
    add(
        "--attention",
        choices=("sdpa", "eager"),
        default="sdpa",
        help="of transformers (default: %(default)s)",
    )
    add("--repeats", type=int, default=7, help="rounds, of which medians are taken (default: %(default)s)")
    add(
        "--starts",
        type=int,
        default=3,
        help="fresh processes of each side, 0 for none (default: %(default)s)",
    )
    add("--quality", type=int, default=100, help="documents to tell perplexity by (default: %(default)s)")
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the numbers here (default: runs/bench_text/TIME.json)",
    )
    return parser


def _model(args: argparse.Namespace, dtype: Any) -> tuple[Any, Any, Any]:
    """Return the core with an untrained image adapter on it, its tokenizer and its chat format."""
    from mm_llama.build import build_model, compose_config, resolve

    image = args.image or ("tiny" if args.core == "tiny" or args.random else "efficientnet_lite0")
    names = [f"core={args.core}", f"modality/image={image}", "stage=none"]
    names += ["core.source=random", "core.tokenizer=null"] if args.random and args.core != "tiny" else []
    model, tokenizer, chat = build_model(resolve(compose_config("train", names)), dtype, args.device)
    for modality in model.modality.values():
        modality.to(dtype)
    return model, tokenizer, chat


def prompts(tokenizer: Any, vocab_size: int, rows: int, length: int) -> Any:
    """Return int64[rows, length] of real text, each row from elsewhere in it; random ids without a tokenizer."""
    import torch

    if tokenizer is None:
        return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    from mm_llama.eval.text_parity import TEXTS

    ids = [token for text in TEXTS for token in tokenizer.encode(text + " ")]
    ids *= -(-(length + rows * 17) // len(ids))
    return torch.tensor([ids[17 * row : 17 * row + length] for row in range(rows)])


def documents(tokenizer: Any, count: int) -> list[list[int]]:
    """Return the tokens of that many answers of instruction data, each of at least 32 and at most 512."""
    import json

    from mm_llama.assets import asset

    rows = json.loads((asset("llamafactory_data") / "alpaca_en_demo.json").read_text("utf-8"))
    encoded = (tokenizer.encode(row["output"])[:512] for row in rows)
    return [ids for ids in encoded if len(ids) >= 32][:count]


def show(facts: dict[str, Any]) -> None:
    """Print the numbers as tables."""
    machine, flops = facts["machine"], facts["flops"]
    show_table(
        f"{facts['core']}, {facts['parameters'] / 1e6:.1f}M, {facts['dtype']}, against transformers "
        f"{facts['transformers']} ({facts['attention']}) on the same weights",
        ("case", "side", "logits differ", "tokens lose", "at most", "same tokens", ""),
        [
            (
                entry["case"],
                SIDES[entry["side"]],
                f"{entry['logits']:.1e}",
                f"{entry['tokens']:.1e}",
                "" if entry["tolerance"] is None else f"{entry['tolerance']:.0e}",
                f"{entry['same_tokens']:.0%}",
                "ok" if entry["ok"] else "FAILED",
            )
            for entry in facts["equality"]
        ],
    )
    print(
        f"Operations of reading {facts['prompt_tokens']} tokens: {flops['formula'] / 1e9:.2f} G by formula, "
        f"{flops['ours'] / 1e9:.2f} G counted of ours, {flops['theirs'] / 1e9:.2f} G of transformers.\n"
    )
    if "times" not in facts:
        return
    sides = [side for side in SIDES if any(side in entry for entry in facts["times"])]
    ours = [side for side in sides if side not in ("theirs", "attached")]
    columns = ["case", *(SIDES[side] for side in sides)]
    for what in ("faster", "by CPU time"):
        columns += [f"{SIDES[side]} {what}" for side in ours]
    columns += ["asked", *(f"{SIDES[side]} of roof" for side in ours)]
    rows = []
    for entry in [*facts["times"], *facts.get("fresh", [])]:
        shares = [entry.get(side, {}).get("share") for side in ours]
        asked = [entry.get(side, {}).get("asked") for side in ours]
        rows.append(
            (
                entry["case"],
                *(_value(entry.get(side)) for side in sides),
                *(
                    f"{entry[side][key]:.2f}x" if key in entry.get(side, {}) else ""
                    for key in ("times", "times_cpu")
                    for side in ours
                ),
                ", ".join(f"{value}x" for value in asked if value),
                *("" if share is None else f"{share:.0%}" for share in shares),
            )
        )
    show_table(
        f"{machine['processor']}, {machine['threads']} threads, load {machine['load']}; medians of "
        f"{facts['repeats']}, in turns",
        columns,
        rows,
    )
    roof = facts["roofline"]
    reads = ", ".join(
        f"{rate / 1e9:.0f} GB/s of {int(size) / 1e6:.0f} MB"
        for size, rate in roof["read_bytes_per_s"].items()
    )
    print(f"Roof: {roof['gemm_flops'] / 1e9:.0f} GFLOP/s in matrix products; reads {reads}.")
    if "quality" in facts:
        told = ", ".join(
            f"{SIDES[side]} {value:.3f}" for side, value in facts["quality"]["perplexity"].items()
        )
        print(f"Perplexity over {facts['quality']['tokens']:,} tokens of answers: {told}.")
    costs = ", ".join(
        f"{entry['case']} {1 / entry['attached']['of_plain'] - 1:+.1%}" for entry in facts["times"]
    )
    print(f"Time with an image adapter attached, of text alone, against the plain core: {costs}.")


def _value(entry: dict[str, float] | None) -> str:
    if entry is None:
        return ""
    if "tokens_per_s" in entry:
        return f"{entry['tokens_per_s']:,.0f} tok/s"
    if "peak_bytes" in entry:
        return megabytes(entry["peak_bytes"])
    return f"{entry['wall_s']:.2f} s" if entry["wall_s"] >= 1 else f"{1e3 * entry['wall_s']:.1f} ms"
