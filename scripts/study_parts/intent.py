"""Is near-symmetry what a network meant? Found kernels snapped beside imposed ones matched to them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.analysis.chance import found_in
from kernelsimp.analysis.examine import NONE, examine
from kernelsimp.analysis.selectivity import projected
from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.solver.fisher import Sensitivity
from study_parts.ground import Judge, Study, with_tensors
from study_parts.statistics import Measured

WIDEST, WIDEST_DEPTHWISE = 0.3, 0.15
"""Kernels further than this from every family are in no pair: snapping them is no simplification.

Dense layers have too few pairs within the second, and depthwise ones lose all accuracy within the first.
"""

ALIKE, MINDED = 1.1, 1.25
"""The errors of a pair differ by the first factor at most, and how much the loss minds it by the second."""

FDR = 0.05

ARMS = {
    "found": (0, False),
    "noise on found": (0, True),
    "imposed": (1, False),
    "noise on imposed": (1, True),
}
"""By arm which side of the pairs changes, and whether into noise."""

Place = tuple[int, int]
"""A layer's place and a kernel's within it."""


def importance(layer: LayerKernels, seen: Sensitivity) -> NDArray[np.float64]:
    """Return how much the loss minds an error of a kernel in no direction in particular, (kernels,).

    The trace of the Fisher information of its weights, or of g_o H_jj, in which layers are re-solved.
    """
    if seen.kernels is not None:
        return seen.kernels.diagonal(dim1=1, dim2=2).sum(1).numpy()
    blocks = seen.blocks.diagonal(dim1=1, dim2=2).sum(1).reshape(layer.groups, 1, -1)
    fisher = seen.fisher.reshape(layer.groups, -1, 1)
    return (fisher * blocks).reshape(-1).numpy()


@dataclass(frozen=True, eq=False)
class Kernels:
    """The kernels of one layer (n, *grid), as they are and `snapped` to their families; arrays are (n,).

    `dims` is the dimension of a kernel's family, -1 of kernels that are in no pair.
    """

    flat: Tensor
    snapped: Tensor
    dims: NDArray[np.int64]
    error: NDArray[np.float64]
    minded: NDArray[np.float64]
    found: NDArray[np.bool_]

    @staticmethod
    def of(layer: LayerKernels, seen: Sensitivity) -> "Kernels":
        examined = examine(layer)
        widest = WIDEST_DEPTHWISE if layer.kind == "depthwise" else WIDEST
        best, flat = examined.best(widest), layer.kernels.flatten(0, 1)
        named = torch.from_numpy(best != NONE).reshape(-1, *[1] * (flat.dim() - 1))
        snapped = torch.where(named, projected(examined, best.tolist()), flat)
        error = (snapped - flat).flatten(1).norm(dim=1).double().numpy()
        minded = importance(layer, seen)
        able = (best != NONE) & ~examined.dead & (error > 0) & (minded > 0)
        dims = np.where(able, examined.dims[np.maximum(best, 0)], -1)
        return Kernels(flat, snapped, dims, error, minded, found_in(examined, FDR))

    def changed(self, rows: NDArray[np.int64], noise: torch.Generator | None) -> Tensor:
        """Return all kernels, those of `rows` snapped, or given noise of the norm of their errors."""
        made = self.flat.clone()
        made[rows] = self.snapped[rows]
        if noise is not None:
            error = (self.snapped[rows] - self.flat[rows]).flatten(1)
            drawn = torch.randn(error.shape, generator=noise)
            drawn *= error.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
            made[rows] = self.flat[rows] + drawn.reshape(self.flat[rows].shape)
        return made


def couples_of(layers: Sequence[Kernels], seed: int) -> list[tuple[Place, Place]]:
    """Pair each found kernel with an imposed one of the same dimension and grid, each used once.

    Of those whose error and importance are alike, in any layer, the one whose importance is nearest.
    """
    owner = np.concatenate([np.full(len(item.dims), at) for at, item in enumerate(layers)])
    row = np.concatenate([np.arange(len(item.dims)) for item in layers])
    cells = np.concatenate([np.full(len(item.dims), item.flat[0].numel()) for item in layers])
    dims, error, minded, found = (
        np.concatenate([getattr(item, name) for item in layers])
        for name in ("dims", "error", "minded", "found")
    )
    dice, couples = np.random.default_rng(seed), []
    for cell, dim in sorted({*zip(cells[dims > 0].tolist(), dims[dims > 0].tolist(), strict=True)}):
        here = (cells == cell) & (dims == dim)
        left = np.flatnonzero(here & ~found)
        for one in dice.permutation(np.flatnonzero(here & found)):
            errors, importances = (np.abs(np.log(item[left] / item[one])) for item in (error, minded))
            near = np.flatnonzero((errors <= math.log(ALIKE)) & (importances <= math.log(MINDED)))
            if len(near):
                chosen = near[importances[near].argmin()]
                mate = left[chosen]
                couples.append(((int(owner[one]), int(row[one])), (int(owner[mate]), int(row[mate]))))
                left = np.delete(left, chosen)
    return couples


def intent(study: Study, draws: int) -> list[Measured]:
    """Snap found kernels and imposed ones matched to them, and add noise of equal norm: KL on test images."""
    arms: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ARMS}
    pairs = 0
    for seed in range(draws):
        seen = study.surveyed(seed).prepared.sensitivities
        layers = {layer.name: layer for layer in study.bench.bank.spatial if layer.name in seen}
        kernels = {name: Kernels.of(layer, seen[name]) for name, layer in layers.items()}
        couples = couples_of(list(kernels.values()), seed)
        pairs += len(couples)
        judge = Judge(study.model, study.images(seed))
        for arm, (side, noisy) in ARMS.items():
            noise = torch.Generator().manual_seed(seed) if noisy else None
            made = {}
            for at, (name, item) in enumerate(kernels.items()):
                rows = np.array([pair[side][1] for pair in couples if pair[side][0] == at], dtype=np.int64)
                made[f"{name}.weight"] = item.changed(rows, noise).reshape(layers[name].kernels.shape)
            arms[arm].append(judge.divergence(with_tensors(study.model, made)))
    total = sum(layer.count for layer in study.bench.bank.spatial)
    places = [study.places(seed) for seed in range(draws)]
    fact = f"{pairs / draws:.0f} pairs of {total:,} kernels"
    return [Measured("KL, nats", arms, places=places, fact=fact)] if pairs else []
