"""Relative residuals of many kernels against many families at once.

Kernels are (n, *shape) and residuals (n, families), r = ||C'w|| / ||w|| with C an orthonormal basis of
what the family leaves out; a zero kernel reads 0 although it is dead: it lies in every subspace.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kernelsimp.kernels.folding import Scratch, cells_first
from kernelsimp.kernels.routes import residual_routes
from kernelsimp.kernels.subspace import Subspace

CHUNK_CELLS = 1 << 17
"""Cells worked on at once: they and their coordinates stay in a core's cache."""

MOST_CELLS = 169
"""Kernels of more cells (beyond 13 x 13) go one family at a time."""

_SMALL, _LARGE = 1e-24, 1e30
"""Squared norms outside these are scaled first: their squares would leave float32."""


def residuals(kernels: Tensor, subspaces: Sequence[Subspace]) -> Tensor:
    """Return r = ||C'w|| / ||w|| of every kernel (n, *shape) against every subspace, (n, subspaces).

    The result is float32 (float64 for float64 kernels), in [0, 1], its error about the rounding of that
    dtype; NaN where a kernel is not finite, 0 where it is zero. Raises ValueError where the subspaces
    differ in shape.
    """
    return _gather_residuals(kernels, subspaces, mean_removed=False)


def mean_removed_residuals(kernels: Tensor, subspaces: Sequence[Subspace]) -> Tensor:
    """Return the residuals of the kernels (n, *shape) after each kernel's mean is taken away.

    The constant lies in every even subspace, so smooth kernels match them without being symmetric. A
    kernel that is constant up to rounding reads 0.
    """
    return _gather_residuals(kernels, subspaces, mean_removed=True)


def remove_mean(flat: Tensor) -> Tensor:
    """Return kernels (n, cells) less their own mean; what is only rounding becomes zero."""
    left = flat - flat.mean(dim=1, keepdim=True)
    rounding = 4 * torch.finfo(flat.dtype).eps * flat.abs().amax(dim=1, keepdim=True)
    return left * (left.abs().amax(dim=1, keepdim=True) > rounding)


def residual_chunks(
    kernels: Tensor, subspaces: Sequence[Subspace], *, mean_removed: bool = False
) -> Iterator[Tensor]:
    """Yield the residuals of successive kernels, (at most 8,192, subspaces), memory staying flat.

    Each chunk lies in memory that the next one overwrites: use it, or copy it.
    """
    families = tuple(subspaces)
    dtype = torch.float64 if kernels.dtype == torch.float64 else torch.float32
    cells = families[0].cells
    engine = _Engine(families, dtype) if cells <= MOST_CELLS else _OneByOne(families)
    size = min(8192, max(256, CHUNK_CELLS // cells))
    whole = kernels.detach()
    for start in range(0, len(kernels), size):
        flat = whole[start : start + size].reshape(-1, cells).to(dtype)
        yield engine.run(remove_mean(flat) if mean_removed else flat).T


def _gather_residuals(kernels: Tensor, subspaces: Sequence[Subspace], *, mean_removed: bool) -> Tensor:
    dtype = torch.float64 if kernels.dtype == torch.float64 else torch.float32
    out = torch.empty(len(subspaces), len(kernels), dtype=dtype)
    start = 0
    for chunk in residual_chunks(kernels, subspaces, mean_removed=mean_removed) if len(subspaces) else ():
        out[:, start : start + len(chunk)] = chunk.T
        start += len(chunk)
    return out.T


class _OneByOne:
    """Large kernels, one family at a time: they are few, and finding shared routes would take minutes."""

    def __init__(self, subspaces: tuple[Subspace, ...]) -> None:
        self.subspaces = subspaces

    def run(self, flat: Tensor) -> Tensor:
        """Return the residuals (families, n) of kernels (n, cells)."""
        kernels = flat.reshape(-1, *self.subspaces[0].shape)
        residual = torch.stack([space.residual(kernels) for space in self.subspaces]).to(flat.dtype)
        return torch.where(flat.isfinite().all(dim=1), residual, torch.nan)


class _Engine:
    """The routes to some families, and where in their joint output each family and the norm stand."""

    def __init__(self, subspaces: tuple[Subspace, ...], dtype: torch.dtype) -> None:
        self.routes = residual_routes(subspaces, dtype)
        self.shape = subspaces[0].shape
        order = torch.tensor([family for route in self.routes for family in route.families])
        self.place = order.argsort()
        self.in_order = bool((order.diff() > 0).all())
        self.scratch = Scratch(dtype)

    def run(self, flat: Tensor) -> Tensor:
        """Return the residuals (families, n) of kernels (n, cells)."""
        energies = self._energies(flat, self.scratch)
        norm, r = energies[0], energies[1:]
        inverse = torch.reciprocal(norm, out=self.scratch.take("inverse", len(flat)))
        # sums of positive numbers bound each of them, and are false with NaN
        plain = float(norm.sum()) < _LARGE and float(inverse.sum()) < 1 / _SMALL
        odd = None if plain else ~((norm > _SMALL) & (norm < _LARGE))
        r.mul_(inverse).sqrt_().clamp_(max=1)
        if odd is not None and bool(odd.any()):
            r[:, odd] = self._run_scaled(flat[odd])
        return r

    def _energies(self, flat: Tensor, scratch: Scratch) -> Tensor:
        """Return the energies (1 + families, n), the norm first."""
        joint = scratch.take("energies", len(self.place), len(flat))
        grid, first = None, 0
        for route in self.routes:
            part = joint[first : first + len(route.families)]
            if route.by_grid and grid is None:
                grid = cells_first(flat, self.shape, scratch)
            route.write(flat if grid is None or not route.by_grid else grid, part, scratch)
            first += len(route.families)
        if self.in_order:
            return joint
        return torch.index_select(joint, 0, self.place, out=scratch.take("in order", *joint.shape))

    def _run_scaled(self, flat: Tensor) -> Tensor:
        """Return the residuals of kernels whose squares leave the dtype, scaled to a largest cell of 1."""
        peak = flat.abs().amax(dim=1, keepdim=True).double()
        scaled = (flat.double() / torch.where(peak > 0, peak, 1.0)).to(flat.dtype)
        energies = self._energies(scaled, Scratch(flat.dtype))
        norm = torch.where(energies[0] == 0, 1.0, energies[0])
        return (energies[1:] / norm).sqrt_().clamp_(max=1)
