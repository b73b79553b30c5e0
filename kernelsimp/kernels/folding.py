"""Energies of kernels in the symmetry classes of the rectangle and the square, by folding.

Kernels lie with their cells first, (planes, kh, kw, n), so that every addition runs along n. Folding adds
and subtracts opposite lines; unlike a matrix product its cost does not grow with the square of the cells.
Classes are named by parity under the vertical and horizontal mirror and, on the square, the transpose.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kernelsimp.kernels.subspace import Floats, Shape

_ROOT = 2**0.5


def class_energies(grid: Tensor) -> Tensor:
    """Return the energy of kernels (planes, kh, kw, n) in each symmetry class, (classes, n).

    Oblong kernels have four classes: even-even, even-odd, odd-even, odd-odd, the vertical parity first.
    Square ones have eight: even-even and odd-odd each split by the sign of the transpose (+ first),
    even-odd and odd-even, and these two together split by that sign instead. Those last two overlap the
    two before: mirrors and transposes do not commute.
    """
    even, odd = _fold(grid, 2)
    ee, oe = _fold(even, 1)
    eo, oo = _fold(odd, 1)
    # _fold(odd columns) on rows: ee, oe are even left-right; eo, oo odd left-right
    if grid.shape[1] != grid.shape[2]:
        return torch.stack([_energy(part) for part in (ee, eo, oe, oo)]).mul_(0.25)
    turned = oe.transpose(1, 2)
    sums = [ee + ee.transpose(1, 2), ee - ee.transpose(1, 2), oo + oo.transpose(1, 2), oo - oo.transpose(1, 2)]
    mixed = [eo + turned, eo - turned]
    plain = torch.stack([_energy(part) for part in (eo, oe)]).mul_(0.25)
    split = torch.stack([_energy(part) for part in sums]).mul_(1 / 16)
    diagonal = torch.stack([_energy(part) for part in mixed]).mul_(1 / 8)
    return torch.cat([split, plain, diagonal])


@lru_cache(maxsize=32)
def class_projectors(shape: Shape) -> Floats:
    """Return the projectors (classes, cells, cells) of the classes of `class_energies` at `shape`.

    An energy is a quadratic form; its matrix comes out of the energies of cells and of pairs of cells.
    """
    cells = int(np.prod(shape))
    unit = torch.eye(cells, dtype=torch.float64)
    pairs = (unit[:, :, None] + unit[:, None, :]).reshape(cells, -1)
    energies = class_energies(pairs.reshape(_planes(shape), *shape[-2:], -1)).reshape(-1, cells, cells)
    single = energies.diagonal(dim1=1, dim2=2) / 4
    return np.asarray(((energies - single[:, :, None] - single[:, None, :]) / 2).numpy())


def cells_first(flat: Tensor, shape: Shape) -> Tensor:
    """Return kernels (n, cells) as (planes, kh, kw, n), contiguous."""
    return flat.T.contiguous().reshape(_planes(shape), *shape[-2:], -1)


def _planes(shape: Shape) -> int:
    return int(np.prod(shape[:-2]))


def _fold(grid: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the even and the odd half along `axis`, both sqrt(2) too long."""
    size = grid.shape[axis]
    half = size // 2
    first, last = grid.narrow(axis, 0, half), grid.narrow(axis, size - half, half).flip(axis)
    if size % 2 == 0:
        return first + last, first - last
    shape = list(grid.shape)
    shape[axis] = half + 1
    even = grid.new_empty(shape)
    torch.add(first, last, out=even.narrow(axis, 0, half))
    torch.mul(grid.narrow(axis, half, 1), _ROOT, out=even.narrow(axis, half, 1))
    return even, first - last


def _energy(part: Tensor) -> Tensor:
    return part.square().flatten(0, -2).sum(dim=0)
