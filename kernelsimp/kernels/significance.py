"""From chance to a verdict: one p-value a kernel, false discoveries held down over a layer.

p-values are one-sided, P(residual <= r) under a null of `nulls.py`; `found` speaks of a layer's live
kernels, so callers leave the dead ones out.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
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

    Measured: the least of the p-values of the 17 linear families falls under a small level 13 times as
    often as one of them; a longer table of overlapping families grows in proportion, and up to 13
    families count in full.
    """
    return float(max(1, families)) if families <= 13 else max(13.0, families * 13 / 17)


def kernel_p(least_log_p: Tensor, tests: float) -> Floats:
    """Return p = min(1, `tests` * exp(least log p)) of each kernel, (n,) in float64."""
    return np.asarray(np.minimum(1.0, tests * np.exp(least_log_p.double().numpy())))


def discoveries(p: Floats, fdr: float = 0.05) -> NDArray[np.bool_]:
    """Say for which p-values (n,) Benjamini-Hochberg rejects the null at false discovery rate `fdr`."""
    if not len(p):
        return np.zeros(0, dtype=bool)
    return np.asarray(stats.false_discovery_control(p) <= fdr)


def local_false_share(null: Null, family: int, r: Tensor, tolerance: float) -> float | None:
    """Return the share of kernels with a residual *near* `tolerance` that chance explains, at most 1.

    The local false discovery rate, expected / observed within a factor 1.25 of the tolerance, with the
    share of random kernels taken as 1; None where no residual `r` (n,) lies there. The kernels far
    below the tolerance are safer than this, which a rate over all of them would hide.
    """
    low, high = tolerance / _WINDOW, min(1.0, tolerance * _WINDOW)
    observed = int(((r > low) & (r <= high)).sum())
    if not observed:
        return None
    expected = len(r) * (null.expected(high, family) - null.expected(low, family))
    return min(1.0, expected / observed)


def enrichment(observed: int, expected: float) -> float | None:
    """Return observed / expected, or None where nothing was expected."""
    return observed / expected if expected > 0 else None


def share_found(judged: Judged) -> float:
    """Return the share of live kernels that are found; 0 for an empty layer."""
    return float(judged.found.mean()) if judged.found.size else 0.0


def least_over(log_p: list[Tensor]) -> Tensor:
    """Return the least of several log p (n,) of each kernel: families, rank one, few values..."""
    return torch.stack([part.double() for part in log_p]).amin(dim=0)
