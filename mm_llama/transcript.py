"""What was said when, as plain text, JSON, SubRip (SRT) or WebVTT."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

FORMATS = ("text", "json", "srt", "vtt")
LINE = 42  # characters of a subtitle's line, as is usual


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, in seconds, and what is said in it."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """The segments of one recording in order; `seconds` is the recording's whole length."""

    segments: tuple[Segment, ...]
    seconds: float
    language: str = "English"
    source: str = ""

    @property
    def text(self) -> str:
        """All that is said."""
        return " ".join(segment.text for segment in self.segments if segment.text)

    def render(self, form: str) -> str:
        """Return it in one of FORMATS, ending with a newline. Raises ValueError for another."""
        if form == "text":
            return self.text + "\n"
        if form == "json":
            return json.dumps(self.to_json(), ensure_ascii=False) + "\n"
        if form == "srt":
            return srt(self.segments)
        if form == "vtt":
            return vtt(self.segments)
        raise ValueError(f"a transcript is written as {', '.join(FORMATS)}, not {form!r}")

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        return {
            "source": self.source,
            "language": self.language,
            "seconds": round(self.seconds, 3),
            "text": self.text,
            "segments": [
                {"start": round(one.start, 3), "end": round(one.end, 3), "text": one.text}
                for one in self.segments
            ],
        }


def srt(segments: Iterable[Segment]) -> str:
    """Return SubRip subtitles; segments in which nothing is said have none."""
    cues = [
        f"{number}\n{_time(one.start, ',')} --> {_time(one.end, ',')}\n{_lines(one.text)}\n"
        for number, one in enumerate((one for one in segments if one.text.strip()), start=1)
    ]
    return "\n".join(cues)


def vtt(segments: Iterable[Segment]) -> str:
    """Return WebVTT subtitles (W3C), with what would be markup escaped."""
    cues = [
        f"{_time(one.start, '.')} --> {_time(one.end, '.')}\n{_escaped(_lines(one.text))}\n"
        for one in segments
        if one.text.strip()
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _time(seconds: float, mark: str) -> str:
    thousandths = round(max(0.0, seconds) * 1000)
    minutes, thousandths = divmod(thousandths, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{thousandths // 1000:02d}{mark}{thousandths % 1000:03d}"


def _lines(text: str) -> str:
    # An arrow would be read as a cue's times, a blank line as its end.
    return "\n".join(textwrap.wrap(" ".join(text.split()).replace("-->", "→"), LINE))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
