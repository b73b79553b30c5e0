"""The figures that rules bound, measured on the kernels as they are now.

Counts are of kernels or layers; a kernel out of its structure counts in full. Figures speak of the
baseline's layers, so that they compare.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelsimp.gate.kernels import Held, broken_kernels, canonical_shape, held_layer
from kernelsimp.kernels.bank import DEAD_SHARE
from kernelsimp.kernels.structures import find
from kernelsimp.records.limits import Baseline


@dataclass(frozen=True)
class LayerFigures:
    """One layer: kernels, those in a structure, those dead, cells, independent values, stored bits of one."""

    kernels: int
    structured: int
    dead: int
    cells: int
    dof: int
    bits: int


def figures(baseline: Baseline, kernels: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the weight figures by rule name; nothing where no layer of the baseline is there."""
    layers = list(_layers(baseline, kernels))
    total = sum(layer.kernels for layer in layers)
    if total == 0:
        return {}
    fixed = baseline.coefficient_bits
    values = sum(layer.dof * (layer.bits if fixed is None else fixed) for layer in layers)
    return {
        "kernels.simplified_share": sum(layer.structured for layer in layers) / total,
        "kernels.dead_share": sum(layer.dead for layer in layers) / total,
        "dof.fraction": sum(layer.dof for layer in layers) / sum(layer.cells for layer in layers),
        "bits.per_kernel": (values + baseline.choice_bits) / total,
    }


CODED_RULES = ("size.coded_bytes", "bits.per_weight")


def coded_figures(tensors: Mapping[str, Tensor], size: int | None) -> dict[str, float]:
    """Return the figures of a coded file of `size` bytes; none of any other file."""
    if size is None:
        return {}
    weights = sum(item.numel() for item in tensors.values() if item.is_floating_point() and item.ndim > 1)
    return dict(zip(CODED_RULES, (float(size), 8 * size / max(weights, 1)), strict=True))


def _layers(baseline: Baseline, kernels: Mapping[str, Tensor]) -> Iterator[LayerFigures]:
    for layer in baseline.layers:
        here = kernels.get(layer.name)
        if here is not None and tuple(here.shape) == canonical_shape(layer):
            yield _figures(held_layer(baseline, layer, here), baseline.structures)


def _figures(held: Held, structures: tuple[str, ...]) -> LayerFigures:
    grid = tuple(held.kernels.shape[2:])
    cells = int(np.prod(grid))
    inside = (held.choice != 0) & ~broken_kernels(held, structures) & ~held.bad
    dims = np.array(
        [_dim(name, grid) if index in held.choice else 0 for index, name in enumerate(structures)]
    )
    count = held.choice.size
    return LayerFigures(
        kernels=count,
        structured=int(inside.sum()),
        dead=_dead(held.kernels),
        cells=count * cells,
        dof=int(dims[held.choice[inside]].sum()) + cells * (count - int(inside.sum())),
        bits=8 * held.kernels.element_size(),
    )


def _dim(name: str, grid: tuple[int, ...]) -> int:
    """Return the independent values of a structure; those of 'free' are never asked."""
    return 0 if name in ("zero", "free") else find(name, grid).dim


def _dead(kernels: Tensor) -> int:
    energy = kernels.double().square().flatten(2).sum(dim=2)
    energy = torch.where(energy.isfinite(), energy, torch.zeros_like(energy))
    return int((energy <= DEAD_SHARE * energy.mean()).sum())
