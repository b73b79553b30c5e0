"""Charts whose rows are lines of the page: a name, a drawing as wide as there is room, and figures.

Words keep the size of the text, so a phone can read them; the drawing stretches, for its coordinates are
shares of its width. Colours are CSS classes, and every string is escaped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from markupsafe import Markup

from kernelsimp.report import fmt
from kernelsimp.report.pictures.ticks import ticks

Scale = Callable[[float], float]
"""From a figure to a share of the width, 0..1."""


@dataclass(frozen=True)
class Level:
    """One row of dots: a figure with its interval, all in percent."""

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
class Lane:
    """One row: its name, what is drawn, and its figures, one a column."""

    name: str
    marks: tuple[Markup, ...]
    figures: tuple[str, ...]


def dots(levels: Sequence[Level], marked: int = 0, unit: str = "%", *, changes: bool = False) -> Markup:
    """Return one row a level with its interval; the first `marked` rows stand out.

    `unit` is % or, for differences, pp, whose thread hangs at 0. `changes` adds each level's change from the
    first, and hangs the thread there. The axis has round ends and never passes 100.
    """
    low, *_, high = ticks(min(level.low for level in levels), max(level.high for level in levels), 100)

    def x(value: float) -> float:
        return (value - low) / (high - low)

    spell = fmt.percent if unit == "%" else fmt.points
    start = levels[0].value if changes else 0.0
    thread = [_line(x(start), 0, x(start), 1, "thread")] if changes or low < 0 else []
    rows = []
    for place, level in enumerate(levels):
        change = [fmt.points(level.value - start) if place else ""] if changes else []
        marks = (*thread, *_level_marks(level, x, marked=place < marked))
        rows.append(Lane(level.name, marks, (spell(level.value), *change)))
    alt = "Intervals: " + ", ".join(f"{level.name} {spell(level.value)}" for level in levels)
    return lanes(rows, alt, ends=(f"{low:g} {unit}", f"{high:g} {unit}"))


def _level_marks(level: Level, x: Scale, *, marked: bool) -> tuple[Markup, ...]:
    dot = Markup('<circle cx="{}" cy="50%" r="5" class="{}"/>').format(
        _percent(x(level.value)), "mark" if marked else "other"
    )
    return (
        _line(0, 0.5, 1, 0.5, "rule"),
        _line(x(level.low), 0.5, x(min(level.high, 100)), 0.5, "whisker"),
        dot,
    )


def against_chance(rows: Sequence[SeenAgainstChance], null: str) -> Markup:
    """Return for each family a bar of the kernels that match, a mark where chance would put it, and figures.

    Lengths are square roots, for counts run from one to tens of thousands; families whose chance is not
    known come last.
    """
    rows = sorted(rows, key=lambda row: row.expected is None)
    most = max([1.0, *(max(row.seen, row.found) for row in rows), *(row.expected or 0 for row in rows)])
    drawn = [
        Lane(
            row.name,
            tuple(_chance_marks(row, lambda value: sqrt(max(value, 0) / most))),
            (fmt.count(row.seen), fmt.number(row.expected), fmt.count(row.found)),
        )
        for row in rows
    ]
    named = (f"{row.name} {fmt.count(row.seen)} against {fmt.number(row.expected)}" for row in rows)
    alt = f"Kernels seen against chance: {', '.join(named)}"
    chart = lanes(drawn, alt, heads=("matching", "by chance", "found"), ends=("lengths are square roots", ""))
    return _chance_legend(null) + chart


def _chance_marks(row: SeenAgainstChance, x: Scale) -> Sequence[Markup]:
    bars = [_bar(x(row.seen), 0.2, 0.6, "mark"), _bar(x(row.found), 0.38, 0.24, "found")]
    known = row.expected is not None
    return [*bars, _line(x(row.expected or 0), 0.04, x(row.expected or 0), 0.96, "chance")] if known else bars


def _chance_legend(null: str) -> Markup:
    keys = (
        ((_bar(1, 0.2, 0.6, "mark"),), "matching: within the tolerance"),
        ((_line(0.5, 0, 0.5, 1, "chance"),), f"by chance ({null} null)"),
        ((_bar(1, 0.2, 0.6, "mark"), _bar(1, 0.38, 0.24, "found")), "found: beyond chance"),
    )
    shown = Markup("").join(
        Markup('<span><svg class="key" aria-hidden="true">{}</svg> {}</span>').format(
            Markup("").join(parts), said
        )
        for parts, said in keys
    )
    return Markup('<p class="legend note">{}</p>').format(shown)


def lanes(
    rows: Sequence[Lane], alt: str, heads: Sequence[str] = (), ends: tuple[str, str] | None = None
) -> Markup:
    """Return the rows under `heads`, one a column of figures, with `ends` below the drawing's ends."""
    columns = max(len(row.figures) for row in rows)
    cells = (
        [Markup('<span class="name"></span><span></span>'), *(_span(head, "figure") for head in heads)]
        if heads
        else []
    )
    for row in rows:
        drawn = Markup('<svg class="lane">{}</svg>').format(Markup("").join(row.marks))
        cells += [_span(row.name, "name"), drawn, *(_span(figure, "figure") for figure in row.figures)]
    if ends is not None:
        both = Markup('<span class="ends"><span>{}</span><span>{}</span></span>').format(*ends)
        cells += [Markup('<span class="name"></span>'), both, Markup("<span></span>") * columns]
    return Markup('<div class="lanes n{}" role="img" aria-label="{}">{}</div>').format(
        columns, alt, Markup("").join(cells)
    )


def _span(words: str, look: str) -> Markup:
    return Markup('<span class="{}">{}</span>').format(look, words)


def _bar(width: float, top: float, height: float, look: str) -> Markup:
    return Markup('<rect y="{}" width="{}" height="{}" class="{}"/>').format(
        _percent(top), _percent(width), _percent(height), look
    )


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> Markup:
    places = map(_percent, (x1, y1, x2, y2))
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(*places, look)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + "%"
