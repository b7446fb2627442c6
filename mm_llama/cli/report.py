"""`mm-llama report`: of one run its page, an HTML file that needs nothing else; of a sweep, or of runs, a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from mm_llama.cli.parser import Parser

EXAMPLES = """examples:
  mm-llama report runs/demo
  mm-llama report runs/image_sft_sweep --csv results.csv --plot curves.png
  mm-llama report runs/a runs/b --compare
"""


def main(argv: list[str]) -> int:
    """Write the page about a run folder, or show what runs came to; exit code 1 when one of those failed."""
    args = _parser().parse_args(argv)
    table = len(args.runs) > 1 or args.compare or any((args.csv, args.markdown, args.plot, args.metric))
    if not table:
        from mm_llama.sweeps.results import holds_runs

        table = holds_runs(args.runs[0])
    if table:
        if args.out or args.open:
            raise ValueError(
                "--out and --open are for the page of one run; a table is written with --csv or --markdown"
            )
        from mm_llama.cli.report_runs import show

        return show(args)

    from mm_llama.data.video import open_clip
    from mm_llama.report import write_report

    (run,) = args.runs
    out = write_report(run, args.out or run / "report.html", open_clip=open_clip)
    print(out)
    if args.open:
        import webbrowser

        if not webbrowser.open(out.resolve().as_uri()):
            print(f"no browser could be started; open {out.resolve()} yourself")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mm-llama report",
        description="One run: write its page, with figures, curves, pictures with answers, digests, the proof, times. "
        "A sweep, a folder of runs, or several runs: show what they came to in one table.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="DIR", help="folder of a run, of a sweep, or of runs")
    add("--out", type=Path, help="where to write the page of one run (default: DIR/report.html)")
    add("--open", action="store_true", help="show the page in the browser afterwards")
    add("--csv", type=Path, metavar="FILE", help="write the table as CSV; - for standard output")
    add("--markdown", type=Path, metavar="FILE", help="write the table as Markdown; - for standard output")
    add("--plot", type=Path, metavar="FILE", help="draw the curves over each other, as PNG")
    add(
        "--compare",
        action="store_true",
        help="say in what configs differ, and how sure differences are over seeds",
    )
    add(
        "--metric", help="what runs are ranked and compared by (default: eval.answers, or what they measured)"
    )
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--lowest", action="store_true", help="less of the metric is better")
    order.add_argument("--highest", action="store_true", help="more of it is better (default: by its name)")
    return parser
