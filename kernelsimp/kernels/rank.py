"""Kernels of low rank: a kernel of rank one is a column times a row, hence two one-dimensional filters.

Everything comes from one batched singular value decomposition in float64 (about a microsecond a 3x3
kernel). Singular values fall; ranks count from 1.
"""

import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.cells import Grid, grid_of, residual_of, rounding, rows_of


def dof(grid: Grid, rank: int) -> int:
    """Return the continuous numbers of a kernel of shape `grid` and rank `rank`: r(kh + kw - r)."""
    return rank * (grid[0] + grid[1] - rank)


def offered(grid: Grid, rank: int) -> bool:
    """Say whether the rank restricts kernels of this shape at all."""
    return 0 < rank < min(grid)


def residuals(kernels: Tensor) -> Tensor:
    """Return the relative residual at every rank from 1 on, (n, min(kh, kw)), in float64.

    r_k = sqrt(sum of s_i^2 for i > k / sum of all s_i^2); the tail is summed itself, since one minus the
    head would read 0 for a true 1e-9. Zero kernels give 0, kernels that are not finite NaN.
    """
    scaled, _, broken = _scaled(kernels)
    energy = torch.linalg.svdvals(scaled).square()
    tail = energy.flip(1).cumsum(1).flip(1)
    total = tail[:, :1]
    tail = torch.cat([tail[:, 1:], torch.zeros_like(total)], dim=1)
    r = torch.where(total > 0, tail / torch.where(total > 0, total, 1.0), 0.0).sqrt()
    return torch.where(broken[:, None], torch.nan, r)


def residual(kernels: Tensor, rank: int = 1) -> Tensor:
    """Return the relative residual at `rank`, (n,); 0 where the rank restricts nothing.

    Raises `KernelsimpError` for a rank below 1, as all functions here do.
    """
    _check(rank)
    every = residuals(kernels)
    return every[:, min(rank, every.shape[1]) - 1]


def factors(kernels: Tensor, rank: int = 1) -> tuple[Tensor, Tensor]:
    """Return columns (n, kh, r) and rows (n, r, kw), float64, whose product is nearest to each kernel.

    Each column and its row share the singular value evenly; r is `rank`, or min(kh, kw) if that is less.
    """
    _check(rank)
    scaled, scale, _ = _scaled(kernels)
    left, values, right = torch.linalg.svd(scaled, full_matrices=False)
    root = (values[:, :rank] * scale[:, None]).sqrt()
    return left[:, :, :rank] * root[:, None, :], right[:, :rank] * root[:, :, None]


def snap(kernels: Tensor, rank: int = 1) -> Tensor:
    """Return the nearest kernels of `rank` or less, in the kernels' own dtype.

    The residual after the cast is within 4 eps of that dtype; products cannot be exact in it.
    """
    columns, rows = factors(kernels, rank)
    return (columns @ rows).to(kernels.dtype)


def holds(kernels: Tensor, rank: int = 1) -> Tensor:
    """Say for each kernel whether its rank is `rank` or less up to 4 eps of its dtype, (n,)."""
    return residual(kernels, rank) <= rounding(kernels.dtype)


def distance(kernels: Tensor, rank: int = 1) -> Tensor:
    """Return ||w - snap(w)|| / ||w|| as written, (n,), which `residual` predicts up to rounding."""
    flat, broken = rows_of(kernels)
    return residual_of(flat, flat - rows_of(snap(kernels, rank))[0], broken)


def _check(rank: int) -> None:
    if rank < 1:
        raise KernelsimpError(f"rank {rank}; expected 1 or more")


def _scaled(kernels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return kernels over their largest cell (squares must not underflow), that cell, and the broken."""
    flat, broken = rows_of(kernels)
    largest = flat.abs().amax(dim=1)
    scale = torch.where(largest > 0, largest, 1.0)
    return (flat / scale[:, None]).reshape(-1, *grid_of(kernels)), scale, broken
