"""The curve of bytes against KL that a coded export's search tried."""

import math
from itertools import pairwise

from markupsafe import Markup

from kernelsimp.records.report import Coded
from kernelsimp.report import fmt
from kernelsimp.report.pictures.charts import dot, line, svg, text


def rate_curve(coded: Coded | None) -> tuple[Markup, ...]:
    """Return KL over bytes, both in logarithms, a point a trial; nothing for fewer than two."""
    points = [(item.bytes, item.kl) for item in coded.tried if item.kl is not None] if coded else []
    points = sorted((size, far) for size, far in points if far > 0 and math.isfinite(far) and size > 0)
    if len(points) < 2:
        return ()
    across = [math.log(size) for size, _ in points]
    up = [math.log(far) for _, far in points]
    places = [(_at(x, across, 62.0, 306.0), _at(y, up, 146.0, 34.0)) for x, y in zip(across, up, strict=True)]
    drawn = [line(*one, *other, "thread") for one, other in pairwise(places)]
    kept = coded.bytes if coded else 0
    drawn += [
        dot(x, y, "mark" if size == kept else "other")
        for (x, y), (size, _) in zip(places, points, strict=True)
    ]
    lowest, highest = min(points, key=lambda item: item[1]), max(points, key=lambda item: item[1])
    labels = [
        text(2, 14, "KL over bytes tried", "label strong"),
        text(2, 38, fmt.number(highest[1])),
        text(2, 150, fmt.number(lowest[1])),
        text(62, 172, fmt.size(points[0][0])),
        text(306, 172, fmt.size(points[-1][0]), "label end"),
    ]
    alt = "Bytes and KL: " + ", ".join(f"{size:,} {fmt.number(far)}" for size, far in points)
    return (svg(320, 178, alt, [*drawn, *labels]),)


def _at(value: float, values: list[float], start: float, end: float) -> float:
    low, high = min(values), max(values)
    return start + (end - start) * (value - low) / ((high - low) or 1.0)
