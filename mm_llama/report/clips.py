"""The clip section: accuracy beside what needs no motion, frame strips with question, answer and truth, real clips."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mm_llama.report.inputs import Inputs
from mm_llama.report.markup import Markup, element
from mm_llama.report.pictures import draw_answers, how_drawn

if TYPE_CHECKING:
    from PIL import Image

STRIP = 6  # frames of a strip
HEIGHT, WIDEST, GAP = 104, 312, 3  # pixels of a frame, and between two
SIDES = (
    ("model", "Video adapter"),
    ("majority_by_type", "Majority by type"),
    ("wrong_picture", "Another clip"),
    ("one_frame", "One frame of the clip"),
    ("middle_frame", "Image adapter, middle frame"),
)
ABOUT = (
    " of one thing that moves over a photograph; neither was shown in training, and the middle frame is the same "
    "whatever the answer."
)
NOT_OPENED = "This page was made without a reader of clips, so their frames are not shown."
# Kinds of questions about drawn clips; of others the page does not know what they show.
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
    kinds = found.get("types") or []
    drawn_clips = all(str(kind["type"]) in NAMES for kind in kinds)
    about = ABOUT if drawn_clips else " that were not trained on."
    yield element(
        "p",
        f"{total:,} questions about clips{about} Beside the video adapter stand what one frame of the clip tells "
        "it, what another clip does, and the image adapter alone, which sees the middle frame as a picture and "
        "chooses among the answers.",
        class_="intro",
    )
    sides = [side for side in SIDES if side[0] in found["overall"]]
    header = [element("th", "Questions", scope="col"), element("th", "Asked", scope="col", class_="num")]
    header += [element("th", name, scope="col", class_="num") for _, name in sides]
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
        said = [
            [" · " if number else "", element("span", _frames_said(row), class_="nowrap")]
            for number, row in enumerate(frames)
        ]
        yield element("p", "By the number of frames taken of a clip: ", said, class_="note")
    drawn = draw_answers(inputs.clip_answers, num_right=4, num_wrong=4)
    if drawn:
        yield element("p", how_drawn(drawn, inputs.clip_answers), class_="intro")
        yield element("ul", *[_card(inputs, row) for row in drawn], class_="cards strips")


def _row(name: str, row: dict[str, Any], sides: Sequence[tuple[str, str]], total: bool = False) -> Markup:
    cells = [
        element("th", name, scope="row"),
        element("td", f"{int(row['model']['total']):,}", class_="num", data_label="Asked"),
    ]
    for side, label in sides:
        share = f"{100 * row[side]['accuracy']:.1f}"
        if side == "model":
            half = element("small", f" ± {100 * row[side]['half_width_95']:.1f}")
            value = element("span", element("strong", share), half)
        cells.append(element("td", value if side == "model" else share, class_="num", data_label=label))
    return element("tr", *cells, class_="total" if total else None)


def _card(inputs: Inputs, row: dict[str, Any]) -> Markup:
    right = bool(row.get("correct"))
    question, answer, truth = (str(row.get(key, "")) for key in ("question", "answer", "truth"))
    return element(
        "li",
        _strip(inputs, row.get("image"), f"Frames of the test clip for “{question}”; truth: {truth}"),
        element("p", question, class_="question"),
        _facts(answer, truth),
        element("p", "✓ right" if right else "✕ wrong", class_="verdict"),
        class_=f"card {'right' if right else 'wrong'}",
    )


def _real(inputs: Inputs, clip: dict[str, Any]) -> Markup:
    name, shows = str(clip.get("name", "")), str(clip.get("shows", ""))
    title = ": ".join(part for part in (name, shows) if part)
    said: list[Markup] = []
    for turn in [turn for turn in clip.get("turns") or [] if isinstance(turn, dict)]:
        said.append(element("p", str(turn.get("question", "")), class_="question"))
        said.append(_facts(str(turn.get("answer", "")), str(turn.get("truth") or "")))
    return element(
        "li",
        _strip(inputs, clip.get("path"), f"Frames of {title}"),
        element("p", title, class_="soft small"),
        *said,
        class_="card",
    )


def _facts(answer: str, truth: str) -> Markup:
    facts = [element("dt", "answer"), element("dd", answer or "(nothing)", class_="given")]
    if truth:
        facts += [element("dt", "truth"), element("dd", truth)]
    return element("dl", *facts)


def _frames_said(row: dict[str, Any]) -> str:
    number = int(row["frames"])
    return f"{number} frame{'' if number == 1 else 's'} {100 * row['accuracy']:.1f} %"


def _small(frame: Image.Image) -> Image.Image:
    scale = min(WIDEST / frame.width, HEIGHT / frame.height)
    return frame.resize((max(1, round(scale * frame.width)), max(1, round(scale * frame.height))))


def _strip(inputs: Inputs, source: Any, words: str) -> Markup:
    """Return the frames of a clip side by side, in order and each once, as one picture."""
    from PIL import Image

    if inputs.open_clip is None:
        if NOT_OPENED not in inputs.notes:
            inputs.notes.append(NOT_OPENED)
        return element("div", "clip not opened", class_="no-image")
    path = inputs.run_dir / str(source or "")
    try:
        clip = inputs.open_clip(path, num_frames=STRIP, each=_small)
    except (OSError, ValueError):
        inputs.missing.setdefault(f"clip {path.name}", "frames of a clip beside its question")
        return element("div", "clip file not found, or no clip", class_="no-image")
    frames = list(dict(zip(clip.times.tolist(), clip.frames, strict=True)).values())
    width, height = frames[0].size
    sheet = Image.new("RGB", (len(frames) * (width + GAP) - GAP, height), "white")
    for number, frame in enumerate(frames):
        sheet.paste(frame, (number * (width + GAP), 0))
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=80, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return element("img", src=uri, alt=words, loading="lazy", width=sheet.width, height=sheet.height)
