"""The table of templates: known shapes T, fitted to kernels as a*T + b.

A template is drawn on cell coordinates counted from the kernel's centre, x to the right and y down, in
cells. `angle` is the direction *along which the template varies*, from x towards y, in radians; lengths are
in cells. Before use T is centred to zero mean and scaled to unit norm, so that `b` is the kernel's mean and
|a| the norm of what remains, and nothing cancels when a template is nearly flat. To add one, add a row.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels.cells import Grid

Scale = Literal["log", "linear", "turn"]
Named = Mapping[str, Tensor]

FLAT = 1e-9
"""A drawing whose centred norm is under this share of its norm is a constant, hence no template."""


@dataclass(frozen=True)
class Parameter:
    """One shape parameter: bounds, grid steps, and how the grid is spaced.

    `low` is in cells and `high` in longest sides for lengths (`log`, and `linear` runs symmetrically from
    -high to high in units of half the longest side); a `turn` runs over half a circle and wraps.
    """

    name: str
    low: float
    high: float
    steps: int
    scale: Scale

    def bounds(self, grid: Grid) -> tuple[float, float]:
        """Return the least and the greatest value at this grid, in natural units."""
        if self.scale == "turn":
            return 0.0, math.pi
        if self.scale == "linear":
            reach = self.high * (max(grid) - 1) / 2
            return -reach, reach
        top = self.high * max(grid) if self.name != "ratio" else self.high
        return self.low, max(top, self.low * 1.5)

    def values(self, grid: Grid) -> Tensor:
        """Return the points of the search grid, (steps,), in natural units."""
        low, high = self.bounds(grid)
        if self.scale == "turn":
            return torch.arange(self.steps, dtype=torch.float64) * (high / self.steps)
        if self.scale == "linear":
            return torch.linspace(low, high, self.steps, dtype=torch.float64)
        return torch.linspace(math.log(low), math.log(high), self.steps, dtype=torch.float64).exp()


@dataclass(frozen=True, eq=False)
class Field:
    """Where the cells lie: `x` and `y` (cells,) from the centre, and `axes`, how many sides exceed 1."""

    grid: Grid
    y: Tensor
    x: Tensor

    @property
    def axes(self) -> int:
        return sum(side > 1 for side in self.grid)

    @property
    def square(self) -> Tensor:
        """The squared distance from the centre, (cells,)."""
        return self.x.square() + self.y.square()


Draw = Callable[[Field, Named], Tensor]


@dataclass(frozen=True)
class Template:
    """One row: `draw` gives (m, cells) from the cells' places and each parameter as (m, 1).

    `line` says whether it means something in a kernel of one row or one column, where angles are fixed.
    """

    name: str
    meaning: str
    parameters: tuple[Parameter, ...]
    draw: Draw
    line: bool = True


@lru_cache(maxsize=256)
def field_of(grid: Grid) -> Field:
    """Return the coordinates of the cells of a kernel of shape `grid`, row by row."""
    y, x = np.indices(grid).reshape(2, -1).astype(np.float64)
    return Field(grid, torch.from_numpy(y - (grid[0] - 1) / 2), torch.from_numpy(x - (grid[1] - 1) / 2))


def _across(field: Field, p: Named) -> Tensor:
    """The coordinate along which an angled template varies, (m, cells)."""
    return field.x * p["angle"].cos() + field.y * p["angle"].sin()


def _along(field: Field, p: Named) -> Tensor:
    return field.y * p["angle"].cos() - field.x * p["angle"].sin()


def _bell(field: Field, sigma: Tensor) -> Tensor:
    return torch.exp(-field.square / (2 * sigma.square()))


def _gaussian(field: Field, p: Named) -> Tensor:
    return _bell(field, p["sigma"])


def _orient(field: Field, p: Named) -> Tensor:
    u, v = _across(field, p) / p["sigma"], _along(field, p) / (p["ratio"] * p["sigma"])
    return torch.exp(-(u.square() + v.square()) / 2)


def _log(field: Field, p: Named) -> Tensor:
    return (1 - field.square / (2 * p["sigma"].square())) * _bell(field, p["sigma"])


def _dog(field: Field, p: Named) -> Tensor:
    """Two bells of equal integral; `ratio` is outer over inner width."""
    return _bell(field, p["sigma"]) - _bell(field, p["sigma"] * p["ratio"]) / p["ratio"] ** field.axes


def _first(field: Field, p: Named) -> Tensor:
    return _across(field, p) * _bell(field, p["sigma"])


def _second(field: Field, p: Named) -> Tensor:
    return (1 - (_across(field, p) / p["sigma"]).square()) * _bell(field, p["sigma"])


def _gabor(field: Field, p: Named) -> Tensor:
    wave = torch.cos(2 * math.pi * _across(field, p) / p["wavelength"] + p["phase"])
    return wave * _bell(field, p["sigma"])


def _bar(field: Field, p: Named) -> Tensor:
    """One inside |u - offset| < width / 2, with borders that fall over one cell."""
    return (p["width"] / 2 - (_across(field, p) - p["offset"]).abs() + 0.5).clamp(0, 1)


def _edge(field: Field, p: Named) -> Tensor:
    return (_across(field, p) - p["offset"] + 0.5).clamp(0, 1)


def _binomial(side: int) -> np.ndarray:
    return np.array([math.comb(side - 1, i) for i in range(side)], dtype=np.float64)


def _slope(side: int) -> np.ndarray:
    """The binomial derivative: -1 0 1 at three cells, -1 -2 0 2 1 at five."""
    return np.convolve(_binomial(side - 1), [-1.0, 1.0]) if side > 1 else np.zeros(1)


def _fixed_drawing(make: Callable[[Grid], np.ndarray]) -> Draw:
    return lambda field, p: torch.from_numpy(make(field.grid).reshape(1, -1))  # noqa: ARG005


def _sobel(axis: int) -> Draw:
    def make(grid: Grid) -> np.ndarray:
        sides = [_slope(side) if i == axis else _binomial(side) for i, side in enumerate(grid)]
        return np.outer(*sides)

    return _fixed_drawing(make)


def _prewitt(axis: int) -> Draw:
    def make(grid: Grid) -> np.ndarray:
        ramp = np.arange(grid[axis]) - (grid[axis] - 1) / 2
        return np.broadcast_to(ramp[:, None] if axis == 0 else ramp, grid).copy()

    return _fixed_drawing(make)


def _laplacian(neighbours: int) -> Draw:
    """The 4- or 8-neighbour Laplacian in the centre of an odd kernel, zero elsewhere."""

    def make(grid: Grid) -> np.ndarray:
        y, x = (np.abs(axis - side // 2) for axis, side in zip(np.indices(grid), grid, strict=True))
        if any(side % 2 == 0 for side in grid):
            return np.zeros(grid)
        near = (x + y == 1) if neighbours == 4 else (np.maximum(x, y) == 1)
        return np.where((x == 0) & (y == 0), -float(near.sum()), near.astype(np.float64))

    return _fixed_drawing(make)


_SIGMA = Parameter("sigma", 0.35, 1.0, 24, "log")
_ANGLE = Parameter("angle", 0.0, 1.0, 12, "turn")
_FINE_ANGLE = Parameter("angle", 0.0, 1.0, 24, "turn")
_OFFSET = Parameter("offset", 0.0, 1.0, 9, "linear")

TEMPLATES: tuple[Template, ...] = (
    Template("sobel-x", "smoothed difference from left to right", (), _sobel(1)),
    Template("sobel-y", "smoothed difference from top to bottom", (), _sobel(0)),
    Template("prewitt-x", "a ramp from left to right", (), _prewitt(1)),
    Template("prewitt-y", "a ramp from top to bottom", (), _prewitt(0)),
    Template("laplacian-4", "centre against its four neighbours", (), _laplacian(4)),
    Template("laplacian-8", "centre against its eight neighbours", (), _laplacian(8), line=False),
    Template("gaussian", "a round bell", (_SIGMA,), _gaussian),
    Template("laplacian-of-gaussian", "a bell's Laplacian: centre against ring", (_SIGMA,), _log, line=False),
    Template(
        "difference-of-gaussians",
        "a narrow bell less a wide one",
        (Parameter("sigma", 0.35, 0.6, 8, "log"), Parameter("ratio", 1.2, 6.0, 6, "log")),
        _dog,
    ),
    Template("gaussian-derivative", "a bell's slope in any direction", (_SIGMA, _ANGLE), _first),
    Template("second-derivative", "a bell's curvature in any direction", (_SIGMA, _ANGLE), _second),
    Template("edge", "a step in any direction", (_FINE_ANGLE, _OFFSET), _edge),
    Template(
        "oriented-gaussian",
        "a bell longer one way than the other",
        (Parameter("sigma", 0.35, 0.7, 7, "log"), Parameter("ratio", 1.0, 6.0, 6, "log"), _ANGLE),
        _orient,
        line=False,
    ),
    Template("bar", "a straight bar", (Parameter("width", 0.5, 0.6, 5, "log"), _ANGLE, _OFFSET), _bar),
    Template(
        "gabor",
        "a wave under a bell",
        (
            Parameter("wavelength", 2.0, 2.0, 6, "log"),
            Parameter("sigma", 0.4, 1.0, 5, "log"),
            _ANGLE,
            Parameter("phase", 0.0, 1.0, 6, "turn"),
        ),
        _gabor,
    ),
)

NAMES: tuple[str, ...] = tuple(template.name for template in TEMPLATES)


def parameters_of(template: Template, grid: Grid) -> tuple[Parameter, ...]:
    """Return the free shape parameters at `grid`: in a single row or column the angle is none."""
    return tuple(item for item in template.parameters if item.name != "angle" or min(grid) > 1)


def degrees_of_freedom(template: Template, grid: Grid) -> int:
    """Return the number of continuous parameters, a and b among them."""
    return 2 + len(parameters_of(template, grid))


def by_name(name: str) -> Template:
    """Return the template called `name`; raises `KernelsimpError` with the nearest known name."""
    for template in TEMPLATES:
        if template.name == name:
            return template
    raise KernelsimpError(f"unknown template '{name}'{did_you_mean(name, NAMES)}")


def draw(template: Template, grid: Grid, parameters: Tensor) -> Tensor:
    """Draw T at each row of `parameters` (m, k) in natural units: (m, cells), float64, zero mean, unit norm.

    A drawing that is constant over the cells (a Gaussian on 2x2 cells) comes back as zeros.
    """
    centred, norm = draw_centred(template, grid, parameters)
    return torch.where(norm > 0, centred / torch.where(norm > 0, norm, 1.0), 0.0)


def draw_raw(template: Template, grid: Grid, parameters: Tensor) -> Tensor:
    """Return T as its formula has it, (m, cells), at each row of `parameters` (m, k) in natural units."""
    free = parameters_of(template, grid)
    named = {item.name: parameters[:, i : i + 1].double() for i, item in enumerate(free)}
    if min(grid) == 1:
        named["angle"] = torch.full((len(parameters), 1), 0.0 if grid[0] == 1 else math.pi / 2).double()
    return template.draw(field_of(grid), named).expand(len(parameters), -1)


def draw_centred(template: Template, grid: Grid, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Return T with its mean removed, (m, cells), and its norm, (m, 1), which is 0 where T is constant."""
    raw = draw_raw(template, grid, parameters)
    centred = raw - raw.mean(dim=1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    return centred, torch.where(norm > FLAT * raw.norm(dim=1, keepdim=True), norm, 0.0)


def grid_points(template: Template, grid: Grid) -> Tensor:
    """Return every point of the search grid, (g, k), in natural units."""
    axes = [item.values(grid) for item in parameters_of(template, grid)]
    if not axes:
        return torch.zeros(1, 0, dtype=torch.float64)
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


@lru_cache(maxsize=64)
def offered_templates(grid: Grid) -> tuple[Template, ...]:
    """Return the templates that mean something at `grid`, each fixed drawing once, in table order.

    Left out: those with as many parameters as cells, and those that are constant over the cells.
    """
    kept: list[Template] = []
    fixed: list[Tensor] = []
    cells = grid[0] * grid[1]
    for template in TEMPLATES:
        if cells <= degrees_of_freedom(template, grid) or (min(grid) == 1 and not template.line):
            continue
        drawn = draw(template, grid, grid_points(template, grid))
        if not bool(drawn.any()):
            continue
        if not template.parameters:
            if any(float((drawn * other).sum().abs()) > 1 - 1e-12 for other in fixed):
                continue
            fixed.append(drawn)
        kept.append(template)
    return tuple(kept)


def example(name: str, grid: Grid = (7, 7)) -> Tensor:
    """Return one drawing of a template, (kh, kw), from the middle of its search grid, for pictures."""
    template = by_name(name)
    free = parameters_of(template, grid)
    middle = [[0.0 if item.scale == "turn" else float(item.values(grid)[item.steps // 2]) for item in free]]
    parameters = torch.tensor(middle, dtype=torch.float64).reshape(1, len(free))
    return draw_raw(template, grid, parameters).reshape(grid)
