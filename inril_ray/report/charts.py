"""Charts as inline SVG whose colours follow the page, so that they are legible in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from inril_ray.report.page import Html, join, tag
from inril_ray.report.records import Points

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 390, 26, 206
ROW = 34
MAX_MARKED = 60
"""Longer series are drawn without a mark at each value."""
ENV_STEPS = "Environment steps (control steps)"


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    label: str
    points: Points
    color: str = "s1"
    """Class ``s0`` to ``s3`` of the style sheet."""
    band: list[tuple[float, float, float]] = field(default_factory=list)
    """(x, low, high) of an interval."""
    look: str = ""
    """Further classes: ``thin``, ``bold``, ``dashed``."""
    hollow: bool = False
    """Draw marks only, as open diamonds."""
    marked: bool = True
    in_legend: bool = True


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line chart against environment steps."""

    title: str
    y_label: str
    """With its unit."""
    series: Sequence[Series]
    note: str = ""
    y_range: tuple[float, float] | None = None
    x_max: float | None = None
    reference: tuple[float, str] | None = None
    """A horizontal line and what it means."""
    rug: Sequence[float] = ()
    """Places marked by ticks on the horizontal axis."""
    rug_label: str = ""
    log: bool = False
    """Logarithmic vertical axis, where all values are positive."""


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return round(self.first + (self.last - self.first) * (value - low) / (high - low), 1)


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers that cover ``low`` to ``high``, about ``wanted`` of them."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten that cover ``low`` to ``high``."""
    return [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """Return a short label: ``20k``, ``1.5M``, ``−0.2``."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}".replace("-", "−")
    return "0" if abs(value) < 1e-12 else f"{value:.4g}".replace("-", "−")


def line_chart(chart: Chart) -> Html:
    """Return a figure: title, legend, and the drawing with a text alternative."""
    caption = [chart.title, tag("span", chart.note, class_="note")] if chart.note else [chart.title]
    series = [s for s in chart.series if s.points]
    if not series:
        empty = tag("p", "Not recorded in this run.", class_="note")
        return tag("figure", tag("figcaption", *caption), empty)
    values = [y for s in series for _, y in s.points] + [v for s in series for _, *ends in s.band for v in ends]
    log = chart.log and min(values) > 0
    y_ticks, y = _vertical(values, chart.y_range, chart.reference, log)
    x_max = chart.x_max or max(x for s in series for x, _ in s.points) or 1.0
    x = Scale(0.0, x_max, LEFT, RIGHT)
    drawn = [_grid(y_ticks, y, chart.y_label), _bottom([t for t in nice_ticks(0.0, x_max, 4) if t <= x_max], x)]
    if chart.reference is not None:
        drawn.append(_reference(chart.reference, y))
    drawn += [tag("line", x1=x(p), x2=x(p), y1=BOTTOM - 9, y2=BOTTOM, class_="s3 line") for p in chart.rug]
    drawn += [_draw(s, x, y) for s in series]
    spoken = f"{chart.title}. {chart.y_label} against {ENV_STEPS.lower()}. " + " ".join(_spoken(s) for s in series)
    legend = [(_swatch(s), s.label) for s in series if s.in_legend]
    if chart.rug:
        mark = tag("line", x1=13, x2=13, y1=1, y2=11, class_="s3 line")
        legend.append((_sample(mark), chart.rug_label))
    keys = tag("div", *(tag("span", mark, label) for mark, label in legend), class_="legend")
    return tag("figure", tag("figcaption", *caption), keys if len(legend) > 1 else "", _svg(spoken, drawn))


@dataclass(frozen=True, kw_only=True)
class Group:
    """One column of a dot chart: values that are paired across groups, and their summary."""

    label: str
    values: Sequence[float]
    center: float | None
    low: float | None
    high: float | None
    color: str = "s1"


def dot_chart(
    title: str,
    y_label: str,
    groups: Sequence[Group],
    reference: tuple[float, str] | None,
    note: str,
    y_range: tuple[float, float] | None,
) -> Html:
    """Return a figure of groups side by side: values joined pair by pair, and a summary with its interval.

    Args:
        title: of the figure.
        y_label: with its unit.
        groups: from left to right.
        reference: a horizontal line and what it means, or None.
        note: below the title.
        y_range: ends of the vertical axis; None covers all values.
    """
    values = [v for g in groups for v in (*g.values, g.center, g.low, g.high) if v is not None]
    ticks, y = _vertical(values, y_range, reference)
    width = (RIGHT - LEFT) / len(groups)
    centers = [LEFT + width * (i + 0.5) for i in range(len(groups))]
    drawn: list[Html] = [_grid(ticks, y, y_label)]
    if reference is not None:
        drawn.append(_reference(reference, y))
    for left, right, a, b in zip(groups, groups[1:], centers, centers[1:], strict=False):
        for v, w in zip(left.values, right.values, strict=False):
            drawn.append(tag("line", x1=a, y1=y(v), x2=b, y2=y(w), class_="pair"))
    for i, (group, c) in enumerate(zip(groups, centers, strict=True)):
        marks = [
            tag("circle", tag("title", f"{group.label}: {v:.1f}"), cx=c, cy=y(v), r=4, class_="dot")
            for v in group.values
        ]
        # The summary stands on the outer side, where no pair lines run.
        marks += _summary(group, c + (-1 if i == 0 else 1) * min(34.0, width / 4), y)
        drawn.append(tag("g", *marks, class_=group.color))
        drawn.append(tag("text", group.label, x=c, y=BOTTOM + 18, text_anchor="middle", class_="strong"))
    drawn.append(_axis_line())
    parts = [f"{g.label}: {', '.join(f'{v:.1f}' for v in g.values)}; {_ends(g)}." for g in groups]
    diamond = tag("rect", x=9, y=2, width=8, height=8, transform="rotate(45 13 6)", class_="s0 dot")
    keys = tag(
        "div",
        tag("span", _sample(tag("circle", cx=13, cy=6, r=4, class_="s0 dot")), "one run; lines join equal seeds"),
        tag("span", _sample(diamond), "interquartile mean, 95 % interval"),
        class_="legend",
    )
    caption = tag("figcaption", title, tag("span", note, class_="note"))
    return tag("figure", caption, keys, _svg(f"{title}. {y_label}. " + " ".join(parts), drawn, BOTTOM + 30))


Row = tuple[str, Sequence[float], float | None, float | None, float | None]
"""Label, values, their mean and the ends of its interval."""


def interval_chart(
    title: str, x_label: str, rows: Sequence[Row], reference: float | None, x_range: tuple[float, float] | None
) -> Html:
    """Return a figure of rows, one below the other: values as dots, mean and interval above them.

    Args:
        title: of the figure.
        x_label: with its unit.
        rows: from top to bottom.
        reference: place of a vertical line, the base policy's score; None for none.
        x_range: ends of the horizontal axis; None covers all values.
    """
    values = [v for _, own, *ends in rows for v in (*own, *ends, reference) if v is not None]
    low, high = x_range or (min(values, default=0.0), max(values, default=1.0))
    ticks = nice_ticks(low, high)
    bottom = TOP + ROW * len(rows)
    x = Scale(ticks[0], ticks[-1], 10, RIGHT)
    drawn = [tag("text", x_label, x=10, y=12, class_="strong")]
    for tick in ticks:
        drawn.append(tag("line", x1=x(tick), x2=x(tick), y1=TOP, y2=bottom, class_="grid"))
        drawn.append(tag("text", tick_text(tick), x=x(tick), y=bottom + 16, text_anchor="middle"))
    if reference is not None:
        drawn.append(tag("line", x1=x(reference), x2=x(reference), y1=TOP, y2=bottom, class_="reference"))
        drawn.append(tag("text", "base policy", x=x(reference), y=bottom + 30, text_anchor="middle"))
    for i, (label, own, mean, left, right) in enumerate(rows):
        y = TOP + ROW * i + 26
        marks = [tag("text", label, x=12, y=y - 10, class_="strong")]
        if left is not None and right is not None:
            ends = (min(max(x(v), 10), RIGHT) for v in (left, right))
            marks.append(tag("line", x1=next(ends), x2=next(ends), y1=y, y2=y, class_="bar"))
        marks += [tag("circle", tag("title", f"{label}: {v:.1f}"), cx=x(v), cy=y, r=3.5, class_="hollow") for v in own]
        if mean is not None:
            turned = f"rotate(45 {x(mean)} {y})"
            marks.append(tag("rect", x=x(mean) - 5, y=y - 5, width=10, height=10, transform=turned, class_="dot"))
        drawn.append(tag("g", *marks, class_="s1"))
    said = [f"{label}: {'no mean' if mean is None else f'{mean:.1f}'}." for label, _, mean, *_ in rows]
    keys = tag(
        "div",
        tag("span", _sample(tag("circle", cx=13, cy=6, r=3.5, class_="s1 hollow")), "one run"),
        tag("span", _sample(tag("rect", x=9, y=2, width=8, height=8, transform="rotate(45 13 6)", class_="s1 dot")),
            "mean, 95 % interval"),
        class_="legend",
    )  # fmt: skip
    return tag("figure", tag("figcaption", title), keys, _svg(f"{title}. {' '.join(said)}", drawn, bottom + 36))


def _summary(group: Group, c: float, y: Scale) -> list[Html]:
    marks = []
    if group.low is not None and group.high is not None:
        marks.append(tag("line", x1=c, x2=c, y1=y(group.low), y2=y(group.high), class_="bar"))
    if group.center is not None:
        at = y(group.center)
        marks.append(
            tag(
                "rect",
                tag("title", f"{group.label}: {_ends(group)}"),
                x=round(c - 5, 1),
                y=at - 5,
                width=10,
                height=10,
                transform=f"rotate(45 {c:.1f} {at})",
                class_="dot",
            )
        )
    return marks


def _ends(group: Group) -> str:
    if group.center is None or group.low is None or group.high is None:
        return "no summary"
    return f"interquartile mean {group.center:.1f}, 95 % interval {group.low:.1f} to {group.high:.1f}"


def _vertical(
    values: list[float],
    y_range: tuple[float, float] | None,
    reference: tuple[float, str] | None,
    log: bool = False,
) -> tuple[list[float], Scale]:
    low, high = y_range or (min(values, default=0.0), max(values, default=1.0))
    if reference is not None:
        low, high = min(low, reference[0]), max(high, reference[0])
    ticks = log_ticks(low, high) if log else nice_ticks(low, high)
    return ticks, Scale(ticks[0], ticks[-1], BOTTOM, TOP, log)


def _grid(ticks: list[float], y: Scale, label: str) -> Html:
    parts: list[Html] = [tag("text", label, x=0, y=12, class_="strong")]
    for tick in ticks:
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(tag("text", tick_text(tick), x=LEFT - 6, y=y(tick) + 4, text_anchor="end"))
    return join(*parts)


def _axis_line() -> Html:
    return tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis")


def _bottom(ticks: list[float], x: Scale) -> Html:
    parts = [_axis_line()]
    for tick in ticks:
        parts.append(tag("line", x1=x(tick), x2=x(tick), y1=BOTTOM, y2=BOTTOM + 4, class_="axis"))
        parts.append(tag("text", tick_text(tick), x=x(tick), y=BOTTOM + 18, text_anchor="middle"))
    middle = (LEFT + RIGHT) / 2
    parts.append(tag("text", ENV_STEPS, x=middle, y=BOTTOM + 37, text_anchor="middle", class_="strong"))
    return join(*parts)


def _reference(reference: tuple[float, str], y: Scale) -> Html:
    value, label = reference
    at = y(value)
    # Below the line near the top of the drawing, above it elsewhere.
    text = tag("text", label, x=RIGHT - 2, y=at + (14 if at < TOP + 20 else -5), text_anchor="end")
    return join(tag("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_="reference"), text)


def _draw(series: Series, x: Scale, y: Scale) -> Html:
    parts: list[Html] = []
    if series.band:
        upper = [f"{x(at)},{y(high)}" for at, _, high in series.band]
        lower = [f"{x(at)},{y(low)}" for at, low, _ in reversed(series.band)]
        parts.append(tag("polygon", points=" ".join(upper + lower), class_="band"))
    if len(series.points) > 1 and not series.hollow:
        line = " ".join(f"{x(a)},{y(b)}" for a, b in series.points)
        parts.append(tag("polyline", points=line, class_=f"line {series.look}".strip()))
    if series.hollow or len(series.points) == 1 or (series.marked and len(series.points) <= MAX_MARKED):
        parts += [_mark(series, a, b, x(a), y(b)) for a, b in series.points]
    return tag("g", *parts, class_=series.color)


def _mark(series: Series, steps: float, value: float, x: float, y: float) -> Html:
    title = tag("title", f"{series.label}: {value:.4g} at {steps:,.0f} steps")
    if series.hollow:
        turned = f"rotate(45 {x} {y})"
        return tag("rect", title, x=x - 4, y=y - 4, width=8, height=8, transform=turned, class_="hollow")
    return tag("circle", title, cx=x, cy=y, r=2.6, class_="dot")


def _swatch(series: Series) -> Html:
    if series.hollow:
        return _sample(
            tag("rect", x=9, y=2, width=8, height=8, transform="rotate(45 13 6)", class_=f"{series.color} hollow")
        )
    return _sample(tag("line", x1=0, x2=26, y1=6, y2=6, class_=f"{series.color} line {series.look}".strip()))


def _sample(mark: Html) -> Html:
    return tag("svg", mark, width=26, height=12, viewBox="0 0 26 12", aria_hidden="true")


def _spoken(series: Series) -> str:
    values = [v for _, v in series.points]
    return (
        f"{series.label}: {len(values)} values, first {values[0]:.4g}, last {values[-1]:.4g}, "
        f"lowest {min(values):.4g}, highest {max(values):.4g}."
    )


def _svg(spoken: str, drawn: Sequence[Html], height: float = HEIGHT) -> Html:
    return tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=spoken, class_="chart")
