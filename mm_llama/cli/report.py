"""`mm-llama report RUN`: write a run's page, one HTML file that needs nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    """Write the page about a run folder; exit code 0."""
    parser = argparse.ArgumentParser(
        prog="mm-llama report",
        description="Write a run's page: figures, curves, pictures with answers, digests, the proof, times.",
    )
    parser.add_argument("run", type=Path, help="the folder that a run left, such as runs/demo")
    parser.add_argument("--out", type=Path, help="where to write the page (default: RUN/report.html)")
    parser.add_argument("--open", action="store_true", help="show it in the browser afterwards")
    args = parser.parse_args(argv)

    from mm_llama.data.video import open_clip
    from mm_llama.report import write_report

    out = write_report(args.run, args.out or args.run / "report.html", open_clip=open_clip)
    print(out)
    if args.open:
        import webbrowser

        if not webbrowser.open(out.resolve().as_uri()):
            print(f"no browser could be started; open {out.resolve()} yourself")
    return 0
