"""Charts as inline SVG, without a library: each takes figures and returns markup with its own alt text.

Coordinates are SVG user units, y downwards. Colours are CSS classes, so that light, dark and print follow
the page. Every string goes through `escape`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite

from markupsafe import Markup, escape

from kernelsimp.report import fmt
from kernelsimp.report.pictures.ticks import spelled, ticks

Scale = Callable[[float], float]

WIDTH = 440


@dataclass(frozen=True)
class Series:
    """A named line through `values`, one a step from 0."""

    name: str
    values: tuple[float, ...]


def svg(width: float, height: float, alt: str, parts: Sequence[Markup], look: str = "") -> Markup:
    """Return a drawing of `parts` with `alt` as its text."""
    head = Markup('<svg class="chart{}" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return (
        head.format(look and f" {look}", _f(width), _f(height), alt)
        + Markup("").join(parts)
        + Markup("</svg>")
    )


def line(x1: float, y1: float, x2: float, y2: float, look: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(
        _f(x1), _f(y1), _f(x2), _f(y2), look
    )


def box(x: float, y: float, width: float, height: float, look: str) -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}"/>').format(
        _f(x), _f(y), _f(max(width, 0)), _f(max(height, 0)), look
    )


def dot(x: float, y: float, look: str) -> Markup:
    return Markup('<circle cx="{}" cy="{}" r="4.5" class="{}"/>').format(_f(x), _f(y), look)


def text(x: float, y: float, words_: str, look: str = "label") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(_f(x), _f(y), look, escape(words_))


def curve(
    title: str, values: Sequence[float | None], look: str, most: float = inf, kept: int | None = None
) -> Markup:
    """Return `values` by epoch, counted from 1, none of which can be above `most`; no line for one point.

    A dashed line marks the epoch that was kept.
    """
    known = [(place, value) for place, value in enumerate(values) if value is not None and isfinite(value)]
    if len(known) < 2:
        return Markup("")
    steps = ticks(min(value for _, value in known), max(value for _, value in known), most)
    y = linear_scale(steps[0], steps[-1], 150, 30)
    x = linear_scale(0, max(len(values) - 1, 1), 62, 306)
    points = " ".join(f"{_f(x(place))},{_f(y(value))}" for place, value in known)
    parts = [
        *_grid(steps, y, 56, 312),
        *([line(x(kept - 1), 24, x(kept - 1), 150, "thread")] if kept else []),
        Markup('<polyline points="{}" class="{}"/>').format(points, look),
        *(dot(x(place), y(value), look) for place, value in known if len(known) < 40),
        text(2, 14, title, "label strong"),
        text(62, 172, "epoch 1"),
        text(306, 172, str(len(values)), "label end"),
    ]
    alt = f"{title} by epoch: first {fmt.number(known[0][1])}, last {fmt.number(known[-1][1])}"
    return svg(320, 178, alt, parts)


def lines(title: str, series: Sequence[Series]) -> Markup:
    """Return one line a series over the steps from 0; the first is grey, the later ones are coloured."""
    known = [value for item in series for value in item.values if isfinite(value)]
    steps = ticks(min(known, default=0.0), max(known, default=1.0), 100)
    y = linear_scale(steps[0], steps[-1], 150, 30)
    x = linear_scale(0, max(max(len(item.values) for item in series) - 1, 1), 62, 306)
    parts = [*_grid(steps, y, 56, 312), text(2, 14, title, "label strong")]
    for place, item in enumerate(series):
        look = "line-a" if place == 0 and len(series) > 1 else "line-b"
        points = " ".join(f"{_f(x(step))},{_f(y(value))}" for step, value in enumerate(item.values))
        parts.append(Markup('<polyline points="{}" class="{}"/>').format(points, look))
        parts += [dot(x(step), y(value), look) for step, value in enumerate(item.values)]
        parts += [dot(66, 198 + 20 * place, look), text(78, 203 + 20 * place, _cut_name(item.name, 28))]
    parts += [text(x(step), 172, str(step), "label middle") for step in range(len(series[0].values))]
    ends = (f"{s.name} from {fmt.percent(s.values[0])} to {fmt.percent(s.values[-1])}" for s in series)
    return svg(320, 190 + 20 * len(series), f"{title}: {', '.join(ends)}", parts)


def _grid(steps: Sequence[float], y: Scale, left: float, right: float) -> list[Markup]:
    parts = []
    for value, words_ in zip(steps, spelled(steps), strict=True):
        parts += [
            line(left, y(value), right, y(value), "rule"),
            text(left - 6, y(value) + 5, words_, "label end"),
        ]
    return parts


def linear_scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return where a number between `low` and `high` lies between `start` and `end`."""
    return lambda value: start + (end - start) * ((value - low) / (high - low))


def _cut_name(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _f(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


LEFT = 132.0


TOP = 40.0


TALLEST = 18.0
"""A row is never taller than this; nor a whole map taller than it is wide, unless it has few columns."""


LETTERS = 12.0
"""The room that a line of small letters takes."""


@dataclass(frozen=True)
class Heat:
    """What is drawn: a title, names of rows and columns, and `values[row][column]`, 0..1 or None."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def heat_map(heat: Heat) -> Markup:
    """Return the drawing; every cell says its figure when pointed at."""
    width = (WIDTH - LEFT) / max(len(heat.columns), 1)
    height = max(min(TALLEST, (WIDTH - LEFT) / max(len(heat.rows), 1)), 4.0)
    parts = [text(0, 14, heat.title, "label strong"), *_heads(heat, width)]
    for row, name in enumerate(heat.rows):
        top = TOP + height * row
        if row % ceil(LETTERS / height) == 0:
            parts.append(_small(LEFT - 6, top + height / 2 + 3.5, _tail(name, 19), "label end"))
        for column, value in enumerate(heat.values[row]):
            where = f"{name}, {heat.columns[column]}"
            parts.append(_cell((LEFT + width * column, top, width, height), value, where))
    shares = [value for line in heat.values for value in line if value is not None and isfinite(value)]
    low, high = min(shares, default=None), max(shares, default=None)
    alt = f"{heat.title}: {len(heat.rows)} rows by {len(heat.columns)} columns, "
    alt += f"from {fmt.number(low)} to {fmt.number(high)}; the table has the figures"
    return svg(WIDTH, TOP + height * len(heat.rows) + 6, alt, parts, "map")


def _heads(heat: Heat, width: float) -> list[Markup]:
    """Return the names of columns where they have room, else of the first and the last."""
    count = len(heat.columns)
    if count and width >= 46:
        places = [
            (LEFT + width * (place + 0.5), heat.columns[place], "label middle") for place in range(count)
        ]
    else:
        ends = ((LEFT, heat.columns[0], "label"), (WIDTH, heat.columns[-1], "label end")) if count else ()
        places = list(ends)
    return [
        _small(x, TOP - 6, _tail(name, 22 if width < 46 else int(width / 6.5)), look)
        for x, name, look in places
    ]


def _cell(box: tuple[float, float, float, float], value: float | None, where: str) -> Markup:
    if value is None or not isfinite(value):
        return Markup("")
    shape = Markup(
        '<rect x="{}" y="{}" width="{}" height="{}" class="mark" fill-opacity="{}"><title>{}</title></rect>'
    )
    figures = (f"{side:.1f}" for side in box)
    return shape.format(*figures, f"{max(0.0, min(1.0, value)):.3f}", f"{where}: {fmt.number(value, 4)}")


def _small(x: float, y: float, words_: str, look: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" font-size="11">{}</text>').format(
        f"{x:.1f}", f"{y:.1f}", look, words_
    )


def _tail(name: str, most: int) -> str:
    """Return the end of a long name: layers differ there."""
    return name if len(name) <= most else "…" + name[1 - most :]
