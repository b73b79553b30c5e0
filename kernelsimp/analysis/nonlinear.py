"""Structures that are no linear subspace: rank, few distinct values, equal lines in any grouping, templates.

Each is measured on all kernels of a layer, and on random kernels beside them: shuffled cells (`permuted`)
for rank, lines and templates, Gaussian kernels of the layer's own covariance (`matched`) for few values,
whose number shuffling cannot change. Residuals are relative; `numbers` weighs a structure's choices too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.analysis.examine import Examined
from kernelsimp.kernels import few_values, partitions, rank, template_fit
from kernelsimp.kernels.cells import Grid, chunks, grid_of
from kernelsimp.kernels.covariance import gaussian_kernels, permuted_kernels, second_moment
from kernelsimp.kernels.families import MOST_LINES, SEVENTEEN
from kernelsimp.kernels.nulls import Sampled, sampled_null
from kernelsimp.kernels.pictures import CHOICE_BITS_PER_NUMBER
from kernelsimp.kernels.residuals import residuals
from kernelsimp.kernels.subspace import Floats
from kernelsimp.kernels.template_fit import Effort, TemplateFit
from kernelsimp.kernels.templates import by_name, degrees_of_freedom

MOST_CELLS = 169
"""Kernels of more cells (beyond 13 x 13) are measured against the linear families only."""

FEWEST_LINES = 4
"""With up to three lines the linear pairs of equal lines already hold every grouping."""

SHALLOW_COUNTS = (2, 3)
CHUNK = 8192
DRAWS = (256, 2000)
"""Random kernels a layer: four for each of its own, within these bounds."""

TEMPLATE_DRAWS = 500
"""Of those, how many are fitted by templates, which cost fifty times what the others do."""

WORTH = 2 / 3
"""A structure is a kernel's best only where it leaves at most this share of its numbers."""


@dataclass(frozen=True)
class SearchDepth:
    """How hard to look: `deep` adds templates and all counts of values; `seed` draws the random kernels."""

    tolerance: float = 0.1
    deep: bool = True
    seed: int = 0

    @property
    def effort(self) -> Effort:
        """The effort of a template fit that loses nothing within the tolerance."""
        return Effort(reach=min(1.0, 4 * self.tolerance))


@dataclass(frozen=True, eq=False)
class Measured:
    """One structure on some kernels: residual (n,) is 1 where the structure is not the kernel's own.

    `dim` counts continuous numbers, `numbers` (n,) adds the choice that goes with them; `codimension` is
    known where the structure is a smooth set.
    """

    name: str
    dim: int
    numbers: Floats
    residual: NDArray[np.float32]
    codimension: int | None = None


@dataclass(frozen=True, eq=False)
class NonlinearStructure:
    """A structure in one layer beside chance: `null` names how the random kernels were drawn."""

    measured: Measured
    null: str
    chance: Sampled

    @property
    def name(self) -> str:
        return self.measured.name


@dataclass(frozen=True, eq=False)
class NonlinearStructures:
    """All structures of one layer that are no subspace; the template fit and partitions where looked for.

    `lines` (n,) are the partitions found by kernel, in words, for each axis where lines are enough.
    """

    structures: tuple[NonlinearStructure, ...] = ()
    fitted: TemplateFit | None = None
    lines: tuple[partitions.EqualLines, ...] = ()


def nonlinear_structures(examined: Examined, depth: SearchDepth) -> NonlinearStructures:
    """Measure a layer's kernels, and random kernels, against every structure that is no subspace."""
    kernels = planar(examined)
    live = torch.from_numpy(~examined.dead)
    if kernels is None or not bool(live.any()) or examined.cells > MOST_CELLS:
        return NonlinearStructures()
    fitted = template_fit.fit(kernels, effort=depth.effort) if depth.deep else None
    lines = tuple(_equal_lines(kernels, depth.tolerance))
    shuffled = permuted_kernels(kernels[live], draws(int(live.sum())), depth.seed)
    gaussian = _gaussian(kernels[live], depth.seed)
    again = template_fit.fit(shuffled[:TEMPLATE_DRAWS], effort=depth.effort) if depth.deep else None
    pairs = [
        ("permuted", _ranks(kernels), _ranks(shuffled)),
        ("matched", _few(kernels, depth), _few(gaussian, depth)),
        ("permuted", _group_lines(lines), _group_lines(tuple(_equal_lines(shuffled, depth.tolerance)))),
        ("permuted", _templates(fitted), _templates(again)),
    ]
    made = (
        NonlinearStructure(own, null, sampled_null(null, torch.from_numpy(chance.residual), own.codimension))
        for null, measured, random in pairs
        for own, chance in zip(measured, random, strict=True)
    )
    return NonlinearStructures(tuple(made), fitted, lines)


def count_near_any(
    examined: Examined, shapes: NonlinearStructures, depth: SearchDepth
) -> dict[str, float] | None:
    """Return how many live kernels lie near one of the seventeen families or rank one, and by chance.

    Chance is the same kernels with their cells shuffled: 62 % against 16 % in a detector's depthwise layers.
    """
    kernels, live = planar(examined), ~examined.dead
    if kernels is None or not live.any() or examined.cells > MOST_CELLS:
        return None
    linear = [i for i, family in enumerate(examined.families) if family.name in SEVENTEEN]
    near = (examined.residual[:, linear] <= depth.tolerance).any(axis=1)
    measured = [item.measured for item in shapes.structures] or _ranks(kernels)
    for item in measured:
        if item.name == "rank-one":
            near |= item.residual <= depth.tolerance
    random = permuted_kernels(kernels[torch.from_numpy(live)], draws(int(live.sum())), depth.seed)
    spaces = [family.subspace for family in examined.families]  # all: their shared bases are at hand
    by_chance = torch.zeros(len(random), dtype=torch.bool)
    if spaces:
        by_chance |= (residuals(random, spaces)[:, linear] <= depth.tolerance).any(dim=1)
    if rank.is_offered(grid_of(random), 1):
        by_chance |= rank.residual(random) <= depth.tolerance
    count = int(live.sum())
    expected = float(by_chance.double().mean()) * count
    return {"observed": int((near & live).sum()), "permuted": expected, "live": count}


def planar(examined: Examined) -> Tensor | None:
    """Return a layer's kernels as (n, kh, kw), float32 or float64; None for kernels of three sides."""
    layer = examined.layer
    if len(layer.grid) != 2:
        return None
    wide = torch.float64 if layer.kernels.dtype == torch.float64 else torch.float32
    return layer.kernels.detach().reshape(-1, *layer.grid).to(wide)


def draws(count: int) -> int:
    """Return how many random kernels stand beside `count` live ones."""
    return int(min(max(4 * count, DRAWS[0]), DRAWS[1]))


def worth(measured: Measured, cells: int) -> NDArray[np.bool_]:
    """Say for each kernel whether the structure leaves few enough numbers to be worth naming, (n,)."""
    return np.asarray(measured.numbers <= WORTH * cells)


def _gaussian(kernels: Tensor, seed: int) -> Tensor:
    """Draw Gaussian kernels with the layer's covariance; white ones where it cannot be estimated."""
    grid, cells = grid_of(kernels), kernels[0].numel()
    enough = len(kernels) >= 2 * cells
    covariance = second_moment(kernels) if enough else np.eye(cells)
    return gaussian_kernels(covariance, grid, draws(len(kernels)), seed)


def _plain(name: str, numbers: float, residual: Tensor, smooth: int | None) -> Measured:
    """Return a structure that every kernel is measured against with the same numbers left."""
    r = residual.nan_to_num(1.0).float().numpy()
    return Measured(name, int(numbers), np.full(len(r), numbers), r, smooth)


def _ranks(kernels: Tensor) -> list[Measured]:
    grid = grid_of(kernels)
    wanted = [(1, "rank-one"), (2, "rank-two")]
    offered = [(k, name) for k, name in wanted if rank.is_offered(grid, k)]
    residual = rank.residuals(kernels) if offered else torch.zeros(0, 0)
    cells = grid[0] * grid[1]
    return [
        _plain(name, rank.dof(grid, k), residual[:, k - 1], cells - rank.dof(grid, k)) for k, name in offered
    ]


def _few(kernels: Tensor, depth: SearchDepth) -> list[Measured]:
    grid = grid_of(kernels)
    wanted = few_values.COUNTS if depth.deep else SHALLOW_COUNTS
    counts = [u for u in wanted if few_values.is_offered(grid, u)]
    if not counts:
        return []
    if depth.deep:
        residual = {found.values: found.residual for found in few_values.fit_all(kernels, counts)}
    else:
        residual = few_values_where_near(kernels, counts, depth.tolerance)
    bits = {u: partitions.bits(grid[0] * grid[1], u) / CHOICE_BITS_PER_NUMBER for u in counts}
    return [
        Measured(f"few-values-{u}", u, np.full(len(r), u + bits[u]), r.nan_to_num(1.0).float().numpy())
        for u, r in residual.items()
    ]


def few_values_where_near(kernels: Tensor, counts: Sequence[int], tolerance: float) -> dict[int, Tensor]:
    """Return residuals of two and three values, (n,): rough in float32 (1e-3) beyond the tolerance."""
    parts = [_rough_few(part) for part in chunks(kernels.flatten(1).float(), CHUNK)]
    rough = torch.cat(parts, dim=1)
    near = torch.nonzero((rough <= tolerance + 0.01).any(dim=0) | ~rough.isfinite().all(dim=0))[:, 0]
    exact = few_values.fit_all(kernels[near], counts)
    return {
        found.values: rough[found.values - 2].double().index_copy(0, near, found.residual) for found in exact
    }


def _rough_few(flat: Tensor) -> Tensor:
    """Return the residuals of the best split of sorted cells (n, cells) into two and three runs, (2, n).

    ||w - v||^2 = ||w||^2 - sum over runs of (sum of the run)^2 / its length, over all places of the cuts.
    """
    ordered = flat.sort(dim=1).values.T.contiguous()
    cells = len(ordered)
    sums = torch.cat([torch.zeros_like(ordered[:1]), ordered.cumsum(dim=0)])
    head = [sums[i].square() / i for i in range(1, cells)]
    tail = [(sums[-1] - sums[i]).square() / (cells - i) for i in range(1, cells)]
    two = torch.stack([first + last for first, last in zip(head, tail, strict=True)]).amax(dim=0)
    three = two.clone()
    for i in range(1, cells - 1):
        middle = sums[i + 1 : cells] - sums[i]
        length = torch.arange(1, cells - i, dtype=flat.dtype)[:, None]
        rest = torch.stack(tail[i:])
        three = torch.maximum(three, (middle.square() / length + rest).amax(dim=0) + head[i - 1])
    whole = ordered.square().sum(dim=0)
    kept = torch.where(whole > 0, torch.stack([two, three]) / torch.where(whole > 0, whole, 1.0), 1.0)
    return (1 - kept).clamp(0, 1).sqrt()


def _equal_lines(kernels: Tensor, tolerance: float) -> list[partitions.EqualLines]:
    grid = grid_of(kernels)
    axes = [axis for axis in (0, 1) if grid[axis] >= FEWEST_LINES and max(grid) <= MOST_LINES]
    return [partitions.equal_lines(kernels, axis, tolerance) for axis in axes]


def _group_lines(lines: Sequence[partitions.EqualLines]) -> list[Measured]:
    """Return the kernels in which some lines are equal; their number of classes differs by kernel."""
    found = []
    for item in lines:
        count = item.grid[item.axis]
        joined = item.classes < count
        bits = np.array([0.0, *(partitions.bits(count, k) for k in range(1, count + 1))])
        numbers = item.dof.numpy() + bits[item.classes.numpy()] / CHOICE_BITS_PER_NUMBER
        residual = torch.where(joined, item.residual, 1.0).nan_to_num(1.0).float().numpy()
        dim = (count - 1) * item.grid[1 - item.axis]
        found.append(Measured(("row", "column")[item.axis] + "-groups", dim, numbers, residual))
    return found


def _templates(fitted: TemplateFit | None) -> list[Measured]:
    """Return one structure for each template, of the kernels that it fits best."""
    if fitted is None:
        return []
    template, residual = fitted.template.numpy(), fitted.residual.nan_to_num(1.0).float().numpy()
    found = []
    for index, name in enumerate(fitted.names):
        numbers = _numbers(name, fitted.grid)
        own = np.where(template == index, residual, np.float32(1)).astype(np.float32)
        cells = fitted.grid[0] * fitted.grid[1]
        found.append(Measured(name, numbers, np.full(len(own), float(numbers)), own, cells - numbers))
    return found


def _numbers(template: str, grid: Grid) -> int:
    return degrees_of_freedom(by_name(template), grid)
