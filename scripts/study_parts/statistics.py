"""Means over draws and units with their intervals: what every verdict of the study stands on.

A unit is an image, a block of images, a layer or a channel; a draw is other calibration images, or another
seed. Both are crossed, and both are a sample: variances of the means over either add up, which counts what is
common to neither twice and so errs on the wide side. Student's t takes Satterthwaite's degrees of freedom
(Satterthwaite, Biometrics Bulletin 2, 1946), so that three draws tell as little as three draws can.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Gap:
    """A mean difference, its standard error and the degrees of freedom of that: 0 where nothing tells it."""

    mean: float
    error: float
    freedom: float

    def interval(self, wrong: float = 0.05) -> tuple[float, float]:
        """Return the interval that misses the mean with probability `wrong`.

        >>> low, high = Gap(1.0, 0.5, 1e9).interval()
        >>> round(low, 2), round(high, 2)
        (0.02, 1.98)
        """
        if self.freedom == 0:
            return -math.inf, math.inf
        half = float(stats.t.ppf(1 - wrong / 2, self.freedom)) * self.error if self.error else 0.0
        return self.mean - half, self.mean + half

    @property
    def chance(self) -> float:
        """How often a mean as far from zero comes by chance where there is no gap; 1 where nothing varied.

        >>> round(Gap(1.96, 1.0, 1e9).chance, 3)
        0.05
        """
        return (
            2 * float(stats.t.sf(abs(self.mean) / self.error, self.freedom))
            if self.error and self.freedom
            else 1.0
        )


def gap_of(differences: Sequence[Floats], places: Sequence[NDArray[np.int64]]) -> Gap:
    """Return the mean of differences, one array (units,) a draw; `places` (units,) say which units they are.

    A draw alone, or one unit, adds no variance of its own kind: the page says how many there were. One unit
    of one draw tells no error at all.
    """
    draws = np.array([item.mean() for item in differences])
    units = _means_by_unit(np.concatenate(list(differences)), np.concatenate(list(places)))
    parts = [_variance_of_mean(item) for item in (draws, units)]
    total = sum(variance for variance, _ in parts)
    lost = sum(variance**2 / freedom for variance, freedom in parts if freedom)
    known = any(freedom for _, freedom in parts)
    freedom = total**2 / lost if lost else math.inf if known else 0.0
    return Gap(float(draws.mean()), math.sqrt(total), freedom)


def _means_by_unit(values: Floats, places: NDArray[np.int64]) -> Floats:
    _, own = np.unique(places, return_inverse=True)
    means: Floats = np.bincount(own, weights=values) / np.bincount(own)
    return means


def _variance_of_mean(values: Floats) -> tuple[float, int]:
    """Return the variance of a mean, and its degrees of freedom; nothing of one value."""
    count = len(values)
    return (float(values.var(ddof=1)) / count, count - 1) if count > 1 else (0.0, 0)


@dataclass(frozen=True)
class Measured:
    """One measure of one cell: by arm one array (units,) a draw, paired over arms.

    `less` says that less of it is better. `places` say which units the draws have, where these differ.
    `fact` is a word on what was compared.
    """

    measure: str
    arms: dict[str, list[Floats]]
    less: bool = True
    places: list[NDArray[np.int64]] | None = None
    fact: str = ""

    def row(self, pairs: Sequence[tuple[str, str]]) -> Row:
        """Return means by arm, and by how much the first of each pair that was measured is the better one."""
        means = {name: float(np.mean([item.mean() for item in draws])) for name, draws in self.arms.items()}
        return {
            "measure": self.measure,
            "units": len(next(iter(self.arms.values()))[0]),
            "fact": self.fact,
            "means": means,
            "gaps": [self._gap(*pair) for pair in pairs if self.arms.keys() >= {*pair}],
        }

    def _gap(self, better: str, other: str) -> Row:
        sign = -1 if self.less else 1
        pairs = zip(self.arms[better], self.arms[other], strict=True)
        differences = [sign * (ours - theirs) for ours, theirs in pairs]
        places = self.places or [np.arange(len(item)) for item in differences]
        gap = gap_of(differences, places)
        return {
            "better": better,
            "other": other,
            "mean": gap.mean,
            "error": gap.error,
            "freedom": min(gap.freedom, 1e9),
        }


def pseudo_values(count: int, groups: int, statistic: Callable[[NDArray[np.int64]], float]) -> Floats:
    """Return the jackknife's pseudo-values (groups,) of a statistic of the members 0..count of a sample.

    Their mean estimates the statistic, and they serve as its units (Tukey 1958): each leaves out every
    `groups`-th member.

    >>> pseudo_values(4, 2, lambda kept: float(np.array([1.0, 2.0, 3.0, 4.0])[kept].mean())).tolist()
    [2.0, 3.0]
    """
    members = np.arange(count)
    whole = statistic(members)
    without = [statistic(members[members % groups != group]) for group in range(groups)]
    return np.array([groups * whole - (groups - 1) * value for value in without])
