"""Routes from kernels to the energy they have outside many subspaces at once, and which route suits whom.

A route serves some families: it writes ||C'w||^2 for kernels flat (n, cells), or with their cells first as
a grid (planes, kh, kw, n). Small kernels take one matrix product over a basis sorted by symmetry class,
and another over a basis shared by the families whose projectors commute; lines that are compared, and
large symmetric kernels, go by additions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kernelsimp.kernels.commuting import shared_basis
from kernelsimp.kernels.families import line_pairs
from kernelsimp.kernels.folding import Scratch, class_basis, class_energies, class_projectors
from kernelsimp.kernels.subspace import Floats, Shape, Subspace, from_generators

_COMPARE, _SUM, _FOLD = 25, 36, 64
"""From so many cells on, pairs of lines are compared, squares of a class added up before families are
made of them, and symmetries folded rather than multiplied out."""


class ResidualRoute(Protocol):
    """Write the energies of `families`, in that order, to `out` (families, n)."""

    @property
    def families(self) -> tuple[int, ...]: ...

    @property
    def by_grid(self) -> bool:
        """Whether kernels are wanted with their cells first."""

    def write(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> None: ...


@dataclass(frozen=True, eq=False)
class Product:
    """`basis` (columns, cells) of unit vectors; `selector` (families, columns) picks each complement."""

    families: tuple[int, ...]
    basis: Tensor
    selector: Tensor
    by_grid: bool = False

    def write(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> None:
        coordinates = scratch.take("coordinates", len(self.basis), len(kernels))
        torch.mm(self.basis, kernels.T, out=coordinates)
        torch.mm(self.selector, coordinates.square_(), out=out)


@dataclass(frozen=True, eq=False)
class Classes:
    """Sums of symmetry classes, by one orthonormal `basis` (cells, cells) that is sorted by class.

    The coordinates of even-odd and odd-even, added and subtracted, are those on the diagonal mirrors. The
    rows of all classes have `sizes`; `selector` is (families, classes).
    """

    families: tuple[int, ...]
    basis: Tensor
    sizes: tuple[int, ...]
    selector: Tensor
    by_grid: bool = False

    @cached_property
    def weights(self) -> Tensor:
        """The selector with a column for each row of coordinates, (families, rows)."""
        return self.selector.repeat_interleave(torch.tensor(self.sizes), dim=1)

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split_with_sizes(rows, self.sizes)

    def write(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> None:
        cells, count = len(self.basis), len(kernels)
        rows = scratch.take("coordinates", sum(self.sizes), count)
        torch.mm(self.basis, kernels.T, out=rows[:cells])
        if len(self.sizes) == 8:
            *_, one, other, added, taken = self._parts(rows)
            torch.add(one, other, out=added)
            torch.sub(one, other, out=taken)
        rows.square_()
        if cells < _SUM:
            torch.mm(self.weights, rows, out=out)
            return
        energies = scratch.take("classes", len(self.sizes), count)
        for energy, part in zip(energies.unbind(), self._parts(rows), strict=True):
            torch.sum(part, dim=0, out=energy)
        torch.mm(self.selector, energies, out=out)


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
    bound: dict[tuple[int, ...], list[tuple[Tensor, ...]]] = field(default_factory=dict)

    def write(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> None:
        key = (kernels.data_ptr(), out.data_ptr(), len(out), *kernels.shape)
        steps = self.bound.get(key)
        if steps is None:
            steps = list(self._steps(kernels, out, scratch))
            self.bound.clear()
            self.bound[key] = steps
        for line, others, apart, rows, adding, energies in steps:
            # squared difference in one go, and sums over cells as a product: both twice as fast
            torch.ops.aten.mse_loss.out(others, line, 0, out=apart)
            torch.mm(adding, rows, out=energies)

    def _steps(self, kernels: Tensor, out: Tensor, scratch: Scratch) -> Iterator[tuple[Tensor, ...]]:
        """Yield the views of one line, the run of lines compared with it, and where their halves add up."""
        start = 0
        while start < len(self.lines):
            axis, first, second = self.lines[start]
            run = 1
            while self.lines[start + run : start + run + 1] == ((axis, first, second + run),):
                run += 1
            line, others = kernels.narrow(axis, first, 1), kernels.narrow(axis, second, run)
            apart = scratch.take("cells", *others.shape)
            planes, high, wide = others.shape[:3]
            own = (torch.eye(run)[:, None, :, None] if axis == 1 else torch.eye(run)[:, None, None, :]) / 2
            adding = own.expand(run, planes, high, wide).reshape(run, -1).to(kernels.dtype)
            yield line.expand_as(others), others, apart, apart.flatten(0, 2), adding, out[start : start + run]
            start += run


@lru_cache(maxsize=64)
def residual_routes(subspaces: tuple[Subspace, ...], dtype: torch.dtype) -> tuple[ResidualRoute, ...]:
    """Return routes that together serve every subspace, all of one shape, and before them the norm.

    Family number 0 is the empty subspace, whose residual energy is ||w||^2; number i + 1 is subspace i.
    Raises ValueError where the shapes differ.
    """
    shapes = {space.shape for space in subspaces}
    if len(shapes) != 1:
        raise ValueError(f"subspaces of one shape expected, found {sorted(shapes)}")
    shape, cells = subspaces[0].shape, subspaces[0].cells
    complements = [np.eye(cells)] + [np.eye(cells) - space.projector for space in subspaces]
    left = list(range(len(complements)))
    pairs = _take_pairs(shape, complements, left) if cells >= _COMPARE else None
    supports = None
    if cells >= _FOLD:
        symmetries: ResidualRoute | None = _take_folded(shape, complements, left, dtype)
        means = _take_means(shape, complements, left)
    else:
        symmetries, means = _take_classes(shape, complements, left, dtype), None
    if cells >= _FOLD or pairs is not None:  # where cells lie first anyway
        supports = _take_supports(complements, left, dtype)
    product = _take_product(complements, left, dtype)
    chosen: tuple[ResidualRoute | None, ...] = (symmetries, means, product, supports, pairs)  # in table order
    return tuple(route for route in chosen if route is not None)


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
    """Take the families whose complement is a sum of symmetry classes, by additions."""
    found = _sums_of_classes(shape, complements, left)
    return Folded(tuple(found), torch.tensor(np.array(list(found.values())), dtype=dtype)) if found else None


def _take_classes(
    shape: Shape, complements: list[Floats], left: list[int], dtype: torch.dtype
) -> Classes | None:
    """Take the families whose complement is a sum of symmetry classes, by one product."""
    if len(shape) < 2:
        return None
    found = _sums_of_classes(shape, complements, left)
    if not found:
        return None
    basis, sizes = class_basis(shape)
    selector = np.array(list(found.values()))
    if selector.shape[1] == 8:
        sizes = (*sizes, sizes[4], sizes[4])
        selector[:, 6:] /= 2
    return Classes(tuple(found), torch.tensor(basis, dtype=dtype), sizes, torch.tensor(selector, dtype=dtype))


def _sums_of_classes(shape: Shape, complements: list[Floats], left: list[int]) -> dict[int, Floats]:
    """Take out of `left` the families whose complement is a sum of symmetry classes, with their 0/1."""
    classes = class_projectors(shape)
    inside = {i: _classes_inside(complements[i], classes) for i in left}
    found = {i: row for i, row in inside.items() if row is not None}
    left[:] = [i for i in left if i not in found]
    return found


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
    basis = torch.tensor(columns, dtype=dtype)
    return Product(tuple(left), basis, torch.tensor(selector, dtype=dtype))
