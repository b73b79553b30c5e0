"""How much faster one way of computing is than another, on this machine, with an interval.

The ways are run by turns, each round in the reverse order of the one before, so that what else the machine
does meets all of them alike; what is compared are ratios within a round. Times are in seconds.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelsimp.records.factorised import Ratio, Timing

Clock = Callable[[], float]
Run = Callable[[], object]

ROUNDS = 41
"""Rounds of one measurement: the median forgets those that something else met."""

LEAST = 7
"""Rounds of one that takes long: a median of fewer has no interval worth the name."""

SAMPLE = 5e-4
"""Seconds that one sample takes at least: shorter runs are repeated within it. Short enough that on a busy
machine most samples end before another program has its turn."""

RESAMPLES = 2000
LEVEL = 0.95
"""How often the rounds are drawn anew for an interval, and what share of the medians it holds."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Seconds a run, (rounds, ways)."""

    seconds: NDArray[np.float64]

    def timing(self, way: int) -> Timing:
        """Return the time of one way."""
        low, median, high = np.quantile(self.seconds[:, way], (0.25, 0.5, 0.75))
        return Timing(float(median), float(low), float(high))

    def ratio(self, way: int, base: int = 0) -> Ratio:
        """Return the time of way `base` over that of `way`: above 1, `way` is faster.

        The interval is of the median over rounds, by drawing rounds anew (percentile bootstrap, seeded).
        """
        ratios = self.seconds[:, base] / self.seconds[:, way]
        drawn = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
        edge = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(np.median(ratios[drawn], axis=1), (edge, 100 - edge))
        return Ratio(float(np.median(ratios)), float(low), float(high))


@dataclass(frozen=True)
class Effort:
    """How long to measure: `rounds`, or as many as take `within` seconds, but `LEAST` at least."""

    rounds: int = ROUNDS
    within: float = math.inf
    sample: float = SAMPLE


USUAL = Effort()


def interleaved(runs: Sequence[Run], effort: Effort = USUAL, clock: Clock = time.perf_counter) -> Measured:
    """Time the `runs` by turns, after two runs each that are not counted.

    >>> ticks = iter(range(1000))
    >>> interleaved([lambda: None], Effort(3), lambda: next(ticks)).timing(0).median
    1.0
    """
    once = [_seconds(run, clock, effort.sample) for run in runs]
    repeats = [max(1, round(effort.sample / seconds)) for seconds in once]
    each = sum(number * seconds for number, seconds in zip(repeats, once, strict=True))
    rounds = effort.rounds if effort.within == math.inf else max(LEAST, int(effort.within / each))
    rounds = min(effort.rounds, rounds)
    seconds = np.empty((rounds, len(runs)))
    for turn in range(rounds):
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for way in order:
            begin = clock()
            for _ in range(repeats[way]):
                runs[way]()
            seconds[turn, way] = (clock() - begin) / repeats[way]
    return Measured(seconds)


MOST_REPEATS = 1000


def _seconds(run: Run, clock: Clock, sample: float) -> float:
    """Return how long one run takes, about, the second time."""
    run()
    begin = clock()
    run()
    return max(clock() - begin, sample / MOST_REPEATS)
