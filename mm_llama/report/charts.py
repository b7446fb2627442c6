"""Small SVG charts, drawn here so that a page needs no script, no font and no request.

Colours come from the page's CSS classes, so one drawing serves the light and the dark scheme. A drawing
scales its letters with its width; `line_figure` therefore draws a wide and a narrow one, and the style sheet
shows the fitting one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mm_llama.report.markup import Markup, element

Point = tuple[float, float]
LETTER = 6.6  # mean width of a letter of the charts' text, in pixels


@dataclass(frozen=True)
class Series:
    """One line: its name at the right end, points in order of x, and the CSS class that colours it."""

    name: str
    points: Sequence[Point]
    style: str = "ours"
    faint: Sequence[Point] = ()  # the unsmoothed values behind the line
    marks: bool = False  # a dot at every point: few measurements rather than a curve


@dataclass(frozen=True)
class Part:
    """A stretch of the x axis that ends at `end`, such as one stage of several."""

    name: str
    end: float


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with, such as the majority answer."""

    name: str
    value: float


def line_figure(
    *,
    title: str,
    caption: str,
    series: Sequence[Series],
    x_name: str,
    y_format: Callable[[float], str],
    levels: Sequence[Level] = (),
    parts: Sequence[Part] = (),
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """Return a figure: the chart at two widths, and its caption."""
    drawings = [
        line_chart(
            title=title,
            series=series,
            x_name=x_name,
            y_format=y_format,
            levels=levels,
            parts=parts,
            y_range=y_range,
            width=width,
            height=height,
            style=style,
        )
        for width, height, style in ((540, 300, "wide"), (340, 250, "narrow"))
    ]
    return element("figure", element("h3", title), *drawings, element("figcaption", caption), class_="chart")


def line_chart(
    *,
    title: str,
    series: Sequence[Series],
    x_name: str,
    y_format: Callable[[float], str],
    levels: Sequence[Level] = (),
    parts: Sequence[Part] = (),
    y_range: tuple[float, float] | None = None,
    width: int = 540,
    height: int = 300,
    style: str = "wide",
) -> Markup:
    """Return one SVG line chart; series and levels are named beside their ends rather than in a legend."""
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in [*line.points, *line.faint] if math.isfinite(y)]
    ys += [level.value for level in levels]
    if not xs or not ys:
        raise ValueError(f"the chart {title!r} has no point to draw")
    low, high = y_range or (min(ys), max(ys))
    y_ticks = ticks(low, high, 5)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    x_ticks = ticks(min(xs), max(xs), 6 if width > 400 or max(xs) < 10_000 else 5)
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    left, right, bottom = 46, 96 if width > 400 else 84, 40

    def place_x(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (width - left - right)

    starts = [x_low, *(part.end for part in parts)]
    middles = [(place_x(start) + place_x(part.end)) / 2 for start, part in zip(starts, parts, strict=False)]
    halves = [LETTER * len(part.name) / 2 for part in parts]  # a long name stays inside the drawing
    middles = [min(max(middle, half), width - half) for middle, half in zip(middles, halves, strict=True)]
    rows = _rows([(middle, part.name) for middle, part in zip(middles, parts, strict=True)])
    top = 12 + 16 * (max(rows) + 1) if len(parts) > 1 else 12

    def place_y(value: float) -> float:
        value = min(max(value, low), high)
        return top + (high - value) / ((high - low) or 1.0) * (height - top - bottom)

    drawn: list[Markup] = []
    for value in y_ticks:
        y = place_y(value)
        drawn.append(element("line", x1=left, x2=width - right, y1=_n(y), y2=_n(y), class_="grid"))
        drawn.append(element("text", y_format(value), x=left - 8, y=_n(y + 4), class_="tick end"))
    for value in x_ticks:
        if x_low <= value <= x_high:
            drawn.append(
                element(
                    "text", f"{value:,.10g}", x=_n(place_x(value)), y=height - bottom + 18, class_="tick mid"
                )
            )
    drawn.append(
        element("text", x_name, x=_n((left + width - right) / 2), y=height - 6, class_="tick mid name")
    )
    if len(parts) > 1:
        for part, middle, row in zip(parts, middles, rows, strict=True):
            edge = _n(place_x(part.end))
            drawn.append(
                element("text", part.name, x=_n(middle), y=top - 12 - 16 * row, class_="tick mid stage")
            )
            if part is not parts[-1]:
                drawn.append(element("line", x1=edge, x2=edge, y1=top - 8, y2=height - bottom, class_="part"))
    names: list[tuple[float, str, str]] = []
    for level in levels:
        y = place_y(level.value)
        drawn.append(element("line", x1=left, x2=width - right, y1=_n(y), y2=_n(y), class_="level"))
        names.append((y, level.name, "level"))
    for line in series:
        finite = [(x, y) for x, y in line.points if math.isfinite(y)]
        if line.faint:
            faint = [(x, y) for x, y in line.faint if math.isfinite(y)]
            drawn += _polylines(faint, parts, place_x, place_y, f"line faint {line.style}")
        if not finite:
            continue
        drawn += _polylines(finite, parts, place_x, place_y, f"line {line.style}")
        if line.marks:
            drawn += [
                element("circle", cx=_n(place_x(x)), cy=_n(place_y(y)), r=3, class_=f"mark {line.style}")
                for x, y in finite
            ]
        names.append((place_y(finite[-1][1]), line.name, line.style))
    for y, name, kind in _spread(names, 15, top + 4, height - bottom):
        drawn.append(element("text", name, x=width - right + 8, y=_n(y + 4), class_=f"label {kind}"))
    return element(
        "svg",
        element("title", title),
        *drawn,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=f"{title}. {describe(series, levels, y_format, x_name)}",
        class_=f"plot {style}",
    )


def dot_row(
    score: float,
    low: float,
    high: float,
    *,
    markers: Sequence[tuple[str, float]],
    description: str,
    width: int = 200,
) -> Markup:
    """Return one row of a dot plot from 0 to 1: a dot with its interval, and a shape for each baseline."""
    height, pad = 22, 7
    middle = height / 2

    def place(value: float) -> float:
        return pad + min(max(value, 0.0), 1.0) * (width - 2 * pad)

    parts = [element("line", x1=pad, x2=width - pad, y1=middle, y2=middle, class_="grid")]
    for at in (0.0, 0.5, 1.0):
        parts.append(element("line", x1=_n(place(at)), x2=_n(place(at)), y1=4, y2=height - 4, class_="grid"))
    for kind, value in markers:
        parts.append(marker(kind, place(value), middle))
    parts.append(
        element("line", x1=_n(place(low)), x2=_n(place(high)), y1=middle, y2=middle, class_="whisker")
    )
    parts.append(marker("ours", place(score), middle))
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=description,
        class_="dots",
    )


def marker(kind: str, x: float, y: float) -> Markup:
    """Return the shape of a side: told apart by form, not by colour alone."""
    if kind == "ours":
        return element("circle", cx=_n(x), cy=_n(y), r=5, class_="mark ours")
    if kind == "majority":
        return element("line", x1=_n(x), x2=_n(x), y1=_n(y - 7), y2=_n(y + 7), class_="mark majority")
    if kind == "no_picture":
        return element("circle", cx=_n(x), cy=_n(y), r=4, class_="mark hollow")
    corner = f"M{_n(x - 4.5)} {_n(y)}L{_n(x)} {_n(y - 4.5)}L{_n(x + 4.5)} {_n(y)}L{_n(x)} {_n(y + 4.5)}Z"
    return element("path", d=corner, class_="mark hollow")


def key_shape(kind: str) -> Markup:
    """Return a small drawing of a marker for a legend; it is decoration beside its name."""
    return element("svg", marker(kind, 8, 8), viewBox="0 0 16 16", width=16, height=16, aria_hidden="true")


def share_bar(parts: Sequence[tuple[str, float]], *, description: str) -> Markup:
    """Return one horizontal bar split by share; the parts have the classes `part0`, `part1`, ..."""
    total = sum(value for _, value in parts) or 1.0
    drawn, x = [], 0.0
    for index, (_, value) in enumerate(parts):
        width = 1000 * value / total
        drawn.append(element("rect", x=_n(x), y=0, width=_n(width), height=18, class_=f"part{index % 6}"))
        x += width
    return element(
        "svg",
        *drawn,
        viewBox="0 0 1000 18",
        preserveAspectRatio="none",
        role="img",
        aria_label=description,
        class_="share",
    )


def smooth(points: Sequence[Point], *, half_life: float) -> list[Point]:
    """Return the bias-corrected exponential average of the values; `half_life` counts points."""
    keep, average, weight, smoothed = 0.5 ** (1.0 / max(half_life, 1e-9)), 0.0, 0.0, []
    for x, y in points:
        if math.isfinite(y):
            average, weight = keep * average + (1 - keep) * y, keep * weight + (1 - keep)
        smoothed.append((x, average / weight if weight else math.nan))
    return smoothed


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """Return at most `limit` points at even strides, the last one always among them."""
    if len(points) <= limit:
        return list(points)
    stride = math.ceil(len(points) / (limit - 1))
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def ticks(low: float, high: float, num: int) -> list[float]:
    """Return about `num` round values that cover low..high, in steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"an axis needs finite ends, got {low} and {high}")
    if high - low <= 1e-12 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / max(num - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-10), math.ceil(high / step - 1e-10)
    return [round(index * step, 12) for index in range(first, last + 1)]


def describe(
    series: Sequence[Series], levels: Sequence[Level], y_format: Callable[[float], str], x_name: str
) -> str:
    """Say in words where each line starts and ends, for readers who do not see it."""
    said = []
    for line in series:
        finite = [(x, y) for x, y in line.points if math.isfinite(y)]
        if finite:
            (x0, y0), (x1, y1) = finite[0], finite[-1]
            said.append(
                f"{line.name}: from {y_format(y0)} at {x_name} {x0:,.6g} to {y_format(y1)} at {x1:,.6g}"
            )
    said += [f"{level.name}: {y_format(level.value)}" for level in levels]
    return "; ".join(said) + "."


def _polylines(
    points: Sequence[Point],
    parts: Sequence[Part],
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
    style: str,
) -> list[Markup]:
    """Draw a line, broken where one part ends and the next begins."""
    lines = []
    start = -math.inf
    for end in [*[part.end for part in parts[:-1]], math.inf]:
        inside = [(x, y) for x, y in points if start < x <= end]
        if inside:
            path = " ".join(f"{_n(place_x(x))},{_n(place_y(y))}" for x, y in inside)
            lines.append(element("polyline", points=path, class_=style))
        start = end
    return lines


def _spread(
    names: Sequence[tuple[float, str, str]], gap: float, top: float, bottom: float
) -> list[tuple[float, str, str]]:
    """Push names apart to at least `gap`, keeping their order, inside top..bottom where they fit."""
    ordered = sorted(names)
    placed: list[float] = []
    for y, _, _ in ordered:
        placed.append(max(y, placed[-1] + gap) if placed else max(y, top))
    if placed and placed[-1] > bottom:
        placed[-1] = bottom
        for index in range(len(placed) - 2, -1, -1):
            placed[index] = min(placed[index], placed[index + 1] - gap)
    return [(y, name, kind) for y, (_, name, kind) in zip(placed, ordered, strict=True)]


def _rows(names: Sequence[tuple[float, str]]) -> list[int]:
    """Put names centred at x into as few rows as let none touch the one before it in its row."""
    ends: list[float] = []
    rows = []
    for middle, name in names:
        half = LETTER * len(name) / 2
        row = next((row for row, end in enumerate(ends) if middle - half >= end + LETTER), len(ends))
        ends[row : row + 1] = [middle + half]
        rows.append(row)
    return rows


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
