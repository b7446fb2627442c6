"""What came out: the curves, and the table by question type beside its baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mm_llama.report.charts import Part, Point, Series, dot_row, key_shape, line_figure, smooth, thin
from mm_llama.report.inputs import Inputs, Stage
from mm_llama.report.markup import Markup, element
from mm_llama.report.pictures import type_name, type_order

# Sides of vqa.json in the order of the page: key, name in tables, shape in dot plots.
SIDES = (
    ("model", "This adapter", "ours"),
    ("majority_by_question", "Majority by question", "majority"),
    ("majority_by_type", "Majority by type", ""),
    ("no_picture", "No picture", "no_picture"),
    ("wrong_picture", "Another picture", "wrong_picture"),
)


def curves(inputs: Inputs) -> Iterator[Markup]:
    """Yield a chart of the loss and one of right answers, the stages one after another on one axis of steps."""
    yield element(
        "p",
        "Held-out values come from questions of the training data that were set aside beforehand, never from the "
        "test questions.",
        class_="intro",
    )
    parts = _parts(inputs.stages)
    figures: list[Markup] = []
    loss, held_loss = joined(inputs.stages, "loss"), joined(inputs.stages, "eval.loss")
    if loss or held_loss:
        figures.append(
            line_figure(
                title="Loss at the answer tokens",
                caption="Nats a token, smoothed; the raw values lie behind the line.",
                series=[
                    *_smoothed("training", loss, "base" if held_loss else "ours", parts),
                    *_held_out(held_loss),
                ],
                x_name="step",
                y_format=lambda value: f"{value:.3g}",
                parts=parts,
            )
        )
    tokens, answers = joined(inputs.stages, "accuracy"), joined(inputs.stages, "eval.answers")
    held_tokens = joined(inputs.stages, "eval.accuracy")
    if tokens or answers or held_tokens:
        what = "Training: answer tokens of each batch, given the true ones before them. "
        if answers:
            what += "Held out: whole answers to questions that were set aside."
        figures.append(
            line_figure(
                title="Answered right",
                caption=what,
                series=[
                    *_smoothed("training", tokens, "base" if answers or held_tokens else "ours", parts),
                    *_held_out(answers or held_tokens),
                ],
                x_name="step",
                y_format=lambda value: f"{100 * value:.0f} %",
                y_range=(0.0, 1.0),
                parts=parts,
            )
        )
    if not figures:
        yield element("p", "The metrics hold no loss, so there is nothing to draw.", class_="missing")
        return
    yield element("div", *figures, class_="charts")


def joined(stages: Sequence[Stage], key: str) -> list[Point]:
    """Return (step, value) over all stages; each stage's steps follow those of the one before it."""
    ends = [0.0, *(part.end for part in _parts(stages))]
    return [
        (start + step, value)
        for start, stage in zip(ends, stages, strict=False)
        for step, value in points(stage.metrics, key)
    ]


def _parts(stages: Sequence[Stage]) -> list[Part]:
    """The stages as stretches of the axis of steps."""
    parts: list[Part] = []
    for stage in stages:
        before = parts[-1].end if parts else 0.0
        parts.append(
            Part(stage.name, before + max((step for step, _ in points(stage.metrics, "loss")), default=0.0))
        )
    return parts


def _smoothed(name: str, values: Sequence[Point], style: str, parts: Sequence[Part]) -> list[Series]:
    if not values:
        return []
    line: list[Point] = []
    start = -math.inf
    for end in [part.end for part in parts] or [math.inf]:
        stage = [(step, value) for step, value in values if start < step <= end]
        # An average that ran on from one stage into the next would show a change of data as slow learning.
        line += smooth(stage, half_life=max(1.0, len(values) / 60))
        start = end
    return [Series(name, thin(line, 240), style, faint=thin(values, 400))]


def _held_out(values: Sequence[Point]) -> list[Series]:
    return [Series("held out", values, "ours", marks=len(values) <= 30)] if values else []


def types(inputs: Inputs) -> Iterator[Markup]:
    """Yield the table by question type: counts, intervals, baselines, and a dot plot in each row."""
    sides = [side for side in SIDES if score(inputs.vqa, side[0]) is not None]
    baselines = [side for side in sides if side[0] != "model"]
    num = int((score(inputs.vqa, "model") or {}).get("total", 0))
    yield element(
        "p",
        f"{num:,} test questions, each answered by generating text until the model ends its turn; the whole "
        "answer must equal the truth. The columns on the right say how far one gets without looking: with the "
        "commonest training answer to the same question or to its type, with no picture (then no part of the "
        "adapter runs, and the plain text model answers in its own words), and with the picture of another "
        "question.",
        class_="intro",
    )
    groups = [
        element("th", "Question type", scope="col", rowspan=2),
        element("th", "Questions", scope="col", rowspan=2, class_="num"),
        element("th", "This adapter", scope="col", rowspan=2, class_="num"),
        element("th", "0 to 100 %", scope="col", rowspan=2),
    ]
    if baselines:
        groups.append(
            element("th", "Without looking", scope="colgroup", colspan=len(baselines), class_="group")
        )
    header = [element("th", name, scope="col", class_="num") for _, name, _ in baselines]
    kinds = {str(row.get("type", "")): row for row in inputs.vqa.get("types") or []}
    rows = [_type_row(type_name(kind), kinds[kind], baselines) for kind in sorted(kinds, key=type_order)]
    rows.append(_type_row("All questions", inputs.vqa.get("overall") or {}, baselines, total=True))
    table = element(
        "table",
        element("caption", "Share of questions answered right, in per cent, ± half of the 95 % interval"),
        element("thead", element("tr", *groups), element("tr", *header)),
        element("tbody", *rows),
    )
    yield element(
        "div", table, class_="scroll types", tabindex=0, role="region", aria_label="Accuracy by question type"
    )
    legend = [
        ("ours", "This adapter, with its 95 % interval"),
        *[(kind, name) for _, name, kind in baselines if kind],
    ]
    yield element("ul", *[element("li", key_shape(kind), name) for kind, name in legend], class_="key")
    yield from _comparisons(inputs.vqa)


def _type_row(
    name: str, row: Mapping[str, Any], baselines: Sequence[tuple[str, str, str]], *, total: bool = False
) -> Markup:
    ours = row.get("model")
    if not isinstance(ours, dict):
        return element(
            "tr", element("th", name, scope="row"), element("td", "not measured", colspan=3 + len(baselines))
        )
    low, high = ours["wilson_95"]
    markers = [
        (kind, float(row[key]["accuracy"]))
        for key, _, kind in baselines
        if kind and isinstance(row.get(key), dict)
    ]
    said = ", ".join(
        f"{label} {percent(row[key]['accuracy'])}"
        for key, label, _ in baselines
        if isinstance(row.get(key), dict)
    )
    plot = dot_row(
        ours["accuracy"],
        low,
        high,
        markers=markers,
        description=f"{name}: this adapter {percent(ours['accuracy'])}; {said}",
    )
    cells = [
        element("th", name, scope="row"),
        element("td", f"{ours['total']:,}", class_="num", data_label="Questions"),
        element(
            "td",
            element(
                "span",
                element("strong", _cell(ours["accuracy"])),
                element("small", f" ± {100 * ours['half_width_95']:.1f}"),
            ),
            class_="num",
            data_label="This adapter",
        ),
        element("td", plot),
    ]
    for key, label, _ in baselines:
        side = row.get(key)
        share = _cell(side["accuracy"]) if isinstance(side, dict) else "–"
        cells.append(element("td", share, class_="num", data_label=label))
    return element("tr", *cells, class_="total" if total else None)


def _comparisons(vqa: Mapping[str, Any]) -> Iterator[Markup]:
    names = {key: name for key, name, _ in SIDES}
    items = []
    for key, found in (vqa.get("comparisons") or {}).items():
        if key not in names or not isinstance(found, dict):
            continue
        items.append(
            element(
                "li",
                element("strong", f"{names[key]}: "),
                f"{_points(found['difference'])} points for the adapter (95 % interval "
                f"{_points(found['low_95'])} to {_points(found['high_95'])}, whole pictures resampled). "
                f"Right where the other was wrong {_times(found['only_ours_right'])}, wrong where the other "
                f"was right {_times(found['only_theirs_right'])}; McNemar’s exact test p "
                f"{_p_value(found['mcnemar_p'])}.",
            )
        )
    if items:
        yield element("h3", "On the same questions, in pairs", style="margin-top:26px")
        yield element("ul", *items, class_="plain small")


def score(vqa: Mapping[str, Any], side: str) -> dict[str, Any] | None:
    """Return one side's overall figures of vqa.json; None where it was not measured."""
    overall = vqa.get("overall")
    found = overall.get(side) if isinstance(overall, dict) else None
    return found if isinstance(found, dict) and found.get("total") else None


def points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """Return (step, value) of every metrics line that holds the number `key`."""
    found = []
    for row in metrics:
        step, value = row.get("step"), row.get(key)
        if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
            found.append((float(step), float(value)))
    return found


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    if seconds < 5940:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _cell(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: float) -> str:
    """A difference of shares in percentage points, with a sign that is no hyphen."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def _times(count: int) -> str:
    return f"{count:,} time{'' if count == 1 else 's'}"


def _p_value(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"
