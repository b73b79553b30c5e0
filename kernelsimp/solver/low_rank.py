"""Fit a layer of low rank to its original outputs, in the metric of its real inputs.

A layer is R vertical filters V (in / groups * kh, R) and R horizontal ones H (out / groups, R, kw) a group
(see `kernels.separable`); as one convolution its weights are w_o[p, a] = sum_r V[p, r] H[o, r, a]. The
vertical half comes from a decomposition with rows whitened by the second moment of the vertical patches
(Cholesky) and columns weighted by how much the loss minds each output; then either half is fitted by turns,
by least squares, to sum_o g_o (|T w_o - X w0_o|^2 / n + d |w_o - w0_o|^2), T windows of the changed inputs,
X of the original ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelsimp.kernels.separable import halves
from kernelsimp.solver.moments import Moments
from kernelsimp.solver.projected_cg import DAMPING, FilterConstraint, UnsolvableError, check_moments
from kernelsimp.solver.targets import Target

TURNS = 4
"""Fits of the vertical half after the first decomposition; a horizontal one follows each."""

STEPS = 30
"""Steps of conjugate gradients that a fit of the vertical half takes at most; it need not be settled."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """What one layer becomes: its rank a group, and the shape (out, in / groups, kh, kw) of its kernels.

    `weights` (out,) says how much the loss minds each output.
    """

    rank: int
    shape: tuple[int, ...]
    groups: int
    weights: Tensor

    def target(self) -> Target:
        """Return what a reconstruction needs to make the layer this."""
        cells = self.shape[2] * self.shape[3]
        return Target(
            constraint=lambda _: FilterConstraint(cells, ()),
            write=lambda kernels: kernels,
            alone=self.nearest,
            fit=self.fit,
        )

    def nearest(self, kernels: Tensor) -> Tensor:
        """Return the nearest kernels of that rank, without regard to inputs."""
        vertical, horizontal = halves(kernels, self.groups, self.rank)
        high, wide = self.shape[2:]
        down = vertical.reshape(self.groups, -1, self.shape[1] * high).mT
        across = horizontal.reshape(self.groups, -1, down.shape[2], wide)
        return _compose(down, across).reshape(self.shape).to(kernels.dtype)

    def fit(self, original: Tensor, moments: Moments) -> Tensor:
        """Return the weights (groups, filters, D) of that rank whose outputs are nearest to the original's.

        Raises `UnsolvableError` where the moments are singular or of too few rows.
        """
        problem = _Problem(self, original, moments)
        down = problem.verticals(self.rank)
        across = problem.horizontal(down)
        for _ in range(TURNS):
            down = problem.vertical(down, across)
            across = problem.horizontal(down)
        return _compose(down, across).flatten(2)

    def losses(self, original: Tensor, moments: Moments, ranks: Sequence[int]) -> list[float]:
        """Return what each rank costs, fitted without turns: sum_o g_o |T w_o - X w0_o|^2 / n.

        Raises `UnsolvableError` as `fit` does.
        """
        problem = _Problem(self, original, moments)
        most = problem.verticals(max(ranks))
        found = []
        for rank in ranks:
            down = most[:, :, :rank]
            weights = _compose(down, problem.horizontal(down)).flatten(2)
            found.append(float((moments.error(weights) * problem.weights).sum()))
        return found


def _compose(down: Tensor, across: Tensor) -> Tensor:
    """Return w (groups, filters, in * kh, kw) of V (groups, in * kh, R) and H (groups, filters, R, kw)."""
    return down[:, None] @ across


class _Problem:
    """One layer's least squares: A = G + dI over pairs (vertical place, column), and what it is fitted to."""

    def __init__(self, wanted: LowRank, original: Tensor, moments: Moments) -> None:
        check_moments(moments)
        groups, filters, width = original.shape
        self.wide = wanted.shape[3]
        self.high = width // self.wide
        d = DAMPING * moments.scale
        if d <= 0:
            raise UnsolvableError("its inputs are always the same, so there is nothing to fit to")
        self.operator = moments.gram + d * torch.eye(width, dtype=original.dtype, device=original.device)
        self.aim = (moments.target + d * original).reshape(groups, filters, self.high, self.wide)
        weights = wanted.weights.to(original.device, original.dtype).reshape(groups, filters)
        self.weights = weights + 1e-3 * weights.mean().clamp_min(1e-30)
        self.free = torch.linalg.solve(self.operator, self.aim.flatten(2).mT).mT.reshape(self.aim.shape)

    def verticals(self, rank: int) -> Tensor:
        """Return V by decomposition of the free solution, whitened by what the vertical patches look like."""
        blocks = self.operator.reshape(len(self.operator), *(self.high, self.wide) * 2)
        patches = blocks.diagonal(dim1=2, dim2=4).mean(-1)
        root = torch.linalg.cholesky(patches)
        weighted = self.free * self.weights.sqrt()[:, :, None, None]
        columns = weighted.transpose(1, 2).flatten(2)  # (groups, in * kh, filters * kw)
        left = torch.linalg.svd(root.mT @ columns, full_matrices=False)[0][:, :, :rank]
        made: Tensor = torch.linalg.solve_triangular(root.mT, left, upper=True)
        return made

    def horizontal(self, down: Tensor) -> Tensor:
        """Return H (groups, filters, R, kw): every filter's own least squares for these vertical filters."""
        groups, filters = self.aim.shape[:2]
        split = self.operator.reshape(groups, self.high, -1)
        half = (down.mT @ split).reshape(groups, -1, self.wide, self.high, self.wide)
        gram = torch.einsum("graqb,gqs->grasb", half, down).flatten(3).flatten(1, 2)
        aim = (down.mT[:, None] @ self.aim).flatten(2)
        size = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        safe = gram + 1e-10 * size * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        found: Tensor = torch.linalg.solve(safe, aim.mT).mT
        return found.reshape(groups, filters, -1, self.wide)

    def vertical(self, down: Tensor, across: Tensor) -> Tensor:
        """Return a better V for these horizontal filters: conjugate gradients from the one there is."""
        pull = self.weights[:, :, None, None] * self.aim
        left = self._back(pull, across) - self._pushed(down, across)
        direction, energy = left, left.square().sum()
        enough = 1e-16 * energy
        for _ in range(STEPS):
            if not bool(energy > enough):
                break
            image = self._pushed(direction, across)
            curvature = (direction * image).sum()
            if not bool(curvature > 0):
                raise UnsolvableError("the fit broke down: its moments are not positive definite")
            length = energy / curvature
            down = down + length * direction
            left = left - length * image
            fresh = left.square().sum()
            direction = left + fresh / energy * direction
            energy = fresh
        return down

    def _pushed(self, down: Tensor, across: Tensor) -> Tensor:
        matrix = _compose(down, across)
        image = (matrix.flatten(2) @ self.operator).reshape(matrix.shape)
        return self._back(self.weights[:, :, None, None] * image, across)

    def _back(self, matrix: Tensor, across: Tensor) -> Tensor:
        """Return (groups, in * kh, R): what pulls at V, of (groups, filters, in * kh, kw)."""
        return torch.einsum("gopa,gora->gpr", matrix, across)
