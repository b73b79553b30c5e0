"""One orthonormal basis for projectors that commute, shared further between groups that do not.

Projectors are (cells, cells). Within a group of commuting ones every projector is a sum of *atoms*, the
joint eigenspaces, and an atom may be spanned by vectors that another group has already brought.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kernelsimp.kernels.subspace import Floats, Ints


def shared_basis(projectors: list[Floats]) -> tuple[Floats, Floats]:
    """Return unit vectors (columns, cells) and 0/1 (projectors, columns), with few columns.

    Each projector is the sum of vv' over its columns. Which group a projector joins depends on the
    order in which they come; of a few orders the one with the fewest columns is kept.
    """
    commute = _commuting_pairs(projectors)
    table = list(range(len(projectors)))
    partners = commute.sum(axis=1)
    orders = [table, sorted(table, key=lambda i: partners[i]), sorted(table, key=lambda i: -partners[i])]
    rng = np.random.default_rng(0)
    orders += [list(rng.permutation(len(table))) for _ in range(12 if len(projectors[0]) < 100 else 0)]
    made = [_columns(projectors, _groups(commute, order)) for order in orders]
    return min(made, key=lambda pair: len(pair[0]))


def _commuting_pairs(projectors: list[Floats]) -> NDArray[np.bool_]:
    count = len(projectors)
    commute = np.eye(count, dtype=bool)
    for i, j in combinations(range(count), 2):
        product = projectors[i] @ projectors[j]
        commute[i, j] = commute[j, i] = np.abs(product - product.T).max() < 1e-9
    return commute


def _groups(commute: NDArray[np.bool_], order: list[int]) -> list[list[int]]:
    """Put each projector into the first group with all of which it commutes."""
    groups: list[list[int]] = []
    for i in order:
        home = next((group for group in groups if commute[i, group].all()), None)
        if home is None:
            groups.append([i])
        else:
            home.append(i)
    return groups


def _columns(projectors: list[Floats], groups: list[list[int]]) -> tuple[Floats, Floats]:
    """Return the columns and the selector for one grouping.

    Small atoms come first, so that a larger atom of another group that is a union of them costs nothing.
    """
    atoms = [(atom, group) for group in groups for atom in _atoms(projectors, group)]
    columns = np.zeros((0, len(projectors[0])))
    selector = np.zeros((len(projectors), 0))
    for atom, group in sorted(atoms, key=lambda pair: pair[0].shape[1]):
        users = [i for i in group if np.trace(atom.T @ projectors[i] @ atom) > 0.5]
        if not users:
            continue
        chosen = _spanning_columns(columns, atom)
        if chosen is None:
            chosen = np.arange(len(columns), len(columns) + atom.shape[1])
            columns = np.concatenate([columns, atom.T])
            selector = np.pad(selector, ((0, 0), (0, atom.shape[1])))
        selector[np.ix_(np.array(users), chosen)] = 1
    return columns, selector


def _atoms(projectors: list[Floats], group: list[int]) -> list[Floats]:
    """Return orthonormal bases (cells, dim) of the joint eigenspaces, split by one projector at a time."""
    atoms = [np.eye(len(projectors[0]))]
    for i in group:
        split: list[Floats] = []
        for atom in atoms:
            values, vectors = np.linalg.eigh(atom.T @ projectors[i] @ atom)
            outside, inside = vectors[:, values < 0.5], vectors[:, values >= 0.5]
            split += [atom @ part for part in (outside, inside) if part.shape[1]]
        atoms = split
    return atoms


def _spanning_columns(columns: Floats, atom: Floats) -> Ints | None:
    """Return the numbers of orthonormal vectors among `columns` that span `atom`, or None."""
    inside = np.flatnonzero(np.square(columns @ atom).sum(axis=1) > 1 - 1e-9)
    chosen: list[int] = []
    for i in inside:
        if not chosen or np.abs(columns[chosen] @ columns[i]).max() < 1e-9:
            chosen.append(int(i))
    return np.array(chosen) if len(chosen) == atom.shape[1] else None
