"""Fits of templates to whole banks of kernels: w = a*T(shape) + b, compared by BIC.

a and b are profiled out; shape parameters come from a grid (one matrix product for all kernels and all
templates) and are refined by Levenberg-Marquardt for the few templates nearest to winning. Shape
parameters are rounded to float32 before a and b are taken, so a plan that stores them as float32 redraws
the very same kernel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from kernelsimp.kernels.cells import Grid, chunks, grid_of, norms, residual_of, rows_of
from kernelsimp.kernels.templates import (
    Template,
    by_name,
    degrees_of_freedom,
    draw,
    draw_centred,
    grid_points,
    offered_templates,
    parameters_of,
)

WIDTH = 4
"""The most shape parameters that any template has: the width of `TemplateFit.parameters`."""

CHUNK = 4096


@dataclass(frozen=True)
class Effort:
    """How hard to look: templates refined per kernel, and Levenberg-Marquardt steps for each.

    A template whose best grid point leaves a relative residual above `reach` stays at that point, and its
    residual is then an upper bound. At four times a scan's tolerance nothing that the scan reports is lost
    (measured on 3x3 kernels), and half the time is saved.
    """

    candidates: int = 3
    steps: int = 12
    reach: float = 1.0


@dataclass(frozen=True, eq=False)
class TemplateFit:
    """The best template of each of n kernels of shape `grid`.

    `template` (n,) indexes `names`, -1 where nothing is offered or the kernel is constant or not finite;
    `parameters` (n, 4) are shape parameters in the template's own order, zero beyond them; w = a*T + b with
    T of zero mean and unit norm. `residual` is ||w - aT - b|| / ||w||; `bic` is cells * ln(r^2 / cells) +
    parameters * ln(cells), less is better.
    """

    grid: Grid
    names: tuple[str, ...]
    template: Tensor
    parameters: Tensor
    a: Tensor
    b: Tensor
    residual: Tensor
    bic: Tensor

    @property
    def dof(self) -> Tensor:
        """Continuous numbers of each kernel's template, a and b among them, (n,); 1 where there is none."""
        table = torch.tensor([*(degrees_of_freedom(by_name(name), self.grid) for name in self.names), 1])
        return table[self.template]

    def value(self, parameter: str) -> Tensor:
        """Return one shape parameter, (n,), NaN for kernels whose template has none of that name."""
        found = torch.full_like(self.a, torch.nan)
        for index, name in enumerate(self.names):
            for place, item in enumerate(parameters_of(by_name(name), self.grid)):
                if item.name == parameter:
                    found = torch.where(self.template == index, self.parameters[:, place], found)
        return found


def fit(kernels: Tensor, names: Sequence[str] | None = None, effort: Effort = Effort()) -> TemplateFit:
    """Fit every offered template to kernels (n, kh, kw) and keep the best of each by BIC.

    `names` restricts the table; raises `KernelsimpError` for an unknown name.
    """
    grid = grid_of(kernels)
    chosen = _choose_templates(grid, None if names is None else tuple(names))
    floor = 2 * float(torch.finfo(kernels.dtype).eps)
    parts = [_fit_chunk(chunk, chosen, floor, effort) for chunk in chunks(kernels, CHUNK)] if chosen else []
    if not parts:
        return _nothing(kernels, chosen)
    return _join_fits(parts)


def from_parameters(grid: Grid, names: Sequence[str], template: Tensor, parameters: Tensor) -> TemplateFit:
    """Return the fit that stored choices describe, with a and b still to be taken by `profile`."""
    zero = torch.zeros(len(template), dtype=torch.float64)
    wide = parameters.double()
    return TemplateFit(grid, tuple(names), template.long(), wide, zero, zero, zero, zero)


def shapes(fitted: TemplateFit) -> Tensor:
    """Return T of every kernel, (n, cells), zero mean and unit norm, zeros where it has no template.

    span{T, 1} is the subspace in which a and b are free.
    """
    drawn = torch.zeros(len(fitted.a), fitted.grid[0] * fitted.grid[1], dtype=torch.float64)
    for index, name in enumerate(fitted.names):
        rows = torch.nonzero(fitted.template == index)[:, 0]
        if len(rows):
            drawn[rows] = draw(by_name(name), fitted.grid, fitted.parameters[rows])
    return drawn


def profile(kernels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, b and the relative residual of kernels (n, kh, kw) on span{T, 1}, T drawn (n, cells).

    This is how membership is verified: what was written is compared with span{T, 1} drawn in float64.
    """
    flat, broken = rows_of(kernels)
    return _profile(flat, drawn, broken)


@lru_cache(maxsize=64)
def _choose_templates(grid: Grid, names: tuple[str, ...] | None) -> tuple[Template, ...]:
    wanted = None if names is None else {by_name(name).name for name in names}
    return tuple(item for item in offered_templates(grid) if wanted is None or item.name in wanted)


@dataclass(frozen=True, eq=False)
class _Search:
    """All grid points of all templates: unit drawings (cells, G) in float32 and where each one begins."""

    drawings: Tensor
    points: tuple[Tensor, ...]
    starts: tuple[int, ...]


@lru_cache(maxsize=16)
def _search(grid: Grid, chosen: tuple[Template, ...]) -> _Search:
    drawings, points, starts = [], [], [0]
    for template in chosen:
        at = grid_points(template, grid)
        drawn = draw(template, grid, at)
        alive = drawn.any(dim=1)
        drawings.append(drawn[alive])
        points.append(at[alive])
        starts.append(starts[-1] + int(alive.sum()))
    return _Search(torch.cat(drawings).T.float().contiguous(), tuple(points), tuple(starts))


def _fit_chunk(kernels: Tensor, chosen: tuple[Template, ...], floor: float, effort: Effort) -> TemplateFit:
    flat, broken = rows_of(kernels)
    grid = grid_of(kernels)
    centred = flat - flat.mean(dim=1, keepdim=True)
    size = norms(centred)
    shapely = size > 1e-12 * norms(flat)
    unit = torch.where(shapely[:, None], centred / torch.where(size > 0, size, 1.0)[:, None], 0.0)
    points, correlation = _best_points(unit, _search(grid, chosen))
    whole = norms(flat)
    share = torch.where(whole > 0, size / torch.where(whole > 0, whole, 1.0), 0.0)
    dofs = torch.tensor([degrees_of_freedom(item, grid) for item in chosen])
    rough = share[:, None] * (1 - correlation.square()).clamp_min(0).sqrt()
    ranking = _bic(rough, dofs[None], floor, flat.shape[1])
    contest = _Contest(grid, chosen, flat, broken, floor)
    best = _nothing(kernels, chosen)
    order = ranking.argsort(dim=1, stable=True)[:, : effort.candidates]
    for index in range(len(chosen)):
        rows = torch.nonzero((order == index).any(dim=1) & shapely)[:, 0]
        if len(rows):
            found = points[rows, index, : len(parameters_of(chosen[index], grid))].clone()
            near = rough[rows, index] <= effort.reach
            found[near] = _refine(chosen[index], grid, unit[rows[near]], (found[near], effort.steps))
            contest.enter(best, index, rows, found)
    return best


def _best_points(unit: Tensor, search: _Search) -> tuple[Tensor, Tensor]:
    """Return each template's best grid point, (n, templates, 4), and its |correlation|, (n, templates)."""
    product = (unit.float() @ search.drawings).abs_()
    points = torch.zeros(len(unit), len(search.points), WIDTH, dtype=torch.float64)
    correlation = torch.zeros(len(unit), len(search.points), dtype=torch.float64)
    for index, (first, last) in enumerate(pairwise(search.starts)):
        top, place = product[:, first:last].max(dim=1)
        at = search.points[index]
        points[:, index, : at.shape[1]] = at[place]
        correlation[:, index] = top
    return points, correlation.clamp(max=1)


@dataclass(frozen=True, eq=False)
class _Contest:
    """What a refined template is judged on; `enter` writes it into the fit where it wins."""

    grid: Grid
    chosen: tuple[Template, ...]
    flat: Tensor
    broken: Tensor
    floor: float

    def enter(self, best: TemplateFit, index: int, rows: Tensor, refined: Tensor) -> None:
        template = self.chosen[index]
        parameters = _round_parameters(template, self.grid, refined)
        shape = draw(template, self.grid, parameters)
        a, b, residual = _profile(self.flat[rows], shape, self.broken[rows])
        dof = torch.tensor(degrees_of_freedom(template, self.grid))
        bic = _bic(residual, dof, self.floor, self.flat.shape[1])
        wins = torch.nonzero(bic < best.bic[rows])[:, 0]
        won = rows[wins]
        best.template[won] = index
        best.parameters[won] = 0.0
        best.parameters[won, : parameters.shape[1]] = parameters[wins]
        for name, value in (("a", a), ("b", b), ("residual", residual), ("bic", bic)):
            getattr(best, name)[won] = value[wins]


def _profile(flat: Tensor, shape: Tensor, broken: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, b and the residual of least squares on span{T, 1}, T centred and of unit norm or zero."""
    b = flat.mean(dim=1)
    centred = flat - b[:, None]
    a = (centred * shape).sum(dim=1)
    return a, b, residual_of(flat, centred - a[:, None] * shape, broken)


def _bic(residual: Tensor, dof: Tensor, floor: float, cells: int) -> Tensor:
    """Return cells * ln(r^2 / cells) + dof * ln(cells), with r no less than what rounding leaves."""
    r = residual.nan_to_num(1.0).clamp_min(floor)
    return cells * torch.log(r.square() / cells) + dof * math.log(cells)


def _refine(template: Template, grid: Grid, unit: Tensor, start: tuple[Tensor, int]) -> Tensor:
    """Improve shape parameters (m, k) by Levenberg-Marquardt on the profiled residual; natural units."""
    theta, steps = _inner(template, grid, start[0]), start[1]
    if theta.shape[1] == 0:
        return theta
    error = 1 - _cosine(template, grid, unit, theta).square()
    damping = torch.full_like(error, 1e-2)
    active = torch.arange(len(theta))
    for _ in range(steps):
        tried = _step(template, grid, (unit[active], theta[active]), damping[active])
        after = _squared_residual(template, grid, unit[active], tried)
        before = error[active]
        better = after < before
        rows = active[better]
        theta[rows], error[rows] = tried[better], after[better]
        damping[active] = torch.where(better, damping[active] * 0.1, damping[active] * 10)
        going = torch.where(better, before - after > 1e-14 * before, damping[active] < 1e4)
        active = active[going & (error[active] > 1e-30)]
        if len(active) == 0:
            break
    return _outer(template, grid, theta)


def _step(template: Template, grid: Grid, at: tuple[Tensor, Tensor], damping: Tensor) -> Tensor:
    """Return the next parameters: (J'J + mu diag) d = -J'R, J by central differences (Kaufman's form)."""
    unit, theta = at
    centred, norm = draw_centred(template, grid, _outer(template, grid, theta))
    safe = torch.where(norm > 0, norm, 1.0)
    shape = centred / safe
    height = (unit * shape).sum(dim=1, keepdim=True)
    left = unit - height * shape
    columns = []
    for place in range(theta.shape[1]):
        move = torch.zeros_like(theta)
        move[:, place] = 1e-5
        up, _ = draw_centred(template, grid, _outer(template, grid, theta + move))
        down, _ = draw_centred(template, grid, _outer(template, grid, theta - move))
        slope = (up - down) / (2e-5 * safe)
        columns.append(-height * (slope - shape * (shape * slope).sum(dim=1, keepdim=True)))
    jacobian = torch.stack(columns, dim=2)
    normal = jacobian.mT @ jacobian
    diagonal = normal.diagonal(dim1=1, dim2=2)
    normal = normal + torch.diag_embed(damping[:, None] * diagonal + 1e-14)
    gradient = (jacobian.mT @ left[:, :, None])[:, :, 0]
    move, _ = torch.linalg.solve_ex(normal, gradient)
    return _within(template, grid, theta - move.nan_to_num(0.0).clamp(-0.7, 0.7))


def _cosine(template: Template, grid: Grid, unit: Tensor, theta: Tensor) -> Tensor:
    return (unit * draw(template, grid, _outer(template, grid, theta))).sum(dim=1)


def _squared_residual(template: Template, grid: Grid, unit: Tensor, theta: Tensor) -> Tensor:
    """Return the squared residual beside span{T}, not through 1 - cos^2, which is blind below 1e-16."""
    shape = draw(template, grid, _outer(template, grid, theta))
    return (unit - (unit * shape).sum(dim=1, keepdim=True) * shape).square().sum(dim=1)


def _inner(template: Template, grid: Grid, natural: Tensor) -> Tensor:
    """Natural units to the units of the search: logarithms of lengths that are positive."""
    return _map_parameters(template, grid, natural, torch.log)


def _outer(template: Template, grid: Grid, theta: Tensor) -> Tensor:
    return _map_parameters(template, grid, theta, torch.exp)


def _map_parameters(
    template: Template, grid: Grid, values: Tensor, change: Callable[[Tensor], Tensor]
) -> Tensor:
    free = parameters_of(template, grid)
    columns = [change(values[:, i]) if p.scale == "log" else values[:, i] for i, p in enumerate(free)]
    return torch.stack(columns, dim=1) if columns else values


def _within(template: Template, grid: Grid, theta: Tensor) -> Tensor:
    """Keep lengths inside their bounds; turns run freely."""
    held = theta.clone()
    for place, item in enumerate(parameters_of(template, grid)):
        low, high = item.bounds(grid)
        if item.scale == "log":
            held[:, place] = theta[:, place].clamp(math.log(low), math.log(high))
        elif item.scale == "linear":
            held[:, place] = theta[:, place].clamp(low, high)
    return held


def _round_parameters(template: Template, grid: Grid, natural: Tensor) -> Tensor:
    """Wrap turns into half a circle and round to float32.

    Half a turn of the angle reverses the axis of variation: offset and phase change sign with it, and
    whatever sign is left over goes into a.
    """
    values = natural.clone()
    places = {item.name: place for place, item in enumerate(parameters_of(template, grid))}
    if "angle" in places:
        turns = torch.floor(values[:, places["angle"]] / math.pi)
        values[:, places["angle"]] -= turns * math.pi
        for name in ("offset", "phase"):
            if name in places:
                values[:, places[name]] *= 1 - 2 * (turns % 2)
    if "phase" in places:
        values[:, places["phase"]] %= math.pi
    return values.float().double()


def _nothing(kernels: Tensor, chosen: tuple[Template, ...]) -> TemplateFit:
    """Return the fit of no template: the mean alone."""
    flat, broken = rows_of(kernels)
    mean = flat.mean(dim=1)
    residual = residual_of(flat, flat - mean[:, None], broken)
    none = torch.full((len(flat),), -1, dtype=torch.int64)
    parameters = torch.zeros(len(flat), WIDTH, dtype=torch.float64)
    names = tuple(item.name for item in chosen)
    grid = grid_of(kernels)
    lost = torch.full_like(mean, torch.inf)
    return TemplateFit(grid, names, none, parameters, torch.zeros_like(mean), mean, residual, lost)


def _join_fits(parts: Sequence[TemplateFit]) -> TemplateFit:
    first = parts[0]
    names = ("template", "parameters", "a", "b", "residual", "bic")
    arrays = [torch.cat([getattr(part, name) for part in parts]) for name in names]
    return TemplateFit(first.grid, first.names, *arrays)
