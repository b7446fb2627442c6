"""`mm-llama data`: check, count, show and make the chat files that training reads."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mm_llama.cli.data_clips import add_clip_makers
from mm_llama.cli.data_speech import add_speech_makers
from mm_llama.core.chat import ChatFormat, MediaPart, Text, chat_format
from mm_llama.core.messages import near
from mm_llama.core.tokenizer import load_tokenizer
from mm_llama.data.decode import open_image
from mm_llama.data.samples import count_tokens
from mm_llama.data.sources import JsonlChat, Problem, Row
from mm_llama.data.video import open_clip

SHOWN_PROBLEMS = 50
DECODED_FRAMES = 8  # of each clip


def main(argv: list[str]) -> int:
    """Run `mm-llama data ...`; 1 when validation found a bad row, 0 otherwise."""
    options = _parser().parse_args(argv)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mm-llama data", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)

    validate = verbs.add_parser("validate", help="name every bad row as file:line: what")
    validate.add_argument("files", nargs="+", metavar="FILE", type=Path)
    validate.add_argument(
        "--decode", action="store_true", help="also decode every picture and recording, and some of each clip"
    )
    validate.set_defaults(run=_validate)

    stats = verbs.add_parser("stats", help="count rows, messages, media, lengths, answers")
    stats.add_argument("file", metavar="FILE", type=Path)
    stats.set_defaults(run=_stats)

    show = verbs.add_parser("show", help="print rows as they will be read")
    show.add_argument("file", metavar="FILE", type=Path)
    show.add_argument("--n", type=int, default=3, help="how many rows (default 3)")
    show.add_argument("--line", type=int, default=1, help="first line to show (default 1)")
    show.set_defaults(run=_show)

    for verb in (validate, stats, show):
        verb.add_argument(
            "--core", metavar="NAME", help="count tokens as this core does (conf/core/NAME.yaml)"
        )
        verb.add_argument("--tokenizer", metavar="PATH", type=Path, help="count tokens with this tokenizer")
        verb.add_argument("--chat", metavar="NAME", help="chat format: llama3, chatml, plain")
    validate.add_argument(
        "--max-tokens", type=int, default=0, help="longest row allowed (default: the core's context)"
    )

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
    for verb in (validate, stats, show, easy_vqa, tuxpaint, grounding):
        verb.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


@dataclass(frozen=True)
class Counting:
    """How tokens are counted, and the longest row that the core takes (0: not known)."""

    chat: ChatFormat
    max_tokens: int


def _counting(options: argparse.Namespace) -> Counting | None:
    """The tokenizer and chat format that the options name, without loading a model (or torch)."""
    if options.core is None and options.tokenizer is None:
        if options.chat is not None:
            raise ValueError("--chat needs --tokenizer PATH or --core NAME")
        return None
    path, chat, max_tokens = options.tokenizer, options.chat, 0
    if options.core is not None:
        core = _core_entry(options.core)
        chat = chat or core["chat"]
        max_tokens = core["numbers"].get("max_context", 0)
        named = core.get("tokenizer") or core.get("source")
        if path is None and named is None:
            raise ValueError(f"core {options.core} is numbers only: give --tokenizer PATH too")
        if path is None and named in ("bytes", "random"):
            from mm_llama.testing.bytes_tokenizer import BytesTokenizer

            return Counting(chat_format(chat, BytesTokenizer()), max_tokens)
        path = path or _resolve(str(named))
    if chat is None:
        raise ValueError("--tokenizer needs the chat format too: --chat llama3, chatml or plain")
    return Counting(chat_format(chat, load_tokenizer(path)), max_tokens)


def _core_entry(name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from mm_llama.paths import conf_dir

    folder = conf_dir() / "core"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"unknown core {name!r}{near(name, known)}; cores are {', '.join(known)}")
    entry = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    assert isinstance(entry, dict)
    return {str(key): value for key, value in entry.items()}


def _resolve(source: str) -> Path:
    if not source.startswith("asset:"):
        return Path(source).expanduser()
    from mm_llama.assets import asset, asset_file

    name, _, pattern = source.removeprefix("asset:").partition("/")
    return asset_file(name, pattern) if pattern else asset(name)


def _validate(options: argparse.Namespace) -> int:
    counting = _counting(options)
    limit = options.max_tokens or (counting.max_tokens if counting else 0)
    if options.max_tokens and counting is None:
        raise ValueError("--max-tokens needs --tokenizer PATH or --core NAME to count with")
    problems: list[Problem] = []
    files = []
    for path in options.files:
        found, num_rows = _problems(path, counting, limit, options.decode)
        problems += found
        files.append({"file": str(path), "rows": num_rows, "bad": len(found)})
    if options.json:
        shown = [{"source": problem.source, "what": problem.what} for problem in problems[:SHOWN_PROBLEMS]]
        report = {"ok": not problems, "files": files, "num_problems": len(problems), "problems": shown}
        print(json.dumps(report, indent=1))
        return 1 if problems else 0
    for problem in problems[:SHOWN_PROBLEMS]:
        print(problem)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"... and {len(problems) - SHOWN_PROBLEMS} more")
    for entry in files:
        verdict = f"{entry['bad']} bad" if entry["bad"] else "all good"
        print(f"{entry['file']}: {entry['rows']} rows, {verdict}", file=sys.stderr)
    return 1 if problems else 0


def _problems(path: Path, counting: Counting | None, limit: int, decode: bool) -> tuple[list[Problem], int]:
    try:
        source = JsonlChat(path)
    except ValueError as error:
        return [Problem(str(path), str(error).removeprefix(f"{path}: "))], 0
    found = []
    broken: dict[str, str] = {}  # media are shared by many rows: each is decoded once
    for index in range(len(source)):
        name = source.name_of(index)
        try:
            row = source.row(index)
            if counting is not None:
                count_tokens(row, counting.chat, max_tokens=limit)
            if decode:
                _decode(row, broken)
        except ValueError as error:
            found.append(Problem(name, str(error).removeprefix(f"{name}: ")))
    return found, len(source)


def _decode(row: Row, broken: dict[str, str]) -> None:
    for part in _media(row):
        known = part.source if isinstance(part.source, str) else None
        if known is None or known not in broken:
            what = ""
            try:
                if part.kind == "video":
                    open_clip(part.source, num_frames=DECODED_FRAMES, each=lambda picture: None)
                elif part.kind == "speech":
                    from mm_llama.data.sound import open_sound

                    open_sound(part.source)
                else:
                    open_image(part.source)
            except (ValueError, OSError) as error:
                what = str(error)
            if known is None and what:
                raise ValueError(what)
            if known is not None:
                broken[known] = what
        if known is not None and broken[known]:
            raise ValueError(broken[known])


def _stats(options: argparse.Namespace) -> int:
    counting = _counting(options)
    source = JsonlChat(options.file)
    roles: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    media_a_row: Counter[int] = Counter()
    answers: Counter[str] = Counter()
    extras: Counter[str] = Counter()
    distinct: set[Any] = set()
    lengths = []
    for row in _rows(source):
        roles.update(message.role for message in row.messages)
        media = list(_media(row))
        kinds.update(part.kind for part in media)
        distinct.update(part.source for part in media)
        media_a_row[len(media)] += 1
        answers.update(_text(message.parts) for message in row.messages if message.role == "assistant")
        extras.update(row.extra.keys())
        lengths.append(
            count_tokens(row, counting.chat)
            if counting
            else sum(len(_text(message.parts)) for message in row.messages)
        )
    lengths.sort()
    report = {
        "file": str(options.file),
        "rows": len(source),
        "messages": dict(sorted(roles.items())),
        "media": dict(sorted(kinds.items())),
        "distinct_media": len(distinct),
        "rows_by_num_media": {str(number): count for number, count in sorted(media_a_row.items())},
        "length_unit": "tokens" if counting else "characters",
        "length": {
            "min": lengths[0],
            "median": lengths[len(lengths) // 2],
            "p95": lengths[(len(lengths) * 95) // 100],
            "max": lengths[-1],
            "sum": sum(lengths),
        },
        "distinct_answers": len(answers),
        "commonest_answers": dict(answers.most_common(5)),
        "extra": dict(sorted(extras.items())),
    }
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return 0
    for key, value in report.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{key.replace('_', ' '):<18} {shown if shown != '' else '-'}")
    return 0


def _show(options: argparse.Namespace) -> int:
    if options.n < 1 or options.line < 1:
        raise ValueError("--n and --line count from 1")
    counting = _counting(options)
    source = JsonlChat(options.file)
    first = next((i for i, line in enumerate(source.lines) if line >= options.line), None)
    if first is None:
        raise ValueError(
            f"{options.file} has {source.lines[-1]} lines; --line {options.line} is past its end"
        )
    shown = []
    for row in islice(_rows(source, first), options.n):
        entry: dict[str, Any] = {"source": row.source, "messages": []}
        for message in row.messages:
            parts = [part.text if isinstance(part, Text) else _label(part) for part in message.parts]
            entry["messages"].append({"role": message.role, "parts": parts})
        if counting is not None:
            rendered = counting.chat.render(row.messages)
            entry["tokens"], entry["targets"] = len(rendered.tokens), sum(rendered.targets)
        entry["extra"] = dict(row.extra)
        shown.append(entry)
    if options.json:
        print(json.dumps(shown, indent=1, ensure_ascii=False))
        return 0
    for entry in shown:
        counts = f"  ({entry['tokens']} tokens, {entry['targets']} targets)" if "tokens" in entry else ""
        print(f"{entry['source']}{counts}")
        for message in entry["messages"]:
            print(f"  {message['role']:<10} {' '.join(message['parts'])}")
        if entry["extra"]:
            print(f"  {'extra':<10} {json.dumps(entry['extra'], ensure_ascii=False)}")
    return 0


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


def _rows(source: JsonlChat, first: int = 0) -> Iterator[Row]:
    for index in range(first, len(source)):
        yield source.row(index)


def _media(row: Row) -> Iterator[MediaPart]:
    for message in row.messages:
        yield from (part for part in message.parts if isinstance(part, MediaPart))


def _text(parts: tuple[Text | MediaPart, ...]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


def _label(part: MediaPart) -> str:
    where = part.source if isinstance(part.source, str) else f"{len(part.source)} bytes"
    return f"[{part.kind} {where}]"
