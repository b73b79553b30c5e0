"""Numbers as words: the one place that says how a figure is spelled in every rendering of a report.

A figure that is not there, or not finite, is a dash.
"""

import math
from collections.abc import Sequence
from pathlib import PurePath

from kernelsimp.records.report import Stage

DASH = "–"


def count(value: float | None) -> str:
    """Spell a whole number with thousands separators."""
    return DASH if _missing(value) else f"{value:,.0f}"


def counted(count_of: int, thing: str) -> str:
    """Spell a count of things: `1 layer`, `20 layers`."""
    return f"{count(count_of)} {thing}{'s' * (count_of != 1)}"


def number(value: float | None, digits: int = 3) -> str:
    """Spell a number with `digits` significant digits, never in the form 1e+03."""
    if value is None or _missing(value):
        return DASH
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def percent(value: float | None, digits: int = 2) -> str:
    """Spell a number that is already in percent."""
    return DASH if _missing(value) else f"{value:.{digits}f} %"


def share(part: float | None, whole: float | None = 1.0, digits: int = 1) -> str:
    """Spell part / whole in percent."""
    if part is None or whole is None or _missing(part) or not whole:
        return DASH
    return percent(100 * part / whole, digits)


def points(value: float | None) -> str:
    """Spell a change in percentage points with its sign."""
    return DASH if _missing(value) else f"{value:+.2f} pp"


def p_value(value: float | None) -> str:
    """Spell a p-value: two significant digits, and a bound below 1e-8."""
    if value is None or _missing(value):
        return DASH
    return "< 1e-8" if value < 1e-8 else f"{value:.2g}"


def size(value: float | None) -> str:
    """Spell bytes in decimal units."""
    if value is None or _missing(value):
        return DASH
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} bytes"


def shape(sides: tuple[int, ...]) -> str:
    """Spell a shape so that it does not break over lines."""
    return "x".join(str(side) for side in sides)


def interval(low: float, high: float, spell: str = ".2f") -> str:
    """Spell an interval without its unit."""
    return DASH if _missing(low) or _missing(high) else f"{low:{spell}} to {high:{spell}}"


def right_of(stage: Stage) -> str:
    """Spell a stage's correct answers of its total."""
    return f"{stage.correct:,} of {stage.total:,}"


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def short_names(paths: Sequence[PurePath]) -> tuple[str, ...]:
    """Return the last part of each path, and as many before it as it takes to tell all apart.

    >>> short_names((PurePath("/a/one/run"), PurePath("/a/two/run")))
    ('one/run', 'two/run')
    """
    parts = [path.parts for path in paths]
    for count in range(1, max(map(len, parts))):
        tails = [str(PurePath(*part[-count:])) for part in parts]
        if len(set(tails)) == len(tails):
            return tuple(tails)
    return tuple(map(str, paths))
