"""`mm-llama say "text" -o out.wav`: a text spoken by a voice that was trained here.

Everything that can be wrong with the arguments is found before torch is imported.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import sys
import wave
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.cli.parser import Parser
from mm_llama.paths import voices_dir
from mm_llama.terminal import plain
from mm_llama.voice import check_factor

if TYPE_CHECKING:
    from mm_llama.assistant import Assistant
    from mm_llama.data.text_to_speech import Hibari
    from mm_llama.voice.speak import Piece, Said, Speaker

# Each part of a voice with the stages that leave it in their runs, the last one first.
PARTS = {
    "tts_normalization": ("tts_normalization",),
    "tts_prosody": ("tts_prosody",),
    "tts_acoustic": ("tts_tolerant", "tts_acoustic"),
    "tts_vocoder": ("tts_matched", "tts_vocoder"),
}
NORMALIZER = "tts_normalization"
SHIPPED = voices_dir() / "english"
EXAMPLES = """examples:
  mm-llama say 'Dr. Smith paid $12.50 on 3/4.' -o out.wav
  mm-llama say - -o out.wav < story.txt
  mm-llama say "Good morning." --rate 1.2 --pitch 0.9 -o out.wav
  mm-llama say "Guten Morgen!" --language de -o out.wav
  mm-llama say "Good morning." -o - --raw | aplay -f S16_LE -r 24000
"""


def main(argv: list[str]) -> int:
    """Speak one text; exit code 0."""
    options = _parser().parse_args(argv)
    check_factor("--rate", options.rate)
    check_factor("--pitch", options.pitch)
    if options.engine and options.language != "en":
        raise ValueError(
            f"--engine {options.engine} speaks English, not {options.language!r}: leave one of them out"
        )
    if options.raw != (options.output == "-"):
        raise ValueError(
            "--raw writes samples to standard output, and nothing else does: give -o - --raw together"
        )
    adapters = voice_runs(options.adapter)
    if options.engine:
        adapters = [run for run in adapters if run.name == NORMALIZER or options.adapter]
    if not options.text.strip():
        raise ValueError('there is nothing to say; for example: mm-llama say "Good morning." -o out.wav')

    from mm_llama.assistant import load
    from mm_llama.voice.wording import check_script

    phones = other_phones(options.language)
    if options.text != "-" and phones is None:
        check_script(options.text)
    found = load(options.core, adapters, dtype=options.dtype, threads=options.threads)
    speaker = speaker_of(
        found, options.rate, options.pitch, options.style, phones=phones, engine=bool(options.engine)
    )
    texts = _standard_input() if options.text == "-" else [options.text]
    parts = _told(speaker.stream(speaker.read(texts)), options.show)
    if options.raw:
        with contextlib.suppress(BrokenPipeError):  # who listens has heard enough
            for part in parts:
                sys.stdout.buffer.write(pcm(part.samples))
                sys.stdout.buffer.flush()
        return 0
    seconds = write_wav(Path(options.output), parts, speaker.samples_a_second)
    print(f"{options.output}: {seconds:.1f} s", file=sys.stderr)
    return 0


def _standard_input() -> Iterator[str]:
    """Yield what is typed or piped in, as it comes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    source: Any = sys.stdin.buffer
    while data := source.read1(4096):
        yield decoder.decode(data)
    yield decoder.decode(b"", True)


def other_phones(language: str) -> Callable[[str], str] | None:
    """Return what finds the phones of a language, None for English, whose rules come with the voice's teacher."""
    if language == "en":
        return None
    from mm_llama.voice.espeak import Espeak

    return Espeak(language).phones


def speaker_of(
    assistant: Assistant,
    rate: float = 1.0,
    pitch: float = 1.0,
    style: int | str = 0,
    phones: Callable[[str], str] | None = None,
    engine: bool = False,
) -> Speaker:
    """Return the voice that is attached to a model, of English unless `phones` finds those of another language.

    With `engine` the teacher's engine makes the sound. Raises ValueError, naming it, for a part that is missing.
    """
    from mm_llama.voice.speak import Speaker

    parts = assistant.model, assistant.tokenizer, assistant.chat_format
    if phones is not None:
        return Speaker(*parts, phones, rate, pitch, style, english=False)
    known = hibari()
    return Speaker(*parts, known.phones, rate, pitch, style, engine=known if engine else None)


def hibari() -> Hibari:
    """Return the engine whose rules find the phones of English."""
    from mm_llama.assets import asset
    from mm_llama.data.text_to_speech import Hibari

    return Hibari(asset("hibari_tts"))


def write_wav(path: Path, parts: Iterable[Said | Piece], samples_a_second: int) -> float:
    """Write parts as 16-bit mono WAV and return its seconds. The file appears whole, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    try:
        with wave.open(str(partial), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(samples_a_second)
            for part in parts:
                file.writeframes(pcm(part.samples))
                count += len(part.samples)
        if not count:
            raise ValueError("there is nothing in this text that can be said")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count / samples_a_second


def pcm(samples: Any) -> bytes:
    """Return float samples as 16-bit little-endian ones; what is louder than full scale is clipped."""
    scaled = (samples.clamp(-1, 1) * 32767).round().short()
    return bytes(scaled.numpy().astype("<i2").tobytes())


def _told(parts: Iterator[Piece], show: bool) -> Iterator[Piece]:
    for part in parts:
        if show and part.said is not None:
            print(plain(f"{part.said.words}\n  {part.said.phones}"), file=sys.stderr)
        yield part


def has_voice(runs: Iterable[Path]) -> bool:
    """True when one of some runs is a part of a voice."""
    for run in runs:
        for state in run.glob("**/state.json"):
            if str(json.loads(state.read_text("utf-8")).get("stage")).startswith("tts_"):
                return True
    return False


def voice_runs(given: list[str] | None) -> list[Path]:
    """Return the parts of a voice: those given, else of each the run that its stage left, or what is shipped.

    Raises ValueError, naming it, for a given one that is not there.
    """
    if given is not None:
        for name in given:
            if not Path(name).is_dir():
                raise ValueError(
                    f"there is no run at {name}: name runs of `mm-llama train stage=tts_vocoder` (and tts_acoustic, "
                    "tts_prosody, tts_normalization), or leave out --adapter for the voice that comes with mm_llama"
                )
        return [Path(name) for name in given]
    found, trained = [], []
    for part, stages in PARTS.items():
        runs = [run for run in (Path("runs") / stage for stage in stages) if run.is_dir()]
        trained += runs[:1]
        found += runs[:1] or [SHIPPED / part]
    if trained:
        names = ", ".join(map(str, trained))
        print(f"voice: {names} in place of what comes with mm_llama", file=sys.stderr)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mm-llama say",
        description="Speak a text: what is written is read, timed and made to sound by the parts of a voice.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("text", help="what to say, or - for standard input")
    add(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="a WAV file, or - for standard output (with --raw)",
    )
    add("--raw", action="store_true", help="16-bit samples as soon as they are spoken, with -o -")
    add(
        "--rate",
        type=float,
        default=1.0,
        help="faster or slower, a factor from 0.5 to 2 (default: %(default)s)",
    )
    add(
        "--pitch",
        type=float,
        default=1.0,
        help="higher or lower, a factor from 0.5 to 2 (default: %(default)s)",
    )
    add(
        "--engine",
        choices=("hibari",),
        help="an engine in place of our own prosody and sound: the teacher of the voice",
    )
    add(
        "--language",
        default="en",
        metavar="CODE",
        help="of the text; others than en are read by the program espeak-ng and said by an English voice",
    )
    add(
        "--style",
        default="0",
        metavar="NAME",
        help="a style of the voice's prosody, by its name or number (default: %(default)s)",
    )
    add("--show", action="store_true", help="print the words that are said, and their phones")
    add(
        "--adapter",
        action="append",
        metavar="RUN",
        help="repeatable (default: what comes with mm_llama, and runs/tts_* of each part that was trained here)",
    )
    add("--core", default="smollm2_135m", help="a name of conf/core, or a checkpoint (default: %(default)s)")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    return parser
