"""What the controls offer a kernel in the place of structures: sets in which each kernel has its own pick."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernelsimp.kernels.cells import chunks
from kernelsimp.simplify.candidates import Candidate

MOST_PICKS = 8192
"""A pick is among at most this many subspaces: all that partitions of a 3x3 kernel into few values need."""

CHUNK_NUMBERS = 1 << 22
"""Kernels are compared with the subspaces in parts of about this many products."""


@dataclass(frozen=True, eq=False)
class Masked(Candidate):
    """The `dim` largest cells of each kernel are kept, the others are zero."""

    def errors(self, kernels: Tensor) -> Tensor:
        return kernels * ~self.masks(kernels)

    def projectors(self, kernels: Tensor) -> Tensor:
        return torch.diag_embed(self.masks(kernels).to(kernels.dtype))

    def masks(self, kernels: Tensor) -> Tensor:
        """Return which cells of each kernel (n, cells) are kept."""
        places = kernels.abs().topk(self.dim, dim=1).indices
        return torch.zeros_like(kernels, dtype=torch.bool).scatter_(1, places, True)


@dataclass(frozen=True, eq=False)
class Picked(Candidate):
    """Each kernel takes the nearest of some subspaces, of orthonormal `bases` (m, cells, dim)."""

    bases: Tensor = field(kw_only=True)

    def errors(self, kernels: Tensor) -> Tensor:
        nearest = self.nearest(kernels)
        return kernels - torch.einsum("ncd,nd->nc", nearest, torch.einsum("ncd,nc->nd", nearest, kernels))

    def projectors(self, kernels: Tensor) -> Tensor:
        nearest = self.nearest(kernels)
        return nearest @ nearest.mT

    def nearest(self, kernels: Tensor) -> Tensor:
        """Return the basis (n, cells, dim) of the subspace that each of kernels (n, cells) is nearest to."""
        count, cells, dim = self.bases.shape
        columns = self.bases.permute(1, 0, 2).reshape(cells, count * dim).float()  # to pick, that is enough
        parts = chunks(kernels.float(), max(1, CHUNK_NUMBERS // (count * dim)))
        inside = [(part @ columns).square().reshape(-1, count, dim).sum(2).argmax(1) for part in parts]
        return self.bases[torch.cat(inside)]


def picked(like: Candidate, cells: int, generator: torch.Generator) -> Candidate:
    """Return random subspaces for what `like` offers: as many of its dimension as its side bits can name."""
    count = min(MOST_PICKS, round(2**like.side_bits))
    drawn = torch.randn(count, cells, like.dim, dtype=torch.float64, generator=generator)
    bases = torch.linalg.qr(drawn)[0]
    if count == 1:  # one subspace for all kernels, so one projector
        return Candidate(like.name, like.dim, bases[0] @ bases[0].mT)
    return Picked(like.name, like.dim, None, math.log2(count), bases=bases)
