"""From chance to a verdict: one p-value a kernel, false discoveries held down over a layer.

p-values are one-sided, P(residual <= r) under a null of `nulls.py`; `found` speaks of a layer's live
kernels, so callers leave the dead ones out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.kernels.nulls import Null
from kernelsimp.kernels.subspace import Floats

_WINDOW = 1.25
"""The local false share looks at residuals within this factor of the tolerance."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A layer's live kernels under one null: `p` (n,), and `found` (n,), what chance does not explain."""

    null: str
    p: Floats
    found: NDArray[np.bool_]
    note: str | None = None


def judge(null: Null, residuals: Tensor, fdr: float = 0.05) -> Judged:
    """Return the p-value of each kernel from its residuals (n, families), and who is found at `fdr`.

    p = min(1, m * least p over the families), m = `effective_tests`; found by Benjamini-Hochberg.
    """
    tests = effective_tests(residuals.shape[1])
    p = kernel_p(null.smallest_log_p(residuals, largest=1 / tests), tests)
    return Judged(null.name, p, discoveries(p, fdr), null.note)


def effective_tests(families: int) -> float:
    """Return how many independent tests trying `families` families amounts to.

    The seventeen linear families count as 13: so many times as often as one of them does the least of
    their p-values fall under 0.05 / 13. A table of any other size counts in full, because a verdict over a
    layer is made far below that: at 1e-4 the least of F p-values falls 0.88 F to 1.0 F times as often
    (measured at 1 x 5 to 7 x 7 and 3 x 3 x 3, white; 0.71 F to 1.0 F for smooth kernels).
    """
    return 13.0 if families == 17 else float(max(1, families))


def kernel_p(least_log_p: Tensor, tests: float) -> Floats:
    """Return p = min(1, `tests` * exp(least log p)) of each kernel, (n,) in float64."""
    return np.asarray(np.minimum(1.0, tests * np.exp(least_log_p.double().numpy())))


def discoveries(p: Floats, fdr: float = 0.05) -> NDArray[np.bool_]:
    """Say for which p-values (n,) Benjamini-Hochberg rejects the null at false discovery rate `fdr`.

    With p_k the k-th smallest, those up to the largest p_k <= k fdr / n.
    """
    low = np.sort(p[p <= fdr])  # no other can be rejected, and most kernels read 1
    holds = np.flatnonzero(low <= fdr * np.arange(1, len(low) + 1) / max(1, len(p)))
    return np.asarray(p <= low[holds[-1]]) if len(holds) else np.zeros(len(p), dtype=bool)


def near_tolerance(r: NDArray[np.float32], tolerance: float) -> NDArray[np.int64]:
    """Count the residuals (n, families) within a factor 1.25 of `tolerance`, (families,)."""
    low, high = _window(tolerance)
    return np.asarray([np.count_nonzero(column <= high) - np.count_nonzero(column <= low) for column in r.T])


def local_false_share(
    null: Null, near: NDArray[np.int64], count: int, tolerance: float
) -> list[float | None]:
    """Return the share of kernels with a residual *near* `tolerance` that chance explains, at most 1.

    The local false discovery rate, expected / observed within a factor 1.25 of the tolerance, with the
    share of random kernels taken as 1; one for each family, None where none of the `count` kernels lies
    there. `near` is `near_tolerance`. The kernels far below the tolerance are safer than this, which a rate
    over all of them would hide.
    """
    low, high = (null.expected_shares(limit) for limit in _window(tolerance))
    expected = count * (high - low)
    return [min(1.0, e / n) if n else None for e, n in zip(expected.tolist(), near.tolist(), strict=True)]


def _window(tolerance: float) -> tuple[float, float]:
    return tolerance / _WINDOW, min(1.0, tolerance * _WINDOW)


def enrichment(observed: int, expected: float) -> float | None:
    """Return observed / expected, or None where nothing was expected."""
    return observed / expected if expected > 0 else None
