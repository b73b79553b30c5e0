"""Charts as inline SVG, without a library: each takes figures and returns markup with its own alt text.

Coordinates are SVG user units, y downwards. Colours are CSS classes, so that light, dark and print follow
the page. Every string goes through `escape`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, log10, sqrt

from markupsafe import Markup, escape

from kernelsimp.report import fmt

Scale = Callable[[float], float]

WIDTH = 440


@dataclass(frozen=True)
class Level:
    """One bar of a waterfall: a stage's level with its interval, all in percent."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SeenAgainstChance:
    """What was seen of one name, what chance gives, and how much of it is found to be more."""

    name: str
    seen: float
    expected: float | None
    found: float = 0


@dataclass(frozen=True)
class Series:
    """A named line through `values`, one a step from 0."""

    name: str
    values: tuple[float, ...]


def svg(width: float, height: float, alt: str, parts: Sequence[Markup]) -> Markup:
    """Return a drawing of `parts` with `alt` as its text."""
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(_f(width), _f(height), alt) + Markup("").join(parts) + Markup("</svg>")


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


def waterfall(levels: Sequence[Level]) -> Markup:
    """Return bars of each stage's accuracy; the later ones hang from the first, whose changes they are.

    An axis that does not begin at zero says so.
    """
    low, high = _span([level.low for level in levels] + [level.high for level in levels], 100)
    width, left = max(WIDTH, 48 + 112.0 * len(levels)), 48.0
    y = _scale(low, high, 216, 52)
    step = (width - left) / len(levels)
    parts = _grid((low, high), y, left, width)
    for place, level in enumerate(levels):
        before = levels[0].value if place else None
        parts += _fall(level, (left + step * place, step), before, y)
    caption = "percent of test images; 95 % intervals"
    parts.append(text(0, 266, f"{caption}; axis not from 0" if low > 0 else caption))
    alt = "Accuracy by stage: " + ", ".join(f"{level.name} {fmt.percent(level.value)}" for level in levels)
    return svg(width, 274, alt, parts)


def _fall(level: Level, span: tuple[float, float], before: float | None, y: Scale) -> list[Markup]:
    """Return one bar: from the floor where it is the first, else from the first level to this one."""
    x, step = span
    floor = 216.0 if before is None else y(before)
    look = "neutral" if before is None else "gain" if level.value >= before else "loss"
    top, bottom = min(y(level.value), floor), max(y(level.value), floor)
    middle, crown = x + step / 2, min(top, y(level.high))
    parts = [
        box(x + step * 0.2, top, step * 0.6, max(bottom - top, 2), look),
        line(middle, y(level.low), middle, y(level.high), "whisker"),
        text(middle, crown - 8, fmt.percent(level.value), "label middle strong"),
        text(middle, 238, _cut_name(level.name, 14), "label middle"),
    ]
    if before is None:
        return parts
    thread = line(x - step * 0.2, floor, x + step * 0.8, floor, "thread")
    return [thread, *parts, text(middle, crown - 25, fmt.points(level.value - before), "label middle")]


def dots(levels: Sequence[Level], marked: int = 0) -> Markup:
    """Return one row a level with its interval; the first `marked` rows stand out."""
    low, high = _span([level.low for level in levels] + [level.high for level in levels], 100)
    left, right, height = 226.0, _WIDE - 76.0, 30 * len(levels) + 34
    x = _scale(low, high, left, right)
    parts = [
        text(left, height - 8, fmt.percent(low, 1)),
        text(right, height - 8, fmt.percent(high, 1), "label end"),
    ]
    for place, level in enumerate(levels):
        y = 22.0 + 30 * place
        parts += [
            line(left, y, right, y, "rule"),
            line(x(level.low), y, x(level.high), y, "whisker"),
            dot(x(level.value), y, "mark" if place < marked else "other"),
            text(left - 10, y + 5, _cut_name(level.name, 30), "label end"),
            text(_WIDE, y + 5, fmt.percent(level.value), "label end"),
        ]
    alt = "Accuracy: " + ", ".join(f"{level.name} {fmt.percent(level.value)}" for level in levels)
    return svg(_WIDE, height, alt, parts)


def curve(title: str, values: Sequence[float | None], look: str, most: float = inf) -> Markup:
    """Return `values` by epoch, counted from 1, none of which can be above `most`; no line for one point."""
    known = [(place, value) for place, value in enumerate(values) if value is not None and isfinite(value)]
    if len(known) < 2:
        return Markup("")
    low, high = _span([value for _, value in known], most)
    y = _scale(low, high, 150, 30)
    x = _scale(0, max(len(values) - 1, 1), 62, 306)
    points = " ".join(f"{_f(x(place))},{_f(y(value))}" for place, value in known)
    parts = [
        *_grid((low, high), y, 56, 312),
        Markup('<polyline points="{}" class="{}"/>').format(points, look),
        *(dot(x(place), y(value), look) for place, value in known if len(known) < 40),
        text(2, 14, title, "label strong"),
        text(62, 172, "1"),
        text(306, 172, f"{len(values)} epochs", "label end"),
    ]
    alt = f"{title} by epoch: first {fmt.number(known[0][1])}, last {fmt.number(known[-1][1])}"
    return svg(320, 178, alt, parts)


def lines(title: str, series: Sequence[Series]) -> Markup:
    """Return one line a series over the steps from 0; the first is grey, the later ones are coloured."""
    low, high = _span([value for item in series for value in item.values])
    y = _scale(low, high, 150, 30)
    x = _scale(0, max(max(len(item.values) for item in series) - 1, 1), 62, 306)
    parts = [*_grid((low, high), y, 56, 312), text(2, 14, title, "label strong")]
    for place, item in enumerate(series):
        look = "line-a" if place == 0 and len(series) > 1 else "line-b"
        points = " ".join(f"{_f(x(step))},{_f(y(value))}" for step, value in enumerate(item.values))
        parts.append(Markup('<polyline points="{}" class="{}"/>').format(points, look))
        parts += [dot(x(step), y(value), look) for step, value in enumerate(item.values)]
        parts += [dot(66, 198 + 20 * place, look), text(78, 203 + 20 * place, _cut_name(item.name, 28))]
    parts += [text(x(step), 172, str(step), "label middle") for step in range(len(series[0].values))]
    ends = (f"{s.name} from {fmt.percent(s.values[0])} to {fmt.percent(s.values[-1])}" for s in series)
    return svg(320, 190 + 20 * len(series), f"{title}: {', '.join(ends)}", parts)


def against_chance(rows: Sequence[SeenAgainstChance], null: str) -> Markup:
    """Return for each family a bar of the kernels that match, a mark where chance would put it, and figures.

    Lengths are square roots, for counts run from one to tens of thousands; families whose chance is not
    known come last.
    """
    rows = sorted(rows, key=lambda row: row.expected is None)
    most = max([1.0, *(max(row.seen, row.found) for row in rows), *(row.expected or 0 for row in rows)])
    x = _scale(0, sqrt(most), _BARS[0], _BARS[1])
    parts = [*_chance_legend(null), *(text(at, 50, head, "label end") for at, head in _FIGURES)]
    parts += [part for place, row in enumerate(rows) for part in _against(row, 58.0 + 24 * place, x)]
    parts.append(text(_BARS[0], 76 + 24 * len(rows), "lengths are square roots"))
    named = (f"{row.name} {fmt.count(row.seen)} against {fmt.number(row.expected)}" for row in rows)
    return svg(_WIDE, 24 * len(rows) + 84, f"Kernels seen against chance: {', '.join(named)}", parts)


_WIDE, _BARS = 640.0, (154.0, 390.0)
_FIGURES = ((470.0, "matching"), (560.0, "by chance"), (640.0, "found"))
"""Where the columns of figures end, and their heads."""


def _chance_legend(null: str) -> list[Markup]:
    """Return the keys at the top of the chart."""
    return [
        box(0, 6, 22, 13, "mark"),
        text(28, 17, "matching: within the tolerance"),
        line(258, 3, 258, 22, "chance"),
        text(266, 17, f"by chance ({null} null)"),
        box(446, 6, 22, 13, "mark"),
        box(446, 10, 22, 5, "found"),
        text(474, 17, "found: beyond chance"),
    ]


def _against(row: SeenAgainstChance, y: float, x: Scale) -> list[Markup]:
    """Return one family's bars, its mark and its figures, each under its head."""
    left = _BARS[0]
    parts = [
        text(left - 8, y + 13, _cut_name(row.name, 20), "label end"),
        box(left, y + 2, x(sqrt(row.seen)) - left, 13, "mark"),
        box(left, y + 6, x(sqrt(row.found)) - left, 5, "found"),
    ]
    spelled = (fmt.count(row.seen), fmt.number(row.expected), fmt.count(row.found))
    pairs = zip(_FIGURES, spelled, strict=True)
    parts += [text(at, y + 13, figure, "label end") for (at, _), figure in pairs]
    if row.expected is not None:
        expected = x(sqrt(max(row.expected, 0)))
        parts.append(line(expected, y - 1, expected, y + 18, "chance"))
    return parts


def _grid(span: tuple[float, float], y: Scale, left: float, right: float) -> list[Markup]:
    low, high = span
    decimals = max(0, 1 - floor(log10(high - low)))
    parts = []
    for place in range(4):
        value = low + (high - low) * place / 3
        parts += [
            line(left, y(value), right, y(value), "rule"),
            text(left - 6, y(value) + 5, f"{value:.{decimals}f}", "label end"),
        ]
    return parts


def _span(values: Sequence[float], most: float = inf) -> tuple[float, float]:
    """Return the range of `values` with a margin: never empty, beyond `most`, or below zero without need."""
    known = [value for value in values if isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    return max(low - margin, 0.0) if low >= 0 else low - margin, min(high + margin, max(most, high))


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (end - start) * ((value - low) / (high - low))


def _cut_name(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _f(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


LEFT = 132.0


TOP = 40.0


TALLEST = 16.0
"""A row is never taller than this; nor a whole map taller than it is wide, unless it has few columns."""


LETTERS = 11.0
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
            parts.append(_small(LEFT - 6, top + height / 2 + 3.5, _tail(name, 22), "label end"))
        for column, value in enumerate(heat.values[row]):
            where = f"{name}, {heat.columns[column]}"
            parts.append(_cell((LEFT + width * column, top, width, height), value, where))
    shares = [value for line in heat.values for value in line if value is not None and isfinite(value)]
    low, high = min(shares, default=None), max(shares, default=None)
    alt = f"{heat.title}: {len(heat.rows)} rows by {len(heat.columns)} columns, "
    alt += f"from {fmt.number(low)} to {fmt.number(high)}; the table has the figures"
    return svg(WIDTH, TOP + height * len(heat.rows) + 6, alt, parts)


def _heads(heat: Heat, width: float) -> list[Markup]:
    """Return the names of columns where they have room, else of the first and the last."""
    count = len(heat.columns)
    if count and width >= 40:
        places = [
            (LEFT + width * (place + 0.5), heat.columns[place], "label middle") for place in range(count)
        ]
    else:
        ends = ((LEFT, heat.columns[0], "label"), (WIDTH, heat.columns[-1], "label end")) if count else ()
        places = list(ends)
    return [
        _small(x, TOP - 6, _tail(name, 22 if width < 40 else int(width / 5)), look)
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
    return Markup('<text x="{}" y="{}" class="{}" font-size="9.5">{}</text>').format(
        f"{x:.1f}", f"{y:.1f}", look, words_
    )


def _tail(name: str, most: int) -> str:
    """Return the end of a long name: layers differ there."""
    return name if len(name) <= most else "…" + name[1 - most :]
