"""`mm-llama bench growth`: time and memory against the number of rows, tokens, pictures and clips.

Features are random and the adapters untrained: neither time nor memory depends on what they hold. Each point is a
process of its own, because a process's peak of memory never comes down.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from mm_llama.bench.measure import (
    machine_facts,
    megabytes,
    peak_bytes,
    peak_of_child,
    positives,
    show_table,
    write_facts,
)
from mm_llama.cli.parser import Parser

CASES = {
    "turns": "pictures, each in a turn of its own",
    "run": "pictures, one after another before one question",
    "clips": "clips of 64 frames, a row each, in one batch",
    "rows": "rows of 64 tokens in one batch",
    "tokens": "tokens of one prompt",
    "answer": "tokens of one answer",
}
UNITS = {"turns": "pictures", "run": "pictures"}  # of the others, their name
TEXT_TOKENS = 64  # of a row of text, and of the prompt of an answer
WORDS = 12  # tokens of text around each medium
REPEATS = 3


def main(argv: list[str]) -> int:
    """Measure every case at every count; print the table and, if asked, write numbers and plot."""
    args = _parser().parse_args(argv)
    if args.point:
        print(
            json.dumps(_point(args.point, int(args.counts), args.core, args.image, args.video, args.frames))
        )
        return 0
    found: dict[str, Any] = {
        "bench": "growth",
        "command": " ".join(["mm-llama bench growth", *argv]),
        "core": args.core,
        "image": args.image,
        "video": args.video,
        "frames": args.frames,
        "machine": machine_facts(),
        "cases": {},
    }
    cases = [name.strip() for name in args.cases.split(",")]
    if unknown := [name for name in cases if name not in CASES]:
        raise ValueError(f"--cases holds {unknown[0]!r}, expected some of {', '.join(CASES)}")
    for case in cases:
        option = "counts" if case in UNITS else case
        counts = positives(f"--{option}", getattr(args, option))
        options = [
            "--core",
            args.core,
            "--image",
            args.image,
            "--video",
            args.video,
            "--frames",
            str(args.frames),
        ]
        points = []
        for count in counts:
            points.append(
                peak_of_child("mm_llama.bench.growth", ["--point", case, "--counts", str(count), *options])
            )
            if sys.stderr.isatty():
                print(f"{case} {count}", file=sys.stderr)
        found["cases"][case] = {"what": CASES[case], "points": points, **_fits(points)}
    write_facts(args.json, found)
    if args.plot:
        _plot(found, args.plot)
    for case, value in found["cases"].items():
        rows = [
            (
                str(point["count"]),
                f"{1000 * point['attach_s']:.0f} ms",
                f"{1000 * point['prefill_s']:.0f} ms",
                megabytes(point["media_bytes"]),
                megabytes(point["extra_bytes"]),
            )
            for point in value["points"]
        ]
        show_table(
            f"{value['what']}: R² of a line {value['r2_seconds']:.4f} in time, {value['r2_bytes']:.4f} in memory; "
            f"one of the last costs {value['per_item_seconds']:.2f} and {value['per_item_bytes']:.2f} of the first",
            (case, "media read", "text read or made", "keys and values", "peak above the model"),
            rows,
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mm-llama bench growth", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help="some of them (default: %(default)s)")
    parser.add_argument("--counts", default="1,2,4,8,16,32", help="pictures (default: %(default)s)")
    parser.add_argument("--clips", default="1,2,4,8,16", help="clips of a batch (default: %(default)s)")
    parser.add_argument("--rows", default="1,2,4,8,16,32", help="rows of a batch (default: %(default)s)")
    parser.add_argument("--tokens", default="64,128,256,512,1024", help="of a prompt (default: %(default)s)")
    parser.add_argument("--answer", default="16,32,64,128,256", help="tokens made (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=64, help="frames of a clip (default: %(default)s)")
    parser.add_argument("--core", default="smollm2_135m")
    parser.add_argument("--image", default="efficientnet_lite0", help="modality/image (default: %(default)s)")
    parser.add_argument("--video", default="default", help="modality/video (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot (PNG or SVG)")
    parser.add_argument("--point", choices=tuple(CASES), help=argparse.SUPPRESS)
    return parser


def _point(case: str, count: int, core: str, image: str, video: str, frames: int) -> dict[str, Any]:
    import torch

    from mm_llama.batch import Media
    from mm_llama.build import build_model, compose_config, resolve
    from mm_llama.core.cache import KVCache

    names = [f"core={core}", f"modality/image={image}", f"modality/video={video}", "stage=none"]
    config = resolve(compose_config("train", names))
    model, _, _ = build_model(config, torch.float32)
    for modality in model.modality.values():
        for name, weight in modality.adapter.named_parameters():
            if name.endswith("gate"):
                weight.fill_(0.5)
    if case not in ("clips", *UNITS):
        return _text_point(case, count, model.core)
    kind = "video" if case == "clips" else "image"
    encoder: Any = model.encoder_of("image")
    shape = (encoder.num_tokens, config["modality"]["image"]["encoder"]["dim"])
    items = [torch.randn(*((frames, *shape) if kind == "video" else shape)) for _ in range(count)]
    rows, positions, length = _layout(case, count)
    media = {
        kind: Media(items, torch.tensor(rows), torch.tensor(positions), torch.arange(count), encoded=True)
    }
    num_rows = count if case == "clips" else 1
    tokens = torch.randint(3, 200, (num_rows, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model(tokens[:, :2])
        before = peak_bytes()
        attach, prefill = [], []
        for _ in range(REPEATS):
            start = time.perf_counter()
            state = model.attach(media)
            attach.append(time.perf_counter() - start)
            cache = KVCache(model.core.config, num_rows, length)
            start = time.perf_counter()
            last = torch.zeros(num_rows, length, dtype=torch.bool)
            last[:, -1] = True
            model(tokens, cache=cache, media=state, at=last)
            prefill.append(time.perf_counter() - start)
        assert state is not None
        held = sum(part.nbytes for pair in state.attached[kind].keys_values.values() for part in pair)
    return {
        "count": count,
        "positions": num_rows * length,
        "attach_s": min(attach),
        "prefill_s": min(prefill),
        "media_bytes": held,
        "extra_bytes": peak_bytes() - before,
    }


def _text_point(case: str, count: int, core: Any) -> dict[str, Any]:
    """Time text alone: reading a batch or a prompt, or making an answer behind one."""
    import torch

    from mm_llama.core.cache import KVCache

    rows, length = (count, TEXT_TOKENS) if case == "rows" else (1, count if case == "tokens" else TEXT_TOKENS)
    made = count if case == "answer" else 0
    tokens = torch.randint(3, 200, (rows, length), generator=torch.Generator().manual_seed(0))
    last = torch.zeros(rows, length, dtype=torch.bool)
    last[:, -1] = True
    seconds = []
    with torch.inference_mode():
        core(tokens[:1, :2])
        before = peak_bytes()
        for _ in range(REPEATS):
            cache = KVCache(core.config, rows, length + made)
            start = time.perf_counter()
            core(tokens, cache=cache, at=last)
            if made:
                start = time.perf_counter()
            for place in range(made):
                core(tokens[:, :1], positions_BS=torch.full((rows, 1), length + place), cache=cache)
            seconds.append(time.perf_counter() - start)
    return {
        "count": count,
        "positions": rows * (length + made),
        "attach_s": 0.0,
        "prefill_s": min(seconds),
        "media_bytes": cache.keys.nbytes + cache.values.nbytes,
        "extra_bytes": peak_bytes() - before,
    }


def _layout(case: str, count: int) -> tuple[list[int], list[int], int]:
    """Rows and positions of the placeholders, and the length of a row."""
    if case == "clips":
        return list(range(count)), [2] * count, 2 + WORDS
    if case == "run":
        return [0] * count, [2 + number for number in range(count)], 2 + count + WORDS
    return [0] * count, [2 + number * WORDS for number in range(count)], 2 + count * WORDS


def _fits(points: list[dict[str, Any]]) -> dict[str, float]:
    """How well a line over the count describes seconds and bytes (R²), and cost for each at the last over the first."""
    counts = [float(point["count"]) for point in points]
    seconds = [point["attach_s"] + point["prefill_s"] for point in points]
    held = [float(point["extra_bytes"]) for point in points]
    return {
        "per_item_seconds": (seconds[-1] / counts[-1]) / (seconds[0] / counts[0]),
        "per_item_bytes": (held[-1] / counts[-1]) / (held[0] / counts[0]) if held[0] else 0.0,
        "r2_seconds": _r2(counts, seconds),
        "r2_bytes": _r2(counts, held),
        "r2_media": _r2(counts, [float(point["media_bytes"]) for point in points]),
    }


def _r2(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0
    rest = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - mean_y) ** 2 for b in y)
    return 1.0 if total == 0 else 1 - rest / total


def _plot(found: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install mm_llama[eval]") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(found["cases"]), figsize=(4 * len(found["cases"]), 6), layout="constrained"
    )
    for column, (case, value) in enumerate(found["cases"].items()):
        counts = [point["count"] for point in value["points"]]
        for row, (key, scale, unit) in enumerate(
            (("seconds", 1.0, "seconds"), ("extra_bytes", 1e-6, "MB above model"))
        ):
            values = [
                point["attach_s"] + point["prefill_s"] if key == "seconds" else point[key] * scale
                for point in value["points"]
            ]
            axis = axes[row][column]
            axis.plot(counts, values, "o-", color="#1f6f5c")
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0)
            axis.set_ylabel(unit)
            axis.set_xlabel(UNITS.get(case, case))
            if not row:
                axis.set_title(value["what"], fontsize=10)
            axis.grid(alpha=0.3)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    figure.savefig(partial, dpi=130)
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
