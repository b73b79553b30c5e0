"""Accuracy of several runs against what each of them kept, as inline SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kernelsimp.report import fmt
from kernelsimp.report.pictures.charts import WIDTH, dot, line, svg, text


@dataclass(frozen=True)
class Point:
    """A run: where it stands on the axis, and its accuracy with its interval, in percent."""

    name: str
    x: float
    value: float
    low: float
    high: float


HEIGHT, LEFT, TOP, BOTTOM = 250.0, 62.0, 26.0, 204.0


def scatter(points: Sequence[Point], axis: str, spell: Callable[[float], str]) -> Markup:
    """Return accuracy (upwards) against `axis`, one numbered point a run in the order of the table.

    The range of accuracy never leaves 0 to 100 %.
    """
    low = max(0.0, min(point.low for point in points) - 0.5)
    high = min(100.0, max(point.high for point in points) + 0.5)
    most = 1.08 * max(point.x for point in points) or 1.0
    right = WIDTH - 16.0
    parts = [text(LEFT, 14, "test top-1 with its 95 % interval")]
    for step in range(4):
        level = low + (high - low) * step / 3
        y = BOTTOM - (BOTTOM - TOP) * step / 3
        at = LEFT + (right - LEFT) * step / 3
        parts += [
            line(LEFT, y, right, y, "rule"),
            text(LEFT - 6, y + 5, fmt.percent(level, 1), "label end"),
            text(at, BOTTOM + 20, spell(most * step / 3), "label" if step == 0 else "label end"),
        ]
    for number, point in enumerate(points, 1):
        x = LEFT + (right - LEFT) * point.x / most
        y_of = [
            BOTTOM - (BOTTOM - TOP) * (v - low) / (high - low) for v in (point.low, point.value, point.high)
        ]
        parts += [line(x, y_of[0], x, y_of[2], "whisker"), dot(x, y_of[1], "mark")]
        parts.append(text(x + 7, y_of[1] - 5, str(number)))
    parts.append(text(right, HEIGHT - 6, axis, "label end"))
    alt = f"Accuracy against {axis}: " + ", ".join(
        f"{point.name} {fmt.percent(point.value)} at {spell(point.x)}" for point in points
    )
    return svg(WIDTH, HEIGHT, alt, parts)
