"""`mm-llama data validate`, `stats` and `inspect`: data of any form, looked at before a run does."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mm_llama.core.chat import ChatFormat, MediaPart, Text, chat_format
from mm_llama.core.messages import near
from mm_llama.core.tokenizer import load_tokenizer
from mm_llama.data.causes import RowError, cause_of
from mm_llama.data.checking import Decoder, identity_of, media_of, num_bytes
from mm_llama.data.opening import FORMATS, describe, open_data
from mm_llama.data.samples import count_tokens
from mm_llama.data.sources import JsonlChat, Problem, Row, Source, problem_of
from mm_llama.paths import cache_dir
from mm_llama.terminal import plain, visible

SHOWN_PROBLEMS = 50


def add_checks(verbs: Any) -> None:
    """Add the three verbs to the parsers of `data`."""
    validate = verbs.add_parser(
        "validate",
        help="decode everything and name every bad row: file:line, or shard/member, and what is wrong",
    )
    validate.add_argument("data", nargs="+", metavar="DATA", help=FORMATS)
    validate.add_argument(
        "--decode", action=argparse.BooleanOptionalAction, default=True, help="decode the media too (default)"
    )
    validate.add_argument(
        "--max-tokens", type=int, default=0, help="longest row allowed (default: the core's context)"
    )
    validate.add_argument(
        "--inside", action="store_true", help="name rows whose media lie outside of the data's folder too"
    )
    validate.set_defaults(run=_validate)
    stats = verbs.add_parser("stats", help="count rows, messages, media, lengths, sizes, durations, answers")
    stats.add_argument("data", metavar="DATA", help=FORMATS)
    stats.add_argument(
        "--decode",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the media too (default)",
    )
    stats.set_defaults(run=_stats)
    inspect = verbs.add_parser("inspect", help="say what data is, and print rows as they will be read")
    inspect.add_argument("data", metavar="DATA", help=FORMATS)
    inspect.add_argument("--n", type=int, default=3, help="how many rows (default 3)")
    inspect.add_argument(
        "--line", type=int, default=1, help="first to show: a line of a JSONL file, else a row (default 1)"
    )
    inspect.set_defaults(run=_inspect)
    for verb in (validate, stats, inspect):
        verb.add_argument(
            "--core", metavar="NAME", help="count tokens as this core does (conf/core/NAME.yaml)"
        )
        verb.add_argument("--tokenizer", metavar="PATH", type=Path, help="count tokens with this tokenizer")
        verb.add_argument("--chat", metavar="NAME", help="chat format: llama3, chatml, plain")
        verb.add_argument("--json", action="store_true", help="one JSON object on standard output")
        add_reading(verb)


def add_reading(verb: argparse.ArgumentParser) -> None:
    """Add what `opened` reads data by."""
    verb.add_argument("--prompt", metavar="TEXT", help="what the user says where data holds no question")
    verb.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="ENDING",
        help="members of shards to leave out, such as npy",
    )


def opened(path: str, options: argparse.Namespace) -> Source:
    """Open data of any form; what is damaged of a shard is a bad row."""
    return open_data(
        path, on_damage="skip", index=cache_dir() / "shards", ignore=options.ignore, prompt=options.prompt
    )


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
    for path in options.data:
        found, num_rows = _problems(path, counting, limit, options)
        problems += found
        files.append({"file": path, "rows": num_rows, "bad": len(found)})
    causes = dict(sorted(Counter(problem.cause for problem in problems).items()))
    if options.json:
        shown = [vars(problem) for problem in problems[:SHOWN_PROBLEMS]]
        report = {"ok": not problems, "files": files, "num_problems": len(problems), "causes": causes}
        print(json.dumps(report | {"problems": shown}, indent=1))
        return 1 if problems else 0
    for problem in problems[:SHOWN_PROBLEMS]:
        print(visible(str(problem)))
    if len(problems) > SHOWN_PROBLEMS:
        print(f"... and {len(problems) - SHOWN_PROBLEMS} more")
    for entry in files:
        verdict = f"{entry['bad']} bad" if entry["bad"] else "all good"
        print(plain(f"{entry['file']}: {entry['rows']} rows, {verdict}"), file=sys.stderr)
    if problems:
        print(", ".join(f"{count} {cause}" for cause, count in causes.items()), file=sys.stderr)
    return 1 if problems else 0


def _problems(
    path: str, counting: Counting | None, limit: int, options: argparse.Namespace
) -> tuple[list[Problem], int]:
    try:
        source = opened(path, options)
    except ValueError as error:
        return [Problem(path, str(error).removeprefix(f"{path}: "), cause_of(error, "bad_shard"))], 0
    decoder = Decoder()
    home = Path(path).resolve()
    home = home if home.is_dir() else home.parent

    def check(row: Row) -> None:
        if options.inside:
            _check_inside(row, home)
        if counting is not None:
            count_tokens(row, counting.chat, max_tokens=limit)
        if options.decode:
            decoder.check(row)

    return [problem for _, problem in _read(source, check) if problem is not None], len(source)


def _check_inside(row: Row, home: Path) -> None:
    """Raise RowError for a medium outside of a folder: a row may name any file that its reader may read."""
    for part in media_of(row):
        if isinstance(part.source, str | Path) and not Path(part.source).resolve().is_relative_to(home):
            raise RowError(f"{row.source}: {part.kind} file {part.source} lies outside of {home}", "bad_row")


def _read(source: Source, check: Callable[[Row], Any]) -> Iterator[tuple[Row | None, Problem | None]]:
    """Every row that is good, and the problem of every one that is not."""
    for index in range(len(source)):
        try:
            row = source.row(index)
            check(row)
        except (ValueError, OSError) as error:
            yield None, problem_of(source.name_of(index), error)
            continue
        yield row, None


def _stats(options: argparse.Namespace) -> int:
    counting = _counting(options)
    source = opened(options.data, options)
    counts: dict[str, Counter[Any]] = {
        name: Counter() for name in ("roles", "kinds", "media_a_row", "answers", "extras", "bad")
    }
    distinct: dict[Any, tuple[str, int, dict[str, float]]] = {}
    lengths: list[int] = []
    decoder = Decoder()

    def check(row: Row) -> None:
        measures = decoder.check(row) if options.decode else [{} for _ in media_of(row)]
        length = sum(len(_text(message.parts)) for message in row.messages)
        lengths.append(count_tokens(row, counting.chat) if counting else length)
        for part, measured in zip(media_of(row), measures, strict=True):
            key = part.kind, identity_of(part.kind, part.source)
            distinct.setdefault(key, (part.kind, num_bytes(part.source), measured))

    for row, problem in _read(source, check):
        if row is None:
            assert problem is not None
            counts["bad"][problem.cause] += 1
            continue
        media = list(media_of(row))
        counts["roles"].update(message.role for message in row.messages)
        counts["kinds"].update(part.kind for part in media)
        counts["media_a_row"][len(media)] += 1
        counts["answers"].update(_text(m.parts) for m in row.messages if m.role == "assistant")
        counts["extras"].update(row.extra.keys())
    report = {
        "file": options.data,
        **describe(source),
        "rows": len(source),
        "bad": dict(sorted(counts["bad"].items())),
        "messages": dict(sorted(counts["roles"].items())),
        "media": dict(sorted(counts["kinds"].items())),
        "distinct_media": len(distinct),
        **_measures(distinct.values()),
        "rows_by_num_media": {str(number): count for number, count in sorted(counts["media_a_row"].items())},
        "length_unit": "tokens" if counting else "characters",
        "length": _spread(lengths),
        "distinct_answers": len(counts["answers"]),
        "commonest_answers": dict(counts["answers"].most_common(5)),
        "extra": dict(sorted(counts["extras"].items())),
    }
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return 0
    for key, value in report.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(visible(f"{key.replace('_', ' '):<18} {shown if shown not in ('', None) else '-'}"))
    return 0


def _measures(media: Any) -> dict[str, dict[str, float]]:
    """What was measured of each kind of medium: bytes, width and height, seconds."""
    found: dict[str, list[float]] = {}
    for kind, size, measured in media:
        for name, value in {"bytes": size, **measured}.items():
            found.setdefault(f"{kind}_{name}", []).append(value)
    return {name: _spread(values) for name, values in sorted(found.items())}


def _spread(values: list[Any]) -> dict[str, Any]:
    if not values:
        return {}
    values = sorted(values)
    return {
        "min": _short(values[0]),
        "median": _short(values[len(values) // 2]),
        "p95": _short(values[(len(values) * 95) // 100]),
        "max": _short(values[-1]),
        "sum": _short(sum(values)),
    }


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _inspect(options: argparse.Namespace) -> int:
    if options.n < 1 or options.line < 1:
        raise ValueError("--n and --line count from 1")
    counting = _counting(options)
    source = opened(options.data, options)
    # A line of a JSONL file, a row of anything else.
    lines = source.lines if isinstance(source, JsonlChat) else range(1, len(source) + 1)
    first = next((index for index, line in enumerate(lines) if line >= options.line), None)
    if first is None:
        raise ValueError(f"{options.data} has {lines[-1]} lines; --line {options.line} is past its end")
    about = {"file": options.data, **describe(source), "rows": len(source), "digest": source.digest}
    shown = [_shown(source, index, counting) for index in islice(range(first, len(source)), options.n)]
    if options.json:
        print(json.dumps(about | {"shown": shown}, indent=1, ensure_ascii=False))
        return 0
    for key, value in about.items():
        print(visible(f"{key.replace('_', ' '):<10} {value}"))
    for entry in shown:
        counts = f"  ({entry['tokens']} tokens, {entry['targets']} targets)" if "tokens" in entry else ""
        print(visible(f"{entry['source']}{counts}"))
        if "bad" in entry:
            print(visible(f"  {entry['bad']}"))
        for message in entry.get("messages", ()):
            print(visible(f"  {message['role']:<10} {' '.join(message['parts'])}"))
        if entry.get("extra"):
            extra = json.dumps(entry["extra"], ensure_ascii=False, default=str)
            print(visible(f"  {'extra':<10} {extra}"))
    return 0


def _shown(source: Source, index: int, counting: Counting | None) -> dict[str, Any]:
    try:
        row = source.row(index)
    except RowError as error:
        return {"source": source.name_of(index), "bad": f"{error.cause}: {error}"}
    entry: dict[str, Any] = {"source": row.source, "messages": []}
    for message in row.messages:
        parts = [part.text if isinstance(part, Text) else _label(part) for part in message.parts]
        entry["messages"].append({"role": message.role, "parts": parts})
    if counting is not None:
        rendered = counting.chat.render(row.messages)
        entry["tokens"], entry["targets"] = len(rendered.tokens), sum(rendered.targets)
    return entry | {"extra": dict(row.extra)}


def _text(parts: tuple[Text | MediaPart, ...]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


def _label(part: MediaPart) -> str:
    where = f"{len(part.source)} bytes" if isinstance(part.source, bytes) else str(part.source)
    return f"[{part.kind} {where}]"
