"""Alternate between the flats of bent sets and a fit within them, for kernels that lie in no subspace.

A rank, or a partition into few values, is fixed first and everything else is fitted to it; then each kernel
of such a set says where it would go if it alone were free, the set's member nearest to that gives the next
flat, and all is fitted again. A filter keeps a new solution only where its own objective falls.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.solver.moments import Moments
from kernelsimp.solver.projected_cg import (
    DAMPING,
    FilterConstraint,
    Solved,
    UnsolvableError,
    diagonal_blocks,
    resolve,
)
from kernelsimp.solver.targets import Target

TURNS = 2
"""Fits after the first one: three in all (most of what can be gained comes with the first of them)."""


def settle(solved: Solved, original: Tensor, work: tuple[Target, LayerKernels], moments: Moments) -> Solved:
    """Return the fit with bent sets at their best flats and denoised kernels at their last values.

    `solved` is the fit to the target's first constraint; weights are (groups, filters, D).
    """
    target, layer = work
    shape, device = layer.kernels.shape, original.device
    if target.around is not None:
        around = target.around
        solved = bend(solved, original, lambda w: around(w.cpu().reshape(shape)).to(device), moments)
    if target.settled is None:
        return solved
    fitted = solved.weights.cpu().reshape(shape).to(layer.kernels.dtype)
    return resolve(original, target.settled(fitted).to(device), moments)


def bend(
    solved: Solved, original: Tensor, around: Callable[[Tensor], FilterConstraint], moments: Moments
) -> Solved:
    """Return weights (groups, filters, D) whose objective is nowhere above that of `solved`.

    `around` gives the constraint whose flats go through the members nearest to the weights it is given.
    """
    best, cells = solved, around(solved.weights).cells
    for _ in range(TURNS):
        wanted = _alone(best.weights, original, moments, cells)
        try:
            tried = resolve(original, around(wanted), moments)
        except UnsolvableError:
            break
        before, after = (objective(item.weights, original, moments) for item in (best, tried))
        better = after < before * (1 - 1e-9)
        if not bool(better.any()):
            break
        weights = torch.where(better[..., None], tried.weights, best.weights)
        best = replace(best, weights=weights, steps=best.steps + tried.steps)
    return best


def objective(weights: Tensor, original: Tensor, moments: Moments) -> Tensor:
    """Return |T w - X w0|^2 / n + d |w - w0|^2 of each filter, (groups, filters), up to a constant."""
    d = _damping(moments)
    square = (weights @ moments.gram * weights).sum(-1) + d * weights.square().sum(-1)
    return square - 2 * (weights * (moments.target + d * original)).sum(-1)


def _damping(moments: Moments) -> float:
    return DAMPING * moments.scale


def _alone(weights: Tensor, original: Tensor, moments: Moments, cells: int) -> Tensor:
    """Return where each kernel would go if all others stayed: w_j + A_jj^-1 (b - A w)_j."""
    d, inputs = _damping(moments), moments.width // cells
    identity = torch.eye(cells, dtype=weights.dtype, device=weights.device)
    blocks = (diagonal_blocks(moments.gram, cells) + d * identity).reshape(-1, inputs, cells, cells)
    left = moments.target + d * original - weights @ moments.gram - d * weights
    left = left.reshape(*weights.shape[:2], inputs, cells)
    step = torch.einsum("gide,goie->goid", torch.linalg.inv(blocks), left)
    return weights + step.reshape(weights.shape)
