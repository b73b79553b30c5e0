"""Layers as two thinner ones: a convolution with (kh, kw) cells as one with (kh, 1), then one with (1, kw).

Kernels are (out, in / groups, kh, kw). Those of one group, unrolled to (in / groups * kh, out / groups *
kw), are a product of R vertical filters and R horizontal ones where that matrix has rank R; for a depthwise
layer R is the rank of the kernel itself. Everything is computed in float64.
"""

from torch import Tensor, linalg

from kernelsimp.errors import KernelsimpError

EXACT = 2e-6
"""A matrix this near to a rank, relative to its norm, has it: float32 leaves 1e-7 of a product."""


def unroll(kernels: Tensor, groups: int) -> Tensor:
    """Return the matrices (groups, in / groups * kh, out / groups * kw) of a layer, in float64."""
    out, inputs, high, wide = kernels.shape
    split = kernels.detach().double().reshape(groups, out // groups, inputs, high, wide)
    return split.permute(0, 2, 3, 1, 4).reshape(groups, inputs * high, -1)


def ranks_of(kernels: Tensor, groups: int, tolerance: float = EXACT) -> Tensor:
    """Return the least rank of each group's matrix within `tolerance` of its norm, (groups,), from 1.

    >>> import torch
    >>> ranks_of(torch.ones(4, 1, 5, 5), groups=4).tolist()
    [1, 1, 1, 1]
    """
    energy = linalg.svdvals(unroll(kernels, groups)).square()
    tail = energy.flip(1).cumsum(1).flip(1)
    counted: Tensor = (tail > tolerance**2 * tail[:, :1]).sum(1).clamp_min(1)
    return counted


def halves(kernels: Tensor, groups: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return the vertical kernels (groups * R, in / groups, kh, 1) and the horizontal ones (out, R, 1, kw).

    They are the nearest of rank R = `rank`, float64; each pair shares its singular value evenly. Raises
    `KernelsimpError` for a rank that is not from 1 up.
    """
    if rank < 1:
        raise KernelsimpError(f"rank {rank}; expected 1 or more")
    out, inputs, high, wide = kernels.shape
    left, values, right = linalg.svd(unroll(kernels, groups), full_matrices=False)
    rank = min(rank, values.shape[1])
    root = values[:, None, :rank].sqrt()
    vertical = (left[:, :, :rank] * root).mT.reshape(groups * rank, inputs, high, 1)
    horizontal = (right[:, :rank] * root.mT).reshape(groups, rank, out // groups, wide)
    return vertical, horizontal.transpose(1, 2).reshape(out, rank, 1, wide)


def full_rank(shape: tuple[int, ...], groups: int) -> int:
    """Return the rank that restricts nothing in a layer whose kernels have this shape."""
    out, inputs, high, wide = shape
    return min(inputs * high, out // groups * wide)


def rank_that_pays(shape: tuple[int, ...], groups: int) -> int:
    """Return the largest rank at which two thinner layers hold fewer numbers than one whole; 0 where none.

    >>> rank_that_pays((16, 16, 3, 3), groups=1)
    23
    """
    out, inputs, high, wide = shape
    down, across = inputs * high, out // groups * wide
    return (down * across - 1) // (down + across)
