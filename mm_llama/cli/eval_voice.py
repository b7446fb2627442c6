"""`mm-llama eval voice`: held-out phones and prosody spoken again, heard by Whisper tiny.en, beside the teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_llama.data.sources import Source

RECIPE = "taught_voice"
LOG_MEL = {"_target_": "encoders.log_mel.LogMel"}


def add_parser(tasks: Any) -> argparse.ArgumentParser:
    """Add the task to `mm-llama eval`."""
    task: argparse.ArgumentParser = tasks.add_parser(
        "voice",
        help="acoustic model and vocoder: words that Whisper hears wrong, clean and in noise, spectra, speed",
    )
    task.add_argument(
        "--data", default=RECIPE, help=f"{RECIPE}, or a JSONL file of a voice (default: %(default)s)"
    )
    task.add_argument(
        "--split", default="holdout", help="of the recipe: holdout or train (default: %(default)s)"
    )
    task.add_argument(
        "--noise",
        type=float,
        default=3.0,
        metavar="DB",
        help="white noise so far below speech (default: %(default)s)",
    )
    task.add_argument("--no-noise", action="store_true", help="clean recordings alone")
    task.add_argument(
        "--answers", type=Path, metavar="FILE", help="every text as JSONL (default: beside --out)"
    )
    return task


def run(args: argparse.Namespace, model: Any, tokenizer: Any, chat: Any, progress: Any) -> dict[str, Any]:
    """Speak, listen, print, write; returns the numbers."""
    from mm_llama.assets import asset
    from mm_llama.build import build
    from mm_llama.eval.voice import evaluate_voice
    from mm_llama.eval.whisper import Whisper

    result = evaluate_voice(
        model,
        source_of(args.data, args.split),
        log_mel(model),
        Whisper(asset("whisper_tiny_en"), build(LOG_MEL), threads=args.threads or 1),
        noise=None if args.no_noise else args.noise,
        limit=args.limit,
        progress=progress,
    )
    if args.out:
        result.write(args.out, args.answers or args.out.with_name(f"{args.out.stem}_answers.jsonl"))
    if not args.json:
        from rich.console import Console

        Console().print(result.table())
        print(f"{len(result.texts):,} recordings, {result.seconds:.0f} s of sound")
    return result.to_json()


def log_mel(model: Any) -> Any:
    """Return what makes log-mels as the vocoder of a model reads them, or as the stages of a voice have them."""
    from mm_llama.build import build

    sizes: dict[str, Any] = {"num_mels": 80, "rate": 24_000, "window": 1200, "hop": 300}
    if "tts_vocoder" in model.modality:
        vocoder = model.modality["tts_vocoder"].adapter
        sizes = {
            "num_mels": vocoder.num_mels,
            "rate": vocoder.rate,
            "window": vocoder.size,
            "hop": vocoder.hop,
        }
    return build(LOG_MEL | sizes | {"dynamic_range": None})


def source_of(data: str, split: str) -> Source:
    """Return the rows that `--data` names: the recipe's split, or those of a file."""
    from mm_llama.data.voice_rows import VoiceRows, taught_voice

    if data != RECIPE:
        return VoiceRows(data)
    from mm_llama.assets import asset
    from mm_llama.paths import cache_dir

    roots = [asset("llamafactory_data"), asset("moby_dick")]
    return taught_voice(roots, asset("hibari_tts"), cache_dir() / "data" / RECIPE, split)
