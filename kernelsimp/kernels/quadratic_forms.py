"""Tail probabilities of quadratic forms in normal variables, with small relative error far out.

The form is S = sum_i l_i z_i^2 with z_i independent standard normal; every probability here is
P(S <= 0), given and returned as a natural logarithm.
"""

import math

import numpy as np

from kernelsimp.kernels.subspace import Floats

_REACH = 22.0
"""End of the trapezoidal rule in x, where the contour's height is y = scale * sinh(x)."""

_BATCH = 1 << 21
"""Numbers held at once: rows * eigenvalues * nodes."""


def log_probability_below_zero(eigenvalues: Floats) -> Floats:
    """Return log P(sum_i l_i z_i^2 <= 0) for each row of `eigenvalues` (rows, d), as (rows,).

    Imhof's inversion integral, moved from the imaginary axis to the vertical line through the saddle
    point s0 < 0 of K(s) = -1/2 sum log(1 - 2 s l_i):

        P(S <= 0) = -1/pi * integral_0^inf Re[exp(K(s0 + iy)) / (s0 + iy)] dy.

    On that line the integrand starts at its peak instead of cancelling, so that the *relative* error
    stays small in the tail, where Imhof's own form (Biometrika 48, 1961) loses every digit and the
    Lugannani-Rice formula, which is the first term of this integral, is off by some percent.
    """
    rows = np.atleast_2d(np.asarray(eigenvalues, dtype=np.float64))
    rows = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(float).tiny)
    low, high = rows.min(axis=1), rows.max(axis=1)
    result = np.where(high <= 0, 0.0, -np.inf)
    inner = np.flatnonzero((low < 0) & (high > 0))
    size = max(1, int(_BATCH / (rows.shape[1] * _REACH / _step(rows.shape[1]))))
    for start in range(0, inner.size, size):
        part = inner[start : start + size]
        result[part] = _log_contour_integral(rows[part])
    return np.minimum(result, 0.0)


def _log_contour_integral(rows: Floats) -> Floats:
    edge = 0.5 / rows.min(axis=1)
    s0 = np.minimum(_saddle_point(rows, edge), 0.1 * edge)
    factors = 1 - 2 * s0[:, None] * rows
    curvature = 2 * np.square(rows / factors).sum(axis=1)
    scale = np.minimum(np.minimum(-s0, s0 - edge), curvature**-0.5)
    step = _step(rows.shape[1])
    x = np.arange(0, _REACH, step)
    y = scale[:, None] * np.sinh(x)
    ratio = (-2 * rows / factors)[:, :, None] * y[:, None, :]
    modulus = -0.25 * np.log1p(np.square(ratio)).sum(axis=1)
    phase = -0.5 * np.arctan(ratio).sum(axis=1)
    # 1 / -(s0 + iy) as modulus and angle; s0 < 0, so the angle starts at 0
    modulus -= 0.5 * np.log(np.square(s0)[:, None] + np.square(y))
    phase += np.arctan2(y, -s0[:, None])
    integrand = np.exp(modulus) * np.cos(phase) * scale[:, None] * np.cosh(x)
    total = step * (integrand.sum(axis=1) - 0.5 * integrand[:, 0]) / np.pi
    at_saddle = -0.5 * np.log(factors).sum(axis=1)
    return np.asarray(at_saddle + np.log(np.maximum(total, np.finfo(float).tiny)))


def _step(count: int) -> float:
    """Return a step that follows the phase: it turns faster the more terms there are."""
    return 0.2 / math.sqrt(max(1.0, count / 30))


def _saddle_point(rows: Floats, edge: Floats) -> Floats:
    """Return the root s in (edge, 0) of K'(s) = sum l / (1 - 2 s l), or 0 where there is none.

    K' rises from minus infinity at `edge`, so bisection on the logarithm of the distance to the edge
    keeps its digits where the root lies close to it.
    """
    left, right = np.full(len(rows), -60.0), np.zeros(len(rows))
    for _ in range(60):
        middle = 0.5 * (left + right)
        s = edge * -np.expm1(middle)
        slope = (rows / (1 - 2 * s[:, None] * rows)).sum(axis=1)
        left, right = np.where(slope < 0, middle, left), np.where(slope < 0, right, middle)
    return np.asarray(edge * -np.expm1(right))
