"""The voice part of the demo: two short stages, answers that are spoken while they are written, and what is heard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.cli.say import SHIPPED
from mm_llama.demos.stage_folders import adapter_id

if TYPE_CHECKING:
    from mm_llama.demos.demo import Demo
    from mm_llama.voice.speak import Said

# Stage: its experiment. The sound is made by what comes with mm_llama, unless all of the voice is trained.
SHORT = {"tts_normalization": "demo_normalization", "tts_prosody": "demo_prosody"}
# All of it: stages in their order, each with the parts that it goes on from and the stages that trained those.
FULL: dict[str, dict[str, str]] = {
    "tts_normalization": {},
    "tts_prosody": {},
    "tts_acoustic": {},
    "tts_tolerant": {"tts_acoustic": "tts_acoustic"},
    "tts_vocoder": {},
    "tts_matched": {"tts_vocoder": "tts_vocoder", "tts_acoustic": "tts_tolerant"},
}
SPOKEN_WITH = ("tts_normalization", "tts_prosody", "tts_tolerant", "tts_matched")
NAMES = {
    "tts_normalization": "texts, voice, first stage: how what is written is read",
    "tts_prosody": "sentences, voice, second stage: how phones are said",
    "tts_acoustic": "voice, third stage: phones to log-mels",
    "tts_tolerant": "voice, fourth stage: the same with prosody a little wrong",
    "tts_vocoder": "voice, fifth stage: log-mels to sound",
    "tts_matched": "voice, sixth stage: log-mels as they are predicted",
    "speak": "answers spoken and heard again",
}
WRITTEN = "Dr. Smith paid $12.50 on 3/4, and the 2nd train left at 3:05 pm."
QUESTION = "What do bees do in winter?"
TOKENS = 48


def train(demo: Demo, full: bool, overrides: list[str]) -> tuple[list[Path], list[Path]]:
    """Train the stages, or find them trained; return their runs, and the parts to speak with, shipped or trained."""
    if not full:
        short = [demo.train(stage, experiment, overrides) for stage, experiment in SHORT.items()]
        return short, [*short, SHIPPED / "tts_acoustic", SHIPPED / "tts_vocoder"]
    runs: dict[str, Path] = {}
    for stage, starts in FULL.items():
        init = [f"stage.init.{part}={runs[start]}" for part, start in starts.items()]
        after = next((runs[start] for start in starts.values()), None)
        runs[stage] = demo.train(stage, "none", [f"stage={stage}", *init, *overrides], after=after)
    return list(runs.values()), [runs[stage] for stage in SPOKEN_WITH]


def speak(demo: Demo, image: Path, speech: Path, voice: list[Path], say: Callable[[str], None]) -> None:
    """Answer a question asked aloud about a picture, and one in writing, and read a text: all spoken, heard again."""
    heard_by = ":".join(adapter_id(part) for part in (image, speech, *voice))
    if demo._done("speak", voice[1], heard_by):
        return
    import torch

    from mm_llama.assets import asset
    from mm_llama.assistant import load
    from mm_llama.build import build
    from mm_llama.cli.eval_tts import LOG_MEL, own_judge
    from mm_llama.cli.say import speaker_of
    from mm_llama.data.sound import Sound, open_sound
    from mm_llama.data.spoken_rows import write_flac
    from mm_llama.demos.demo import _write
    from mm_llama.eval.speech_scores import align
    from mm_llama.eval.whisper import Whisper

    say("answers are spoken while they are written, and heard again")
    began = time.perf_counter()
    assistant = load("smollm2_135m", [image, speech, *voice])
    speaker = speaker_of(assistant)
    judges = {
        "Whisper tiny.en": Whisper(asset("whisper_tiny_en"), build(LOG_MEL)),
        "our own": own_judge(assistant),
    }
    found = []
    for number, (title, asked, files, written, sentences) in enumerate(_spoken(demo, assistant, speaker)):
        samples = torch.cat([one.samples for one in sentences])
        audio = f"voice/{number}.flac"
        write_flac(demo.out / audio, Sound(samples, speaker.samples_a_second), speaker.samples_a_second)
        heard_at = open_sound((samples, speaker.samples_a_second), rate=16_000).samples
        words = " ".join(one.words for one in sentences)
        heard = {name: judge([heard_at])[0] for name, judge in judges.items()}
        # A recogniser writes "March 4" for "March fourth": what was written, or what was said, whichever is nearer.
        first = min(
            (align(one, heard["Whisper tiny.en"]) for one in (written, words)), key=lambda one: one.errors
        )
        found.append(
            {
                "title": title,
                "asked": asked,
                "files": files,
                "said": words,
                "audio": audio,
                "seconds": round(len(samples) / speaker.samples_a_second, 3),
                **timed(sentences, speaker.vocoder.hop / speaker.samples_a_second),
                "heard": heard,
                "errors": first.errors,
                "length": first.length,
                "edits": [[edit.op, edit.said, edit.heard] for edit in first.edits],
            }
        )
        say(f"said: {words} (heard: {heard['Whisper tiny.en']})")
    work, sound = sum(speaker.seconds.values()), sum(one["seconds"] for one in found)
    parts = {name: round(seconds / sound, 4) for name, seconds in speaker.seconds.items()}
    _write(
        demo.out / "voice.json",
        {"utterances": found, "work_a_second": round(work / sound, 3), "parts": parts},
    )
    demo._keep("speak", voice[1], time.perf_counter() - began, f"{len(found)} utterances", heard_by)


def _spoken(
    demo: Demo, assistant: Any, speaker: Any
) -> Iterator[tuple[str, str, list[str], str, list[Said]]]:
    """Yield title, question, files, the text and the sentences that were said."""
    from mm_llama.cli.eval_rows import SPOKEN, source_of
    from mm_llama.core.messages import MediaPart

    row = source_of(SPOKEN, [], "test").row(0)
    picture, question = row.messages[0].parts
    assert isinstance(picture, MediaPart) and isinstance(question, MediaPart)
    files = [str(picture.source), str(question.source)]
    content = [{"type": "image", "image": files[0]}, {"type": "audio", "audio": files[1]}]
    answers: tuple[tuple[str, str, list[dict[str, str]], list[str]], ...] = (
        ("A picture and a question asked aloud", question.transcript, content, files),
        ("A question in writing", QUESTION, [{"type": "text", "text": QUESTION}], []),
    )
    for title, asked, given, named in answers:
        answer = assistant.chat(
            [{"role": "user", "content": given}], max_new_tokens=TOKENS, stream=True, watch=speaker.layers
        )
        pieces = speaker.stream(answer.written())
        said = [piece.said for piece in pieces if piece.said is not None]
        yield title, asked, named, answer.result.text, said
    yield "A text that is not written as it is said", WRITTEN, [], WRITTEN, list(speaker.say(WRITTEN))


def timed(sentences: list[Said], seconds_a_frame: float) -> dict[str, Any]:
    """Return where each word begins and ends, and the pitch in Hz of each phone that has a voice, in seconds."""
    from mm_llama.voice.prosody import F0_CENTER, F0_SCALE

    words: list[list[Any]] = []
    pitch: list[list[float]] = []
    frame = 0
    for one in sentences:
        ends = [frame + int(end) for end in one.frames_P.cumsum(0)]
        starts = [frame, *ends[:-1]]
        texts, first = iter(one.words.split()), True
        for place, phone in enumerate(f"_{one.phones}_"):
            start, end = starts[place] * seconds_a_frame, ends[place] * seconds_a_frame
            if phone in " _":
                first = True
            elif first:
                words.append([next(texts, ""), round(start, 3), round(end, 3)])
                first = False
            else:
                words[-1][2] = round(end, 3)
            if float(one.features_P4[place, 2]) > 0 and phone not in " _":
                hertz = math.exp(float(one.features_P4[place, 1]) / F0_SCALE + F0_CENTER)
                pitch.append([round(start, 3), round(end, 3), round(hertz, 1)])
        frame = ends[-1]
    return {"words": words, "pitch": pitch}


def score(out: Path) -> str:
    """Return what was heard again, in words for the last lines of the demo; "" where nothing was."""
    path = out / "voice.json"
    rows = json.loads(path.read_text("utf-8"))["utterances"] if path.is_file() else []
    length = sum(row["length"] for row in rows)
    return f", {sum(row['errors'] for row in rows)} of {length} spoken words heard wrong" if length else ""
