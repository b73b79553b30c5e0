"""Kernels of low rank: a kernel of rank one is a column times a row, hence two one-dimensional filters.

Everything comes from one batched singular value decomposition in float64; the residuals of 3x3 kernels, of
which networks have millions, from a formula instead, six times as fast. Singular values fall; ranks count
from 1.
"""

import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.cells import Grid, chunks, grid_of, rounding, rows_of

CHUNK = 8192


def dof(grid: Grid, rank: int) -> int:
    """Return the continuous numbers of a kernel of shape `grid` and rank `rank`: r(kh + kw - r)."""
    return rank * (grid[0] + grid[1] - rank)


def is_offered(grid: Grid, rank: int) -> bool:
    """Say whether the rank restricts kernels of this shape at all."""
    return 0 < rank < min(grid)


def residuals(kernels: Tensor) -> Tensor:
    """Return the relative residual at every rank from 1 on, (n, min(kh, kw)), in float64.

    r_k = sqrt(sum of s_i^2 for i > k / sum of all s_i^2); the tail is summed itself, since one minus the
    head would read 0 for a true 1e-9. Zero kernels give 0, kernels that are not finite NaN. At 3x3 the
    residual at rank two is good to 1e-10 or, where the kernel is nearer than that to rank one, to that.
    """
    measure = _three_by_three if grid_of(kernels) == (3, 3) else _decompose
    parts = []
    for part in chunks(kernels, CHUNK) if len(kernels) else (kernels,):
        scaled, _, broken = _scale_kernels(part)
        parts.append(torch.where(broken[:, None], torch.nan, measure(scaled)))
    return torch.cat(parts)


def residual(kernels: Tensor, rank: int = 1) -> Tensor:
    """Return the relative residual at `rank`, (n,), by decomposition; 0 where the rank restricts nothing.

    Raises `KernelsimpError` for a rank below 1, as all functions here do.
    """
    _check(rank)
    scaled, _, broken = _scale_kernels(kernels)
    every = _decompose(scaled)
    return torch.where(broken, torch.nan, every[:, min(rank, every.shape[1]) - 1])


def _decompose(scaled: Tensor) -> Tensor:
    energy = torch.linalg.svdvals(scaled).square()
    tail = energy.flip(1).cumsum(1).flip(1)
    total = tail[:, :1]
    tail = torch.cat([tail[:, 1:], torch.zeros_like(total)], dim=1)
    return torch.where(total > 0, tail / torch.where(total > 0, total, 1.0), 0.0).sqrt()


def _three_by_three(scaled: Tensor) -> Tensor:
    """Return the residuals of kernels (n, 3, 3) at rank one to three, (n, 3).

    The squared singular values of W / ||W|| are the roots of l^3 - l^2 + e l - f, e the sum of its squared
    2x2 minors and f its squared determinant. The largest comes from Viete's cosine formula; the others have
    the sum t = (e - f / l_1) / l_1 and the product f / l_1, which keep their digits where they are small.
    """
    cells = scaled.flatten(1).T.contiguous()
    size = cells.square().sum(dim=0).sqrt()
    a, b, c = (cells / torch.where(size > 0, size, 1.0)).reshape(3, 3, -1)
    minors = _cross(b, c), _cross(c, a), _cross(a, b)
    e = torch.stack([minor.square().sum(dim=0) for minor in minors]).sum(dim=0)
    f = (a * minors[0]).sum(dim=0).square()
    q = ((1 - 3 * e) / 9).clamp_min(1e-300)
    angle = ((2 - 9 * e + 27 * f) / (54 * q * q.sqrt())).clamp(-1, 1).acos()
    first = 1 / 3 + 2 * q.sqrt() * (angle / 3).cos()
    tail, product = (e - f / first).clamp_min(0) / first, f / first
    second = (tail + (tail.square() - 4 * product).clamp_min(0).sqrt()) / 2
    third = torch.where(second > 0, product / torch.where(second > 0, second, 1.0), 0.0)
    return torch.stack([tail, torch.minimum(third, second), torch.zeros_like(tail)], dim=1).sqrt()


def _cross(one: Tensor, other: Tensor) -> Tensor:
    """Return the vector products of rows (3, n): the 2x2 minors of the two."""
    return one[[1, 2, 0]] * other[[2, 0, 1]] - one[[2, 0, 1]] * other[[1, 2, 0]]


def factors(kernels: Tensor, rank: int = 1) -> tuple[Tensor, Tensor]:
    """Return columns (n, kh, r) and rows (n, r, kw), float64, whose product is nearest to each kernel.

    Each column and its row share the singular value evenly; r is `rank`, or min(kh, kw) if that is less.
    """
    _check(rank)
    scaled, scale, _ = _scale_kernels(kernels)
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


def _check(rank: int) -> None:
    if rank < 1:
        raise KernelsimpError(f"rank {rank}; expected 1 or more")


def _scale_kernels(kernels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return kernels over their largest cell (squares must not underflow), that cell, and the broken."""
    flat, broken = rows_of(kernels)
    largest = flat.abs().amax(dim=1)
    scale = torch.where(largest > 0, largest, 1.0)
    return (flat / scale[:, None]).reshape(-1, *grid_of(kernels)), scale, broken
