"""The voice section: what was said, to be played, with its pitch and the lengths of its words, and what was heard."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mm_llama.report.inputs import Inputs
from mm_llama.report.markup import Markup, element
from mm_llama.report.speech import aligned, player

WIDTH, HEIGHT = 960, 220  # of the chart
LEFT, TOP, BOTTOM = 44, 14, 64  # room for the scale, and for the words below
LINES = (80, 120, 180, 270, 400)  # Hz
A_ROW = 8.0  # seconds of a chart; what is longer goes on below


def voice(inputs: Inputs) -> Iterator[Markup]:
    """Yield the utterances; of a run that said nothing, a sentence that says so."""
    rows = [row for row in inputs.voice.get("utterances") or [] if isinstance(row, dict)]
    if not rows:
        yield element("p", "Nothing was said: this run had no voice.", class_="note")
        return
    yield element("p", *_intro(inputs.voice), class_="intro")
    for row in rows:
        yield _utterance(inputs, row)


def _intro(found: dict[str, Any]) -> Iterator[Markup | str]:
    yield (
        "Each answer was spoken while the text model wrote it: its own states told how the words are read, how long "
        "and how high each sound is. A recogniser that knows nothing of this project then wrote down what it heard. "
    )
    work = found.get("work_a_second")
    if isinstance(work, int | float) and work > 0:
        yield "A second of sound took "
        yield element("strong", f"{work:.2f} s")
        yield " of work, the text model's share included."


def _utterance(inputs: Inputs, row: dict[str, Any]) -> Markup:
    heard = row.get("heard") if isinstance(row.get("heard"), dict) else {}
    errors, length = int(row.get("errors") or 0), int(row.get("length") or 0)
    verdict = f"✕ {errors} of {length} words heard wrong" if errors else "✓ every word heard right"
    asked = str(row.get("asked") or "")
    facts = []
    for name, text in (heard or {}).items():
        facts += [element("dt", f"heard by {name}"), element("dd", str(text) or "(nothing)", class_="given")]
    return element(
        "div",
        element("h3", str(row.get("title", ""))),
        element("p", f"“{asked}”", class_="soft") if asked else None,
        *player(inputs, row),
        element("p", *aligned(row), class_="aligned"),
        *_charts(row),
        element("dl", *facts),
        element("p", verdict, class_="verdict"),
        class_=f"card utterance {'wrong' if errors else 'right'}",
    )


def _charts(row: dict[str, Any]) -> Iterator[Markup]:
    """Yield pitch over time above the words, each as wide as it is long."""
    words = [word for word in row.get("words") or [] if isinstance(word, list) and len(word) == 3]
    if not words:
        return
    start = 0.0
    while start < float(words[-1][2]):
        stop = max([float(end) for _, _, end in words if float(end) <= start + A_ROW] or [start + A_ROW])
        yield _chart(row, words, start, stop)
        if stop <= start:
            return
        start = stop


def _chart(row: dict[str, Any], words: list[list[Any]], start: float, stop: float) -> Markup:
    low, high = math.log(LINES[0] * 0.92), math.log(LINES[-1] * 1.05)
    scale = (WIDTH - LEFT) / max(A_ROW, stop - start)

    def across(seconds: float) -> str:
        return f"{LEFT + (seconds - start) * scale:.1f}"

    def up(hertz: float) -> str:
        share = (math.log(min(max(hertz, 1.0), 2000.0)) - low) / (high - low)
        return f"{TOP + (1 - min(1.0, max(0.0, share))) * (HEIGHT - TOP - BOTTOM):.1f}"

    parts, taken = [], [0.0, 0.0, 0.0]
    for hertz in LINES:
        parts.append(element("line", x1=LEFT, x2=WIDTH, y1=up(hertz), y2=up(hertz), class_="grid"))
        parts.append(element("text", f"{hertz}", x=LEFT - 8, y=up(hertz), class_="scale"))
    for number, (text, begin, end) in enumerate(words):
        begin, end = float(begin), float(end)
        if begin < start - 1e-6 or end > stop + 1e-6:
            continue
        width = max(1.0, (end - begin) * scale - 1.5)
        parts.append(
            element(
                "rect",
                x=across(begin),
                y=HEIGHT - BOTTOM + 8,
                width=f"{width:.1f}",
                height=10,
                class_=f"word{number % 2}",
            )
        )
        middle, half = float(across((begin + end) / 2)), 3.6 * len(str(text)) + 2
        # Each on the first line where it runs into no other.
        line = next((row for row in range(3) if middle - half > taken[row]), 2)
        taken[line] = middle + half
        below = HEIGHT - 31 + 14 * line
        parts.append(element("text", str(text), x=f"{middle:.1f}", y=below, class_="word"))
    for begin, end, hertz in (pitch for pitch in row.get("pitch") or [] if len(pitch) == 3):
        if start - 1e-6 <= float(begin) and float(end) <= stop + 1e-6:
            y = up(float(hertz))
            parts.append(
                element("line", x1=across(float(begin)), x2=across(float(end)), y1=y, y2=y, class_="pitch")
            )
    told = ", ".join(f"{text} {1000 * (float(end) - float(begin)):.0f} ms" for text, begin, end in words)
    return element(
        "svg",
        element(
            "title", f"Pitch in hertz over {stop - start:.1f} seconds, and the length of each word: {told}"
        ),
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="prosody",
        role="img",
    )
