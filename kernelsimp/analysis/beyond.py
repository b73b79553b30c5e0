"""What a layer shows beyond its single kernels: whole filters, its mean kernel, orbits, prototypes, bits.

Every function takes one examined layer and returns plain values under the keys of the scan's JSON; None
where the layer's shape has no such thing. The expensive ones run only where a scan looks deep.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelsimp.analysis.examine import Examined
from kernelsimp.analysis.nonlinear import MOST_CELLS, NonlinearStructures, planar
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import coding, orbits, partitions, prototypes
from kernelsimp.kernels.cells import grid_of
from kernelsimp.kernels.covariance import gaussian_kernels, permuted_kernels, second_moment
from kernelsimp.kernels.families import SEVENTEEN, find, offered_families
from kernelsimp.kernels.residuals import residuals

Values = dict[str, Any]

MOST_COLOURS = 64
"""A first layer's filters are drawn in colour up to this many."""

COLOUR_CHANNELS = 3

MOST_SHOWN = 12
"""Prototypes whose cells a scan keeps for the eye, those first that cover most."""


def filters(examined: Examined, tolerance: float) -> Values:
    """Return how many whole filters have one structure in all their slices, by family.

    The residual of a filter is over all its cells: r^2 = sum of r_i^2 e_i / sum of e_i, e_i the energy of
    slice i. A filter counts with the family of least dimension that it matches.
    """
    kernels = examined.layer.kernels
    outs, slices = int(kernels.shape[0]), int(kernels.shape[1])
    energy = examined.layer.energy().numpy()
    whole = energy.sum(axis=1)
    live = whole > 0.01 * whole.mean()
    share = energy / np.where(whole > 0, whole, 1)[:, None]
    columns = (examined.residual[:, place].reshape(outs, slices) for place in range(len(examined.families)))
    squares = [np.einsum("oi,oi,oi->o", r, r, share) for r in columns]
    residual = np.sqrt(np.array(squares).reshape(-1, outs).T)
    within = (residual <= tolerance) & live[:, None]
    counts: dict[str, int] = {}
    for row in np.flatnonzero(within.any(axis=1)):
        dims = np.where(within[row], examined.dims + 0.5 * residual[row], np.inf)
        name = examined.families[int(dims.argmin())].name
        counts[name] = counts.get(name, 0) + 1
    matching = int(within.any(axis=1).sum()) if within.size else 0
    return {"count": outs, "slices": slices, "matching": matching, "families": counts}


def mean_kernel(examined: Examined, stride: int | None = None) -> Values | None:
    """Return the layer's mean live kernel, its residuals and its D4 score.

    The D4 score is the share of its energy that has all eight symmetries of the square; `d4_chance` is
    what a random kernel has of it, dim / cells.
    """
    flat = examined.layer.kernels.detach().reshape(-1, *examined.layer.grid)
    live = torch.from_numpy(~examined.dead)
    if not bool(live.any()):
        return None
    mean = flat[live].double().mean(dim=0)
    spaces = [family.subspace for family in examined.families]
    residual = residuals(mean.float()[None], spaces)[0].tolist() if spaces else []
    named = {family.name: r for family, r in zip(examined.families, residual, strict=True)}
    score, chance = _d4(mean)
    return {
        "cells": mean.tolist(),
        "residuals": named,
        "d4_score": score,
        "d4_chance": chance,
        "stride": stride,
        "note": _stride_note(stride),
    }


def _d4(kernel: Tensor) -> tuple[float | None, float | None]:
    shape = tuple(kernel.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        return None, None
    space = find("full-square", shape)
    residual = float(space.residual(kernel))
    return 1 - residual**2, space.dim / space.cells


def _stride_note(stride: int | None) -> str | None:
    if stride is None:
        return "stride unknown: a file of weights does not tell it, --arch does; matters for symmetry"
    if stride < 2:
        return None
    return (
        f"stride {stride}: the layer samples every {stride} cells, so its mean kernel need not be symmetric"
    )


def relatives(
    examined: Examined, shapes: NonlinearStructures, tolerance: float, seed: int = 0
) -> Values | None:
    """Return which kernels are others turned, mirrored and scaled, and quadrature pairs of Gabors.

    `by_chance` is how many of as many random kernels are paired within the same tolerance: drawn with the
    layer's covariance (`null` is matched), or the layer's own with their cells shuffled (permuted) where
    there are too few to know it.
    """
    kernels = planar(examined)
    if kernels is None or examined.cells > MOST_CELLS:
        return None
    live = torch.from_numpy(~examined.dead)
    found = orbits.find(torch.where(live[:, None, None], kernels, 0), tolerance)
    null, random = _random_layer(kernels[live], seed)
    sizes = torch.bincount(found.orbit[found.partner >= 0], minlength=1)
    pairs = orbits.quadrature_pairs(kernels, shapes.fitted, tolerance) if shapes.fitted is not None else ()
    return {
        "paired": found.paired,
        "by_chance": orbits.find(random, tolerance).paired,
        "null": null,
        "orbits": int((sizes > 0).sum()),
        "largest": int(sizes.max()),
        "quadrature_pairs": len(pairs),
    }


def _random_layer(kernels: Tensor, seed: int) -> tuple[str, Tensor]:
    """Return as many random kernels as there are live ones (n, kh, kw), and how they were drawn."""
    count, cells = len(kernels), kernels[0].numel() if len(kernels) else 0
    if count < 2 * cells or not count:
        return "permuted", permuted_kernels(kernels, count, seed) if count else kernels
    return "matched", gaussian_kernels(second_moment(kernels), grid_of(kernels), count, seed)


def prototype_coverage(examined: Examined, seed: int) -> Values | None:
    """Return how many prototypes cover 95 % of the layer's energy up to a*x + b, turns and mirrors."""
    kernels = planar(examined)
    if kernels is None or examined.cells > MOST_CELLS:
        return None
    found = prototypes.find(kernels, prototypes.PrototypeSettings(seed=seed))
    centres, shares = prototypes.leading_prototypes(found, MOST_SHOWN)
    return {
        "count": found.count,
        "coverage": found.coverage,
        "by_means_alone": found.offsets,
        "reached": found.reached,
        "centres": centres.mul(1e4).round().div(1e4).tolist(),
        "shares": shares.mul(1e4).round().div(1e4).tolist(),
    }


def bits_per_kernel(examined: Examined) -> Values | None:
    """Return the mean bits of a kernel by each coding, all at 1 % relative squared error."""
    kernels = planar(examined)
    if kernels is None or examined.cells > MOST_CELLS or not bool(kernels.any()):
        return None
    spaces = [family.subspace for family in offered_families(tuple(kernels.shape[1:]), SEVENTEEN)]
    try:
        codings = coding.code_layer(kernels, spaces)
    except KernelsimpError:  # a layer of one value reaches any distortion with no bits
        return None
    return {name: item.bits for name, item in codings.items()}


def colours(examined: Examined, tolerance: float) -> Values | None:
    """Return a first layer's filters as colour vector x kernel: w ~ colour (3) times kernel (kh, kw).

    `residual` is what the best such product leaves of each filter; the kernel's largest cell is positive
    and the colour of unit length.
    """
    kernels = examined.layer.kernels.detach()
    if kernels.shape[1] != COLOUR_CHANNELS or kernels.ndim != 4 or examined.layer.kind != "dense":
        return None
    left, values, right = torch.linalg.svd(kernels.double().flatten(2), full_matrices=False)
    energy = values.square()
    whole = energy.sum(dim=1)
    residual = (energy[:, 1:].sum(dim=1) / torch.where(whole > 0, whole, 1.0)).sqrt()
    colour, line = left[:, :, 0], right[:, 0]
    turned = line.gather(1, line.abs().argmax(dim=1, keepdim=True)).sign()
    return {
        "filters": len(kernels),
        "separable": int(((residual <= tolerance) & (whole > 0)).sum()),
        "median_residual": float(residual.median()),
        "colour": (colour * turned)[:MOST_COLOURS].tolist(),
        "kernel": (line * turned)[:MOST_COLOURS].reshape(-1, *kernels.shape[2:]).tolist(),
        "residual": residual[:MOST_COLOURS].tolist(),
    }


def groupings(shapes: NonlinearStructures, most: int = 8) -> Values | None:
    """Return the commonest partitions of rows and of columns into equal ones, in words, with their counts."""
    if not shapes.lines:
        return None
    found: Values = {}
    for item in shapes.lines:
        line = ("row", "column")[item.axis]
        joined = item.labels[item.classes < item.grid[item.axis]]
        labels, counts = torch.unique(joined, dim=0, return_counts=True)
        for place in counts.argsort(descending=True, stable=True)[:most].tolist():
            found[partitions.sentence(labels[place].tolist(), line)] = int(counts[place])
    return found
