"""The clip section: accuracy beside what needs no motion, frame strips with question, answer and truth, real clips."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

from mm_llama.report.inputs import Inputs
from mm_llama.report.markup import Markup, element
from mm_llama.report.pictures import draw_answers

STRIP = 6  # frames of a strip
HEIGHT = 104  # its pixels
SIDES = (
    ("model", "This adapter"),
    ("majority_by_type", "Majority by type"),
    ("wrong_picture", "Another clip"),
    ("one_frame", "One frame of the clip"),
    ("middle_frame", "Image adapter, middle frame"),
)
NAMES = {"direction": "Which way", "order": "What came first", "count": "How many times"}


def clips(inputs: Inputs) -> Iterator[Markup]:
    """Yield the section's table, the strips of drawn answers, accuracy by frames, and the real clips."""
    found = inputs.clips
    if not found and not inputs.demo.get("clips"):
        yield element("p", "No clips: this run asked no question about any.", class_="note")
        return
    if found:
        yield from _measured(inputs)
    real = [clip for clip in inputs.demo.get("clips") or [] if isinstance(clip, dict)]
    if real:
        yield element("h3", "Real clips, for show")
        yield element(
            "p",
            "Filmed and animated clips that have nothing to do with the training clips; the answers are printed as "
            "they came, right or wrong.",
            class_="intro",
        )
        yield element("ul", *[_real(inputs, clip) for clip in real], class_="cards strips")


def _measured(inputs: Inputs) -> Iterator[Markup]:
    found = inputs.clips
    total = int(found["overall"]["model"]["total"])
    yield element(
        "p",
        f"{total:,} questions about clips of one thing that moves over a photograph. Neither the things nor the "
        "photographs were shown in training, and the middle frame is the same for every answer: whoever sees one "
        "frame can but guess.",
        class_="intro",
    )
    sides = [side for side in SIDES if side[0] in found["overall"]]
    header = [element("th", "Questions", scope="col"), element("th", "Asked", scope="col", class_="num")]
    header += [element("th", name, scope="col", class_="num") for _, name in sides]
    kinds = found.get("types") or []
    rows = [_row(NAMES.get(str(kind["type"]), str(kind["type"])), kind, sides) for kind in kinds]
    if len(rows) > 1:
        rows.append(_row("All", found["overall"], sides, total=True))
    table = element(
        "table",
        element("caption", "Share of questions answered right, in per cent, ± half of the 95 % interval"),
        element("thead", element("tr", *header)),
        element("tbody", *rows),
    )
    yield element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Accuracy on clips")
    frames = [row for row in found.get("frames") or [] if isinstance(row, dict)]
    if frames:
        said = ", ".join(f"{row['frames']} frames {100 * row['accuracy']:.1f} %" for row in frames)
        yield element("p", f"By number of frames taken of a clip: {said}.", class_="note")
    drawn = draw_answers(inputs.clip_answers, num_right=4, num_wrong=4)
    if drawn:
        yield element(
            "p",
            f"{len(drawn)} of {len(inputs.clip_answers):,} questions, drawn at random; wrong answers are shown as "
            "often as right ones.",
            class_="intro",
        )
        yield element("ul", *[_card(inputs, row) for row in drawn], class_="cards strips")


def _row(name: str, row: dict[str, Any], sides: Sequence[tuple[str, str]], total: bool = False) -> Markup:
    cells = [
        element("th", name, scope="row"),
        element("td", f"{int(row['model']['total']):,}", class_="num", data_label="Asked"),
    ]
    for side, label in sides:
        value: list[Any] = [f"{100 * row[side]['accuracy']:.1f}"]
        if side == "model":
            value.append(element("small", f" ± {100 * row[side]['half_width_95']:.1f}"))
        cells.append(element("td", *value, class_="num", data_label=label))
    return element("tr", *cells, class_="total" if total else None)


def _card(inputs: Inputs, row: dict[str, Any]) -> Markup:
    right = bool(row.get("correct"))
    question, answer, truth = (str(row.get(key, "")) for key in ("question", "answer", "truth"))
    facts = [element("dt", "answer"), element("dd", answer or "(nothing)", class_="given")]
    facts += [element("dt", "truth"), element("dd", truth)]
    return element(
        "li",
        _strip(inputs, row.get("image"), f"Frames of the test clip for “{question}”; truth: {truth}"),
        element("p", question, class_="question"),
        element("dl", *facts),
        element("p", "✓ right" if right else "✕ wrong", class_="verdict"),
        class_=f"card {'right' if right else 'wrong'}",
    )


def _real(inputs: Inputs, clip: dict[str, Any]) -> Markup:
    name = str(clip.get("name", ""))
    said: list[Markup] = []
    for turn in clip.get("turns") or []:
        said.append(element("dt", str(turn.get("question", ""))))
        truth = f" (truth: {turn['truth']})" if turn.get("truth") else ""
        said.append(element("dd", f"{turn.get('answer', '')}{truth}"))
    return element(
        "li",
        _strip(inputs, clip.get("path"), f"Frames of {name}: {clip.get('shows', '')}"),
        element("p", f"{name}: {clip.get('shows', '')}", class_="question"),
        element("dl", *said),
        class_="card",
    )


def _strip(inputs: Inputs, source: Any, words: str) -> Markup:
    """Return the frames of a clip side by side as one picture."""
    from PIL import Image

    path = inputs.run_dir / str(source)
    if not source or not path.is_file():
        inputs.missing.setdefault(f"clip {path.name}", "frames of a clip beside its question")
        return element("div", "clip file not found", class_="no-image")
    from mm_llama.data.video import open_clip

    frames = open_clip(path, num_frames=STRIP).frames
    width = max(1, round(frames[0].width * HEIGHT / frames[0].height))
    sheet = Image.new("RGB", (STRIP * width + (STRIP - 1) * 3, HEIGHT), "white")
    for number, frame in enumerate(frames):
        sheet.paste(frame.resize((width, HEIGHT), Image.Resampling.LANCZOS), (number * (width + 3), 0))
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=80, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return element("img", src=uri, alt=words, loading="lazy", width=sheet.width, height=sheet.height)
