"""What the kernels of a layer must become: constraints of a fit, and how to write it.

Kernels are (out, in / groups, *grid). A plan's layer gives one target: linear families and flats of bent
sets are pieces of a constraint; kernels to be denoised are first free, then kept at what the denoiser makes
of their fitted values while everything else is fitted again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelsimp.kernels.structures import BENT, DENOISED, find, projectors
from kernelsimp.records.plan import FREE, LayerPlan, Plan
from kernelsimp.solver.apply import denoise_kernels, snap_layer, write_layer
from kernelsimp.solver.moments import Moments
from kernelsimp.solver.projected_cg import FilterConstraint, Piece

Meets = Callable[[Tensor], FilterConstraint]


@dataclass(frozen=True, eq=False)
class Target:
    """What the kernels of one layer must become: a subspace each, and how to write them into it exactly.

    `constraint` takes the original kernels, `write` those in the stored dtype, which it returns. `alone`
    makes the written kernels from the original ones without any fit, where that is not `write` of them.
    `around` gives the flats of bent sets at other kernels, and `settled` the last constraint, at fitted
    kernels in the stored dtype, with denoised ones fixed. Where there is `fit`, it makes the weights (groups,
    filters, D) from the original ones and the moments, in place of all this.
    """

    constraint: Meets
    write: Callable[[Tensor], Tensor]
    alone: Callable[[Tensor], Tensor] | None = None
    around: Meets | None = None
    settled: Meets | None = None
    fit: Callable[[Tensor, Moments], Tensor] | None = None

    def nearest_kernels(self, kernels: Tensor) -> Tensor:
        """Return the original kernels as written without any fit."""
        return (self.alone or self.write)(kernels)


def as_they_are() -> Target:
    """Return the target of a layer whose kernels stay, whatever its inputs have become."""
    return Target(
        constraint=lambda kernels: FilterConstraint(math.prod(kernels.shape[2:]), ()),
        write=lambda kernels: kernels,
        fit=lambda original, _: original,
    )


def targets_of(plan: Plan) -> dict[str, Target]:
    """Return the targets of the layers that a plan changes."""
    changed = [layer for layer in plan.layers if layer.changed.any()]
    return {layer.name: _target(layer, plan.structures) for layer in changed}


def _target(layer: LayerPlan, structures: tuple[str, ...]) -> Target:
    used = [structures[index] for index in np.unique(layer.choice) if index != FREE]

    def around(kernels: Tensor) -> FilterConstraint:
        return constraint_of(kernels, layer, structures)

    return Target(
        constraint=around,
        write=lambda kernels: write_layer(kernels, layer, structures),
        alone=lambda kernels: snap_layer(kernels, layer, structures),
        around=around if any(name in BENT for name in used) else None,
        settled=(lambda kernels: _settle_denoised(kernels, layer, structures))
        if any(name.startswith(DENOISED) for name in used)
        else None,
    )


def constraint_of(kernels: Tensor, layer: LayerPlan, structures: tuple[str, ...]) -> FilterConstraint:
    """Return what holds kernels to their families, and to the flats at these members of bent sets."""
    rows = kernels.detach().double().reshape(-1, *layer.grid)
    pieces = []
    for index in np.unique(layer.choice):
        if index == FREE or structures[index].startswith(DENOISED):
            continue
        mask = layer.choice == index
        place = torch.from_numpy(mask.reshape(-1)).nonzero()[:, 0]
        structure = find(structures[index], layer.grid, layer.shapes(mask))
        pieces.append(Piece(place, projectors(structure, rows[place])))
    return FilterConstraint(math.prod(layer.grid), tuple(pieces))


def _settle_denoised(kernels: Tensor, layer: LayerPlan, structures: tuple[str, ...]) -> FilterConstraint:
    """Return the constraint at these kernels with the denoised ones fixed at what becomes of them."""
    free = constraint_of(kernels, layer, structures)
    marks = torch.tensor([name.startswith(DENOISED) for name in structures])
    mask = marks[torch.from_numpy(layer.choice).long()].reshape(-1)
    made = denoise_kernels(kernels, layer, structures).detach().double().reshape(-1, free.cells)
    fixed = Piece(mask.nonzero()[:, 0], torch.zeros(free.cells, free.cells, dtype=torch.float64))
    return FilterConstraint(free.cells, (*free.pieces, fixed), made * mask[:, None])
