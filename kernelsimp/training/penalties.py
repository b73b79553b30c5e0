"""Penalties on kernels while a network trains, and the soft hold.

A penalty is a number a kernel with a gradient, the mean over all kernels larger than 1x1 added to the loss;
all are unchanged when a kernel is multiplied by a number. To add one, add a row to `PENALTIES`.

The soft hold draws kernels towards their structure, ever harder, and puts them into it at the end. Its
penalty rho * ||(I - P) w||^2 is applied as an exact proximal step after each step of the optimiser,
w <- P w + (w - P w) / (1 + 2 lr rho): stable for every rho, and no momentum carries it on. Source: Parikh
and Boyd, Proximal algorithms, 2014.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels.families import SEVENTEEN, offered_families
from kernelsimp.kernels.subspace import Shape
from kernelsimp.models.layers import CONVOLUTIONS
from kernelsimp.records.plan import Plan
from kernelsimp.training.hold import projections
from kernelsimp.training.information import Rate, beside, root_mean_square, value_entropy

OfKernels = Callable[[Tensor], Tensor]
"""From kernels (n, *grid) to the penalty of each, (n,)."""

GAP = 0.1
"""A gap between two values counts as half a distinct value at this share of the kernel's root mean square."""


class Pull:
    """Draws the weights of `model` towards `plan`; `rho` is reached at the last step."""

    def __init__(self, model: nn.Module, plan: Plan, rho: float) -> None:
        self._rho = rho
        self._parts = projections(model, plan)

    @torch.no_grad()
    def step(self, lr: float, progress: float) -> None:
        """Shrink what is outside the structure; `progress` runs from 0 to 1 over the whole training."""
        shrink = 1 / (1 + 2 * lr * self._rho * progress)
        for weight, tied in self._parts:
            inside = tied.project(weight)
            weight.copy_(inside + shrink * (weight - inside))

    @torch.no_grad()
    def snap(self) -> None:
        """Write every kernel into its structure, exactly."""
        for weight, tied in self._parts:
            weight.copy_(tied.project(weight))

    @torch.no_grad()
    def outside(self) -> float:
        """Return ||(I - P) w|| / ||w|| over all layers of the plan."""
        left = sum(float((weight - tied.project(weight)).square().sum()) for weight, tied in self._parts)
        whole = sum(float(weight.square().sum()) for weight, _ in self._parts)
        return (left / whole) ** 0.5 if whole else 0.0


@dataclass(frozen=True)
class PenaltySettings:
    """How penalties work: `families` for the asymmetry (the seventeen by default), the `schedule` of their
    weights over the training, and how the rate rounds (`noise` or `straight-through`)."""

    families: tuple[str, ...] | None = None
    schedule: str = "ramp"
    rounding: str = "noise"


@dataclass(frozen=True)
class PenaltyTerm:
    """One row: what is measured, in which unit, and how to build it for kernels of one grid."""

    meaning: str
    build: Callable[[Shape, PenaltySettings], OfKernels]


def _asymmetry(grid: Shape, settings: PenaltySettings) -> OfKernels:
    """Return ||(I - P) w|| / ||w|| for the nearest of the families offered at `grid`; 0 where none is."""
    families = offered_families(grid, settings.families or SEVENTEEN)
    if not families:
        return lambda kernels: kernels.new_zeros(len(kernels))
    outside = beside(torch.from_numpy(np.hstack([item.subspace.complement for item in families])))
    widths = [item.subspace.complement.shape[1] for item in families]
    owner = beside(torch.repeat_interleave(torch.eye(len(families)), torch.tensor(widths), dim=0))

    def measure(kernels: Tensor) -> Tensor:
        flat = kernels.flatten(1)
        unit = flat / (root_mean_square(flat, dim=1) * math.sqrt(flat.shape[1]))
        nearest = ((unit @ outside(flat)).square() @ owner(flat)).amin(dim=1)
        return (nearest + 1e-8).sqrt()  # a slope of 1 down to a residual of 1e-4, none at 0

    return measure


def _smoothness(kernels: Tensor) -> Tensor:
    """Return the squares of the differences between neighbours over the squares of the cells."""
    rough = sum(kernels.diff(dim=axis).flatten(1).square().sum(1) for axis in range(1, kernels.ndim))
    assert isinstance(rough, Tensor)
    return rough / (kernels[0].numel() * root_mean_square(kernels.flatten(1), dim=1)[:, 0].square())


def _distinct(kernels: Tensor) -> Tensor:
    """Return a soft count of distinct values less one: a gap g between sorted values adds g / (g + 0.1)."""
    flat = kernels.flatten(1)
    ordered = (flat / root_mean_square(flat, dim=1)).sort(dim=1).values
    gaps = ordered.diff(dim=1)
    return (gaps / (gaps + GAP)).sum(dim=1)


PENALTIES: dict[str, PenaltyTerm] = {
    "asymmetry": PenaltyTerm("relative residual ||(I - P) w|| / ||w|| of the nearest family", _asymmetry),
    "rate": PenaltyTerm(
        "bits of the symmetry-adapted coefficients", lambda grid, how: Rate(grid, how.rounding)
    ),
    "entropy": PenaltyTerm("bits of a kernel's own values, in a soft histogram", lambda *_: value_entropy),
    "smoothness": PenaltyTerm(
        "squared steps between neighbouring cells over the energy", lambda *_: _smoothness
    ),
    "distinct": PenaltyTerm("soft count of distinct values, less one", lambda *_: _distinct),
}
"""Every penalty by name."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "ramp": lambda t: t,
    "late": lambda t: max(0.0, 2 * t - 1),
    "early": lambda t: 1 - t,
}
"""The share of a penalty's weight while `t` runs from 0 to 1 over the training."""


class Penalties:
    """Weighted penalties on all kernels of `model` larger than 1x1, to be added to any loss.

        penalties = Penalties(model, {"rate": 1.0, "asymmetry": 0.5})
        ...
        loss = F.cross_entropy(model(images), labels) + penalties(step / steps)

    `weights` are {name: weight}, names from `PENALTIES`. By description length a bit a kernel weighs
    kernels * ln 2 / images: near 1 for a thousand kernels and images; a weight far below does little.
    Calling it with the progress, 0..1, returns the weighted sum; `values` returns each penalty itself, the
    mean over kernels. Constrained and held layers count with the weights they compute. Raises
    `KernelsimpError` for an unknown name, family, schedule or rounding, weights that are negative or all
    zero, and a network without kernels larger than 1x1.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, float],
        settings: PenaltySettings = PenaltySettings(),
    ) -> None:
        check_penalties(weights, settings)
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self._schedule = SCHEDULES[settings.schedule]
        self._layers = [
            (module, {name: PENALTIES[name].build(grid, settings) for name in self.weights})
            for module, grid in _spatial(model)
        ]
        if not self._layers:
            raise KernelsimpError("penalties: the network has no kernel larger than 1x1")
        if settings.families and "asymmetry" in self.weights:
            _check_families(settings.families, [grid for _, grid in _spatial(model)])

    def __call__(self, progress: float = 1.0) -> Tensor:
        parts = [self.weights[name] * value for name, value in self._means().items()]
        return self._schedule(progress) * torch.stack(parts).sum()

    @torch.no_grad()
    def values(self) -> dict[str, float]:
        """Return each penalty without its weight: the mean over the kernels."""
        return {name: float(value) for name, value in self._means().items()}

    def _means(self) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        total = 0
        for module, measures in self._layers:
            weight = module.weight
            assert isinstance(weight, Tensor)
            kernels = _kernels(weight)
            total += len(kernels)
            for name, measure in measures.items():
                part = measure(kernels).sum()
                sums[name] = sums[name] + part if name in sums else part
        return {name: value / total for name, value in sums.items()}


def read_penalties(words: Sequence[str]) -> dict[str, float]:
    """Return {name: weight} of words NAME:WEIGHT; raises `KernelsimpError` for a word that is none."""
    result: dict[str, float] = {}
    for word in words:
        name, _, weight = word.partition(":")
        try:
            result[name.strip()] = float(weight)
        except ValueError:
            raise KernelsimpError(f"--penalty '{word}'; expected NAME:WEIGHT, such as rate:1") from None
    return result


def check_penalties(weights: Mapping[str, float], settings: PenaltySettings) -> None:
    """Raise `KernelsimpError` for penalties that make no sense."""
    for name, weight in weights.items():
        if name not in PENALTIES:
            raise KernelsimpError(f"unknown penalty '{name}'{did_you_mean(name, PENALTIES)}")
        if not 0 <= weight < math.inf:
            raise KernelsimpError(f"the weight of penalty '{name}' is {weight:g}; expected 0 or more")
    if not any(weights.values()):
        raise KernelsimpError("every penalty has weight 0; give one a weight, or leave penalties out")
    if settings.schedule not in SCHEDULES:
        known = did_you_mean(settings.schedule, SCHEDULES)
        raise KernelsimpError(f"unknown penalty schedule '{settings.schedule}'{known}")


def _check_families(families: tuple[str, ...], grids: Sequence[Shape]) -> None:
    if not any(offered_families(grid, families) for grid in grids):
        shapes = ", ".join(sorted({"x".join(map(str, grid)) for grid in grids}))
        raise KernelsimpError(f"asymmetry: none of {', '.join(families)} is offered for kernels of {shapes}")


def _spatial(model: nn.Module) -> list[tuple[nn.Module, Shape]]:
    """Return each convolution with kernels larger than 1x1 and its grid; a shared weight once."""
    found: dict[int, tuple[nn.Module, Shape]] = {}
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS) and any(side > 1 for side in module.kernel_size):
            computed = parametrize.is_parametrized(module, "weight")
            name = "parametrizations.weight.original" if computed else "weight"
            grid = tuple(int(side) for side in module.kernel_size)
            key = id(module.get_parameter(name)) if _has(module, name) else id(module)
            found.setdefault(key, (module, (1, *grid) if len(grid) == 1 else grid))
    return list(found.values())


def _has(module: nn.Module, name: str) -> bool:
    return name in dict(module.named_parameters())


def _kernels(weight: Tensor) -> Tensor:
    """Return every kernel of a stored weight (a, b, *grid) as (a * b, *grid); those of Conv1d are (1, k)."""
    flat = weight.flatten(0, 1)
    return flat[:, None] if flat.ndim == 2 else flat
