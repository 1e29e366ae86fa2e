# SPDX-License-Identifier: GPL-2.0-or-later
"""Charts as inline SVG. The page's style sheet colours them, so one chart serves light and dark.

Every chart is drawn 400 units wide: on a phone a unit is about one pixel, so text stays readable.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastsocket.report.markup import Element, el

__all__ = ["Bar", "Interval", "Series", "bar_chart", "interval_chart", "line_chart", "ticks"]

WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 40
LINE_HEIGHT = 15
CHARACTER = 7.4
"""Width of one character of the charts' font, at most about; for placing text only."""

Write = Callable[[float], str]


class Series(NamedTuple):
    """One line: its points are (x, y, low, high), with None where there is no interval.

    Attributes:
        label: Written at the line's end; empty for none.
        style: Class in the style sheet, which gives colour and dashes.
        points: In rising order of x.
        marks: Draw a mark at each point, for few measured points.
    """

    label: str
    style: str
    points: Sequence[tuple[float, float, float | None, float | None]]
    marks: bool = True


class Bar(NamedTuple):
    """One bar, its parts stacked from the bottom: (style, height)."""

    label: str
    parts: Sequence[tuple[str, float]]


class Interval(NamedTuple):
    """One row of an interval chart."""

    label: str
    style: str
    value: float
    low: float
    high: float
    text: str


def ticks(top: float, count: int = 5) -> list[float]:
    """Return about `count` round steps (1, 2, 2.5 or 5 by powers of ten) from 0 to past `top`."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [step * index for index in range(math.ceil(top / step - 1e-9) + 1)]


def _svg(title: str, description: str, height: float, *children: Element | None) -> Element:
    """Wrap a chart so that a screen reader says what it shows."""
    return el(
        "svg",
        el("title", title),
        el("desc", description),
        *children,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_label=f"{title}. {description}",
    )


def _text(x: float, y: float, words: str, style: str = "tick", anchor: str = "start") -> Element:
    return el("text", words, x=x, y=y, class_=style, text_anchor=anchor)


def _y_axis(
    steps: Sequence[float], y: Callable[[float], float], right: float, write: Write
) -> Element:
    """Draw the horizontal grid with its figures."""
    return el(
        "g",
        *(el("line", x1=LEFT, x2=right, y1=y(step), y2=y(step), class_="grid") for step in steps),
        *(_text(LEFT - 6, y(step) + 4, write(step), anchor="end") for step in steps),
    )


def _spread(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Move labels apart to a line height each, keeping their order and near where they belong."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = [min(max(wanted[index], low), high) for index in order]
    for index in range(1, len(placed)):
        placed[index] = max(placed[index], placed[index - 1] + LINE_HEIGHT)
    limit = high
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - LINE_HEIGHT
    result = [0.0] * len(wanted)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result


def _mark(style: str, x: float, y: float, shape: int) -> Element:
    """Draw a point; shapes differ so that colour is not needed to tell lines apart."""
    if shape == 0:
        return el("circle", cx=x, cy=y, r=3.5, class_=f"mark {style}")
    if shape == 1:
        return el("rect", x=x - 3.2, y=y - 3.2, width=6.4, height=6.4, class_=f"mark {style}")
    corners = f"M{x:.1f} {y - 4.4:.1f}l4.4 7.6h-8.8z"
    return el("path", d=corners, class_=f"mark {style}")


def line_chart(
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    x_label: str,
    x_ticks: Sequence[float],
    write_x: Write,
    write_y: Write,
    end: float | None = None,
    top: float | None = None,
) -> Element:
    """Draw lines over a numeric x axis, with interval bars where points have them.

    Args:
        title: What is shown, with its unit; written by the page above the chart.
        description: One sentence with what the lines say, for those who do not see them.
        series: At least one line with at least one point.
        x_label: Written below the x axis.
        x_ticks: Where the x axis has figures; it begins at the first.
        write_x: Writes a figure of the x axis.
        write_y: Writes a figure of the y axis.
        end: Right end of the x axis; by default its last figure.
        top: Upper end of the y axis; by default what the points need.
    """
    highest = max(max(y, high or y) for line in series for _, y, _, high in line.points)
    steps = ticks(top or highest)
    labelled = [line for line in series if line.label]
    right = WIDTH - max((len(line.label) * CHARACTER + 8 for line in labelled), default=RIGHT)
    first, last = x_ticks[0], x_ticks[-1] if end is None else end
    floor = HEIGHT - BOTTOM

    def place_x(value: float) -> float:
        return LEFT + (value - first) / ((last - first) or 1) * (right - LEFT)

    def place_y(value: float) -> float:
        return floor - value / steps[-1] * (floor - TOP)

    drawn: list[Element] = []
    for index, line in enumerate(series):
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y, _, _ in line.points)
        drawn.append(el("polyline", points=path, class_=f"line {line.style}"))
        for x, y, low, high in line.points if line.marks else ():
            if low is not None and high is not None:
                ends = {"y1": place_y(low), "y2": place_y(high)}
                whisker = el(
                    "line", x1=place_x(x), x2=place_x(x), class_=f"range {line.style}", **ends
                )
                drawn.append(whisker)
            drawn.append(_mark(line.style, place_x(x), place_y(y), index % 3))
    ends_at = _spread([place_y(line.points[-1][1]) + 4 for line in labelled], TOP + 6, floor)
    names = [
        _text(right + 8, y, line.label, f"name {line.style}")
        for line, y in zip(labelled, ends_at, strict=True)
    ]
    return _svg(
        title,
        description,
        HEIGHT,
        _y_axis(steps, place_y, right, write_y),
        *(
            _text(place_x(x), floor + 17, write_x(x), anchor="middle")
            for x in _thin(x_ticks, write_x, place_x)
        ),
        _text((LEFT + right) / 2, HEIGHT - 5, x_label, "axis", "middle"),
        *drawn,
        *names,
    )


def _thin(values: Sequence[float], write: Write, place: Callable[[float], float]) -> list[float]:
    """Drop the figures of the x axis that would run into their left neighbour."""
    kept = list(values[:1])
    for value in values[1:]:
        needed = CHARACTER * (len(write(kept[-1])) + len(write(value))) / 2 + 6
        if place(value) - place(kept[-1]) >= needed:
            kept.append(value)
    return kept


def bar_chart(
    title: str,
    description: str,
    bars: Sequence[Bar],
    *,
    x_label: str,
    write_y: Write,
    top: float,
) -> Element:
    """Draw stacked bars side by side, such as the use of each CPU.

    Args:
        title: What is shown, with its unit; written by the page above the chart.
        description: One sentence for those who do not see it.
        bars: At least one.
        x_label: Written below the x axis.
        write_y: Writes a figure of the y axis.
        top: Upper end of the y axis.
    """
    steps, right, floor, height = ticks(top), WIDTH - RIGHT, 150, 190
    room = (right - LEFT) / len(bars)
    width = min(room * 0.72, 34)

    def place_y(value: float) -> float:
        return floor - value / steps[-1] * (floor - TOP)

    drawn: list[Element] = []
    widest = CHARACTER * max(len(bar.label) for bar in bars) + 4
    stride = math.ceil(widest / room)
    for index, bar in enumerate(bars):
        centre = LEFT + room * (index + 0.5)
        base = 0.0
        for style, size in bar.parts:
            upper, lower = place_y(base + size), place_y(base)
            edges = {"x": centre - width / 2, "width": width, "y": upper, "height": lower - upper}
            drawn.append(el("rect", class_=f"bar {style}", **edges))
            base += size
        if index % stride == 0:
            drawn.append(_text(centre, floor + 16, bar.label, anchor="middle"))
    axis = _text((LEFT + right) / 2, height - 5, x_label, "axis", "middle")
    return _svg(title, description, height, _y_axis(steps, place_y, right, write_y), *drawn, axis)


def interval_chart(title: str, description: str, rows: Sequence[Interval]) -> Element:
    """Draw ratios with their intervals on a logarithmic axis around 1, the line of no difference.

    Args:
        title: What is shown; written by the page above the chart.
        description: One sentence for those who do not see it.
        rows: At least one, each with 0 < low <= value <= high.
    """
    reach = max(max(math.log2(max(row.high, 1)), -math.log2(min(row.low, 1))) for row in rows)
    doublings = max(1, math.ceil(reach))
    row_height, left, right = 40, 16, WIDTH - 16
    floor = TOP + row_height * len(rows)

    def place(value: float) -> float:
        return (left + right) / 2 + math.log2(value) / doublings * (right - left) / 2

    stride = math.ceil(doublings / 3)
    powers = range(-(doublings // stride) * stride, doublings + 1, stride)
    labels = [(place(2.0**power), _power(power)) for power in powers]
    drawn: list[Element] = [
        el("line", x1=x, x2=x, y1=TOP, y2=floor, class_="one" if text == "1×" else "grid")
        for x, text in labels
    ]
    drawn += [_text(x, floor + 15, text, anchor="middle") for x, text in labels]
    for index, row in enumerate(rows):
        y = TOP + row_height * index
        drawn += [
            _text(left, y + 13, row.label, "row"),
            _text(right, y + 13, row.text, "row", "end"),
            el(
                "line",
                x1=place(row.low),
                x2=place(row.high),
                y1=y + 25,
                y2=y + 25,
                class_=f"band {row.style}",
            ),
            el("circle", cx=place(row.value), cy=y + 25, r=4, class_=f"mark {row.style}"),
        ]
    return _svg(title, description, floor + 24, *drawn)


def _power(power: int) -> str:
    """Write 2 to a whole power as a ratio: 1/4, 1/2, 1, 2, 4 times."""
    return f"{2**power}×" if power >= 0 else f"1/{2**-power}"
