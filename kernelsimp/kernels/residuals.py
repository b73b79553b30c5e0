"""Relative residuals of many kernels against many families at once.

The projectors of families that commute share one orthonormal basis, and each family's complement is a
set of its columns; one matrix product, a square and a 0/1 selector then serve them all. Kernels are
(n, *shape) and residuals (n, families), r = ||C'w|| / ||w|| with C a basis of the complement; a zero
kernel reads 0 although it is dead: it lies in every subspace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.kernels.families import line_pairs
from kernelsimp.kernels.subspace import Floats, Ints, OrbitSubspace, Shape, Subspace, from_generators

CHUNK_CELLS = 1 << 17
"""Cells worked on at once: they and their coordinates stay in a core's cache."""

LARGE_CELLS = 169
"""Kernels of more cells (beyond 13 x 13) are measured one family at a time."""

_SMALL, _LARGE = 1e-24, 1e30
"""Squared norms outside these are scaled first: their squares would leave float32."""


@dataclass(frozen=True, eq=False)
class Route:
    """How to reach the residuals of some families at one shape.

    `basis` (columns, cells) holds unit vectors; `selector` (families, columns) says which of them make up
    the complement of each linear family, `support` (families, cells) which single cells do. `linear`,
    `supports` and `pairs` number the families that each way serves; a pair is (family, axis, line, line).
    """

    basis: Floats
    selector: Floats
    linear: Ints
    support: Floats
    supports: Ints
    pairs: tuple[tuple[int, int, int, int], ...]


def residuals(kernels: Tensor, subspaces: Sequence[Subspace]) -> Tensor:
    """Return r = ||C'w|| / ||w|| of every kernel (n, *shape) against every subspace, (n, subspaces).

    The result is float32 (float64 for float64 kernels), in [0, 1], its error about the rounding of that
    dtype; NaN where a kernel is not finite, 0 where it is zero.
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
    if families[0].cells > LARGE_CELLS:
        return _one_by_one(kernels, families, dtype, centred=centred)
    engine = _Engine(families, dtype)
    size = max(256, CHUNK_CELLS // families[0].cells)
    for start in range(0, len(kernels), size):
        flat = kernels[start : start + size].detach().reshape(-1, families[0].cells).to(dtype)
        engine.run(remove_mean(flat) if centred else flat, out[:, start : start + size])
    return out.T


def _one_by_one(
    kernels: Tensor, families: tuple[Subspace, ...], dtype: torch.dtype, *, centred: bool
) -> Tensor:
    """Return the residuals of few, large kernels: finding shared bases would take longer than it saves."""
    flat = kernels.detach().double().reshape(len(kernels), -1)
    wide = (remove_mean(flat) if centred else flat).reshape(kernels.shape)
    return torch.stack([family.residual(wide) for family in families], dim=1).to(dtype)


class _Engine:
    """The route of some families as tensors of one dtype."""

    def __init__(self, subspaces: tuple[Subspace, ...], dtype: torch.dtype) -> None:
        self.route = route(subspaces)
        self.shape = subspaces[0].shape
        self.basis = torch.from_numpy(self.route.basis).to(dtype)
        self.selector = torch.from_numpy(self.route.selector).to(dtype)
        self.support = torch.from_numpy(self.route.support).to(dtype)
        self.linear = torch.from_numpy(self.route.linear)
        self.supports = torch.from_numpy(self.route.supports)

    def run(self, flat: Tensor, out: Tensor) -> None:
        """Write the residuals of kernels (n, cells) to `out` (families, n)."""
        norm = torch.linalg.vecdot(flat, flat)
        odd = ~((norm > _SMALL) & (norm < _LARGE))
        self._energies(flat, out)
        out.mul_(norm.reciprocal()).sqrt_().clamp_(max=1)
        if bool(odd.any()):
            self._scaled(flat[odd], odd, out)

    def _energies(self, flat: Tensor, out: Tensor) -> None:
        if len(self.linear):
            out[self.linear] = self.selector @ (self.basis @ flat.T).square_()
        if len(self.supports):
            out[self.supports] = self.support @ flat.T.square()
        if self.route.pairs:
            grid = flat.T.contiguous().reshape(*self.shape, -1)
            for family, axis, first, second in self.route.pairs:
                difference = grid.select(axis, first) - grid.select(axis, second)
                out[family] = difference.flatten(0, -2).square_().sum(0).mul_(0.5)

    def _scaled(self, flat: Tensor, where: Tensor, out: Tensor) -> None:
        """Write the residuals of kernels whose squares leave the dtype, scaled to a largest cell of 1."""
        peak = flat.abs().amax(dim=1, keepdim=True).double()
        scaled = (flat.double() / torch.where(peak > 0, peak, 1.0)).to(flat.dtype)
        energy = torch.empty(out.shape[0], len(flat), dtype=out.dtype)
        self._energies(scaled, energy)
        norm = torch.linalg.vecdot(scaled, scaled)
        energy /= torch.where(norm == 0, 1.0, norm)
        out[:, where] = energy.sqrt_().clamp_(max=1)


@lru_cache(maxsize=64)
def route(subspaces: tuple[Subspace, ...]) -> Route:
    """Return the cheapest route found to the residuals of subspaces of one shape.

    Raises ValueError where they differ in shape.
    """
    if len({space.shape for space in subspaces}) != 1:
        raise ValueError(f"subspaces of one shape expected, found {sorted({s.shape for s in subspaces})}")
    known = _pairs_of(subspaces[0].shape)
    keys = [space.key if isinstance(space, OrbitSubspace) else b"" for space in subspaces]
    pairs = tuple((i, *known[key]) for i, key in enumerate(keys) if key in known)
    rest = [i for i, key in enumerate(keys) if key not in known]
    supports = np.array([i for i in rest if _is_diagonal(subspaces[i])], dtype=np.int64)
    linear = np.array([i for i in rest if not _is_diagonal(subspaces[i])], dtype=np.int64)
    cells = subspaces[0].cells
    support = np.array([1 - np.diag(subspaces[i].projector) for i in supports]).reshape(-1, cells).round()
    basis, selector = _shared_basis([_left_out(subspaces[i]) for i in linear], cells)
    return Route(basis, selector, linear, support, supports, pairs)


def _left_out(space: Subspace) -> Floats:
    return np.asarray(np.eye(space.cells) - space.projector)


def _is_diagonal(space: Subspace) -> bool:
    return bool(np.allclose(space.projector, np.diag(np.diag(space.projector)), atol=1e-12))


@lru_cache(maxsize=64)
def _pairs_of(shape: Shape) -> dict[bytes, tuple[int, int, int]]:
    """Return {key of the subspace: (axis, line, line)} of the single pairs of equal lines at `shape`.

    Shapes with only two lines on an axis keep that pair among the linear families.
    """
    found = {}
    for family in line_pairs(shape):
        generators = family.build(shape)
        line, first, second = family.name.split("-")
        axis = len(shape) - 2 + (line == "columns")
        if generators is not None and shape[axis] > 2:
            found[from_generators(shape, generators).key] = (axis, int(first), int(second))
    return found


def _shared_basis(complements: list[Floats], cells: int) -> tuple[Floats, Floats]:
    """Return (columns, cells) unit vectors and (families, columns) 0/1, the best of a few groupings."""
    if not complements:
        return np.zeros((0, cells)), np.zeros((0, 0))
    commute = _commuting(complements)
    partners = commute.sum(axis=1)
    table = list(range(len(complements)))
    orders = [table, sorted(table, key=lambda i: partners[i]), sorted(table, key=lambda i: -partners[i])]
    groupings = [_groups(commute, order) for order in orders]
    return min((_grouped(complements, groups) for groups in groupings), key=lambda made: len(made[0]))


def _commuting(projectors: list[Floats]) -> NDArray[np.bool_]:
    count = len(projectors)
    commute = np.eye(count, dtype=bool)
    for i, j in combinations(range(count), 2):
        product = projectors[i] @ projectors[j]
        commute[i, j] = commute[j, i] = np.abs(product - product.T).max() < 1e-9
    return commute


def _grouped(complements: list[Floats], groups: list[list[int]]) -> tuple[Floats, Floats]:
    """Give each group of commuting families one basis, and share columns between the groups.

    Small atoms (joint eigenspaces) come first, so that a larger atom of another group that is a union of
    them costs nothing.
    """
    atoms = [(atom, group) for group in groups for atom in _atoms(complements, group)]
    columns = np.zeros((0, len(complements[0])))
    selector = np.zeros((len(complements), 0))
    for atom, group in sorted(atoms, key=lambda pair: pair[0].shape[1]):
        users = [i for i in group if np.trace(atom.T @ complements[i] @ atom) > 0.5]
        if not users:
            continue
        chosen = _spanning(columns, atom)
        if chosen is None:
            chosen = np.arange(len(columns), len(columns) + atom.shape[1])
            columns = np.concatenate([columns, atom.T])
            selector = np.pad(selector, ((0, 0), (0, atom.shape[1])))
        selector[np.ix_(np.array(users), chosen)] = 1
    return columns, selector


def _groups(commute: NDArray[np.bool_], order: list[int]) -> list[list[int]]:
    """Put each family into the first group all of whose members it commutes with."""
    groups: list[list[int]] = []
    for i in order:
        home = next((group for group in groups if commute[i, group].all()), None)
        if home is None:
            groups.append([i])
        else:
            home.append(i)
    return groups


def _atoms(projectors: list[Floats], group: list[int]) -> list[Floats]:
    """Return orthonormal bases (cells, dim) of the joint eigenspaces of commuting projectors.

    They are the eigenspaces of one sum with generic coefficients: square roots of distinct primes and
    their like are independent over the rationals, so different 0/1 patterns give different sums.
    """
    values, vectors = np.linalg.eigh(sum(np.sqrt(i + 2.1) * projectors[i] for i in group))
    edges = np.flatnonzero(np.diff(values) > 1e-8) + 1
    return list(np.split(vectors, edges, axis=1))


def _spanning(columns: Floats, atom: Floats) -> Ints | None:
    """Return the numbers of orthonormal vectors among `columns` that span `atom`, or None."""
    inside = np.flatnonzero(np.square(columns @ atom).sum(axis=1) > 1 - 1e-9)
    chosen: list[int] = []
    for i in inside:
        if not chosen or np.abs(columns[chosen] @ columns[i]).max() < 1e-9:
            chosen.append(int(i))
    return np.array(chosen) if len(chosen) == atom.shape[1] else None
