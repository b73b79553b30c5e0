"""Gaussian derivatives as a basis: kernels that are sums of the derivatives of one Gaussian.

The basis of structured receptive fields (Jacobsen, van Gemert, Lou and Smeulders, 2016): all derivatives
d^i/dy^i d^j/dx^j of a Gaussian with i + j up to an order, drawn on the cells by Hermite polynomials; the
Gaussian's standard deviation is a quarter of the longest side. Kernels of Conv1d, (1, k), take x alone.
"""

from functools import lru_cache

import numpy as np
from numpy.polynomial import hermite_e

from kernelsimp.kernels.subspace import Floats, Shape, SpanSubspace

ORDERS = (1, 2, 3, 4)


def gaussian_derivatives(shape: Shape, order: int) -> SpanSubspace | None:
    """Return the span of the derivatives up to `order`, or None where it would not restrict a kernel.

    It has (order + 1)(order + 2) / 2 dimensions on a grid, order + 1 on a line; kernels of three sides have
    none.
    """
    if len(shape) != 2:
        return None
    drawn = _draw_derivatives(shape, order)
    cells = shape[0] * shape[1]
    if drawn.shape[1] >= cells or np.linalg.matrix_rank(drawn) < drawn.shape[1]:
        return None
    return SpanSubspace(shape, np.linalg.qr(drawn)[0])


@lru_cache(maxsize=64)
def _draw_derivatives(shape: Shape, order: int) -> Floats:
    """Return the derivatives as columns (cells, dim)."""
    sigma = max(shape) / 4
    rows, columns = (_lines(side, order, sigma) for side in shape)
    pairs = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    if shape[0] == 1:
        pairs = [(i, j) for i, j in pairs if i == 0]
    if shape[1] == 1:
        pairs = [(i, j) for i, j in pairs if j == 0]
    return np.stack([np.outer(rows[i], columns[j]).reshape(-1) for i, j in pairs], axis=1)


def _lines(side: int, order: int, sigma: float) -> Floats:
    """Return the derivatives 0..order of a Gaussian along one side, (order + 1, side)."""
    x = (np.arange(side) - (side - 1) / 2) / sigma
    bell = np.exp(-(x**2) / 2)
    made = [bell * hermite_e.hermeval(x, np.eye(order + 1)[i]) for i in range(order + 1)]
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True).clip(1e-12))
