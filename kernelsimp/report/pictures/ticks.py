"""Round numbers for the axes of charts."""

from collections.abc import Sequence
from math import ceil, floor, inf, isfinite, log10

STEPS = (1, 2, 2.5, 5, 10)
SAME = 1e-6
"""Figures nearer to each other than this share of them are one to an axis."""
LEAST = 1e-290
"""The smallest step: below it numbers lose their digits."""
SMALL = 1e-3
"""Numbers below it are spelled with a power of ten."""


def ticks(low: float, high: float, most: float = inf, wanted: int = 4) -> tuple[float, ...]:
    """Return about `wanted` round numbers, two at least, from at or below `low` to at or above `high`.

    None is above `most`, which a figure cannot pass, or below zero where `low` is not.

    >>> ticks(93.2, 98.4, most=100)
    (92, 94, 96, 98, 100)
    """
    low, high = (value if isfinite(value) else 0.0 for value in (low, min(high, most)))
    span = high - low if high - low > SAME * abs(high) else abs(high) * 0.1 or 1.0
    rough = max(span / (wanted - 1), LEAST)
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in STEPS if factor * power >= rough * 0.999)
    first = floor(low / step + 1e-9)
    last = max(ceil(high / step - 1e-9), first + 1)
    values = [_clean(place * step) for place in range(first, last + 1)]
    kept = [value for value in values if value <= most]
    if len(kept) < len(values) and kept[-1] < high:
        kept.append(most)  # no round step of this span ends there
    return tuple(kept if len(kept) > 1 else [_clean((first - 1) * step), *kept])


def spelled(values: Sequence[float]) -> tuple[str, ...]:
    """Return the numbers of an axis, all with as many decimals as the finest needs.

    >>> spelled((0, 0.5, 1))
    ('0.0', '0.5', '1.0')
    """
    if max(map(abs, values)) < SMALL:
        return tuple(f"{value:g}" for value in values)
    exact = (d for d in range(12) if all(abs(round(value, d) - value) < 1e-9 for value in values))
    decimals = next(exact, 12)
    return tuple(f"{value:.{decimals}f}" for value in values)


def _clean(value: float) -> float:
    """Return the number without the noise of binary fractions, whole ones as such."""
    rounded = float(f"{value:.10g}")
    return int(rounded) if rounded == int(rounded) else rounded
