"""A table of shares 0..1 as inline SVG: the darker the cell, the nearer to 1; what is missing is blank."""

from dataclasses import dataclass
from math import ceil, isfinite

from markupsafe import Markup

from kernelsimp.report import fmt
from kernelsimp.report.pictures.charts import WIDTH, svg, text

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
