"""Partitions: kernels in which groups of cells, or groups of whole rows or columns, are equal.

A partition is a row of labels, one for each cell or line, numbered by first appearance from 0. Equal lines
are found by agglomeration: the two nearest groups are joined while the kernel stays within the tolerance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.cells import Grid, chunks, grid_of, residual_of, rows_of

CHUNK = 8192


@dataclass(frozen=True, eq=False)
class EqualLines:
    """Which lines of each of n kernels are equal; `axis` is 0 for rows, 1 for columns.

    `labels` (n, lines) is the partition, `classes` (n,) how many different lines it has, `residual` (n,)
    the relative residual of making each class equal.
    """

    grid: Grid
    axis: int
    labels: Tensor
    classes: Tensor
    residual: Tensor

    @property
    def dof(self) -> Tensor:
        """Continuous numbers left in each kernel, (n,)."""
        return self.classes * self.grid[1 - self.axis]

    def cells(self) -> Tensor:
        """Return the partition of cells that the partition of lines implies, (n, cells)."""
        return cell_labels(self.labels, self.grid, self.axis)


def canonical(labels: Tensor) -> Tensor:
    """Renumber each row of labels (n, m), all from 0 to m - 1, by first appearance."""
    first = first_of_class(labels)
    leads = first == torch.arange(labels.shape[1])
    return (leads.cumsum(dim=1) - 1).gather(1, first)


def count(labels: Tensor) -> Tensor:
    """Return how many classes each canonical row of labels (n, m) has, (n,)."""
    return labels.amax(dim=1) + 1


def cell_labels(lines: Tensor, grid: Grid, axis: int) -> Tensor:
    """Turn labels of rows (axis 0) or columns (axis 1), (n, lines), into labels of cells, (n, cells).

    Two cells share a label when their lines do and they lie at the same place in them.
    """
    place = torch.arange(grid[1 - axis])
    width = grid[1 - axis]
    rows, columns = lines[:, :, None] * width + place, place[:, None] * grid[1] + lines[:, None, :]
    return canonical((rows if axis == 0 else columns).flatten(1))


def means(flat: Tensor, labels: Tensor) -> Tensor:
    """Return for each cell (n, cells) the mean of the cells that share its label, in float64."""
    classes = int(labels.max()) + 1 if labels.numel() else 1
    sums = torch.zeros(len(flat), classes, dtype=torch.float64).scatter_add_(1, labels, flat.double())
    ones = torch.ones_like(flat, dtype=torch.float64)
    sizes = torch.zeros_like(sums).scatter_add_(1, labels, ones).clamp_min(1)
    return (sums / sizes).gather(1, labels)


def snap(kernels: Tensor, labels: Tensor) -> Tensor:
    """Return kernels whose cells are equal, bit for bit, wherever labels (n, cells) are.

    The mean is cast to the stored dtype once a class and then copied; a kernel that is there already comes
    back as it was.
    """
    flat, _ = rows_of(kernels)
    classes = canonical(labels)
    written = _from_first(means(flat, classes).to(kernels.dtype), classes)
    there = holds(kernels, labels)[:, None]
    return torch.where(there, kernels.flatten(1), written).reshape(kernels.shape)


def holds(kernels: Tensor, labels: Tensor) -> Tensor:
    """Say for each kernel whether the cells of each class are exactly equal, (n,)."""
    flat = kernels.flatten(1)
    return (flat == _from_first(flat, canonical(labels))).all(dim=1)


@lru_cache(maxsize=512)
def bits(items: int, classes: int) -> float:
    """Return log2 of the number of partitions of `items` into `classes` (Stirling, second kind)."""
    row = [1] + [0] * classes
    for _ in range(items):
        row = [0] + [row[k - 1] + k * row[k] for k in range(1, classes + 1)]
    if row[classes] == 0:
        raise KernelsimpError(f"{items} items cannot be parted into {classes} classes")
    return float(np.log2(float(row[classes])))


def equal_lines(kernels: Tensor, axis: int, tolerance: float = 0.1) -> EqualLines:
    """Find the fewest classes of equal rows (axis 0) or columns (axis 1) within `tolerance`.

    Joins the two classes whose joining adds least squared error (Ward: |A||B| / (|A| + |B|) times the
    squared distance of their means), as long as the relative residual stays at or below the tolerance.
    """
    grid = grid_of(kernels)
    if axis not in (0, 1):
        raise KernelsimpError(f"axis {axis}; expected 0 for rows or 1 for columns")
    flat, broken = rows_of(kernels)
    parts = [_agglomerate(part.reshape(-1, *grid), axis, tolerance) for part in chunks(flat, CHUNK)]
    labels = torch.cat(parts) if parts else torch.zeros(0, grid[axis], dtype=torch.int64)
    labels = torch.where(broken[:, None], torch.arange(grid[axis]), labels)
    r = residual_of(flat, flat - means(flat, cell_labels(labels, grid, axis)), broken)
    return EqualLines(grid, axis, labels, count(labels) if len(labels) else labels[:, 0], r)


def sentence(labels: Sequence[int], line: str = "row") -> str:
    """Say in words which lines are equal: 'rows 0 = 2, 1 = 3 = 4', or 'all rows equal'."""
    groups: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        groups.setdefault(int(label), []).append(place)
    if len(groups) == 1:
        return f"all {line}s equal"
    equal = [" = ".join(map(str, group)) for group in groups.values() if len(group) > 1]
    return f"{line}s {', '.join(equal)}" if equal else f"no two {line}s equal"


def _from_first(flat: Tensor, classes: Tensor) -> Tensor:
    """Copy to every cell the first cell of its class."""
    return flat.gather(1, first_of_class(classes))


def first_of_class(labels: Tensor) -> Tensor:
    """Return for each item (n, m) the first item that has its label."""
    places = torch.arange(labels.shape[1]).expand_as(labels)
    first = torch.full_like(labels, labels.shape[1]).scatter_reduce_(1, labels, places, "amin")
    return first.gather(1, labels)


def _agglomerate(grids: Tensor, axis: int, tolerance: float) -> Tensor:
    """Return canonical labels of the lines, (n, lines), after joining as far as the tolerance allows."""
    lines = grids if axis == 0 else grids.mT
    scale = lines.abs().amax(dim=(1, 2), keepdim=True)
    centres = (lines / torch.where(scale > 0, scale, 1.0)).clone()
    n, k = centres.shape[:2]
    budget = tolerance**2 * centres.square().sum(dim=(1, 2)) * (1 + 1e-12)
    spent, labels = torch.zeros(n, dtype=torch.float64), torch.arange(k).repeat(n, 1)
    sizes = torch.ones(n, k, dtype=torch.float64)
    every = torch.arange(n)
    for _ in range(k - 1):
        price = _joining_price(centres, sizes)
        cheapest, at = price.flatten(1).min(dim=1)
        joins = spent + cheapest <= budget
        if not bool(joins.any()):
            break
        rows = every[joins]
        kept, gone = at[joins] // k, at[joins] % k
        first, second = sizes[rows, kept], sizes[rows, gone]
        mixed = first[:, None] * centres[rows, kept] + second[:, None] * centres[rows, gone]
        centres[rows, kept] = mixed / (first + second)[:, None]
        sizes[rows, kept], sizes[rows, gone] = first + second, torch.zeros_like(second)
        spent[rows] += cheapest[joins]
        labels[rows] = torch.where(labels[rows] == gone[:, None], kept[:, None], labels[rows])
    return canonical(labels)


def _joining_price(centres: Tensor, sizes: Tensor) -> Tensor:
    """Return what joining classes i < j adds to the squared error, (n, k, k); infinite elsewhere."""
    apart = (centres[:, :, None] - centres[:, None, :]).square().sum(dim=3)
    both = sizes[:, :, None] * sizes[:, None, :]
    price = both / (sizes[:, :, None] + sizes[:, None, :]).clamp_min(1) * apart
    upper = torch.ones(sizes.shape[1], sizes.shape[1], dtype=torch.bool).triu(1)
    return torch.where(upper & (both > 0), price, torch.inf)
