"""How many bits a kernel's values take, as functions with a gradient.

All steps are shares of a root mean square and the gradient runs through it, so no penalty is paid off by
smaller weights: a network with batch norm would shrink them for nothing. Kernels are (n, *grid); results are
bits a kernel, (n,).
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.coding import DISTORTION
from kernelsimp.kernels.families import find
from kernelsimp.kernels.subspace import Floats, Shape

STEP = math.sqrt(12 * DISTORTION)
"""The step of a uniform quantiser at the distortion of the codings, in root mean squares."""

REACH = 4.0
"""Histograms cover this many root mean squares on both sides of 0."""

SCALES = tuple(0.05 * 2.0**k for k in range(9))
"""Scales of the logistic densities that a mixture is made of, in steps."""

ROUNDS = 8
"""Rounds of expectation maximisation at each call."""

ROUNDINGS = ("noise", "straight-through")
TINY = 1e-9


def value_entropy(kernels: Tensor) -> Tensor:
    """Return cells * H, H the entropy in bits of each kernel's own values in a soft histogram.

    A cell spreads over the bins by a Gaussian of half a bin's width. Few distinct values have little entropy.
    """
    flat = kernels.flatten(1)
    scaled = flat / root_mean_square(flat, dim=1)
    count = math.ceil(REACH / STEP)
    centres = STEP * torch.arange(-count, count + 1, device=flat.device, dtype=flat.dtype)
    distance = (scaled.clamp(-REACH, REACH)[:, :, None] - centres) / (STEP / 2)
    shares = torch.softmax(-distance.square() / 2, dim=2).mean(dim=1)
    return -flat.shape[1] * (shares * (shares + TINY).log2()).sum(dim=1)


def beside(constant: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what gives `constant` where a tensor lies and in its dtype, copied there once: a copy waits.

    >>> beside(torch.ones(2).double())(torch.zeros(3)).dtype
    torch.float32
    """

    @cache
    def there(device: torch.device, dtype: torch.dtype) -> Tensor:
        return constant.to(device, dtype)

    return lambda tensor: there(tensor.device, tensor.dtype)


class Rate:
    """The bits of symmetry-adapted coefficients under a learned mixture: -log2 of each one's interval.

    A coefficient is u = U'w / step with uniform noise of one step, or rounded with the gradient passed
    straight through (Balle, Laparra and Simoncelli, 2017; Bengio, Leonard and Courville, 2013). The density
    is a mixture of centred logistics of fixed scales, whose weights are learned from the coefficients by
    expectation maximisation at every call; they take no gradient and keep no state.
    """

    def __init__(self, grid: Shape, rounding: str = "noise") -> None:
        if rounding not in ROUNDINGS:
            raise KernelsimpError(f"rounding is '{rounding}'; expected {' or '.join(ROUNDINGS)}")
        self.basis, self.rounding = beside(torch.from_numpy(adapted_basis(grid))), rounding

    def __call__(self, kernels: Tensor) -> Tensor:
        flat = kernels.flatten(1)
        exact = flat @ self.basis(flat) / (STEP * root_mean_square(flat))
        if self.rounding == "noise":
            coefficients = exact + torch.rand_like(exact) - 0.5
        else:
            coefficients = exact + (exact.round() - exact).detach()
        chances = torch.stack([_interval(coefficients, scale) for scale in SCALES], dim=-1)
        chance = chances @ mixture(chances.detach().flatten(0, -2))
        return -(chance + TINY).log2().sum(dim=1)


def mixture(chances: Tensor) -> Tensor:
    """Return the likeliest weights (k,), nearly, of densities under which values have `chances` (n, k).

    Expectation maximisation: a weight becomes the mean share of its density in explaining the values.
    """
    weights = chances.new_full((chances.shape[1],), 1 / chances.shape[1])
    for _ in range(ROUNDS):
        total = chances @ weights + TINY
        weights = weights * ((1 / total) @ chances) / len(chances)
    return weights / weights.sum()


def root_mean_square(flat: Tensor, dim: int | None = None) -> Tensor:
    """Return the root mean square of all cells, or along `dim` with that axis kept; never zero."""
    mean = flat.square().mean() if dim is None else flat.square().mean(dim=dim, keepdim=True)
    return (mean + torch.finfo(flat.dtype).tiny).sqrt()


def adapted_basis(grid: Shape) -> Floats:
    """Return an orthonormal basis (cells, cells) in which each axis mirror of a grid is a change of signs.

    Its columns fall into the four characters of both mirrors; on a square grid the full square's subspace
    comes first.
    """
    cells = int(np.prod(grid))
    names = ["both-mirrors", "odd-h-even-v", "even-h-odd-v"]
    if grid[-1] == grid[-2]:
        names.insert(0, "full-square")
    basis = np.zeros((cells, 0))
    for name in names:
        basis = np.hstack([basis, _beyond(basis, find(name, grid).basis)])
    return np.hstack([basis, _beyond(basis, np.eye(cells))])


def _beyond(basis: Floats, more: Floats) -> Floats:
    """Return an orthonormal basis of what `more` spans outside `basis`."""
    if not more.shape[1]:
        return more
    left = more - basis @ (basis.T @ more)
    vectors, values, _ = np.linalg.svd(left, full_matrices=False)
    return np.asarray(vectors[:, values > 1e-9])


def _interval(values: Tensor, scale: float) -> Tensor:
    """Return the chance that a centred logistic of `scale` falls within half a step of each value.

    Taken on the side of the tail, where the difference of two numbers near 1 would lose everything.
    """
    near, far = (values.abs() - 0.5) / scale, (values.abs() + 0.5) / scale
    return F.sigmoid(-near) - F.sigmoid(-far)
