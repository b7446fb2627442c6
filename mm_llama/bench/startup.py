"""One fresh process of `mm-llama bench text`: import, load a folder, make tokens; prints seconds and memory.

`python -m mm_llama.bench.startup SIDE FOLDER ...`, where SIDE is `ours`, `int8` or `transformers`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from mm_llama.bench.measure import peak_bytes


def main(argv: list[str]) -> int:
    """Do as a program would that answers one question; exit code 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "int8", "transformers"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--prompt", required=True, help="token ids with commas")
    parser.add_argument("--new-tokens", type=int, required=True)
    args = parser.parse_args(argv)
    ids = [int(part) for part in args.prompt.split(",")]
    measure = theirs if args.side == "transformers" else ours
    print(json.dumps(measure(args, ids)))
    return 0


def ours(args: argparse.Namespace, ids: list[int]) -> dict[str, Any]:
    """Load with `mm_llama.load` and generate."""
    clock = [time.perf_counter()]
    import torch

    from mm_llama import load
    from mm_llama.generation.engine import generate

    if args.threads:
        torch.set_num_threads(args.threads)
    clock.append(time.perf_counter())
    weights = "int8" if args.side == "int8" else "auto"
    model = load(args.folder, dtype=args.dtype, device=args.device, weights=weights).model
    clock.append(time.perf_counter())
    first = generate(model, [ids], max_new_tokens=1)
    clock.append(time.perf_counter())
    made = generate(model, [ids], max_new_tokens=args.new_tokens)
    assert made[0].tokens[:1] == first[0].tokens
    return _facts(clock, made[0].tokens)


def theirs(args: argparse.Namespace, ids: list[int]) -> dict[str, Any]:
    """Load with transformers' automatic classes, model and tokenizer, and generate."""
    clock = [time.perf_counter()]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if args.threads:
        torch.set_num_threads(args.threads)
    clock.append(time.perf_counter())
    AutoTokenizer.from_pretrained(args.folder)
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=getattr(torch, args.dtype)).to(
        args.device
    )
    clock.append(time.perf_counter())
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    tokens = torch.tensor([ids], device=args.device)
    options = {"attention_mask": torch.ones_like(tokens), "do_sample": False}
    model.generate(tokens, max_new_tokens=1, **options)
    clock.append(time.perf_counter())
    made = model.generate(tokens, max_new_tokens=args.new_tokens, **options)
    return _facts(clock, made[0, len(ids) :].tolist())


def _facts(clock: list[float], tokens: list[int]) -> dict[str, Any]:
    imported, loaded, first = (b - a for a, b in zip(clock, clock[1:], strict=False))
    return {
        "import_s": imported,
        "load_s": loaded,
        "first_token_s": first,
        "wall_s": clock[-1] - clock[0],
        "peak_bytes": peak_bytes(),
        "tokens": tokens,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
