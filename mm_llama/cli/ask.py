"""`mm-llama ask [FILES...] "question"`: an answer about pictures and clips, to plain text, or to a recording.

Everything that can be wrong with the arguments and the files is found before torch is imported.
"""

from __future__ import annotations

import argparse
import json
import mimetypes
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.cli.eval_speech import check_beam
from mm_llama.cli.parser import Parser
from mm_llama.cli.say import has_voice, speaker_of, voice_runs, write_wav
from mm_llama.data.decode import open_image
from mm_llama.data.video import medium_of, probe_clip
from mm_llama.data.video_limits import NoPicturesError
from mm_llama.released.detect import is_vision
from mm_llama.terminal import visible

if TYPE_CHECKING:
    from mm_llama.core.tokenizer import Tokenizer
    from mm_llama.generation.engine import Generated, TextStream
    from mm_llama.spoken import Written
    from mm_llama.voice.speak import Speaker

# Where `make demo` leaves them, by what they see.
DEFAULT_ADAPTERS = {
    "image": Path("runs/demo/image"),
    "video": Path("runs/demo/video"),
    "speech": Path("runs/demo/speech"),
}
DEFAULT_ADAPTER = DEFAULT_ADAPTERS["image"]

_EXAMPLES = """examples:
  mm-llama ask photo.jpg "What is in this picture?"
  mm-llama ask before.png after.png "What has changed?"
  mm-llama ask clip.mp4 "What is happening?"
  mm-llama ask "What is the capital of France?"
  mm-llama ask question.wav
  mm-llama ask photo.jpg question.wav
  mm-llama ask photo.jpg question.wav --speak answer.wav
"""


def main(argv: list[str]) -> int:
    """Answer one question; prints the answer as it is made, or one JSON object."""
    started = time.perf_counter()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows "?"
    options = _parser().parse_intermixed_args(argv)
    files, question = _files_and_question(options.words)
    media = [_open(file) for file in files]
    adapters = _adapters(options.adapter, media, options.core)
    if options.speak and not has_voice(adapters):
        adapters += voice_runs(None)
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {options.max_new_tokens}, expected at least 1")
    check_beam(options.beam)
    if options.beam and not any(medium.kind == "speech" for medium in media):
        raise ValueError(f"--beam {options.beam} searches what a recording says, and no recording was given")

    if sys.stderr.isatty():
        print(f"loading {options.core} ...", file=sys.stderr)
    from mm_llama.assistant import load
    from mm_llama.generation.sampling import Sampling

    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    assistant = load(
        options.core,
        adapters,
        dtype=options.dtype,
        threads=options.threads,
        beam=options.beam,
        weights=options.weights,
    )
    speaker = speaker_of(assistant) if options.speak else None
    loaded = time.perf_counter()
    for medium in media:
        if medium.has_sound:
            print(
                f"note: the sound of {medium.file} is not heard, only its pictures are seen; "
                f"`mm-llama transcribe {medium.file}` writes down what is said",
                file=sys.stderr,
            )
    answer = assistant.chat(
        _messages(media, question),
        max_new_tokens=options.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        system=options.system,
        stream=True,
        watch=speaker.layers if speaker is not None else (),
    )
    mute: ValueError | None = None
    if speaker is not None:
        shown = not (options.json or options.no_stream)
        mute = _speak(answer, speaker, Path(options.speak), assistant.tokenizer, shown)
    if options.json:
        result = answer.result
        print(
            json.dumps(
                {
                    "question": question,
                    "files": files,
                    "answer": result.text,
                    "tokens": len(result.tokens),
                    "prompt_tokens": result.num_prompt_tokens,
                    "stop_reason": result.stop_reason,
                    "seconds": _seconds(result, loaded - started),
                    "core": options.core,
                    "adapters": [str(run) for run in adapters],
                },
                ensure_ascii=False,
            )
        )
    else:
        told = speaker is not None and not options.no_stream
        _show(answer, whole=options.no_stream, limit=options.max_new_tokens, told=told)
    if mute is not None:
        raise mute
    return 0


def _speak(
    answer: TextStream, speaker: Speaker, path: Path, tokenizer: Tokenizer, shown: bool
) -> ValueError | None:
    """Say an answer while it is written, and print it meanwhile if it is to be `shown`.

    Returns what the voice could not say; the answer is written to its end all the same.
    """
    from mm_llama.generation.text import TextPieces

    pieces = TextPieces(tokenizer)

    def printing() -> Iterator[Written]:
        for token in answer.written():
            if shown:
                _print(pieces.push_bytes(token.data))
            yield token
        if shown:
            _print(pieces.finish())

    written = printing()
    try:
        # What is closed when the voice fails is what it was given, not the answer.
        write_wav(path, speaker.stream(token for token in written), speaker.samples_a_second)
    except ValueError as error:
        for _ in written:
            pass
        return error
    return None


def _print(text: str) -> None:
    try:
        print(visible(text), end="", flush=True)
    except BrokenPipeError:  # the reader has seen enough: no complaint, also not at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mm-llama ask",
        usage='mm-llama ask [options] [FILES ...] "question"',
        description="Answer a question about pictures and clips, or about nothing but the question.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "words",
        nargs="*",
        metavar="FILES ... question",
        help="pictures (JPEG, PNG, WEBP, GIF), clips (MP4, MOV, WebM, MKV, AVI, animated GIF and WEBP) and "
        "recordings (WAV, FLAC, Ogg, MP3, M4A), then the question, unless a recording asks it",
    )
    add(
        "--core",
        default="smollm2_135m",
        help="a name of conf/core, or a checkpoint's path (default: %(default)s)",
    )
    add(
        "--adapter",
        action="append",
        metavar="RUN",
        help="folder of a finished run; may be repeated "
        f"(default: {', '.join(str(run) for run in DEFAULT_ADAPTERS.values())}, as far as the files need them)",
    )
    add(
        "--beam",
        type=int,
        default=0,
        metavar="N",
        help="search what a recording says among N readings: fewer errors, slower (default: no search)",
    )
    add("--speak", metavar="FILE", help="also say the answer into this WAV file while it is written")
    add("--system", metavar="TEXT", help="a system message before the question")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default: %(default)s)")
    add(
        "--temperature",
        type=float,
        default=0.0,
        help="0 always takes the likeliest token (default: %(default)s)",
    )
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the likeliest tokens of this total (default: all)",
    )
    add("--top-k", type=int, default=0, help="sample from this many likeliest tokens (default: all)")
    add("--seed", type=int, default=0, help="of the sampling (default: %(default)s)")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: %(default)s)")
    add(
        "--weights",
        default="auto",
        help="auto (as the device reads them fastest), plain, or int8: rounded, the fastest (default: %(default)s)",
    )
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--json", action="store_true", help="print one JSON object")
    add("--no-stream", action="store_true", help="print the answer when it is complete")
    return parser


def _files_and_question(words: Sequence[str]) -> tuple[list[str], str]:
    """Files first, the question last; says what is missing when they are not."""
    example = 'for example: mm-llama ask photo.jpg "What is in this picture?"'
    if not words:
        raise ValueError(f"there is no question; {example}")
    *files, question = words
    if not question.strip():
        raise ValueError(f"the question is empty; {example}")
    if os.path.isfile(question):
        # A question may be asked aloud: then there is none in writing.
        if any(_is_heard(file) for file in words if os.path.isfile(file)):
            return list(words), ""
        raise ValueError(
            f"{question} is a file, so the question is missing: it comes last, in quotes, or is a recording; {example}"
        )
    if os.path.isdir(question):
        raise ValueError(f"{question} is a folder: give files one by one and the question last; {example}")
    if not question[-1:].isspace() and len(question.split()) == 1 and _medium(question):
        raise ValueError(f"there is no file {question}, and the question is missing; {example}")
    return files, question


@dataclass(frozen=True)
class _Medium:
    """A file that was looked at: a decoded picture, or the path of a clip whose header was read."""

    file: str
    kind: str
    source: Any
    has_sound: bool = False


def _open(file: str) -> _Medium:
    """What one file holds, by its content; an error for everything that is neither picture nor clip."""
    kind = medium_of(file) if os.path.isfile(file) else "image"
    if kind == "video":
        try:
            return _Medium(file, kind, file, probe_clip(file).has_audio)
        except NoPicturesError:
            kind = "audio"
    if kind == "audio":
        return _Medium(file, "speech", file)
    try:
        return _Medium(file, "image", open_image(file))
    except FileNotFoundError:
        hint = "" if Path(file).suffix or os.sep in file else ' (put the question in quotes: "What is this?")'
        raise FileNotFoundError(f"there is no file {file}{hint}") from None
    except ValueError as error:
        raise ValueError(f"{error}{'' if kind else ', or an MP4, MOV, WebM, MKV or AVI clip'}") from None


def _is_heard(file: str) -> bool:
    """Whether a file is a recording, or a container of clips that holds sound alone."""
    kind = medium_of(file)
    if kind == "video":
        try:
            probe_clip(file)
        except NoPicturesError:
            return True
        except ValueError:
            return False  # said where it is opened
    return kind == "audio"


def _medium(name: str) -> str:
    """What a name's ending says it is: image, video or audio, else nothing."""
    kind = (mimetypes.guess_type(name)[0] or "").partition("/")[0]
    return kind if kind in ("image", "video", "audio") else ""


def _adapters(given: list[str] | None, media: list[_Medium], core: str) -> list[Path]:
    """The runs to attach: those named, else the demo's for what is to be seen and the core does not see itself."""
    if given is not None:
        for run in given:
            if not os.path.isdir(run):
                what = "is a file" if os.path.isfile(run) else "does not exist"
                raise ValueError(
                    f"--adapter {run} {what}: name the folder of a finished run, such as {DEFAULT_ADAPTER}"
                )
        return [Path(run) for run in given]
    first = {medium.kind: medium.file for medium in reversed(media)}
    if first and is_vision(core):
        first.pop("image", None)
    for kind, file in first.items():
        if not DEFAULT_ADAPTERS[kind].is_dir():
            raise ValueError(
                f"there is no trained {kind} adapter to {'hear' if kind == 'speech' else 'see'} {file} with "
                f"({DEFAULT_ADAPTERS[kind]} does not exist here): train one with `make demo` (minutes) or "
                f"`mm-llama train stage={kind}_{'sft' if kind == 'speech' else 'pretrain'} ...`, "
                "or name a finished run with --adapter RUN"
            )
    # A video adapter reads the image encoder, so its run comes with the image run.
    beside = "video" in first and DEFAULT_ADAPTER.is_dir() and not is_vision(core)
    return [run for kind, run in DEFAULT_ADAPTERS.items() if kind in first or (kind == "image" and beside)]


def _messages(media: list[_Medium], question: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for medium in media:
        key = "audio" if medium.kind == "speech" else medium.kind
        parts.append({"type": key, key: medium.source})
    written = [{"type": "text", "text": question}] if question else []
    return [{"role": "user", "content": [*parts, *written]}]


def _show(answer: TextStream, *, whole: bool, limit: int, told: bool) -> None:
    """Print the answer, piece by piece unless `whole`, or its end if it was `told` before; notes go to stderr."""
    for piece in [answer.result.text] if whole else () if told else answer:
        _print(piece)
    _print("\n")
    result = answer.result
    if result.stop_reason == "length":
        print(f"note: the answer was cut after {limit} tokens; --max-new-tokens allows more", file=sys.stderr)
    elif not result.text.strip():
        print("note: the model ended its answer at once", file=sys.stderr)


def _seconds(result: Generated, load: float) -> dict[str, float]:
    """Load; reading pictures and prompt; from the start to the first token and to the last."""
    seconds = result.seconds
    times = {
        "load": load,
        "prefill": seconds.prefill,
        "first_token": load + seconds.first_token,
        "total": load + seconds.total,
    }
    return {name: round(value, 4) for name, value in times.items()}
