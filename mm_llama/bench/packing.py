"""`mm-llama bench packing`: what packing rows is worth on a stage's own data, in padding and in tokens a second.

The same documents are laid out in several ways; forward and backward of each are timed, and the loss that each gives
is shown beside it: layouts differ in speed and not in what is learnt from.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mm_llama.cli.parser import Parser

if TYPE_CHECKING:
    from mm_llama.batch import Batch
    from mm_llama.data.samples import Sample
    from mm_llama.model import MultimodalLlama
    from mm_llama.stage_run import MediaReader

EXAMPLES = """examples:
  mm-llama bench packing
  mm-llama bench packing stage=image_sft data=jsonl data.train.0.source.path=FILE --pack-tokens 256,1024
  mm-llama bench packing --waste-only --documents 20000
"""
DEFAULTS = ("stage=image_sft", "data=mixed_lengths")


@dataclass
class Layout:
    """One way to lay documents out, and what it came to."""

    name: str
    rows: list[list[list[Sample]]]  # batches of rows of documents
    packed: bool
    padding: float = 0.0
    positions: int = 0
    seconds: float = float("inf")
    cpu_seconds: float = float("inf")
    loss: float = 0.0
    batches: list[Batch] = field(default_factory=list)

    def record(self, num_tokens: int) -> dict[str, Any]:
        """Return the numbers of this layout as JSON data."""
        timed = self.seconds < float("inf")
        return {
            "layout": self.name,
            "batches": len(self.rows),
            "positions": self.positions,
            "padding": self.padding,
            "seconds": self.seconds if timed else None,
            # Of all threads together: what a busy machine distorts least.
            "cpu_seconds": self.cpu_seconds if timed else None,
            "tokens_per_s": num_tokens / self.seconds if timed else None,
            "loss": self.loss if timed else None,
        }


def main(argv: list[str]) -> int:
    """Compose the stage, draw documents, time every layout, print a table; exit code 0."""
    args = _parser().parse_args(argv)
    pack_tokens = [_whole("--pack-tokens", text) for text in args.pack_tokens.split(",")]
    for name in ("documents", "batch_tokens", "repeats"):
        _whole(f"--{name.replace('_', '-')}", getattr(args, name))
    if max(pack_tokens) > args.batch_tokens:
        raise ValueError(
            f"--pack-tokens {max(pack_tokens)} does not fit in a batch of --batch-tokens {args.batch_tokens}"
        )
    import torch

    from mm_llama.build import build_model, compose_config, resolve
    from mm_llama.dtypes import choose_dtype
    from mm_llama.stage_run import MediaReader
    from mm_llama.stages.freeze import freeze

    config = resolve(compose_config("train", _with_defaults(args.overrides)))
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    model, _, chat = build_model(config, choose_dtype(config["dtype"], config["device"]), config["device"])
    samples = _draw(config, chat, args.documents)
    layouts = _layouts(samples, config["loader"], args.batch_tokens, pack_tokens)
    if not args.waste_only:
        freeze(model, config["stage"]["train"])
        media = MediaReader(model, config["stage"]["train"])
        _encode(media, samples)
        _time(model, layouts, media, args.repeats)
    num_tokens = sum(sample.num_tokens for sample in samples)
    facts = {
        "documents": len(samples),
        "tokens": num_tokens,
        "longest": max(sample.num_tokens for sample in samples),
        "batch_tokens": args.batch_tokens,
        "dtype": config["dtype"],
        "threads": torch.get_num_threads(),
        "layouts": [layout.record(num_tokens) for layout in layouts],
    }
    print(json.dumps(facts, indent=1)) if args.json else _show(facts)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mm-llama bench packing",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help=f"as for `mm-llama train` (default: {' '.join(DEFAULTS)})",
    )
    parser.add_argument(
        "--documents", type=int, default=256, help="how many, drawn as training would (default 256)"
    )
    parser.add_argument(
        "--batch-tokens", type=int, default=2048, help="positions of a batch, padding included (default 2048)"
    )
    parser.add_argument(
        "--pack-tokens", default="256,512,1024", help="packed rows to try (default 256,512,1024)"
    )
    parser.add_argument(
        "--repeats", type=int, default=2, help="rounds over all layouts, the best counts (default 2)"
    )
    parser.add_argument("--waste-only", action="store_true", help="count padding, run no model step")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _with_defaults(overrides: Sequence[str]) -> list[str]:
    named = {override.partition("=")[0] for override in overrides}
    if "experiment" in named:
        return ["stage=image_sft", *overrides] if "stage" not in named else list(overrides)
    return [text for text in DEFAULTS if text.partition("=")[0] not in named] + list(overrides)


def _whole(option: str, value: int | str) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{option} takes whole numbers from 1, not {value!r}")
    return int(value)


def _draw(config: dict[str, Any], chat: Any, count: int) -> list[Sample]:
    """Render the first documents of the stage's mixture, in its order."""
    from mm_llama.build import build
    from mm_llama.data.media import KEYS
    from mm_llama.data.mix import Mixture
    from mm_llama.data.samples import make_sample

    entries = config["data"].get("train")
    if not entries:
        raise ValueError("there is no data to lay out: choose data=NAME (conf/data)")
    weights = [entry.get("weight") for entry in entries]
    sources = [build(entry["source"]) for entry in entries]
    mixture = Mixture(sources, None if None in weights else weights, seed=config["seed"])
    places = [mixture.place(0, index) for index in range(min(count, len(mixture)))]
    return [make_sample(mixture.row(place), chat, media_keys=KEYS) for place in places]


def _layouts(
    samples: Sequence[Sample], settings: dict[str, Any], batch_tokens: int, pack_tokens: Sequence[int]
) -> list[Layout]:
    """Lay the samples out within `batch_tokens` positions a batch; packed rows of each given length that holds all."""
    from mm_llama.data.packing import cut

    longest = max(sample.num_tokens for sample in samples)
    if longest > batch_tokens:
        raise ValueError(
            f"a document has {longest} tokens, more than --batch-tokens {batch_tokens}: raise it"
        )
    window = settings["batch_size"] * settings["bucket_batches"]
    plans: list[tuple[str, int, bool, int]] = [
        ("rows as they come", len(samples), False, 0),
        (f"sorted, window {window}", window, True, 0),
    ]
    for capacity in pack_tokens:
        if capacity < longest:
            print(f"no rows of {capacity}: the longest document has {longest} tokens", file=sys.stderr)
        else:
            plans.append((f"packed to {capacity}, window {window}", window, True, capacity))
    layouts = []
    for name, size, sort, capacity in plans:
        layout = Layout(name, [], bool(capacity))
        for start in range(0, len(samples), size):
            documents = [
                (sample.num_tokens, index, sample)
                for index, sample in enumerate(samples[start : start + size])
            ]
            for batch in cut(
                documents,
                batch_size=len(samples),
                batch_tokens=batch_tokens,
                sort=sort,
                pack_tokens=capacity,
            ):
                layout.rows.append([list(row) for row in batch])
        lengths = [[sum(sample.num_tokens for sample in row) for row in batch] for batch in layout.rows]
        layout.positions = sum(len(batch) * max(batch) for batch in lengths)
        layout.padding = 1 - sum(map(sum, lengths)) / layout.positions
        layouts.append(layout)
    return layouts


def _encode(media: MediaReader, samples: Sequence[Sample]) -> None:
    """Encode the media of these samples once, as a stage with a frozen encoder does before its first step."""
    refs = {(ref.kind, ref.key): ref for sample in samples for ref in sample.media}
    for kind, cache in media.caches.items():
        media.encode(kind, [ref for ref in refs.values() if ref.kind == kind], cache)


def _time(model: MultimodalLlama, layouts: list[Layout], media: MediaReader, repeats: int) -> None:
    from mm_llama.data.collate import collate
    from mm_llama.data.packing import collate_packed

    for layout in layouts:
        layout.batches = [
            collate_packed(rows, media.load_media, encoded=media.encoded)
            if layout.packed
            else collate([sample for (sample,) in rows], media.load_media, encoded=media.encoded)
            for rows in layout.rows
        ]
    _step(model, layouts[-1].batches[0])  # the first step of a process is slower than any other
    for number in range(repeats):
        # Forwards, then backwards: a machine that slows down meanwhile does not favour the first.
        for layout in layouts if number % 2 == 0 else reversed(layouts):
            began, began_cpu = time.perf_counter(), time.process_time()
            results = [_step(model, batch) for batch in layout.batches]
            layout.seconds = min(layout.seconds, time.perf_counter() - began)
            layout.cpu_seconds = min(layout.cpu_seconds, time.process_time() - began_cpu)
            layout.loss = sum(loss for loss, _ in results) / sum(count for _, count in results)
            print(f"{layout.name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)


def _step(model: MultimodalLlama, batch: Batch) -> tuple[float, int]:
    """Run one forward and backward pass; weights stay as they are, so that every layout meets the same model."""
    from mm_llama.stages.steps import next_token

    output = next_token(model, batch.to(model.device))
    if output.loss_sum.requires_grad:
        (output.loss_sum / max(1, output.num_targets)).backward()
    model.zero_grad(set_to_none=True)
    return float(output.loss_sum.detach()), output.num_targets


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{facts['documents']} documents, {facts['tokens']} tokens, the longest {facts['longest']}; "
        f"batches of {facts['batch_tokens']} positions; {facts['dtype']}, {facts['threads']} threads",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for name in ("layout", "batches", "positions", "padding", "tokens/s", "speed", "loss"):
        table.add_column(name, justify="left" if name == "layout" else "right")
    first = facts["layouts"][0]["seconds"]
    for entry in facts["layouts"]:
        timed = entry["seconds"] is not None
        table.add_row(
            entry["layout"],
            str(entry["batches"]),
            str(entry["positions"]),
            f"{entry['padding']:.1%}",
            f"{entry['tokens_per_s']:,.0f}" if timed else "-",
            f"{first / entry['seconds']:.2f}x" if timed else "-",
            f"{entry['loss']:.4f}" if timed else "-",
        )
    Console(width=110).print(table)
