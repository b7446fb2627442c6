"""`mm-llama data`: check, show, count, pack and make the data that training reads, and keep its cache small."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mm_llama.cli.data_cache import add_cache
from mm_llama.cli.data_check import add_checks
from mm_llama.cli.data_clips import add_clip_makers
from mm_llama.cli.data_pack import add_packing
from mm_llama.cli.data_speech import add_speech_makers
from mm_llama.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Run `mm-llama data ...`; 1 when validation found a bad row, 0 otherwise."""
    options = _parser().parse_args(argv)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mm-llama data", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    add_checks(verbs)
    add_packing(verbs)
    add_cache(verbs)

    make = verbs.add_parser("make", help="turn a data set of the assets into chat files")
    sets = make.add_subparsers(dest="name", required=True)
    easy_vqa = sets.add_parser("easy_vqa", help="questions about one coloured shape a picture")
    easy_vqa.add_argument("--template", default="{question}", help="the user's text (default '{question}')")
    easy_vqa.add_argument("--holdout", type=int, default=400, help="training pictures held out (default 400)")
    easy_vqa.set_defaults(run=_make_easy_vqa)
    tuxpaint = sets.add_parser("tuxpaint", help="captioned pictures of Tux Paint")
    tuxpaint.add_argument("--prompt", default="Describe the picture.", help="the user's text; may be empty")
    tuxpaint.add_argument(
        "--exclude", action="append", default=[], metavar="CATEGORY", help="leave out a folder"
    )
    tuxpaint.set_defaults(run=_make_tuxpaint)
    grounding = sets.add_parser("grounding", help="photographs with cut-out things at known places")
    grounding.add_argument(
        "--rows",
        type=int,
        default=2000,
        help="training pictures (default %(default)s); an eighth and a fifth of it are held out and for the test",
    )
    grounding.add_argument(
        "--things", type=int, default=3, help="most things in a picture (default %(default)s)"
    )
    grounding.add_argument(
        "--photos", type=Path, metavar="DIR", help="unpacked scikit-image photographs (default: the asset)"
    )
    grounding.set_defaults(run=_make_grounding)
    add_clip_makers(sets, _made)
    add_speech_makers(sets, _made)
    for maker in (easy_vqa, tuxpaint, grounding):
        maker.add_argument("--out", type=Path, required=True, metavar="DIR")
        maker.add_argument("--root", type=Path, metavar="DIR", help="unpacked package (default: the asset)")
        maker.add_argument("--seed", type=int, default=0, help="seed of the split (default 0)")
        maker.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _make_easy_vqa(options: argparse.Namespace) -> int:
    from mm_llama.assets import asset
    from mm_llama.data.easy_vqa import write_jsonl

    root = options.root or asset("easy_vqa")
    paths = write_jsonl(
        root, options.out, template=options.template, num_holdout=options.holdout, seed=options.seed
    )
    return _made(paths, options.json)


def _make_tuxpaint(options: argparse.Namespace) -> int:
    from mm_llama.assets import asset
    from mm_llama.data.tuxpaint import write_jsonl

    root = options.root or asset("tuxpaint_stamps")
    paths = write_jsonl(root, options.out, prompt=options.prompt, exclude=options.exclude, seed=options.seed)
    return _made(paths, options.json)


def _make_grounding(options: argparse.Namespace) -> int:
    from mm_llama.assets import asset
    from mm_llama.data.scenes import write_jsonl

    paths = write_jsonl(
        options.root or asset("tuxpaint_stamps"),
        options.photos or asset("scikit_image_photos"),
        options.out,
        num_train=options.rows,
        num_holdout=max(1, options.rows // 8),
        num_test=max(1, options.rows // 5),
        max_things=options.things,
        seed=options.seed,
    )
    return _made(paths, options.json)


def _made(paths: dict[str, Path], as_json: bool) -> int:
    made = {
        split: {"file": str(path), "rows": path.read_bytes().count(b"\n")} for split, path in paths.items()
    }
    if as_json:
        print(json.dumps(made, indent=1))
    else:
        for split, entry in made.items():
            print(f"{split:<8} {entry['rows']:>6} rows  {entry['file']}")
    return 0
