"""`mm-llama bench voice`: from the core's first word to the first sound, in its terms; real-time factor; memory.

The core answers questions and a voice speaks while it writes. Beside it stands the engine of its teacher, which needs a
whole sentence before it makes a sound: it is given the first sentence of the same answer, when that is written.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm_llama.bench.measure import (
    machine_facts,
    megabytes,
    positive,
    resident_bytes,
    show_table,
    write_facts,
)
from mm_llama.cli.parser import Parser

QUESTIONS = (
    "Tell me about the sea.",
    "Why is the sky blue?",
    "What do bees do in winter?",
    "How is bread made?",
    "Who was Charles Darwin?",
)
PARTS = ("core", "normaliser", "phones", "prosody", "acoustic", "vocoder")
TEXT = (
    "They saw the old house again, and nobody had been there since the autumn. The river was high that year, as the "
    "people of the village said, and the bridge was closed. We walked along the shore until the evening came. "
)


def main(argv: list[str]) -> int:
    """Time everything; print tables, write numbers if asked."""
    args = _parser().parse_args(argv)
    positive("--tokens", args.tokens)
    positive("--repeats", args.repeats)
    import torch

    from mm_llama.assistant import load
    from mm_llama.cli.say import speaker_of, voice_runs

    if args.threads:
        torch.set_num_threads(positive("--threads", args.threads))
    assistant = load(args.core, voice_runs(args.adapter))
    speaker = speaker_of(assistant)
    found: dict[str, Any] = {
        "bench": "voice",
        "command": " ".join(["mm-llama bench voice", *argv]),
        "machine": machine_facts(),
        "first_sound": first_sound(assistant, speaker, args.tokens, args.repeats),
        "real_time": real_time(speaker, args.repeats),
    }
    if args.minutes:
        found["memory"] = memory(speaker, args.minutes)
    write_facts(args.json, found)
    _show(found)
    return 0


def first_sound(assistant: Any, speaker: Any, tokens: int, repeats: int) -> dict[str, Any]:
    """Return medians over questions: seconds from the first word to the first sound, in terms, and of the teacher's."""
    from mm_llama.cli.say import hibari

    engine = hibari()
    answered(assistant, speaker, QUESTIONS[0], tokens)  # what is done once is done before it is timed
    engine.speak("Good morning.")
    rows = []
    for _ in range(repeats):
        for question in QUESTIONS:
            row = answered(assistant, speaker, question, tokens)
            row["teacher"] = teacher(assistant, engine, question, tokens)
            rows.append(row)
    keys = ("first_sound", "words_before", *PARTS, "teacher")
    found: dict[str, Any] = {key: statistics.median(row[key] for row in rows) for key in keys}
    return found | {"answers": len(rows), "slowest": max(row["first_sound"] for row in rows)}


def answered(assistant: Any, speaker: Any, question: str, tokens: int) -> dict[str, float]:
    """Return seconds from the first complete word of an answer to its first sound, and what each part took of them."""
    began: dict[str, float] = {}
    text = b""
    answer = assistant.chat(question, max_new_tokens=tokens, stream=True, watch=speaker.layers)

    def watched() -> Iterator[Any]:
        nonlocal text, began
        for token in answer.written():
            text += token.data
            if not began and len(text.split()) > 1:  # the first word is complete when the second begins
                began = {"at": time.perf_counter()} | dict(speaker.seconds)
            yield token

    pieces = speaker.stream(watched())
    next(pieces)
    at = time.perf_counter()
    found = {part: speaker.seconds[part] - began.get(part, 0.0) for part in PARTS}
    # The core's time is told when its generator returns: the word that began was within one call.
    found["first_sound"] = at - began["at"]
    found["core"] = found["first_sound"] - sum(found[part] for part in PARTS if part != "core")
    found["words_before"] = float(len(text.split()))
    pieces.close()
    return found


def teacher(assistant: Any, engine: Any, question: str, tokens: int) -> float:
    """Return the seconds from the first complete word to the end of the first sentence, and to its sound."""
    text, began = "", 0.0
    for piece in assistant.chat(question, max_new_tokens=tokens, stream=True):
        text += piece
        if not began and len(text.split()) > 1:
            began = time.perf_counter()
        if began and any(sign in text for sign in ".!?"):
            break
    sentence = text.replace("\n", " ")
    engine.speak(sentence)
    return time.perf_counter() - began


def real_time(speaker: Any, repeats: int) -> dict[str, float]:
    """Return by part the seconds of work for a second of sound, of a text that the core reads; medians."""
    rows = []
    for _ in range(repeats):
        speaker.seconds.clear()
        samples = sum(len(said.samples) for said in speaker.say(TEXT))
        spoken = samples / speaker.samples_a_second
        rows.append({part: speaker.seconds[part] / spoken for part in PARTS})
        rows[-1]["all"] = sum(rows[-1].values())
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def memory(speaker: Any, minutes: float) -> dict[str, Any]:
    """Return what the process holds, in bytes, at each minute of sound while it speaks without an end."""

    def endless() -> Iterator[str]:
        while True:
            yield TEXT

    held: list[int] = []
    samples = 0
    pieces = speaker.stream(speaker.read(endless()))
    for piece in pieces:
        samples += len(piece.samples)
        if samples / speaker.samples_a_second >= 60 * (len(held) + 1):
            held.append(resident_bytes())
        if samples / speaker.samples_a_second >= 60 * minutes:
            break
    pieces.close()
    return {"minutes": minutes, "held": held, "grown": held[-1] - held[0] if held else 0}


def _show(found: dict[str, Any]) -> None:
    first = found["first_sound"]
    rows = [[part, f"{1000 * first[part]:.0f} ms"] for part in PARTS]
    rows.append(["from the first word to the first sound", f"{1000 * first['first_sound']:.0f} ms"])
    rows.append(["the slowest of them", f"{1000 * first['slowest']:.0f} ms"])
    rows.append(["words that were written by then", f"{first['words_before']:.0f}"])
    rows.append(["the teacher's engine, from the first word", f"{1000 * first['teacher']:.0f} ms"])
    show_table(f"first sound, medians of {first['answers']} answers", ["", "time"], rows)
    real = found["real_time"]
    show_table(
        "seconds of work for a second of sound",
        [*PARTS, "all"],
        [[f"{real[key]:.3f}" for key in (*PARTS, "all")]],
    )
    if held := found.get("memory", {}).get("held"):
        cells = [megabytes(one) for one in held]
        show_table("memory at each minute of sound", [str(n + 1) for n in range(len(held))], [cells])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mm-llama bench voice", description=__doc__)
    add = parser.add_argument
    add("--adapter", action="append", metavar="RUN", help="repeatable (default: the voice that `say` takes)")
    add("--core", default="smollm2_135m", help="a name of conf/core, or a checkpoint (default: %(default)s)")
    add("--tokens", type=int, default=60, metavar="N", help="of each answer (default: %(default)s)")
    add("--repeats", type=int, default=3, metavar="N", help="rounds (default: %(default)s)")
    add(
        "--minutes",
        type=float,
        default=0,
        metavar="N",
        help="also speak so long and tell the memory (default: not)",
    )
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--json", type=Path, metavar="FILE", help="write every number as JSON")
    return parser
