"""Relative residuals of many kernels against many families at once.

Kernels are (n, *shape) and residuals (n, families), r = ||C'w|| / ||w|| with C an orthonormal basis of
what the family leaves out; a zero kernel reads 0 although it is dead: it lies in every subspace.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernelsimp.kernels.folding import cells_first
from kernelsimp.kernels.routes import ways
from kernelsimp.kernels.subspace import Subspace

CHUNK_CELLS = 1 << 17
"""Cells worked on at once: they and their coordinates stay in a core's cache."""

_SMALL, _LARGE = 1e-24, 1e30
"""Squared norms outside these are scaled first: their squares would leave float32."""


def residuals(kernels: Tensor, subspaces: Sequence[Subspace]) -> Tensor:
    """Return r = ||C'w|| / ||w|| of every kernel (n, *shape) against every subspace, (n, subspaces).

    The result is float32 (float64 for float64 kernels), in [0, 1], its error about the rounding of that
    dtype; NaN where a kernel is not finite, 0 where it is zero. Raises ValueError where the subspaces
    differ in shape.
    """
    return _all_chunks(kernels, subspaces, centred=False)


def mean_removed_residuals(kernels: Tensor, subspaces: Sequence[Subspace]) -> Tensor:
    """Return the residuals of the kernels (n, *shape) after each kernel's mean is taken away.

    The constant lies in every even subspace, so smooth kernels match them without being symmetric. A
    kernel that is constant up to rounding reads 0.
    """
    return _all_chunks(kernels, subspaces, centred=True)


def remove_mean(flat: Tensor) -> Tensor:
    """Return kernels (n, cells) less their own mean; what is only rounding becomes zero."""
    left = flat - flat.mean(dim=1, keepdim=True)
    rounding = 4 * torch.finfo(flat.dtype).eps * flat.abs().amax(dim=1, keepdim=True)
    return left * (left.abs().amax(dim=1, keepdim=True) > rounding)


def _all_chunks(kernels: Tensor, subspaces: Sequence[Subspace], *, centred: bool) -> Tensor:
    dtype = torch.float64 if kernels.dtype == torch.float64 else torch.float32
    families = tuple(subspaces)
    out = torch.empty(len(families), len(kernels), dtype=dtype)
    if not families or not len(kernels):
        return out.T
    engine = _Engine(families, dtype)
    cells = families[0].cells
    size = max(256, CHUNK_CELLS // cells)
    for start in range(0, len(kernels), size):
        flat = kernels[start : start + size].detach().reshape(-1, cells).to(dtype)
        engine.run(remove_mean(flat) if centred else flat, out[:, start : start + size])
    return out.T


class _Engine:
    """The ways to some families, and where in their joint output each family and the norm stand."""

    def __init__(self, subspaces: tuple[Subspace, ...], dtype: torch.dtype) -> None:
        self.ways = ways(subspaces, dtype)
        self.shape = subspaces[0].shape
        order = torch.tensor([family for way in self.ways for family in way.families])
        self.place = order.argsort()
        self.in_order = bool((order.diff() > 0).all())
        self.buffer = torch.empty(0, dtype=dtype)

    def run(self, flat: Tensor, out: Tensor) -> None:
        """Write the residuals of kernels (n, cells) to `out` (families, n)."""
        energies = self._energies(flat)
        norm = energies[-1]
        odd = ~((norm > _SMALL) & (norm < _LARGE))
        inverse = norm.reciprocal()
        torch.clamp(energies[:-1].mul_(inverse).sqrt_(), max=1, out=out)
        if bool(odd.any()):
            self._run_scaled(flat[odd], odd, out)

    def _energies(self, flat: Tensor) -> Tensor:
        """Return the energies (families + 1, n), the norm last."""
        if self.buffer.shape[1:] != flat.shape[:1]:
            self.buffer = torch.empty(len(self.place), len(flat), dtype=flat.dtype)
        grid = cells_first(flat, self.shape) if any(way.by_grid for way in self.ways) else flat
        first = 0
        for way in self.ways:
            part = self.buffer[first : first + len(way.families)]
            way.write(grid if way.by_grid else flat, part)
            first += len(way.families)
        return self.buffer if self.in_order else self.buffer.index_select(0, self.place)

    def _run_scaled(self, flat: Tensor, where: Tensor, out: Tensor) -> None:
        """Write the residuals of kernels whose squares leave the dtype, scaled to a largest cell of 1."""
        peak = flat.abs().amax(dim=1, keepdim=True).double()
        scaled = (flat.double() / torch.where(peak > 0, peak, 1.0)).to(flat.dtype)
        energies = self._energies(scaled)
        norm = torch.where(energies[-1] == 0, 1.0, energies[-1])
        out[:, where] = (energies[:-1] / norm).sqrt_().clamp_(max=1)
