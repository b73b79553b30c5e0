"""Accuracy of several runs against what each of them kept, as inline SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kernelsimp.report import fmt
from kernelsimp.report.pictures.charts import WIDTH, dot, line, linear_scale, svg, text
from kernelsimp.report.pictures.ticks import spelled, ticks

NUMBER = 15.0
"""The room that a point's number takes."""


@dataclass(frozen=True)
class Point:
    """A run: where it stands on the axis, and its accuracy with its interval, in percent."""

    name: str
    x: float
    value: float
    low: float
    high: float


HEIGHT, LEFT, TOP, BOTTOM = 250.0, 62.0, 30.0, 204.0


def scatter(points: Sequence[Point], axis: str, spell: Callable[[float], str]) -> Markup:
    """Return accuracy (upwards) against `axis`, one numbered point a run in the order of the table.

    Both axes have round steps; that of accuracy never leaves 0 to 100 %, the other begins at 0.
    """
    ups = ticks(min(point.low for point in points), max(point.high for point in points), 100)
    rights = ticks(0, 1.05 * max(point.x for point in points))
    x, y = (
        linear_scale(rights[0], rights[-1], LEFT, WIDTH - 16.0),
        linear_scale(ups[0], ups[-1], BOTTOM, TOP),
    )
    parts = [text(2, 14, "test top-1, percent, with its 95 % interval", "label strong")]
    for value, words in zip(ups, spelled(ups), strict=True):
        parts += [
            line(LEFT, y(value), WIDTH - 16.0, y(value), "rule"),
            text(LEFT - 6, y(value) + 5, words, "label end"),
        ]
    parts += [text(x(value), BOTTOM + 20, spell(value), "label middle") for value in rights[:-1]]
    parts.append(text(WIDTH - 2, BOTTOM + 20, spell(rights[-1]), "label end"))
    taken: list[tuple[float, float]] = []
    for number, point in enumerate(points, 1):
        at = x(point.x)
        parts += [line(at, y(point.low), at, y(point.high), "whisker"), dot(at, y(point.value), "mark")]
        taken.append(_free((at + 7, y(point.value) - 5), taken))
        parts.append(text(*taken[-1], str(number)))
    parts.append(text(WIDTH - 2, HEIGHT - 6, axis, "label end"))
    alt = f"Accuracy against {axis}: " + ", ".join(
        f"{point.name} {fmt.percent(point.value)} at {spell(point.x)}" for point in points
    )
    return svg(WIDTH, HEIGHT, alt, parts)


def _free(place: tuple[float, float], taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the place, moved to the right past the numbers that stand there already."""
    x, y = place
    while any(abs(x - other) < NUMBER and abs(y - level) < NUMBER for other, level in taken):
        x += 1
    return x, y
