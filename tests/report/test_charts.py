"""Ticks, smoothing, thinning and drawings, against what a reader would expect of them."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_llama.report.charts import Level, Part, Series, dot_row, line_chart, smooth, thin, ticks
from mm_llama.report.markup import Markup, element

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(FINITE, st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_cover_the_range_in_steps_of_one_two_or_five(low: float, span: float, num: int) -> None:
    found = ticks(low, low + span, num)
    assert found[0] <= low + 1e-9 * span + 1e-9 * abs(low)
    assert found[-1] >= (low + span) * (1 - 1e-9 if low + span > 0 else 1 + 1e-9) - 1e-9
    assert 2 <= len(found) <= 2 * num + 2
    step = found[1] - found[0]
    if span > 1e-3 * max(1.0, abs(low)):
        digit = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(digit - 1), abs(digit - 2), abs(digit - 5), abs(digit - 10)) < 1e-2


def test_ticks_of_familiar_ranges() -> None:
    assert ticks(0, 1, 5) == [0.0, 0.5, 1.0]
    assert ticks(0.3, 2.4, 5) == [0.0, 1.0, 2.0, 3.0]
    assert ticks(1, 400, 6) == [0, 100, 200, 300, 400]
    assert ticks(7, 7, 5)[0] < 7 < ticks(7, 7, 5)[-1]
    with pytest.raises(ValueError, match="finite ends"):
        ticks(0, math.inf, 5)


def test_smoothing_keeps_a_constant_and_lags_a_step_by_its_half_life() -> None:
    flat = smooth([(float(i), 3.0) for i in range(10)], half_life=4)
    assert [y for _, y in flat] == pytest.approx([3.0] * 10)
    stepped = smooth([(0.0, 0.0)] * 200 + [(1.0, 1.0)] * 5, half_life=5)
    assert stepped[-1][1] == pytest.approx(0.5)
    gap = smooth([(0.0, 1.0), (1.0, math.nan), (2.0, 1.0)], half_life=2)
    assert [y for _, y in gap] == pytest.approx([1.0, 1.0, 1.0])


def test_thinning_keeps_both_ends() -> None:
    points = [(float(i), 0.0) for i in range(1000)]
    kept = thin(points, 100)
    assert len(kept) <= 101 and kept[0] == points[0] and kept[-1] == points[-1]
    assert thin(points[:50], 100) == points[:50]


def test_a_chart_is_well_formed_and_stays_inside_its_frame() -> None:
    points = [(float(i), 2.0 / (i + 1)) for i in range(50)]
    series = [Series("held <out>", points), Series("training", points, "base", faint=points, marks=True)]
    chart = line_chart(
        title="Loss & more",
        series=series,
        x_name="step",
        y_format=lambda value: f"{value:.1f}",
        levels=[Level("majority", 0.5)],
    )
    root = ElementTree.fromstring(chart)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    lines = [node for node in root if node.tag == "polyline"]
    assert len(lines) == 3
    for line in lines:
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width and 0 <= y <= height
    words = [node.text for node in root if node.tag == "text"]
    assert {"held <out>", "training", "majority", "step"} <= set(words)
    label_rows = [float(node.attrib["y"]) for node in root if "label" in node.attrib.get("class", "")]
    gaps = [b - a for a, b in zip(sorted(label_rows), sorted(label_rows)[1:], strict=False)]
    assert min(gaps) >= 14.9, "names must not lie on each other"
    assert "held <out>: from 2.0 at step 0 to 0.0 at 49" in root.attrib["aria-label"]


def test_lines_break_where_one_stage_ends() -> None:
    points = [(float(i), float(i % 10)) for i in range(1, 31)]
    parts = [Part("first", 10.0), Part("second", 30.0)]
    chart = line_chart(title="t", series=[Series("a", points)], x_name="step", y_format=str, parts=parts)
    root = ElementTree.fromstring(chart)
    lengths = [len(node.attrib["points"].split()) for node in root if node.tag == "polyline"]
    assert lengths == [10, 20]
    assert {"first", "second"} <= {node.text for node in root}
    (edge,) = [node for node in root if node.attrib.get("class") == "part"]
    ends = [node.attrib["points"].split()[-1].split(",")[0] for node in root if node.tag == "polyline"]
    assert edge.attrib["x1"] == ends[0]


def test_a_chart_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="'Loss' has no point"):
        line_chart(title="Loss", series=[Series("a", [])], x_name="step", y_format=str)


def test_values_that_are_not_finite_are_left_out_of_a_line() -> None:
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 0.5)]
    chart = line_chart(title="t", series=[Series("a", points)], x_name="step", y_format=str)
    assert "nan" not in chart.lower() and "inf" not in chart.lower()


def test_a_dot_row_puts_shares_on_one_scale() -> None:
    row = dot_row(0.5, 0.25, 0.75, markers=[("majority", 1.0)], description="d", width=214)
    root = ElementTree.fromstring(row)
    (dot,) = [node for node in root if node.tag == "circle"]
    assert float(dot.attrib["cx"]) == 107
    whisker = next(node for node in root if node.attrib.get("class") == "whisker")
    assert (float(whisker.attrib["x1"]), float(whisker.attrib["x2"])) == (57, 157)


def test_elements_escape_everything_but_markup() -> None:
    inner = element("b", "a < b & c", title='"quoted"')
    assert inner == '<b title="&quot;quoted&quot;">a &lt; b &amp; c</b>'
    assert element("p", inner, "<i>", 3, None, ["x", Markup("<br>")]) == f"<p>{inner}&lt;i&gt;3x<br></p>"
    assert element("input", checked=True, disabled=False, name="n") == '<input checked name="n">'
    assert element("div", class_="a", data_label="b") == '<div class="a" data-label="b"></div>'
    assert re.fullmatch(r"<line [^>]*/>", element("line", x1=1))


def test_names_of_short_stages_stand_in_rows_of_their_own() -> None:
    """Names may touch neither each other nor the plot, and long stages need no second row."""

    def names(ends: list[float], width: int, first: str = "shapes") -> list[tuple[float, float, str]]:
        parts = [
            Part(name, end) for name, end in zip((first, "present", "image", "video"), ends, strict=True)
        ]
        points = [(float(i), 1.0) for i in range(1, int(ends[-1]) + 1)]
        chart = line_chart(
            title="t", series=[Series("a", points)], x_name="step", y_format=str, parts=parts, width=width
        )
        found = [node for node in ElementTree.fromstring(chart) if "stage" in node.attrib.get("class", "")]
        return [(float(node.attrib["y"]), float(node.attrib["x"]), str(node.text)) for node in found]

    assert len({y for y, _, _ in names([200, 400, 600, 800], 540)}) == 1
    for ends in ([60, 300, 630, 870], [1, 2, 3, 870], [860, 864, 867, 870]):
        placed = names(ends, 340, first="shapes_and_colours")
        assert len(placed) == 4 and min(y for y, _, _ in placed) >= 12
        for index, (y, x, name) in enumerate(placed):
            assert 3 * len(name) <= x <= 340 - 3 * len(name)
            for other_y, other_x, other in placed[:index]:
                far = abs(x - other_x) >= 6 * (len(name) + len(other)) / 2
                assert abs(y - other_y) >= 15 or far, (ends, name, other)
