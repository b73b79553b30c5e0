"""A kind of kernel structure as a linear subspace of the cells of a kernel.

A `Subspace` is given by an orthonormal basis; cells are numbered row by row. A symmetry, equal lines
and a support all come from *signed cell permutations*, and their subspace is then an `OrbitSubspace`:
each cell belongs to one orbit with a sign, or is zero. Orbits let a kernel be written into its family
exactly, bit for bit, where a projection by matrix product would leave rounding behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, ...]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Subspace:
    """A linear subspace of the kernels of `shape`: one of `OrbitSubspace` and `SpanSubspace`."""

    shape: Shape

    @property
    def basis(self) -> Floats:
        """An orthonormal basis U (cells, dim) in float64."""
        raise NotImplementedError

    @property
    def cells(self) -> int:
        return int(np.prod(self.shape))

    @property
    def dim(self) -> int:
        return int(self.basis.shape[1])

    @cached_property
    def projector(self) -> Floats:
        """P = UU', (cells, cells)."""
        return self.basis @ self.basis.T

    @cached_property
    def complement(self) -> Floats:
        """An orthonormal basis C (cells, cells - dim) of what the subspace leaves out."""
        q, _ = np.linalg.qr(self.basis, mode="complete")
        return np.asarray(q[:, self.dim :])

    def project(self, kernels: Tensor) -> Tensor:
        """Return the nearest members of the subspace; (..., *shape) in, the same out, in float64."""
        flat = kernels.double().reshape(-1, self.cells)
        projected = flat @ torch.from_numpy(self.projector)
        return projected.reshape(kernels.shape)

    def residual(self, kernels: Tensor) -> Tensor:
        """Return r = ||C'w|| / ||w|| of kernels (..., *shape), in float64; 0 for a zero kernel.

        Goes through the complement: the difference of squared norms reads 0.0 for a true 1e-9.
        """
        flat = kernels.double().reshape(-1, self.cells)
        left = (flat @ torch.from_numpy(self.complement)).norm(dim=1)
        norm = flat.norm(dim=1)
        r = torch.where(
            norm > 0, left / norm.clamp_min(torch.finfo(torch.float64).tiny), torch.zeros_like(left)
        )
        return r.clamp(0, 1).reshape(kernels.shape[: kernels.ndim - len(self.shape)])

    def snap(self, kernels: Tensor) -> Tensor:
        """Return `kernels` written into the subspace, in their own dtype."""
        return self.project(kernels).to(kernels.dtype)

    def holds(self, kernels: Tensor) -> Tensor:
        """Say for each kernel (..., *shape) whether it lies in the subspace up to its dtype's rounding."""
        return self.residual(kernels) <= 4 * torch.finfo(kernels.dtype).eps


@dataclass(frozen=True, eq=False)
class SpanSubspace(Subspace):
    """A subspace given by any orthonormal basis `span` (cells, dim): random ones, templates."""

    span: Floats

    @property
    def basis(self) -> Floats:
        return self.span


@dataclass(frozen=True, eq=False)
class OrbitSubspace(Subspace):
    """A subspace of signed orbits: `orbit` (cells,) numbers each cell's orbit, -1 for a cell that is zero.

    `sign` (cells,) is +1 or -1; within an orbit all cells are sign * (one value).
    """

    orbit: Ints
    sign: Floats

    @cached_property
    def basis(self) -> Floats:
        basis = np.zeros((self.cells, self.dim))
        inside = np.flatnonzero(self.orbit >= 0)
        basis[inside, self.orbit[inside]] = self.sign[inside]
        return np.asarray(basis / np.linalg.norm(basis, axis=0, keepdims=True))

    @property
    def dim(self) -> int:
        return int(self.orbit.max(initial=-1)) + 1

    @property
    def key(self) -> bytes:
        """The same bytes for the same subspace: orbits are numbered by first cell, whose sign is +1."""
        return self.orbit.tobytes() + (self.sign * (self.orbit >= 0)).tobytes()

    def project(self, kernels: Tensor) -> Tensor:
        """Return the nearest members, in float64: each orbit takes its signed mean, without a matrix."""
        flat = kernels.double().reshape(-1, self.cells)
        inside = np.flatnonzero(self.orbit >= 0)
        orbit, sign = torch.from_numpy(self.orbit[inside]), torch.from_numpy(self.sign[inside])
        size = torch.bincount(orbit, minlength=self.dim).double()
        mean = flat.new_zeros(flat.shape[0], self.dim).index_add_(1, orbit, flat[:, inside] * sign) / size
        projected = torch.zeros_like(flat)
        projected[:, inside] = mean[:, orbit] * sign
        return projected.reshape(kernels.shape)

    def residual(self, kernels: Tensor) -> Tensor:
        """Return r = ||w - Pw|| / ||w||, in float64; 0 for a zero kernel."""
        wide = kernels.double()
        left = (wide - self.project(kernels)).reshape(-1, self.cells).norm(dim=1)
        norm = wide.reshape(-1, self.cells).norm(dim=1)
        r = torch.where(norm > 0, left / torch.where(norm > 0, norm, 1.0), torch.zeros_like(left))
        return r.clamp(0, 1).reshape(kernels.shape[: kernels.ndim - len(self.shape)])

    @cached_property
    def representatives(self) -> Ints:
        """The first cell of each orbit, (dim,); its sign is +1."""
        return np.array([int(np.argmax(self.orbit == i)) for i in range(self.dim)], dtype=np.int64)

    def snap(self, kernels: Tensor) -> Tensor:
        """Project, cast to the kernels' dtype, then copy each orbit from its representative.

        Membership is then exact bit for bit: the copy comes after the cast.
        """
        flat = self.project(kernels).to(kernels.dtype).reshape(-1, self.cells)
        return self._spread(flat).reshape(kernels.shape)

    def holds(self, kernels: Tensor) -> Tensor:
        """Say for each kernel whether it is exactly, bitwise up to the sign of zero, in the subspace."""
        flat = kernels.reshape(-1, self.cells)
        exact = (flat == self._spread(flat)).all(dim=1)
        return exact.reshape(kernels.shape[: kernels.ndim - len(self.shape)])

    def _spread(self, flat: Tensor) -> Tensor:
        inside = torch.from_numpy(self.orbit >= 0)
        source = np.where(self.orbit >= 0, self.representatives[self.orbit] if self.dim else 0, 0)
        sign = torch.from_numpy(self.sign).to(flat.dtype)
        return torch.where(inside, flat[:, torch.from_numpy(source)] * sign, torch.zeros_like(flat))


@dataclass(frozen=True, eq=False)
class SignedPermutation:
    """Maps the value of cell `target[i]` with sign `sign[i]` onto cell i; both (cells,)."""

    target: Ints
    sign: Floats


def permutation(target: Ints, sign: float = 1.0) -> SignedPermutation:
    """Return the permutation that reads cell `target[i]` at cell i, all with one sign."""
    flat = np.asarray(target, dtype=np.int64).reshape(-1)
    return SignedPermutation(flat, np.full(flat.shape, sign))


def zeroing(mask: NDArray[np.bool_]) -> SignedPermutation:
    """Return the generator under which the cells in `mask` must equal their own negative: zero."""
    flat = mask.reshape(-1)
    return SignedPermutation(np.arange(flat.size), np.where(flat, -1.0, 1.0))


def from_generators(shape: Shape, generators: Sequence[SignedPermutation]) -> OrbitSubspace:
    """Return the kernels that every generator leaves as they are.

    Cells are joined into orbits breadth first; an orbit that would have to be its own negative is zero.
    Source: the fixed space of a signed permutation group is spanned by its consistent orbits.
    """
    cells = int(np.prod(shape))
    orbit, sign = np.full(cells, -1, dtype=np.int64), np.ones(cells)
    count = 0
    for start in range(cells):
        if orbit[start] != -1:
            continue
        members, consistent = _orbit_of(start, generators)
        orbit[list(members)] = count if consistent else -2
        sign[list(members)] = list(members.values())
        count += consistent
    orbit[orbit == -2] = -1
    return from_orbits(shape, orbit, sign)


def from_orbits(shape: Shape, orbit: Ints, sign: Floats) -> OrbitSubspace:
    """Return the subspace of the given orbits (cells,) and signs (cells,); -1 marks a zero cell."""
    return OrbitSubspace(shape, orbit, sign)


def _orbit_of(start: int, generators: Sequence[SignedPermutation]) -> tuple[dict[int, float], bool]:
    """Return the cells reached from `start` with their signs, and whether no cell needs both signs."""
    members, queue, consistent = {start: 1.0}, [start], True
    while queue:
        cell = queue.pop()
        for generator in generators:
            other = int(generator.target[cell])
            sign = members[cell] * generator.sign[cell]
            if other not in members:
                members[other] = sign
                queue.append(other)
            consistent &= members[other] == sign
    return members, consistent
