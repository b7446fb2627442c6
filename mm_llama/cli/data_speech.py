"""`mm-llama data make` for speech: recordings that packages carry, sentences spoken by an engine, dialogues."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Made = Callable[[dict[str, Path], bool], int]  # tells what was written


def add_speech_makers(sets: Any, made: Made) -> None:
    """Add the data sets to the parsers of `data make`."""
    asterisk = sets.add_parser("asterisk", help="telephone prompts and what is said in them (25 minutes)")
    asterisk.add_argument("--texts", type=Path, metavar="DIR", help="their texts (default: the asset)")
    asterisk.set_defaults(run=lambda options: _asterisk(options, made))
    librivox = sets.add_parser("librivox", help="five sentences of an audio book, for tests alone")
    librivox.set_defaults(run=lambda options: _librivox(options, made))
    fillets = sets.add_parser("fillets", help="dialogues of a game in Czech and Dutch, with English")
    for name in ("czech", "dutch"):
        fillets.add_argument(f"--{name}", type=Path, metavar="DIR", help="recordings (default: the asset)")
    fillets.set_defaults(run=lambda options: _fillets(options, made))
    for maker in (asterisk, librivox, fillets):
        maker.add_argument("--root", type=Path, metavar="DIR", help="unpacked package (default: the asset)")
    spoken = sets.add_parser("spoken", help="sentences of your texts, spoken by an engine in several voices")
    spoken.add_argument(
        "--clauses", action="store_true", help="also clauses of sentences that are too long to be said"
    )
    spoken.set_defaults(run=lambda options: _spoken(options, made))
    dialogue = sets.add_parser(
        "dialogue", help="what is asked aloud with the text core's own answers: of texts, or of recordings"
    )
    dialogue.add_argument(
        "--recordings",
        type=Path,
        metavar="FILE",
        help="a JSONL chat file of recordings with transcripts to be answered, in place of --text",
    )
    dialogue.add_argument(
        "--core", default="smollm2_135m", help="what answers: a name of conf/core (default %(default)s)"
    )
    dialogue.set_defaults(run=lambda options: _dialogue(options, made))
    for maker, rows, what in (
        (spoken, 2000, ".txt, .json, .jsonl, or folders of them"),
        (dialogue, 240, ".json, .jsonl with `instruction` or `question`, or folders of them"),
    ):
        maker.add_argument("--text", type=Path, nargs="+", metavar="PATH", help=f"what is said: {what}")
        maker.add_argument("--rows", type=int, default=rows, help="training rows (default %(default)s)")
        maker.add_argument("--holdout", type=int, default=40, help="rows held out (default %(default)s)")
        maker.add_argument("--engine", type=Path, metavar="DIR", help="the engine (default: the asset)")
    spoken.add_argument("--seed", type=int, default=0, help="of the split and the voices (default 0)")
    for maker in (asterisk, librivox, fillets, spoken, dialogue):
        maker.add_argument("--out", type=Path, required=True, metavar="DIR")
        maker.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _asterisk(options: argparse.Namespace, made: Made) -> int:
    from mm_llama.assets import asset
    from mm_llama.data.asterisk import write_jsonl

    root, texts = options.root or asset("asterisk_prompts"), options.texts or asset("asterisk_texts")
    return made(write_jsonl(root, texts, options.out), options.json)


def _librivox(options: argparse.Namespace, made: Made) -> int:
    from mm_llama.assets import asset
    from mm_llama.data.librivox import write_jsonl

    return made(write_jsonl(options.root or asset("librivox_clips"), options.out), options.json)


def _fillets(options: argparse.Namespace, made: Made) -> int:
    from mm_llama.assets import asset
    from mm_llama.data.fillets import write_jsonl

    sounds = {"cs": options.czech or asset("fillets_cs"), "nl": options.dutch or asset("fillets_nl")}
    return made(write_jsonl(options.root or asset("fillets_data"), sounds, options.out), options.json)


def _spoken(options: argparse.Namespace, made: Made) -> int:
    from mm_llama.assets import asset
    from mm_llama.data.speech_recipes import write_spoken

    _check(options)
    if not options.text:
        raise ValueError("there is nothing to say: give files or folders with --text")
    return made(
        write_spoken(
            options.text,
            options.engine or asset("hibari_tts"),
            options.out,
            num_train=options.rows,
            num_holdout=options.holdout,
            seed=options.seed,
            clauses=options.clauses,
        ),
        options.json,
    )


def _dialogue(options: argparse.Namespace, made: Made) -> int:
    from mm_llama.assets import asset
    from mm_llama.dialogue_rows import write_answered, write_dialogues

    _check(options)
    if bool(options.text) == bool(options.recordings):
        raise ValueError("what is asked comes from --text or from --recordings: give one of them")
    if options.recordings:
        numbers = {"num_train": options.rows, "num_holdout": options.holdout}
        return made(write_answered(options.recordings, options.out, options.core, **numbers), options.json)
    paths = write_dialogues(
        options.text,
        options.engine or asset("hibari_tts"),
        options.out,
        options.core,
        num_train=options.rows,
        num_holdout=options.holdout,
    )
    return made(paths, options.json)


def _check(options: argparse.Namespace) -> None:
    if options.rows < 1 or options.holdout < 0:
        raise ValueError(f"--rows {options.rows} is at least 1, --holdout {options.holdout} not below 0")
