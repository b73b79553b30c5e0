"""Every structure that a plan can give a kernel, by name: the linear families, `zero`, and sets that bend.

A bent set (low rank, few distinct values) is no subspace, but each of its members lies in one: the set's
flat at that member, in which a re-solve can move it. Membership needs nothing but the kernel itself.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import families, few_values, partitions, rank
from kernelsimp.kernels.subspace import OrbitSubspace, Shape

RANKS = {"rank-one": 1, "rank-two": 2}
VALUES = {f"few-values-{count}": count for count in few_values.COUNTS}

BENT = (*RANKS, *VALUES)
"""The names of the structures that are no subspace, in the order in which they are offered."""


@dataclass(frozen=True)
class BentSet:
    """A set of kernels of `shape`; `dim` numbers are left of a kernel and `side_bits` name the rest."""

    name: str
    shape: Shape
    dim: int
    side_bits: float = 0.0

    def snap(self, kernels: Tensor) -> Tensor:
        """Return the nearest members (..., *shape), in the kernels' own dtype."""
        raise NotImplementedError

    def holds(self, kernels: Tensor) -> Tensor:
        """Say for each kernel (..., *shape) whether it is a member, as exactly as its kind admits."""
        raise NotImplementedError

    def flats(self, kernels: Tensor) -> Tensor:
        """Return the projector (n, cells, cells) of the flat at the member nearest to each of (n, *shape)."""
        raise NotImplementedError

    def residual(self, kernels: Tensor) -> Tensor:
        """Return ||w - snap(w)|| / ||w|| of kernels (..., *shape), in float64; 0 for a zero kernel."""
        wide = self._rows(kernels).double()
        norm = wide.flatten(1).norm(dim=1)
        left = (wide - self.snap(wide)).flatten(1).norm(dim=1)
        return torch.where(norm > 0, left / norm.clamp_min(1e-300), 0.0).reshape(self._lead(kernels))

    def _rows(self, kernels: Tensor) -> Tensor:
        return kernels.reshape(-1, *self.shape)

    def _lead(self, kernels: Tensor) -> torch.Size:
        return kernels.shape[: kernels.ndim - len(self.shape)]


@dataclass(frozen=True)
class LowRank(BentSet):
    """Kernels of rank `order` or less; the flat keeps the row space, span(I kron V)."""

    order: int = 1

    def snap(self, kernels: Tensor) -> Tensor:
        return rank.snap(self._rows(kernels), self.order).reshape(kernels.shape)

    def holds(self, kernels: Tensor) -> Tensor:
        return rank.holds(self._rows(kernels), self.order).reshape(self._lead(kernels))

    def flats(self, kernels: Tensor) -> Tensor:
        _, rows = rank.factors(kernels, self.order)
        basis = torch.linalg.qr(rows.mT)[0]
        space = basis @ basis.mT
        identity = torch.eye(self.shape[0], dtype=torch.float64)
        cells = self.shape[0] * self.shape[1]
        return torch.einsum("ab,nij->naibj", identity, space).reshape(-1, cells, cells)


@dataclass(frozen=True)
class FewValued(BentSet):
    """Kernels of `count` distinct values or fewer; the flat keeps which cells are equal."""

    count: int = 2

    def snap(self, kernels: Tensor) -> Tensor:
        rows = self._rows(kernels)
        return few_values.snap(rows, few_values.fit(rows, self.count)).reshape(kernels.shape)

    def holds(self, kernels: Tensor) -> Tensor:
        return few_values.holds(self._rows(kernels), self.count).reshape(self._lead(kernels))

    def flats(self, kernels: Tensor) -> Tensor:
        labels = few_values.fit(kernels, self.count).labels
        member = torch.nn.functional.one_hot(labels, self.count).double()
        sizes = member.sum(1).clamp_min(1)
        return (member / sizes[:, None, :]) @ member.mT


@lru_cache(maxsize=4096)
def find(name: str, shape: Shape) -> OrbitSubspace | BentSet:
    """Return the structure called `name` at `shape`: a family, `zero`, or a bent set.

    Raises `KernelsimpError` where it is unknown or has no meaning at this shape.
    """
    if name not in BENT:
        return families.find(name, shape)
    made = {item.name: item for item in bent_sets(shape)}
    if name not in made:
        raise KernelsimpError(f"structure '{name}' is not offered for kernels of shape {shape}")
    return made[name]


def projectors(structure: OrbitSubspace | BentSet, kernels: Tensor) -> Tensor:
    """Return the projector of a subspace (cells, cells), or of the flat at each of kernels (n, *shape)."""
    if isinstance(structure, BentSet):
        return structure.flats(kernels)
    return torch.from_numpy(structure.projector)


@lru_cache(maxsize=256)
def bent_sets(shape: Shape) -> tuple[BentSet, ...]:
    """Return the bent sets that restrict kernels of `shape`; none for kernels of three sides or one line."""
    if len(shape) != 2:
        return ()
    grid, cells = (shape[0], shape[1]), int(np.prod(shape))
    low = (
        LowRank(name, shape, rank.dof(grid, order), order=order)
        for name, order in RANKS.items()
        if rank.offered(grid, order)
    )
    few = (
        FewValued(name, shape, count, partitions.bits(cells, count), count)
        for name, count in VALUES.items()
        if few_values.offered(grid, count)
    )
    return (*low, *few)
