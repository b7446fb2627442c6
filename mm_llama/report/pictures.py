"""The picture sections: held-out questions with answer and truth, filtered by CSS alone, and photos."""

from __future__ import annotations

import base64
import io
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mm_llama.report.inputs import Inputs
from mm_llama.report.markup import Markup, element

TYPE_NAMES = {
    "shape": "Which shape",
    "color": "Which colour",
    "yesno": "Yes or no",
    "yesno_negated": "Yes or no, negated",
}


def type_name(kind: str) -> str:
    """Name of a question type as a reader would say it."""
    return TYPE_NAMES.get(kind, kind.replace("_", " "))


def type_order(kind: str) -> tuple[int, str]:
    """Sort key of question types: the known ones in the order of `TYPE_NAMES`, then the others by name."""
    known = list(TYPE_NAMES)
    return (known.index(kind), "") if kind in TYPE_NAMES else (len(known), kind)


def draw_answers(
    answers: Sequence[dict[str, Any]], *, num_right: int = 6, num_wrong: int = 4, seed: int = 0
) -> list[dict[str, Any]]:
    """Draw up to so many right and wrong answers of each type, in a seeded random order."""
    generator = random.Random(seed)
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    for row in answers:
        groups[str(row.get("type", "")), bool(row.get("correct"))].append(row)
    drawn: list[dict[str, Any]] = []
    for (_, right), rows in sorted(groups.items(), key=lambda group: group[0]):
        drawn += generator.sample(rows, min(num_right if right else num_wrong, len(rows)))
    generator.shuffle(drawn)
    return drawn


def how_drawn(drawn: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]], *, seed: int = 0) -> str:
    """Say how many right and wrong answers `draw_answers` took, and whether that shows wrong ones too often."""
    num_right, right = (sum(bool(row.get("correct")) for row in rows) for rows in (answers, drawn))
    num_wrong, wrong = len(answers) - num_right, len(drawn) - right
    overshown = wrong * len(answers) > num_wrong * len(drawn)
    return (
        f"{len(drawn)} of {len(answers):,} questions, drawn at random (seed {seed}) from each type: "
        f"{right} of the {num_right:,} answered right and {wrong} of the {num_wrong:,} answered wrong"
        + (" – so wrong answers are shown more often than they occur." if overshown else ".")
    )


def held_out_pictures(inputs: Inputs, *, seed: int = 0) -> Iterator[Markup]:
    """Yield the cards of drawn answers with their filter."""
    drawn = draw_answers(inputs.answers, seed=seed)
    right = sum(bool(row.get("correct")) for row in drawn)
    wrong = len(drawn) - right
    yield element(
        "p",
        how_drawn(drawn, inputs.answers, seed=seed),
        " None of these pictures was trained on.",
        class_="intro",
    )
    types = sorted({str(row.get("type", "")) for row in drawn}, key=type_order)
    yield element("style", _filter_rules(drawn, types))
    yield element(
        "div",
        _choices(
            "result",
            "Answers",
            [("all", f"all ({len(drawn)})"), ("right", f"right ({right})"), ("wrong", f"wrong ({wrong})")],
        ),
        _choices(
            "type",
            "Questions",
            [("all", "all"), *((str(i), type_name(kind)) for i, kind in enumerate(types))],
        ),
        class_="filter",
    )
    cards = []
    for row in drawn:
        cards.append(_card(row, inputs, types.index(str(row.get("type", "")))))
    yield element("ul", *cards, class_="cards")
    yield element("p", "No drawn question is of this kind.", class_="none")


def photos_for_show(inputs: Inputs) -> Iterator[Markup]:
    """Yield one figure per photo of demo.json with the questions asked about it and the model's answers."""
    photos = [photo for photo in inputs.demo.get("photos") or [] if isinstance(photo, dict)]
    if not photos:
        yield element("p", "No photos: this run asked no question about any.", class_="note")
        return
    yield element(
        "p",
        "Real photographs, for show and not for measure: the adapter was trained on something else, and its "
        "answers are printed as they came.",
        class_="intro",
    )
    figures = []
    for photo in photos:
        name = str(photo.get("name") or Path(str(photo.get("image", ""))).stem)
        uri = _data_uri(inputs, photo.get("image"), 640)
        if uri:
            picture = element("img", src=uri, alt=f"Photo: {name}", loading="lazy")
        else:
            picture = element("p", f"The file of the photo {name} was not found.", class_="missing")
        turns = [turn for turn in photo.get("turns") or [] if isinstance(turn, dict)]
        said = [
            (element("dt", turn.get("question", "")), element("dd", turn.get("answer", ""))) for turn in turns
        ]
        credit = ", ".join(str(photo[key]) for key in ("source", "license") if photo.get(key))
        caption = [element("h3", name), element("dl", *said)]
        if credit:
            caption.append(element("p", credit, class_="soft small"))
        figures.append(element("figure", picture, *caption, class_="photo"))
    yield element("div", *figures, class_="photos")


def _card(row: dict[str, Any], inputs: Inputs, type_index: int) -> Markup:
    right = bool(row.get("correct"))
    question, answer, truth = (str(row.get(key, "")) for key in ("question", "answer", "truth"))
    uri = _data_uri(inputs, row.get("image"), 168)
    if uri:
        # The picture's content is what is asked, so its text tells the truth about it and no more.
        picture = element(
            "img", src=uri, alt=f"Test picture for “{question}”; truth: {truth}", width=84, height=84
        )
    else:
        picture = element("div", "picture file not found", class_="no-image")
    facts = [element("dt", "answer"), element("dd", answer or "(nothing)", class_="given")]
    facts += [element("dt", "truth"), element("dd", truth)]
    return element(
        "li",
        picture,
        element(
            "div",
            element("p", question, class_="question"),
            element("dl", *facts),
            element("p", "✓ right" if right else "✕ wrong", class_="verdict"),
        ),
        class_=f"card {'right' if right else 'wrong'} type{type_index}",
    )


def _choices(name: str, legend: str, choices: Sequence[tuple[str, str]]) -> Markup:
    labels = [
        element(
            "label",
            element("input", type="radio", name=name, id=f"show-{name}-{value}", checked=value == "all"),
            text,
        )
        for value, text in choices
    ]
    return element("fieldset", element("legend", legend), *labels)


def _filter_rules(drawn: Sequence[dict[str, Any]], types: Sequence[str]) -> Markup:
    """Style rules that hide cards by the checked choices, and show a sentence where nothing is left."""
    rules = []
    for result in ("right", "wrong"):
        rules.append(f"#pictures:has(#show-result-{result}:checked) .card:not(.{result}){{display:none}}")
    for index in range(len(types)):
        rules.append(f"#pictures:has(#show-type-{index}:checked) .card:not(.type{index}){{display:none}}")
    present = {(bool(row.get("correct")), str(row.get("type", ""))) for row in drawn}
    for right, result in ((True, "right"), (False, "wrong")):
        if not any(found == right for found, _ in present):
            rules.append(f"#pictures:has(#show-result-{result}:checked) .none{{display:block}}")
        for index, kind in enumerate(types):
            if (right, kind) not in present:
                both = f"#pictures:has(#show-result-{result}:checked):has(#show-type-{index}:checked)"
                rules.append(f"{both} .none{{display:block}}")
    return Markup("\n".join(rules))


def _data_uri(inputs: Inputs, source: Any, longest: int) -> str | None:
    """Return a picture file as a data address, at most `longest` pixels wide or high; None if it is gone."""
    from PIL import Image, UnidentifiedImageError

    if not source:
        return None
    path = inputs.run_dir / str(source)
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "GIF")) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        inputs.missing.setdefault(f"picture {path.name}", "a picture beside its question")
        return None
    small = max(picture.size) <= 128
    picture.thumbnail((longest, longest))
    data = io.BytesIO()
    if small:  # drawings of a few colours: PNG is both exact and shorter
        picture.save(data, "PNG", optimize=True)
    else:
        picture.save(data, "JPEG", quality=82, optimize=True)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(data.getvalue()).decode()}"
