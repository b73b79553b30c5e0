"""Figures of the study: panels of curves or points, and where every comparison lies; as files of their own.

The marks are those of the product's reports. Coordinates are SVG user units, y downwards.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kernelsimp.report.pictures.charts import box, dot, line, linear_scale, svg, text
from kernelsimp.report.pictures.ticks import spelled, ticks

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 400.0, 270.0
"""Of one panel."""

LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 34.0, 46.0
"""Of a panel, outside its axes."""

ACROSS = 2
"""Panels beside one another."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b1f24")
"""Those of Okabe and Ito, which most people can tell apart."""

STYLE = (
    "svg{font:14px system-ui,sans-serif}.paper{fill:#fff}.label{fill:#55606c}.strong{fill:#1b1f24;"
    "font-weight:600}.middle{text-anchor:middle}.end{text-anchor:end}.rule{stroke:#d8dde3}"
    ".axis{stroke:#55606c}.told{fill:#0072b2}.against{fill:#d55e00}.open{fill:#aab3bd}"
    + "".join(
        f".s{at}{{fill:{colour}}}line.s{at}{{stroke:{colour};stroke-width:2}}"
        for at, colour in enumerate(COLOURS)
    )
)


@dataclass(frozen=True)
class Axis:
    """What an axis says, and whether its numbers are logarithms to the base of ten."""

    words: str
    powers: bool = False


@dataclass(frozen=True)
class Panel:
    """Points by name over two axes, each name's joined by lines or not."""

    title: str
    series: Mapping[str, Points]
    x: Axis
    y: Axis
    joined: bool = True


def panels(alt: str, items: Sequence[Panel]) -> str:
    """Return a file of panels, two beside one another, under one legend; all have the same names."""
    names = list(dict.fromkeys(name for item in items for name in item.series))
    rows, across = math.ceil(len(items) / ACROSS), min(ACROSS, len(items))
    legend = _legend(names, across * WIDTH)
    depth = 22.0 * (1 + max(int(at) for at, _ in legend.values())) + 8
    parts = [mark for _, marks in legend.values() for mark in marks]
    for at, item in enumerate(items):
        down, right = divmod(at, ACROSS)
        parts += _panel(item, names, (right * WIDTH, depth + down * HEIGHT))
    return _file(svg(across * WIDTH, depth + rows * HEIGHT, alt, parts))


def _legend(names: Sequence[str], width: float) -> dict[str, tuple[int, list[Markup]]]:
    """Return by name in which line of the legend it stands, and its marks."""
    found, x, row = {}, 14.0, 0
    for at, name in enumerate(names):
        room = 34 + 7.6 * len(name)
        if x + room > width:
            x, row = 14.0, row + 1
        y = 20.0 + 22 * row
        found[name] = (row, [dot(x, y - 5, f"s{at % len(COLOURS)}"), text(x + 10, y, name)])
        x += room
    return found


def _panel(item: Panel, names: Sequence[str], corner: tuple[float, float]) -> list[Markup]:
    x0, y0 = corner
    plane = [(_on(x, item.x), _on(y, item.y)) for points in item.series.values() for x, y in points]
    steps = [ticks(min(values), max(values)) for values in zip(*plane, strict=True)]
    left, right, top, bottom = x0 + LEFT, x0 + WIDTH - RIGHT, y0 + TOP, y0 + HEIGHT - BOTTOM
    parts = [text(x0 + LEFT, y0 + 20, item.title, "label strong")]
    places = [
        linear_scale(steps[0][0], steps[0][-1], left, right),
        linear_scale(steps[1][0], steps[1][-1], bottom, top),
    ]
    for value, words in zip(steps[1], _spelled(steps[1], item.y), strict=True):
        parts += [line(left, places[1](value), right, places[1](value), "rule")]
        parts += [text(left - 6, places[1](value) + 5, words, "label end")]
    for value, words in zip(steps[0], _spelled(steps[0], item.x), strict=True):
        parts.append(text(places[0](value), bottom + 18, words, "label middle"))
    parts.append(text(right, bottom + 37, f"{item.y.words}, over {item.x.words}", "label end"))
    for name, points in item.series.items():
        look = f"s{names.index(name) % len(COLOURS)}"
        spots = [(places[0](_on(x, item.x)), places[1](_on(y, item.y))) for x, y in points]
        joints = itertools.pairwise(spots) if item.joined else ()
        parts += [line(*start, *end, look) for start, end in joints]
        parts += [dot(*spot, look) for spot in spots]
    return parts


def _on(value: float, axis: Axis) -> float:
    """Return what an axis shows of a number.

    >>> _on(100.0, Axis("nats", powers=True))
    2.0
    """
    return math.log10(max(value, 1e-12)) if axis.powers else value


def _spelled(values: Sequence[float], axis: Axis) -> tuple[str, ...]:
    return tuple(f"{10.0**value:.3g}" for value in values) if axis.powers else spelled(values)


# --- where every comparison lies

FARTHEST = 4.0
"""Half intervals that the figure shows; what lies further stands at its edge."""

ROW, NAME, SIDE = 30.0, 500.0, 440.0
"""A row's height, the room of its words, and that of its dots."""


def sureness(alt: str, rows: Mapping[str, Sequence[float]]) -> str:
    """Return a row a claim, a dot a comparison: its gap in halves of its corrected interval.

    Right of 1 the claim holds, left of -1 it does not.
    """
    width, bottom = NAME + SIDE, 30 + ROW * len(rows)
    place = linear_scale(-FARTHEST, FARTHEST, NAME + 14, width - 14)
    parts = [line(place(at), 12, place(at), bottom, "axis" if at else "rule") for at in (-1, 0, 1)]
    heads = {-2.5: "does not hold", 0: "cannot be told", 2.5: "holds"}
    parts += [text(place(at), bottom + 20, words, "label middle") for at, words in heads.items()]
    for row, (name, values) in enumerate(rows.items()):
        y = 30 + ROW * row
        parts.append(text(NAME, y + 5, name, "label end"))
        for value in sorted(values, key=abs, reverse=True):
            look = "told" if value > 1 else "against" if value < -1 else "open"
            parts.append(dot(place(min(max(value, -FARTHEST), FARTHEST)), y, look))
    return _file(svg(width, bottom + 32, alt, parts))


def _file(drawing: Markup) -> str:
    """Return a drawing as an SVG file that needs no page around it."""
    head, rest = str(drawing).split(">", 1)
    width, height = head.split('viewBox="0 0 ')[1].split('"')[0].split()
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
    opened = head.replace("<svg", f"<svg {size}", 1)
    paper = box(0, 0, float(width), float(height), "paper")
    return f"{opened}><style>{STYLE}</style>{paper}{rest}\n"
