"""`mm-llama eval tts`: held-out sentences spoken again, part by part, heard by recognisers, beside the teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_llama.data.sources import Source

RECIPE, RECORDED = "taught_voice", "recorded_voice"
LOG_MEL = {"_target_": "encoders.log_mel.LogMel"}


def add_parser(tasks: Any) -> argparse.ArgumentParser:
    """Add the task to `mm-llama eval`."""
    task: argparse.ArgumentParser = tasks.add_parser(
        "tts",
        help="a voice: words that recognisers hear wrong, clean and in noise, spectra, speed; a page of pairs",
    )
    add_data(task)
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
    task.add_argument(
        "--sides", metavar="NAMES", help="of teacher, vocoder, voice, own; with commas (default: all)"
    )
    task.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="write a page that plays two sides in random order and asks for votes",
    )
    task.add_argument(
        "--page-sides",
        nargs=2,
        default=("own", "teacher"),
        metavar="SIDE",
        help="teacher, vocoder, voice or own (default: own teacher)",
    )
    task.add_argument(
        "--page-pairs", type=int, default=20, metavar="N", help="how many pairs (default: %(default)s)"
    )
    return task


def add_data(task: argparse.ArgumentParser) -> None:
    """Add which recordings of a voice are evaluated."""
    task.add_argument(
        "--data",
        default=RECIPE,
        help=f"{RECIPE}, {RECORDED}, or a JSONL file of a voice (default: %(default)s)",
    )
    task.add_argument(
        "--aligner",
        type=Path,
        default=Path("runs/tts_aligner"),
        metavar="RUN",
        help=f"of --data {RECORDED}: the run that aligned it (default: %(default)s)",
    )
    task.add_argument(
        "--split",
        default="holdout",
        help=f"of the recipe: holdout or train, or test of {RECORDED} (default: %(default)s)",
    )


def run(args: argparse.Namespace, model: Any, tokenizer: Any, chat: Any, progress: Any) -> dict[str, Any]:
    """Speak, listen, print, write; returns the numbers."""
    from mm_llama.assets import asset
    from mm_llama.assistant import Assistant
    from mm_llama.build import build
    from mm_llama.cli.say import speaker_of
    from mm_llama.eval.tts import SIDES, evaluate_tts
    from mm_llama.eval.whisper import Whisper

    chosen = args.sides.split(",") if args.sides else list(SIDES)
    if args.page and (missing := [side for side in args.page_sides if side not in chosen]):
        raise ValueError(
            f"--page plays {missing[0]!r}, which --sides leaves out: name it there, or other --page-sides"
        )
    assistant = Assistant(model, tokenizer, chat)
    judges: dict[str, Any] = {
        "Whisper tiny.en": Whisper(asset("whisper_tiny_en"), build(LOG_MEL), threads=args.threads or 1)
    }
    if "speech" in model.modality:
        judges["our own"] = own_judge(assistant)
    whole = {"tts_prosody", "tts_acoustic"} <= set(model.modality)
    pages: dict[str, list[tuple[str, Any]]] = {}

    def keep(text: str, side: str, samples: Any) -> None:
        if len(pages.setdefault(side, [])) < args.page_pairs:
            pages[side].append((text, samples))

    mel = log_mel(model)
    result = evaluate_tts(
        model,
        source_of(args.data, args.split, args.aligner),
        mel,
        judges,
        speaker=speaker_of(assistant) if whole else None,
        noise=None if args.no_noise else args.noise,
        limit=args.limit,
        sides=chosen,
        progress=progress,
        on_sound=keep if args.page else None,
    )
    if args.out:
        result.write(args.out, args.answers or args.out.with_name(f"{args.out.stem}_answers.jsonl"))
    if args.page:
        from mm_llama.report.preference import write_preference_page

        first, second = args.page_sides
        if missing := [side for side in (first, second) if side not in pages]:
            raise ValueError(
                f"--page-sides: nothing was spoken by {missing[0]!r}; sides here are {', '.join(pages)}"
            )
        names = {"a": SIDES[first], "b": SIDES[second]}
        pairs = zip(pages[first], pages[second], strict=True)
        write_preference_page(args.page, names, [(text, a, b) for (text, a), (_, b) in pairs], mel.rate)
    if not args.json:
        from rich.console import Console

        Console().print(result.table())
        print(f"{len(result.texts):,} recordings, {result.seconds:.0f} s of sound")
        if result.parts:
            shares = ", ".join(f"{name} {value:.3f}" for name, value in result.to_json()["parts"].items())
            print(f"real-time factor of the parts: {shares}")
    return result.to_json()


def own_judge(assistant: Any) -> Any:
    """Return the recogniser of this project as a judge: the speech adapter that is attached, greedily."""
    from mm_llama.data.sound import RATE
    from mm_llama.listen import Listener

    listener = Listener(assistant)

    def judge(recordings: Any) -> list[str]:
        heard = []
        for samples in recordings:
            blocks = [samples[start : start + RATE] for start in range(0, len(samples), RATE)]
            heard.append(" ".join(one.text for one in listener.segments(blocks)))
        return heard

    return judge


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


def source_of(data: str, split: str, aligner: Path) -> Source:
    """Return the rows that `--data` names: the recipe's split, or those of a file."""
    from mm_llama.data.voice_rows import VoiceRows, taught_voice

    if data not in (RECIPE, RECORDED):
        return VoiceRows(data)
    from mm_llama.assets import asset
    from mm_llama.paths import cache_dir

    if data == RECORDED:
        from mm_llama.recorded_rows import recorded_voice

        prompts = asset("asterisk_wideband"), asset("asterisk_texts")
        return recorded_voice(*prompts, asset("hibari_tts"), aligner, cache_dir() / "data" / RECORDED, split)
    roots = [asset("llamafactory_data"), asset("moby_dick")]
    return taught_voice(roots, asset("hibari_tts"), cache_dir() / "data" / RECIPE, split)
