"""What training does to kernels, epoch by epoch: bits a kernel, and how much structure chance leaves."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelsimp.analysis.chance import found_in
from kernelsimp.analysis.examine import examine
from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.kernels.coding import structure
from kernelsimp.kernels.families import SEVENTEEN, offered_families
from kernelsimp.training.constraints import bank_as_computed


@dataclass(frozen=True)
class CurvePoint:
    """One network: bits a kernel by the structure code, and kernels whose symmetry is not chance's."""

    bits_per_kernel: float
    found: int


def point(model: nn.Module, fdr: float = 0.05) -> CurvePoint:
    """Return where `model` stands, over all kernels larger than 1x1 and the seventeen linear families.

    Bits are those of `coding.structure` at 1 % distortion of each layer; `found` is by the ring null at
    `fdr`. Constrained and held layers count with the weights they compute.
    """
    layers = bank_as_computed(model).spatial
    kernels = sum(layer.count for layer in layers)
    bits = sum(layer_bits(layer) for layer in layers)
    return CurvePoint(bits / max(1, kernels), sum(_count_found(layer, fdr) for layer in layers))


def layer_bits(layer: LayerKernels) -> float:
    """Return the bits of a whole layer; a layer of zeros, or one that is not finite, counts none.

    Kernels of three sides count as their slices.
    """
    slices = layer.kernels.double().reshape(-1, *layer.grid[-2:])
    if not slices.any() or not slices.isfinite().all():
        return 0.0
    families = [item.subspace for item in offered_families(layer.grid[-2:], SEVENTEEN)]
    return structure(slices, families).bits * len(slices)


def figures_of(model: nn.Module) -> Mapping[str, float | int]:
    """Return the point's figures under the names that an epoch's record gives them."""
    return vars(point(model))


def _count_found(layer: LayerKernels, fdr: float) -> int:
    kernels: Tensor = layer.kernels
    if not torch.isfinite(kernels).all() or not kernels.any():
        return 0
    return int(found_in(examine(layer, SEVENTEEN), fdr).sum())
