"""Is near-symmetry what a network meant? Found kernels snapped beside imposed ones that are matched to them."""

import math
from collections.abc import Mapping
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

WIDEST = 0.3
"""Kernels further than this from every family are in no pair: snapping them is no simplification."""

ALIKE, MINDED = 1.1, 1.25
"""The errors of a pair differ by the first factor at most, and how much the loss minds it by the second."""

FDR = 0.05

ARMS = ("found", "noise on found", "imposed", "noise on imposed")


@dataclass(frozen=True, eq=False)
class Couples:
    """Pairs of one layer: rows of found and imposed kernels, and what each kernel becomes."""

    flat: Tensor
    snapped: Tensor
    found: list[int]
    imposed: list[int]

    def arms(self, seed: int) -> dict[str, tuple[list[int], Tensor]]:
        """Return by arm which rows change, and into what; noise has the norm of each kernel's own error."""
        made = {}
        for name, rows in (("found", self.found), ("imposed", self.imposed)):
            own, aims = self.flat[rows], self.snapped[rows]
            error = (aims - own).flatten(1)
            noise = torch.randn(error.shape, generator=torch.Generator().manual_seed(seed))
            noise *= error.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
            made[name] = (rows, aims)
            made[f"noise on {name}"] = (rows, own + noise.reshape(own.shape))
        return made


def importance(layer: LayerKernels, seen: Sensitivity) -> NDArray[np.float64]:
    """Return how much the loss minds an error of a kernel in no direction in particular, (kernels,).

    The trace of the Fisher information of its weights, or of g_o H_jj, in which layers are re-solved.
    """
    if seen.kernels is not None:
        return seen.kernels.diagonal(dim1=1, dim2=2).sum(1).numpy()
    blocks = seen.blocks.diagonal(dim1=1, dim2=2).sum(1).reshape(layer.groups, 1, -1)
    fisher = seen.fisher.reshape(layer.groups, -1, 1)
    return (fisher * blocks).reshape(-1).numpy()


def couples_of(layer: LayerKernels, seed: int, seen: Sensitivity) -> Couples:
    """Pair each found kernel with an imposed one of the same dimension, each used once.

    Of those whose error and importance are alike, the one whose importance is nearest.
    """
    examined = examine(layer)
    best, flat = examined.best(WIDEST), layer.kernels.flatten(0, 1)
    named = torch.from_numpy(best != NONE).reshape(-1, *[1] * (flat.dim() - 1))
    snapped = torch.where(named, projected(examined, best.tolist()), flat)
    error = (snapped - flat).flatten(1).norm(dim=1).double().numpy()
    minded = importance(layer, seen)
    able = (best != NONE) & ~examined.dead & (error > 0) & (minded > 0)
    dims = np.where(able, examined.dims[np.maximum(best, 0)], -1)
    is_found = found_in(examined, FDR)
    found: list[int] = []
    imposed: list[int] = []
    for dim in sorted(set(dims.tolist()) - {-1}):
        left = np.flatnonzero((dims == dim) & ~is_found & able)
        for row in np.random.default_rng(seed).permutation(np.flatnonzero((dims == dim) & is_found & able)):
            errors, importances = (np.abs(np.log(item[left] / item[row])) for item in (error, minded))
            near = np.flatnonzero((errors <= math.log(ALIKE)) & (importances <= math.log(MINDED)))
            if len(near):
                chosen = near[importances[near].argmin()]
                found.append(int(row))
                imposed.append(int(left[chosen]))
                left = np.delete(left, chosen)
    return Couples(flat, snapped, found, imposed)


def intent(study: Study, draws: int) -> list[Measured]:
    """Snap found kernels and imposed ones matched to them, and add noise of equal norm: KL on test images."""
    arms: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ARMS}
    pairs = 0
    for seed in range(draws):
        made = {name: dict[str, Tensor]() for name in arms}
        seen: Mapping[str, Sensitivity] = study.surveyed(seed).prepared.sensitivities
        for layer in study.bench.bank.spatial:
            if layer.name not in seen:
                continue
            couples = couples_of(layer, seed, seen[layer.name])
            pairs += len(couples.found)
            for name, (rows, aims) in couples.arms(seed).items():
                changed = layer.kernels.flatten(0, 1).clone()
                changed[rows] = aims
                made[name][f"{layer.name}.weight"] = changed.reshape(layer.kernels.shape)
        judge = Judge(study.model, study.images(seed))
        for name, tensors in made.items():
            arms[name].append(judge.divergence(with_tensors(study.model, tensors)))
    kernels = sum(layer.count for layer in study.bench.bank.spatial)
    places = [study.places(seed) for seed in range(draws)]
    fact = f"{pairs / draws:.0f} pairs of {kernels:,} kernels"
    return [Measured("KL, nats", arms, places=places, fact=fact)] if pairs else []
