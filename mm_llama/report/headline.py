"""The figures on top: pictures and clips answered right beside what needs no looking, minutes, text unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mm_llama.report.inputs import Inputs
from mm_llama.report.markup import Markup, element
from mm_llama.report.results import duration, percent, score

# Sides in the order of the page; the table further down has them all.
PICTURE_SIDES = (
    ("model", "This adapter"),
    ("majority_by_question", "Majority by question"),
    ("no_picture", "No picture"),
    ("wrong_picture", "Another picture"),
)
CLIP_SIDES = (
    ("model", "Whole clip"),
    ("one_frame", "One frame of it"),
    ("middle_frame", "Image adapter alone"),
    ("wrong_picture", "Another clip"),
)
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours"}


def eyebrow(inputs: Inputs) -> str:
    """The line over the title: the run, and when it was made."""
    started = str(inputs.demo.get("started") or "")[:10]
    return " · ".join(
        part for part in ("mm_llama", str(inputs.demo.get("name") or inputs.run_dir.name), started) if part
    )


def headline(inputs: Inputs) -> Iterator[Markup]:
    """Yield accuracy beside its baselines, minutes of training, text unchanged or not; and clips, where asked."""
    if inputs.proof and not inputs.proof.get("identical"):
        yield element(
            "p",
            element("strong", "The text model has changed. "),
            "The proof below found a difference where none may be; this adapter must not be used.",
            class_="alarm",
            role="alert",
        )
    figures = [element("div", _pictures(inputs))]
    if score(inputs.clips, "model"):
        figures.append(element("div", _clips(inputs), class_="moving"))
    figures += [element("div", _minutes(inputs)), element("div", _unchanged(inputs))]
    yield element("div", *figures, class_=f"headline{' four' if len(figures) > 3 else ''}")


def training_seconds(inputs: Inputs) -> float | None:
    """Return the seconds spent training: demo.json's own figure, else the summaries' sum."""
    if inputs.demo.get("training_seconds") is not None:
        return float(inputs.demo["training_seconds"])
    minutes = [stage.summary.get("minutes") for stage in inputs.stages]
    known = [60 * float(value) for value in minutes if isinstance(value, int | float)]
    return sum(known) if known else None


def _pictures(inputs: Inputs) -> Markup:
    name = "Questions about held-out pictures, answered right"
    ours = score(inputs.vqa, "model")
    if ours is None:
        return _figure(name, "–", "not measured in this run", word=True)
    low, high = ours["wilson_95"]
    about = (
        f"{ours['total']:,} questions about pictures never trained on; 95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f} %"
    )
    return _figure(name, _share(ours), about, _versus(inputs.vqa, PICTURE_SIDES))


def _clips(inputs: Inputs) -> Markup:
    ours = score(inputs.clips, "model") or {}
    about = f"{ours['total']:,} questions about clips never trained on"
    return _figure(
        "Questions about held-out clips, answered right",
        _share(ours),
        about,
        _versus(inputs.clips, CLIP_SIDES),
    )


def _share(side: Mapping[str, Any]) -> list[Any]:
    return [percent(side["accuracy"]), element("small", f" ± {100 * side['half_width_95']:.1f}")]


def _versus(found: Mapping[str, Any], sides: Sequence[tuple[str, str]]) -> Markup:
    """A bar for every side that was measured."""
    rows: list[Markup] = []
    for key, name in sides:
        side = score(found, key)
        if side is None:
            continue
        value = 100 * side["accuracy"]
        kind = "bar ours" if key == "model" else "bar"
        rows.append(element("span", element("b", name) if key == "model" else name))
        rows.append(
            element("span", element("i", style=f"width:{value:.1f}%"), class_=kind, aria_hidden="true")
        )
        rows.append(element("span", percent(side["accuracy"]), class_="num"))
    return element("div", *rows, class_="versus")


def _minutes(inputs: Inputs) -> Markup:
    seconds = training_seconds(inputs)
    total = sum(float(phase.get("seconds") or 0) for phase in inputs.demo.get("phases") or [])
    if seconds is None:
        return _figure("Training", "–", "the time was not recorded in this run", word=True)
    machine = inputs.demo.get("machine")
    on = f" on {machine['cores']} CPU cores" if isinstance(machine, dict) and machine.get("cores") else ""
    whole = f"; the whole run took {duration(total)}" if total else ""
    return _figure("Training", _big_duration(seconds), f"of training{on}{whole}")


def _unchanged(inputs: Inputs) -> Markup:
    if not inputs.proof:
        return _figure("Text unchanged", "–", "not proven in this run: proof.json is missing", word=True)
    if not inputs.proof.get("identical"):
        return _figure("Text unchanged", "No", "a difference was found: see the proof", word=True, bad=True)
    compared = sum(int(case.get("num_values") or 0) for case in inputs.proof.get("cases") or [])
    return _figure(
        "Text unchanged",
        ["Yes", element("small", " bit for bit")],
        f"{compared:,} logits compared with the plain text model: every one equal, and the same SHA-256 of "
        "its weights",
    )


def _figure(
    name: str, value: Any, about: str, *more: Markup, word: bool = False, bad: bool = False
) -> Markup:
    style = " ".join(["big", *(["word"] if word else []), *(["bad"] if bad else [])])
    return element(
        "dl",
        element("dt", name),
        element("dd", value, class_=style),
        element("dd", about, class_="soft small"),
        *[element("dd", part) for part in more],  # a definition list holds nothing but its own items
    )


def _big_duration(seconds: float) -> list[Any]:
    number, _, unit = duration(seconds).partition(" ")
    return [number, element("small", f" {_UNITS[unit]}")]
