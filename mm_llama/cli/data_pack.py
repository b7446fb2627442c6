"""`mm-llama data pack`: data of any form as tar shards; cut off, the same command goes on."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mm_llama.cli.data_check import add_reading
from mm_llama.data.opening import FORMATS, open_data
from mm_llama.data.pack import pack
from mm_llama.paths import cache_dir
from mm_llama.terminal import visible


def add_packing(verbs: Any) -> None:
    """Add the verb to the parsers of `data`."""
    packing = verbs.add_parser("pack", help="write data as tar shards, whole or not at all")
    packing.add_argument("data", metavar="DATA", help=FORMATS)
    packing.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="an empty folder, or one to go on with"
    )
    packing.add_argument(
        "--shard-mb", type=float, default=500.0, help="a shard is full at this (default 500)"
    )
    packing.add_argument("--shard-rows", type=int, default=0, help="or at so many rows (default: no limit)")
    packing.add_argument("--shuffle", type=int, metavar="SEED", help="write the rows in another order")
    packing.add_argument("--decode", action="store_true", help="decode every medium first")
    packing.add_argument(
        "--max-skipped",
        type=int,
        default=0,
        metavar="N",
        help="leave out at most so many bad rows (default 0)",
    )
    packing.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_reading(packing)
    packing.set_defaults(run=_pack)


def _pack(options: argparse.Namespace) -> int:
    on_error = "skip" if options.max_skipped else "error"
    source = open_data(
        options.data,
        on_damage=on_error,
        index=cache_dir() / "shards",
        ignore=options.ignore,
        prompt=options.prompt,
    )
    packed = pack(
        source,
        options.out,
        origin=options.data,
        shard_bytes=int(options.shard_mb * 1e6),
        shard_rows=options.shard_rows,
        shuffle=options.shuffle,
        decode=options.decode,
        on_error=on_error,
        max_skipped=options.max_skipped,
        say=lambda text: print(text, file=sys.stderr),
    )
    if options.json:
        print(json.dumps(packed, indent=1, ensure_ascii=False))
        return 0
    causes = Counter(cause for _, cause, _ in packed["skipped"])
    left_out = "".join(f", {count} {cause}" for cause, count in sorted(causes.items()))
    size = sum(entry["bytes"] for entry in packed["shards"]) / 1e6
    skipped = f"; skipped {causes.total()} rows{left_out}" if causes else ""
    print(
        f"{packed['rows']} rows in {len(packed['shards'])} shards, {size:,.1f} MB -> {options.out}{skipped}"
    )
    for _, cause, what in packed["skipped"][:20]:
        print(visible(f"  {cause}: {what}"))
    return 0
