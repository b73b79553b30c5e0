"""What is left of a plan in kernels that may have moved: which still lie in their structure, and how nearly.

Kernels are canonical, (out, in / groups, *grid), by layer name.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kernelsimp.kernels.masks import kind_of
from kernelsimp.kernels.structures import find
from kernelsimp.records.plan import FREE, LayerPlan, Plan
from kernelsimp.records.report import Survived

NEAR = 0.1
"""The relative residual within which a kernel still counts as near its structure: a scan's default."""


def outside(kernels: Tensor, layer: LayerPlan, structures: tuple[str, ...]) -> Tensor:
    """Say for each kernel (out, in / groups) whether it has left the structure that the plan gave it."""
    result = torch.zeros(layer.choice.shape, dtype=torch.bool)
    for index in np.unique(layer.choice):
        if index != FREE:
            mask = layer.choice == index
            rows = torch.from_numpy(mask)
            result[rows] = ~find(structures[index], layer.grid, layer.shapes(mask)).holds(kernels[rows])
    return result


def count_survivors(plan: Plan, kernels: Mapping[str, Tensor]) -> Survived:
    """Count the simplified kernels that are still in their structure, exactly and nearly, by structure.

    A layer that `kernels` has not, such as a second name of a shared weight, does not count, nor does a
    denoised kernel, which is in no structure.
    """
    total, exact, near = Counter[str](), Counter[str](), Counter[str]()
    for layer in plan.layers:
        if layer.name not in kernels:
            continue
        for index in np.unique(layer.choice[layer.changed & ~plan.is_denoised(layer)]):
            mask = layer.choice == index
            rows = kernels[layer.name][torch.from_numpy(mask)]
            structure = find(plan.structures[index], layer.grid, layer.shapes(mask))
            kind = kind_of(plan.structures[index])
            total[kind] += len(rows)
            exact[kind] += int(structure.holds(rows).sum())
            near[kind] += int((structure.residual(rows) <= NEAR).sum())
    families = {kind: (exact[kind], near[kind]) for kind in total}
    return Survived(exact.total(), near.total(), total.total(), families)


def left_of(plan: Plan, kernels: Mapping[str, Tensor]) -> Plan:
    """Return the plan in which every kernel that has left its structure is free.

    What naming the choices costs falls with the share of kernels that still have theirs.
    """
    layers = tuple(_left_of(layer, kernels[layer.name], plan.structures) for layer in plan.layers)
    left = replace(plan, layers=layers)
    share = left.simplified / plan.simplified if plan.simplified else 1.0
    return replace(left, choice_bits=plan.choice_bits * share)


def _left_of(layer: LayerPlan, kernels: Tensor, structures: tuple[str, ...]) -> LayerPlan:
    gone = outside(kernels, layer, structures).numpy()
    return replace(layer, choice=np.where(gone, FREE, layer.choice).astype(layer.choice.dtype))
