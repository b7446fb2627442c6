"""`mm-llama eval speech`: recordings put to a model, word errors and translation scores with intervals."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_llama.data.sources import Source

RECIPES = ("asterisk", "librivox", "spoken_sentences", "fillets")


def add_parser(tasks: Any) -> argparse.ArgumentParser:
    """Add the task to `mm-llama eval`."""
    task: argparse.ArgumentParser = tasks.add_parser(
        "speech", help="recognition, translation and dialogue: WER, CER, BLEU, chrF with intervals"
    )
    task.add_argument(
        "--data",
        default="asterisk",
        help=f"{', '.join(RECIPES)}, or a JSONL chat file with recordings (default: %(default)s)",
    )
    task.add_argument("--split", default="test", help="of a recipe: test or holdout (default: %(default)s)")
    task.add_argument(
        "--other",
        action="store_true",
        help="also ask each row with another row's recording, and test the difference",
    )
    task.add_argument(
        "--told",
        action="store_true",
        help="also give the core each transcript in its recording's place: what repeating alone loses",
    )
    task.add_argument(
        "--show", type=int, default=5, metavar="N", help="print the N worst (default: %(default)s)"
    )
    task.add_argument(
        "--beam",
        type=int,
        default=0,
        metavar="N",
        help="also let readout and core search what was said among N readings (default: no search)",
    )
    task.add_argument("--batch-size", type=int, default=16)
    task.add_argument(
        "--answers", type=Path, metavar="FILE", help="every row as JSONL (default: beside --out)"
    )
    return task


def run(args: argparse.Namespace, model: Any, tokenizer: Any, chat: Any, progress: Any) -> dict[str, Any]:
    """Ask, print, write; returns the numbers."""
    if "speech" not in model.modality:
        raise ValueError("no adapter that hears is attached: give a speech run with --adapter")
    from mm_llama.eval.speech import evaluate_speech, read_asked
    from mm_llama.stage_run import prepared

    search = beam_search(args.beam)
    source = source_of(args.data, args.split)
    load_media, encoded = prepared(model, source)
    result = evaluate_speech(
        model,
        tokenizer,
        chat,
        read_asked(source, limit=args.limit),
        load_media=load_media,
        encoded=encoded,
        sides=("readout", *(side for side in ("told", "other") if getattr(args, side))),
        batch_size=args.batch_size,
        progress=progress,
        in_pieces=in_pieces(model, tokenizer, chat),
        search=search,
    )
    if args.out:
        result.write(args.out, args.answers or args.out.with_name(f"{args.out.stem}_answers.jsonl"))
    if not args.json:
        from rich.console import Console

        Console().print(result.table())
        for record in result.records()[: args.show]:
            print(f"{record['id']}: {record['errors']} of {record['length']} wrong")
            print(f"  said   {record['said']}\n  heard  {record['heard']['model']}")
        searched = f", {result.seconds['searched']:.1f} s with the search" if search else ""
        print(
            f"{len(result.asked):,} recordings in {result.seconds['model']:.1f} s{searched}, features cached"
        )
    return result.to_json()


def check_beam(beam: int) -> None:
    """Raise ValueError for a `--beam` below 0."""
    if beam < 0:
        raise ValueError(f"--beam is {beam}, expected a number of readings, or 0 for no search")


def beam_search(beam: int) -> Any:
    """Return the search that `--beam` asks for, None for 0. Raises ValueError for a number below."""
    check_beam(beam)
    from mm_llama.generation.beam import BeamSearch

    return BeamSearch(beam) if beam else None


def in_pieces(model: Any, tokenizer: Any, chat: Any) -> Callable[[Any, str, Any], str]:
    """Return what writes down a long recording piece by piece, as `mm-llama transcribe` does."""
    from mm_llama.assistant import Assistant
    from mm_llama.listen import Listener

    assistant = Assistant(model, tokenizer, chat)
    return lambda recording, language, search: (
        Listener(assistant, language, search=search).file(recording).text
    )


def source_of(data: str, split: str) -> Source:
    """Return the rows that `--data` names: a recipe's split, or those of a file."""
    from mm_llama.data.opening import open_data

    if data not in RECIPES:
        return open_data(data)
    from mm_llama.assets import asset
    from mm_llama.data import speech_recipes as recipes
    from mm_llama.paths import cache_dir

    folder = cache_dir() / "data" / data
    if data == "asterisk":
        return recipes.asterisk(asset("asterisk_prompts"), asset("asterisk_texts"), folder, split)
    if data == "librivox":
        return recipes.librivox(asset("librivox_clips"), folder, split)
    if data == "fillets":
        return recipes.fillets(asset("fillets_data"), asset("fillets_cs"), asset("fillets_nl"), folder, split)
    return recipes.spoken_sentences(asset("llamafactory_data"), asset("hibari_tts"), folder, split)
