"""`mm-llama transcribe FILE...` and `mm-llama translate FILE --to LANGUAGE`: what is said, as text or subtitles."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.cli.parser import Parser
from mm_llama.data.languages import LANGUAGES, language_named
from mm_llama.terminal import plain, visible
from mm_llama.transcript import Segment, Transcript, srt, vtt

if TYPE_CHECKING:
    from torch import Tensor

    from mm_llama.listen import Listener

DEFAULT_ADAPTER = Path("runs/demo/speech")
_EXAMPLES = """examples:
  mm-llama transcribe recording.wav
  mm-llama transcribe talk.mp3 film.mp4 --srt
  mm-llama transcribe - --rate 16000 < samples.s16le
  mm-llama translate recording.ogg --to English
"""


def main(argv: list[str]) -> int:
    """Transcribe; exit code 0."""
    return _run(argv, "transcribe")


def translate(argv: list[str]) -> int:
    """Translate; exit code 0."""
    return _run(argv, "translate")


def _run(argv: list[str], task: str) -> int:
    options = _parser(task).parse_args(argv)
    language = language_named(options.language)
    for file in options.files:
        if file != "-" and not os.path.isfile(file):
            raise FileNotFoundError(f"there is no file {file}")
    if "-" in options.files and (len(options.files) > 1 or options.output):
        raise ValueError("`-` is the sound that comes in: give it alone, and let the shell write its text")
    form = "srt" if options.srt else "vtt" if options.vtt else "json" if options.json else "text"
    adapters = options.adapter or [str(DEFAULT_ADAPTER)]
    for run in adapters:
        if not os.path.isdir(run):
            raise ValueError(
                f"there is no trained adapter to hear with ({run} does not exist here): train one with `make demo` "
                "(minutes) or `mm-llama train experiment=asr_en`, or name a finished run with --adapter RUN"
            )

    from mm_llama.assistant import load
    from mm_llama.cli.eval_speech import beam_search
    from mm_llama.listen import Listener

    assistant = load(options.core, adapters, dtype=options.dtype, threads=options.threads)
    network = None
    if options.vad == "silero":
        from mm_llama.assets import asset

        network = asset("silero_vad")
    listener = Listener(assistant, language, task, search=beam_search(options.beam), voice_activity=network)
    if options.files == ["-"]:
        return _stream(listener, options, form)
    whole = [_file(listener, file, form, many=len(options.files) > 1) for file in options.files]
    if options.output:
        from mm_llama.core.identity import write_text

        write_text(Path(options.output), "".join(one.render(form) for one in whole))
    return 0 if options.output else _print(whole, form)


def _file(listener: Listener, file: str, form: str, many: bool) -> Transcript:
    def say(segment: Segment) -> None:
        if sys.stderr.isatty():
            print(f"[{segment.start:7.1f} {segment.end:7.1f}] {plain(segment.text)}", file=sys.stderr)

    found = listener.file(file, on_segment=say)
    if not found.text:
        print(f"note: nothing was heard in {file} ({found.seconds:.1f} s)", file=sys.stderr)
    return found


def _print(found: list[Transcript], form: str) -> int:
    many = len(found) > 1
    for transcript in found:
        if many and form == "text":
            print(visible(f"{transcript.source}: {transcript.text}"))
        else:
            print(visible(transcript.render(form)), end="")
    return 0


def _stream(listener: Listener, options: argparse.Namespace, form: str) -> int:
    """Write what is said while it is said; on a terminal what may still change stands in the last line."""
    from mm_llama.data.sound import pcm_blocks

    blocks: Iterator[Tensor] = pcm_blocks(
        sys.stdin.buffer, rate=options.rate, channels=options.channels, form=options.format
    )
    live = sys.stdout.isatty()
    segments: list[Segment] = []
    for segment, final in listener.stream(blocks):
        if final:
            segments.append(segment)
        if form == "json":
            row: dict[str, Any] = {"start": round(segment.start, 3), "end": round(segment.end, 3)}
            import json

            print(json.dumps(row | {"text": segment.text, "final": final}, ensure_ascii=False), flush=True)
        elif form == "text" and (final or live):
            print(
                f"\r\033[K{plain(segment.text)}" if live else segment.text,
                end="\n" if final else "",
                flush=True,
            )
    if form in ("srt", "vtt"):
        print(visible({"srt": srt, "vtt": vtt}[form](segments)), end="")
    return 0


def _parser(task: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"mm-llama {task}",
        description={
            "transcribe": "Write down what is said in recordings of any length.",
            "translate": "Write down what is said in recordings of any length in another language.",
        }[task],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="WAV, FLAC, Ogg, Opus, MP3, AAC, M4A, or a clip with sound; - reads raw samples from standard input",
    )
    known = f"one of {len(LANGUAGES)} by name or ISO code"
    if task == "transcribe":
        add("--language", default="English", help=f"of what is said: {known} (default: %(default)s)")
    else:
        add("--to", dest="language", required=True, metavar="LANGUAGE", help=f"of the text: {known}")
    add("-o", "--output", metavar="FILE", help="write there instead of to standard output")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="segments with times, a JSON object for each file")
    forms.add_argument("--srt", action="store_true", help="SubRip subtitles")
    forms.add_argument("--vtt", action="store_true", help="WebVTT subtitles")
    add("--rate", type=int, default=16_000, help="of raw samples, a second (default: %(default)s)")
    add("--channels", type=int, default=1, help="of raw samples (default: %(default)s)")
    add("--format", default="s16le", help="of raw samples: s16le, s32le, f32le or u8 (default: %(default)s)")
    add(
        "--beam",
        type=int,
        default=0,
        metavar="N",
        help="let readout and core search what was said among N readings: fewer errors, slower (default: no search)",
    )
    add(
        "--vad",
        choices=("loudness", "silero"),
        default="loudness",
        help="what tells speech from pauses: loudness, or a network where noise is loud (default: %(default)s)",
    )
    add("--core", default="smollm2_135m", help="a name of conf/core, or a path (default: %(default)s)")
    add("--adapter", action="append", metavar="RUN", help=f"a finished run (default: {DEFAULT_ADAPTER})")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    return parser
