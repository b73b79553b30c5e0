"""How well a layer's weights are used: near-zero kernels, variance entropy, orthogonality of its filters.

All three need the weights alone. They are shares between 0 and 1; None where a layer is too small to have
the figure. Formulas after Gavrikov and Keuper, "CNN Filter DB" (2022).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelsimp.kernels.bank import LayerKernels

NEAR_ZERO = 1e-4
"""A kernel is near zero when its energy is under this share of its layer's mean: 1 % of its size."""

MOST_FILTERS = 4096
"""Layers of more filters are judged by as many, evenly spaced: all pairs of filters are compared."""


@dataclass(frozen=True)
class Quality:
    """One layer's figures, each 0..1: see the functions of the same names."""

    near_zero_share: float
    variance_entropy: float | None
    orthogonality: float | None


def quality_of(layer: LayerKernels) -> Quality:
    """Return the quality figures of one layer."""
    return Quality(near_zero_share(layer), variance_entropy(layer), orthogonality(layer))


def near_zero_share(layer: LayerKernels) -> float:
    """Return the share of kernels whose energy is at most `NEAR_ZERO` of the layer's mean."""
    energy = layer.energy()
    return float((energy <= NEAR_ZERO * energy.mean()).double().mean())


def variance_entropy(layer: LayerKernels) -> float | None:
    """Return how evenly the kernels' variance spreads over their principal directions, 0..1.

    H = -sum p log p / log(cells), p the shares of variance: 0 when all kernels are multiples of one, 1 when
    they are like white noise. None with fewer than two kernels or no variance.
    """
    cells = int(np.prod(layer.grid))
    if layer.count < 2:
        return None
    moment = torch.zeros(cells, cells, dtype=torch.float64)
    mean = torch.zeros(cells, dtype=torch.float64)
    for chunk in layer.chunks():
        rows = chunk.double().flatten(1)
        moment += rows.T @ rows
        mean += rows.sum(dim=0)
    mean /= layer.count
    variance = torch.linalg.eigvalsh(moment / layer.count - mean[:, None] * mean[None]).clamp_min(0)
    if not float(variance.sum()) > 0:
        return None
    share = variance / variance.sum()
    return float(-torch.special.xlogy(share, share).sum() / np.log(cells))


def orthogonality(layer: LayerKernels) -> float | None:
    """Return 1 - mean |cosine| over all pairs of different filters; None with fewer than two live ones."""
    filters = _space_frequencies(layer.kernels.detach().reshape(layer.kernels.shape[0], -1)).float()
    size = filters.norm(dim=1)
    unit = filters[size > 0] / size[size > 0, None]
    n = len(unit)
    if n < 2:
        return None
    cosines = (unit @ unit.T).abs_()
    return float(1 - (cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))


def _space_frequencies(rows: Tensor) -> Tensor:
    step = -(-len(rows) // MOST_FILTERS)
    return rows[::step]
