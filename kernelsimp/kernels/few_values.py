"""Kernels with few distinct values: the best u values for each kernel, by exact one-dimensional k-means.

Sorted cells are cut into u runs with least squared error by dynamic programming, for all kernels of a bank
and all u at once. A result is a partition of cells (`partitions` snaps to it exactly) beside its values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import partitions
from kernelsimp.kernels.cells import Grid, chunks, grid_of, residual_of, rows_of

COUNTS = (2, 3, 4, 5)
"""The numbers of distinct values that a scan offers."""

CHUNK_CELLS = 1 << 21
"""A chunk holds at most this many numbers of the table of run costs."""


@dataclass(frozen=True, eq=False)
class FewValues:
    """Each of n kernels written with at most `values` distinct numbers.

    `labels` (n, cells) is the partition in canonical numbering, `residual` (n,) its relative residual,
    `dof` how many numbers a kernel keeps and `choice_bits` what naming the partition costs.
    """

    grid: Grid
    values: int
    labels: Tensor
    residual: Tensor

    @property
    def dof(self) -> int:
        return self.values

    @property
    def choice_bits(self) -> float:
        return partitions.bits(self.grid[0] * self.grid[1], self.values)


def is_offered(grid: Grid, values: int) -> bool:
    """Say whether so few values restrict kernels of this shape: 1 < values < cells."""
    return 1 < values < grid[0] * grid[1]


def fit(kernels: Tensor, values: int) -> FewValues:
    """Return the best partition of each kernel (n, kh, kw) into `values` distinct numbers."""
    return fit_all(kernels, (values,))[0]


def fit_all(kernels: Tensor, counts: Sequence[int] = COUNTS) -> tuple[FewValues, ...]:
    """Return the best partitions for each number of values in `counts`, in that order.

    D(u, j) = min over i of D(u - 1, i) + cost(i, j), over sorted cells (Wang and Song 2011), exact.
    Raises `KernelsimpError` unless every count is from 1 to the number of cells.
    """
    grid = grid_of(kernels)
    cells = grid[0] * grid[1]
    if not counts or not all(1 <= count <= cells for count in counts):
        raise KernelsimpError(f"distinct values {tuple(counts)} for kernels of {cells} cells; use 1..{cells}")
    flat, broken = rows_of(kernels)
    size = max(1, CHUNK_CELLS // (cells * cells if cells <= 64 else cells * max(counts)))
    parts = [_labels(part, counts) for part in chunks(flat, size)]
    fitted = []
    for place, values in enumerate(counts):
        labels = torch.cat([part[place] for part in parts]) if parts else torch.zeros(0, cells).long()
        r = residual_of(flat, flat - partitions.means(flat, labels), broken)
        fitted.append(FewValues(grid, values, labels, r))
    return tuple(fitted)


def snap(kernels: Tensor, fitted: FewValues) -> Tensor:
    """Return kernels with at most `fitted.values` distinct numbers, exact in their own dtype."""
    return partitions.snap(kernels, fitted.labels)


def holds(kernels: Tensor, values: int) -> Tensor:
    """Say for each kernel whether it has at most `values` distinct numbers, exactly, (n,)."""
    ordered = kernels.flatten(1).double().sort(dim=1).values
    distinct = (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1) + 1
    return (distinct <= values) & ordered.isfinite().all(dim=1)


def _labels(flat: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return canonical labels (n, cells) for each count."""
    ordered, place = flat.sort(dim=1, stable=True)
    scale = (ordered[:, -1:] - ordered[:, :1]).clamp_min(torch.finfo(torch.float64).tiny)
    cuts = _cuts((ordered - ordered.mean(dim=1, keepdim=True)) / scale, max(counts))
    found = []
    for values in counts:
        begins = _backtrack(cuts, values)
        run = begins.cumsum(dim=1) - 1
        found.append(partitions.canonical(torch.zeros_like(place).scatter_(1, place, run)))
    return found


def _cuts(ordered: Tensor, most: int) -> Tensor:
    """Return where the last run begins in the best split of the first j cells into u, (most, n, cells)."""
    n, cells = ordered.shape
    zero = torch.zeros(n, 1, dtype=torch.float64)
    first = torch.cat([zero, ordered.cumsum(dim=1)], dim=1)
    second = torch.cat([zero, ordered.square().cumsum(dim=1)], dim=1)
    size = torch.arange(1, cells + 1, dtype=torch.float64)
    best = second[:, 1:] - first[:, 1:].square() / size
    cuts = torch.zeros(most, n, cells, dtype=torch.int16)
    previous = best.clone()
    earlier = best
    table = [_run_costs(first, second, end) for end in range(cells)] if cells <= 64 else None
    for values in range(1, most):
        current = previous.clone()
        for end in range(values, cells):
            costs = table[end] if table else _run_costs(first, second, end)
            total = earlier[:, values - 1 : end] + costs[:, values : end + 1]
            current[:, end], begin = total.min(dim=1)
            cuts[values, :, end] = (begin + values).to(torch.int16)
        earlier = previous = current
    return cuts


def _run_costs(first: Tensor, second: Tensor, end: int) -> Tensor:
    """Return the squared error of one value for the cells begin..end, for each begin, (n, end + 1)."""
    size = torch.arange(end + 1, 0, -1, dtype=torch.float64)
    sums = first[:, end + 1 : end + 2] - first[:, : end + 1]
    squares = second[:, end + 1 : end + 2] - second[:, : end + 1]
    return (squares - sums.square() / size).clamp_min(0)


def _backtrack(cuts: Tensor, values: int) -> Tensor:
    """Return 1 at each sorted cell where a run begins, (n, cells)."""
    _, n, cells = cuts.shape
    begins = torch.zeros(n, cells, dtype=torch.int64)
    begins[:, 0] = 1
    end = torch.full((n, 1), cells - 1)
    for level in range(values - 1, 0, -1):
        begin = cuts[level].gather(1, end).long()
        begins.scatter_(1, begin, 1)
        end = begin - 1
    return begins
