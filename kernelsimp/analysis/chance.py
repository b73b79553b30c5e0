"""What chance would give: expected matches and which kernels chance does not explain."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kernelsimp.analysis.examine import Examined

EFFECTIVE_TESTS = 13
"""How many independent tests the families of one kernel amount to (measured on trained networks)."""


def white_expectation(dim: int, cells: int, tolerance: float) -> float:
    """Return P(r <= tolerance) of a kernel of independent Gaussian cells: r^2 ~ Beta((d-q)/2, q/2)."""
    return float(stats.beta.cdf(tolerance**2, (cells - dim) / 2, dim / 2))


def white_p_values(examined: Examined) -> NDArray[np.float64]:
    """Return p-values (kernels, families) under the white null."""
    cells = int(np.prod(examined.layer.grid))
    columns = [
        stats.beta.cdf(examined.residual[:, i].astype(np.float64) ** 2, (cells - dim) / 2, dim / 2)
        for i, dim in enumerate(examined.dims)
    ]
    return np.stack(columns, axis=1) if columns else np.ones((len(examined.dead), 0))


def found_by_chance_test(examined: Examined, fdr: float) -> NDArray[np.bool_]:
    """Say for each kernel whether chance does not explain its best family, at false discovery rate `fdr`.

    p = min(1, 13 * least p over the families), Benjamini-Hochberg over the layer's live kernels.
    """
    found = np.zeros(len(examined.dead), dtype=bool)
    live = ~examined.dead
    if examined.families and live.any():
        p = np.minimum(1.0, EFFECTIVE_TESTS * white_p_values(examined)[live].min(axis=1))
        found[live] = stats.false_discovery_control(p) <= fdr
    return found
