"""Ways from kernels to the energy they have outside many subspaces at once, and which way suits whom.

A way serves some families: it writes ||C'w||^2 for kernels flat (n, cells), or with their cells first as
a grid (planes, kh, kw, n). Small kernels take one matrix product over a basis shared by the families
whose projectors commute; lines that are compared, and large symmetric kernels, go by additions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kernelsimp.kernels.commuting import shared_basis
from kernelsimp.kernels.families import line_pairs
from kernelsimp.kernels.folding import Scratch, class_energies, class_projectors
from kernelsimp.kernels.subspace import Floats, Shape, Subspace, from_generators

_COMPARE, _FOLD = 25, 64
"""From so many cells on, pairs of lines are compared and symmetries folded rather than multiplied out."""


class Way(Protocol):
    """Write the energies of `families`, in that order, to `out` (families, n)."""

    @property
    def families(self) -> tuple[int, ...]: ...

    @property
    def by_grid(self) -> bool:
        """Whether kernels are wanted with their cells first."""

    def write(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> None: ...


@dataclass(frozen=True, eq=False)
class Product:
    """`basis` (cells, columns) of unit vectors; `selector` (families, columns) picks each complement.

    The basis is filled up with zero columns to a multiple of 8: BLAS is up to twice as fast.
    """

    families: tuple[int, ...]
    basis: Tensor
    selector: Tensor
    by_grid: bool = False

    def write(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> None:
        coordinates = scratch.take("coordinates", len(kernels), self.basis.shape[1])
        torch.mm(kernels, self.basis, out=coordinates)
        used = coordinates.square_()[:, : self.selector.shape[1]]
        torch.mm(self.selector, used.T, out=out)


@dataclass(frozen=True, eq=False)
class Folded:
    """`selector` (families, classes) adds the symmetry classes that make up each complement."""

    families: tuple[int, ...]
    selector: Tensor
    by_grid: bool = True

    def write(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> None:
        torch.mm(self.selector, class_energies(kernels, scratch), out=out)


@dataclass(frozen=True, eq=False)
class Supports:
    """`selector` (families, cells) marks the cells that must be zero."""

    families: tuple[int, ...]
    selector: Tensor
    by_grid: bool = True

    def write(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> None:
        squares = scratch.take("cells", *kernels.flatten(0, -2).shape)
        torch.mm(self.selector, torch.square(kernels.flatten(0, -2), out=squares), out=out)


@dataclass(frozen=True, eq=False)
class Means:
    """Each family equals its own mean along some axes (1 rows, 2 columns) of the grid."""

    families: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    by_grid: bool = True

    def write(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> None:
        apart = scratch.take("cells", *kernels.shape)
        for row, axes in enumerate(self.axes):
            torch.sub(kernels, kernels.mean(dim=axes, keepdim=True), out=apart)
            torch.sum(apart.square_(), dim=(0, 1, 2), out=out[row])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two equal lines; `lines` has (axis, first, second) of each family."""

    families: tuple[int, ...]
    lines: tuple[tuple[int, int, int], ...]
    by_grid: bool = True
    rows: dict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row, (axis, first, second) in enumerate(self.lines):
            self.rows.setdefault((axis, second - first), []).append((row, first))

    def write(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> None:
        for (axis, apart), wanted in self.rows.items():
            size = kernels.shape[axis] - apart
            shape = list(kernels.shape)
            shape[axis] = size
            difference = scratch.take("cells", *shape)
            torch.sub(kernels.narrow(axis, apart, size), kernels.narrow(axis, 0, size), out=difference)
            energies = difference.square_().sum(dim=(0, 3 - axis)).mul_(0.5)
            for row, first in wanted:
                out[row] = energies[first]


@lru_cache(maxsize=64)
def ways(subspaces: tuple[Subspace, ...], dtype: torch.dtype) -> tuple[Way, ...]:
    """Return ways that together serve every subspace, all of one shape, and one more: the norm.

    Family number len(subspaces) is the empty subspace: its residual energy is ||w||^2.
    Raises ValueError where the shapes differ.
    """
    shapes = {space.shape for space in subspaces}
    if len(shapes) != 1:
        raise ValueError(f"subspaces of one shape expected, found {sorted(shapes)}")
    shape, cells = subspaces[0].shape, subspaces[0].cells
    complements = [np.eye(cells) - space.projector for space in subspaces] + [np.eye(cells)]
    left = list(range(len(complements)))
    chosen: list[Way | None] = []
    if cells >= _COMPARE:
        chosen.append(_take_pairs(shape, complements, left))
    if cells >= _FOLD:
        chosen.append(_take_means(shape, complements, left))
        chosen.append(_take_folded(shape, complements, left, dtype))
        chosen.append(_take_supports(complements, left, dtype))
    chosen.append(_take_product(complements, left, dtype))
    return tuple(way for way in chosen if way is not None)


def _key(projector: Floats) -> bytes:
    return (projector.round(9) + 0.0).tobytes()


@lru_cache(maxsize=64)
def _lines_of(shape: Shape) -> dict[bytes, tuple[int, int, int]]:
    """Return {complement's key: (axis, first, second)} of the single pairs of equal lines at `shape`."""
    found = {}
    for family in line_pairs(shape):
        generators = family.build(shape)
        line, first, second = family.name.split("-")
        if generators is not None:
            space = from_generators(shape, generators)
            axis = 1 if line == "rows" else 2
            found[_key(np.eye(space.cells) - space.projector)] = (axis, int(first), int(second))
    return found


def _take_pairs(shape: Shape, complements: list[Floats], left: list[int]) -> Pairs | None:
    known = _lines_of(shape)
    found = {i: known[key] for i in left if (key := _key(complements[i])) in known}
    left[:] = [i for i in left if i not in found]
    return Pairs(tuple(found), tuple(found.values())) if found else None


def _take_means(shape: Shape, complements: list[Floats], left: list[int]) -> Means | None:
    if len(shape) != 2:
        return None
    rows, columns = (np.full((side, side), 1 / side) for side in shape)
    same = {
        (1,): np.kron(rows, np.eye(shape[1])),
        (2,): np.kron(np.eye(shape[0]), columns),
        (1, 2): np.kron(rows, columns),
    }
    known = {_key(np.eye(len(projector)) - projector): axes for axes, projector in same.items()}
    found = {i: known[key] for i in left if (key := _key(complements[i])) in known}
    left[:] = [i for i in left if i not in found]
    return Means(tuple(found), tuple(found.values())) if found else None


def _take_folded(
    shape: Shape, complements: list[Floats], left: list[int], dtype: torch.dtype
) -> Folded | None:
    """Take the families whose complement is a sum of symmetry classes."""
    classes = class_projectors(shape)
    found: dict[int, Floats] = {}
    for i in left:
        inside = _classes_inside(complements[i], classes)
        if inside is not None:
            found[i] = inside
    left[:] = [i for i in left if i not in found]
    return Folded(tuple(found), torch.tensor(np.array(list(found.values())), dtype=dtype)) if found else None


def _classes_inside(complement: Floats, classes: Floats) -> Floats | None:
    """Return 0/1 over the classes whose sum is `complement`, or None; mirrors are preferred."""
    mirrors = np.array([0, 1, 2, 3, 4, 5]) if len(classes) == 8 else np.arange(4)
    for group in (mirrors, np.array([0, 1, 2, 3, 6, 7])) if len(classes) == 8 else (mirrors,):
        overlap = np.einsum("kij,ij->k", classes[group], complement)
        dims = np.trace(classes[group], axis1=1, axis2=2)
        chosen = group[(overlap > dims - 0.5) & (dims > 0.5)]
        if np.allclose(classes[chosen].sum(axis=0), complement, atol=1e-9):
            return np.isin(np.arange(len(classes)), chosen).astype(np.float64)
    return None


def _take_supports(complements: list[Floats], left: list[int], dtype: torch.dtype) -> Supports | None:
    found = [i for i in left if np.allclose(complements[i], np.diag(np.diag(complements[i])), atol=1e-9)]
    left[:] = [i for i in left if i not in found]
    if not found:
        return None
    cells = np.array([np.diag(complements[i]).round() for i in found])
    return Supports(tuple(found), torch.tensor(cells, dtype=dtype))


def _take_product(complements: Sequence[Floats], left: list[int], dtype: torch.dtype) -> Product | None:
    if not left:
        return None
    columns, selector = shared_basis([complements[i] for i in left])
    padding = -len(columns) % 8
    basis = torch.tensor(np.pad(columns, ((0, padding), (0, 0))).T.copy(), dtype=dtype)
    return Product(tuple(left), basis, torch.tensor(selector, dtype=dtype))
