"""Energies of kernels in the symmetry classes of the rectangle and the square, by folding.

Kernels lie with their cells first, (planes, kh, kw, n), so that every addition runs along n. Folding adds
and subtracts opposite lines; unlike a matrix product its cost does not grow with the square of the cells.
Classes are named by parity under the vertical and horizontal mirror and, on the square, the transpose.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kernelsimp.kernels.subspace import Floats, Shape

_ROOT = 2**0.5

Part = tuple[Tensor, Tensor | None, float, float]
"""Two tensors, the sign of the second, and the scale of the energy of their sum."""


class Scratch:
    """Memory kept from chunk to chunk, by name: fresh pages cost more than the arithmetic on them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.held: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return an uninitialised tensor of `shape`, which the next call with `name` may overwrite."""
        view = self.views.get((name, shape))
        if view is None:
            size = math.prod(shape)
            if name not in self.held or self.held[name].numel() < size:
                self.held[name] = torch.empty(size, dtype=self.dtype)
            view = self.views[name, shape] = self.held[name][:size].view(shape)
        return view


def class_energies(grid: Tensor, scratch: Scratch) -> Tensor:
    """Return the energy of kernels (planes, kh, kw, n) in each symmetry class, (classes, n).

    Oblong kernels have four classes: even-even, even-odd, odd-even, odd-odd, the vertical parity first.
    Square ones have eight: even-even and odd-odd each split by the sign of the transpose (+ first),
    even-odd and odd-even, and these two together split by that sign instead. Those last two overlap the
    two before: mirrors and transposes do not commute.
    """
    even, odd = _fold(grid, 2, scratch, "columns")
    ee, oe = _fold(even, 1, scratch, "even rows")
    eo, oo = _fold(odd, 1, scratch, "odd rows")
    square = grid.shape[1] == grid.shape[2]
    oblong: list[Part] = [(part, None, 1.0, 1 / 4) for part in (ee, eo, oe, oo)]
    parts = _square_parts(ee, eo, oe, oo) if square else oblong
    out = scratch.take("classes", len(parts), grid.shape[-1])
    for row, (one, other, sign, scale) in enumerate(parts):
        work = scratch.take("part", *one.shape)
        if other is None:
            torch.square(one, out=work)
        else:
            torch.add(one, other, alpha=sign, out=work).square_()
        torch.sum(work, dim=(0, 1, 2), out=out[row]).mul_(scale)
    return out


def _square_parts(ee: Tensor, eo: Tensor, oe: Tensor, oo: Tensor) -> list[Part]:
    """Return what to add up and square for the eight classes of a square kernel, and its scale."""
    even: list[Part] = [
        (part, part.transpose(1, 2), sign, 1 / 16) for part in (ee, oo) for sign in (1.0, -1.0)
    ]
    mixed: list[Part] = [(eo, oe.transpose(1, 2), sign, 1 / 8) for sign in (1.0, -1.0)]
    return [*even, (eo, None, 1.0, 1 / 4), (oe, None, 1.0, 1 / 4), *mixed]


@lru_cache(maxsize=32)
def class_basis(shape: Shape) -> tuple[Floats, tuple[int, ...]]:
    """Return unit vectors (cells, cells), one a row, class after class, and how many each class has.

    Of a square kernel the classes are the first six; the vectors of odd-even are those of even-odd
    transposed, so that the last two classes are half the squared sums and differences of their coordinates.
    """
    projectors = class_projectors(shape)
    parts = []
    for projector in projectors[: 6 if len(projectors) == 8 else 4]:
        values, vectors = np.linalg.eigh(projector)
        parts.append(vectors[:, values > 0.5].T)
    if len(projectors) == 8:
        cells = np.arange(int(np.prod(shape))).reshape(shape)
        parts[5] = parts[4][:, np.swapaxes(cells, -1, -2).reshape(-1)]
    return np.concatenate(parts), tuple(len(part) for part in parts)


@lru_cache(maxsize=32)
def class_projectors(shape: Shape) -> Floats:
    """Return the projectors (classes, cells, cells) of the classes of `class_energies` at `shape`.

    An energy is a quadratic form; its matrix comes out of the energies of cells and of pairs of cells.
    """
    cells = int(np.prod(shape))
    unit = torch.eye(cells, dtype=torch.float64)
    pairs = (unit[:, :, None] + unit[:, None, :]).reshape(cells, -1)
    grid = pairs.reshape(_planes(shape), *shape[-2:], -1)
    energies = class_energies(grid, Scratch(torch.float64)).reshape(-1, cells, cells)
    single = energies.diagonal(dim1=1, dim2=2) / 4
    return np.asarray(((energies - single[:, :, None] - single[:, None, :]) / 2).numpy())


def cells_first(flat: Tensor, shape: Shape, scratch: Scratch) -> Tensor:
    """Return kernels (n, cells) as (planes, kh, kw, n), contiguous, in scratch memory."""
    grid = scratch.take("grid", _planes(shape), *shape[-2:], len(flat))
    # numpy moves the cells half as fast again as torch
    np.copyto(grid.numpy().reshape(flat.shape[1], -1), flat.numpy().T)
    return grid


def _planes(shape: Shape) -> int:
    return int(np.prod(shape[:-2]))


def _fold(grid: Tensor, axis: int, scratch: Scratch, name: str) -> tuple[Tensor, Tensor]:
    """Return the even and the odd half along `axis`, both sqrt(2) too long."""
    size = grid.shape[axis]
    half = size // 2
    first, last = grid.narrow(axis, 0, half), grid.narrow(axis, size - half, half).flip(axis)
    shape = list(grid.shape)
    shape[axis] = half
    odd = torch.sub(first, last, out=scratch.take(name + " odd", *shape))
    shape[axis] = size - half
    even = scratch.take(name + " even", *shape)
    torch.add(first, last, out=even.narrow(axis, 0, half))
    if size % 2:
        torch.mul(grid.narrow(axis, half, 1), _ROOT, out=even.narrow(axis, half, 1))
    return even, odd
