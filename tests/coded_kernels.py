"""Coded kernels of every sort of structure, for the tests of their code and of the file."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kernelsimp.kernels.integer_bases import FREE, Table, basis_of, gather_drawings, side_numbers, side_of
from kernelsimp.kernels.kernel_coding import CodedKernels
from kernelsimp.kernels.orbits import moves

NAMES = (
    FREE, "zero", "mirror-v", "full-square", "rank-one", "rank-two", "few-values-2", "template-gaussian",
    "prototypes-2",
)  # fmt: skip


def some(
    names: tuple[str, ...],
    side: int,
    seed: int = 0,
    table: Table | None = None,
    shape: tuple[int, int] = (6, 4),
) -> CodedKernels:
    """Filters and inputs as `shape` says, structures and integers drawn at random."""
    generator = np.random.default_rng(seed)
    grid, cells = (side, side), side * side
    choice = generator.integers(len(names), size=shape)
    beside = np.zeros((*shape, max(side_of(name, grid).count for name in names)), np.int64)
    values = np.zeros((*shape, cells), np.int64)
    kernels = torch.randn(24, side, side, generator=torch.Generator().manual_seed(seed)).reshape(
        6, 4, side, side
    )
    for row, kernel in np.ndindex(*shape):
        name = names[choice[row, kernel]]
        numbers = np.zeros(0, np.int64)
        if side_of(name, grid).count:
            numbers = side_numbers(name, kernels[row, kernel][None])[0]
        beside[row, kernel, : len(numbers)] = numbers
        dim = basis_of(name, grid, numbers.tolist(), table).shape[1]
        values[row, kernel, :dim] = np.rint(generator.laplace(scale=4, size=dim))
    return CodedKernels(grid, names, choice, values, beside, np.float32(0.01), table)


def drawn() -> tuple[CodedKernels, Tensor, np.ndarray]:
    """Kernels (6, 4), every other one of three prototypes turned; the prototypes as they lie, and drawn."""
    centres = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    generator = np.random.default_rng(0)
    turns = generator.integers((3, 8), size=(24, 2))
    cells = torch.stack([centres[place][torch.from_numpy(moves((3, 3))[move])] for place, move in turns])
    kernels = cells.reshape(24, 3, 3)
    sides = side_numbers("prototypes-3", kernels, cells.numpy())
    drawings, numbers = gather_drawings(sides, (3, 3))
    item = some(("mirror-v", "prototypes-3"), 3)
    choice = np.arange(24).reshape(6, 4) % 2
    values = np.zeros_like(item.values)
    values[:, :, :2] = generator.integers(-9, 10, (6, 4, 2))
    side = np.where(choice == 1, numbers.reshape(6, 4), 0)[:, :, None]
    return replace(item, choice=choice, values=values, side=side, drawings=drawings), kernels, sides
