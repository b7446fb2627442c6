"""Subtitles as players read them."""

from __future__ import annotations

import json

import pytest

from mm_llama.transcript import Segment, Transcript, srt, vtt

SEGMENTS = (
    Segment(0.0, 1.5, "Hello there."),
    Segment(1.5, 2.0, "  "),
    Segment(
        3661.0, 3662.9996, "A & B <c> --> d, and quite a lot more than would fit into a single line of text"
    ),
)


def test_srt() -> None:
    assert srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n"
        "2\n01:01:01,000 --> 01:01:03,000\n"
        "A & B <c> → d, and quite a lot more than\nwould fit into a single line of text\n"
    )


def test_vtt() -> None:
    assert vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello there.\n\n"
        "01:01:01.000 --> 01:01:03.000\n"
        "A &amp; B &lt;c&gt; → d, and quite a lot more than\nwould fit into a single line of text\n"
    )


def test_nothing_said() -> None:
    assert srt([]) == "" and vtt([]) == "WEBVTT\n"


def test_text_and_json() -> None:
    transcript = Transcript(SEGMENTS[:1], 2.0, "English", "a.wav")
    assert transcript.render("text") == "Hello there.\n"
    assert json.loads(transcript.render("json")) == {
        "source": "a.wav",
        "language": "English",
        "seconds": 2.0,
        "text": "Hello there.",
        "segments": [{"start": 0.0, "end": 1.5, "text": "Hello there."}],
    }
    with pytest.raises(ValueError, match="text, json, srt, vtt, not 'ass'"):
        transcript.render("ass")
