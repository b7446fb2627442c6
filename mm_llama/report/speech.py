"""The speech section: errors with intervals, and recordings to be played, the worst first, word beside word."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm_llama.report.inputs import Inputs
from mm_llama.report.markup import Markup, element

SHOWN, RIGHT_SHOWN = 9, 3
MOST_BYTES = 400_000  # of a recording that is put into the page
BARS, HEIGHT = 120, 40  # of a waveform: how many, and pixels
NAMES = {
    "model": "Through the core",
    "searched": "With a search",
    "readout": "Adapter's readout alone",
    "told": "Told in writing",
    "other": "Another recording",
}
TASKS = {"recognition": "What was said", "translation": "In another language", "dialogue": "Answers"}
MIME = {
    ".flac": "flac",
    ".wav": "wav",
    ".mp3": "mpeg",
    ".ogg": "ogg",
    ".oga": "ogg",
    ".opus": "ogg",
    ".m4a": "mp4",
}


def speech(inputs: Inputs) -> Iterator[Markup]:
    """Yield the section's tables and the recordings; of a run that heard nothing, a sentence that says so."""
    if not inputs.speech:
        yield element("p", "No recordings: this run listened to none.", class_="note")
        return
    for result in inputs.speech.get("results") or [inputs.speech]:
        yield from _measured(result)
    aloud = inputs.speech.get("aloud")
    if isinstance(aloud, dict):
        beam = int(aloud.get("beam", 0))
        searched = f" and searched among {beam} readings" if beam else ""
        yield element(
            "p",
            f"Asked aloud about a picture, with an image and a speech adapter that were trained apart, "
            f"{int(aloud['total']):,} questions are answered as in writing: ",
            element("strong", f"{100 * aloud['spoken']:.1f} %"),
            f" right when spoken{searched}, {100 * aloud['typed']:.1f} % when typed.",
            class_="intro",
        )
    rows = inputs.speech_answers
    wrong = [row for row in rows if row.get("errors")][:SHOWN]
    right = [row for row in rows if not row.get("errors")][:RIGHT_SHOWN]
    if wrong or right:
        yield element(
            "p",
            f"Of {len(rows):,} recordings the {len(wrong)} with the most errors, then {len(right)} without any. "
            "Words that were said and not heard are struck through, words that were heard instead or besides are "
            "underlined.",
            class_="intro",
        )
        cards = [_card(inputs, row) for row in (*wrong, *right)]
        yield element("ul", *cards, class_="cards recordings")


def _measured(result: dict[str, Any]) -> Iterator[Markup]:
    tasks = [row for row in result.get("tasks") or [] if isinstance(row, dict)]
    sides = [side for side in NAMES if any(side in row["sides"] for row in tasks)]
    header = [element("th", str(result.get("name") or "Recordings"), scope="col")]
    header += [element("th", "Recordings", scope="col", class_="num")]
    header += [element("th", NAMES[side], scope="col", class_="num") for side in sides]
    rows = []
    for row in tasks:
        name = f"{TASKS.get(str(row['task']), str(row['task']))}, {row['language']}"
        cells = [
            element("th", name, scope="row"),
            element("td", f"{int(row['rows']):,}", class_="num", data_label="Recordings"),
        ]
        for side in sides:
            cells.append(element("td", _figure(row["sides"].get(side)), class_="num", data_label=NAMES[side]))
        rows.append(element("tr", *cells))
    caption = "Errors per hundred words said, with the 95 % interval; less is better"
    if any(row["task"] == "translation" for row in tasks):
        caption += ". Of translations BLEU and chrF; more is better"
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *header)),
        element("tbody", *rows),
    )
    yield element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Errors on recordings")


def _figure(found: dict[str, Any] | None) -> Markup:
    if not found:
        return element("span", "–")
    if "bleu" in found:
        return element("span", f"{found['bleu']:.1f} BLEU, {found['chrf']:.1f} chrF")
    low, high = found["bootstrap_95"]
    unit = "" if found.get("unit") == "word" else " (by character)"
    return element(
        "span",
        element("strong", f"{100 * found['rate']:.1f} %"),
        element("small", f" {100 * low:.1f} to {100 * high:.1f}{unit}"),
    )


def _card(inputs: Inputs, row: dict[str, Any]) -> Markup:
    errors, length = int(row.get("errors") or 0), int(row.get("length") or 0)
    heard = row.get("heard") if isinstance(row.get("heard"), dict) else {}
    facts = [
        element("dt", "heard"),
        element("dd", str((heard or {}).get("model", "")) or "(nothing)", class_="given"),
    ]
    facts += [element("dt", "said"), element("dd", str(row.get("said", "")))]
    if not errors:
        verdict = "✓ every word right"
    else:
        verdict = f"✕ {errors} of {length} {'word' if length == 1 else 'words'} wrong"
    return element(
        "li",
        *player(inputs, row),
        element("p", *aligned(row), class_="aligned"),
        element("dl", *facts),
        element("p", verdict, class_="verdict"),
        class_=f"card {'wrong' if errors else 'right'}",
    )


def aligned(row: dict[str, Any]) -> Iterator[Markup | str]:
    """Yield what was said, with what was heard instead beside it."""
    for op, said, heard in row.get("edits") or []:
        if op == "equal":
            yield f"{said} "
            continue
        if said:
            yield element("del", str(said))
            yield " "
        if heard:
            yield element("ins", str(heard))
            yield " "


def player(inputs: Inputs, row: dict[str, Any]) -> Iterator[Markup]:
    """Yield a recording's loudness over time and what plays it; where it is not there, a sentence that says so."""
    path = inputs.run_dir / str(row.get("audio") or "")
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError:
        data = b""
    if not data or path.suffix.lower() not in MIME:
        inputs.missing.setdefault(f"recording {path.name}", "a player beside what was heard")
        yield element("div", "recording not found", class_="no-image")
        return
    yield from _waveform(inputs, path)
    if len(data) > MOST_BYTES:
        yield element("p", f"{path.name} is too large for this page", class_="soft small")
        return
    uri = f"data:audio/{MIME[path.suffix.lower()]};base64,{base64.b64encode(data).decode()}"
    yield element(
        "audio", controls=True, preload="none", src=uri, aria_label=f"Recording: {row.get('said', '')}"
    )


def _waveform(inputs: Inputs, path: Path) -> Iterator[Markup]:
    """Yield the loudness of a recording over time as bars; nothing where it cannot be opened."""
    if inputs.open_sound is None:
        return
    try:
        samples = inputs.open_sound(path).samples
    except (OSError, ValueError):
        return
    parts = samples[: len(samples) // BARS * BARS].view(BARS, -1).abs().amax(1)
    peaks = (parts / parts.max().clamp_min(1e-6)).tolist()
    bars = [
        element(
            "line",
            x1=2 * n + 1,
            x2=2 * n + 1,
            y1=f"{HEIGHT / 2 * (1 - p):.1f}",
            y2=f"{HEIGHT / 2 * (1 + p):.1f}",
        )
        for n, p in enumerate(max(0.03, peak) for peak in peaks)
    ]
    yield element(
        "svg",
        *bars,
        viewBox=f"0 0 {2 * BARS} {HEIGHT}",
        class_="waveform",
        aria_hidden="true",
        preserveAspectRatio="none",
    )
