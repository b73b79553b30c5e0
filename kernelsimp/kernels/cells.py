"""Kernels as rows of cells in float64: the form in which every non-linear fit of this room works.

Banks are (n, kh, kw); kernels of Conv1d are (1, k). A kernel that holds NaN or Inf is worked on as zero
and its residual is NaN, so that one bad kernel neither stops a scan nor matches anything.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError

Grid = tuple[int, int]


def grid_of(kernels: Tensor) -> Grid:
    """Return (kh, kw) of a bank (n, kh, kw); raises `KernelsimpError` for any other number of axes."""
    if kernels.ndim != 3:
        found = tuple(kernels.shape)
        raise KernelsimpError(f"kernels of shape {found}; expected (n, kh, kw), flatten or slice them first")
    return int(kernels.shape[1]), int(kernels.shape[2])


def rows_of(kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cells of each kernel, (n, cells) in float64, and which kernels are not finite, (n,)."""
    grid_of(kernels)
    flat = kernels.detach().double().flatten(1)
    broken = ~flat.isfinite().all(dim=1)
    return torch.where(broken[:, None], 0.0, flat) if bool(broken.any()) else flat, broken


def norms(flat: Tensor) -> Tensor:
    """Return ||w|| of each row without underflow, so that denormal kernels keep their scale."""
    largest = flat.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    size: Tensor = (flat / largest).square().sum(dim=1).sqrt()
    return size * largest[:, 0]


def rounding(dtype: torch.dtype) -> float:
    """Return the residual a cast to `dtype` may leave: 4 eps, and 64 for float64, where our sums round."""
    return (64 if dtype == torch.float64 else 4) * float(torch.finfo(dtype).eps)


def chunks(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Yield at most `size` rows at a time, views in order."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def residual_of(flat: Tensor, left: Tensor, broken: Tensor) -> Tensor:
    """Return ||left|| / ||w|| of each row, clamped to [0, 1]; 0 for a zero kernel, NaN for a broken one."""
    whole = norms(flat)
    ratio = torch.where(whole > 0, norms(left) / torch.where(whole > 0, whole, 1.0), 0.0).clamp(0, 1)
    return torch.where(broken, torch.nan, ratio)
