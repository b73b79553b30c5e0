"""Bases of integers for kernels of a structure: whole numbers of their columns are members, and nothing else.

A column is about `ONE` long, so that one step serves all. A linear family needs its name alone; a bent set
needs integers beside it, which say in which of its flats a kernel lies: the rows of a low rank, which cells
are equal, or what a template or a prototype draws; what several kernels draw stands once, in `Drawings`, and
is named by number. A `Table` turns cells into components of a layer's
kernels, which may be within the parts that the symmetries of the square keep apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import rank
from kernelsimp.kernels.orbits import moves
from kernelsimp.kernels.structures import DENOISED, Drawn, FewValued, LowRank, find
from kernelsimp.kernels.subspace import OrbitSubspace, Shape, SignedPermutation, from_generators

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ONE = 1 << 24
"""The length of a column, in units of which a coefficient's step is counted."""

MOST_CELLS = 256
"""Kernels of more cells have no basis of integers."""

FREE = "free"
PARTS = "parts-"
"""What the names of structures begin with that are parts of a table: a digit 0 or 1 a part follows."""

ROW_BITS, DRAWN_BITS, TURN_BITS = 8, 26, 10

_TURN = 1 << TURN_BITS - 1


@dataclass(frozen=True)
class Side:
    """What stands beside the name of a structure: `count` integers of `bits` bits a kernel.

    `labels` says that they number values, so that a kernel has as many coefficients as there are of these.
    """

    count: int = 0
    bits: int = 0
    labels: bool = False


@dataclass(frozen=True, eq=False)
class Drawings:
    """What the kernels of a layer draw, `cells` (n, cells) as integers of `DRAWN_BITS` bits, each once.

    A drawing, turned and mirrored by the moves of its `grid`, is named by one number: its place, times how
    many moves there are, plus the move.
    """

    grid: Shape
    cells: Ints

    @property
    def bits(self) -> int:
        """The bits of a number."""
        return max(1, (len(self.cells) * len(moves(self.grid)) - 1).bit_length())

    def cells_of(self, number: int) -> Ints:
        """Return the integers of one drawing; raises ValueError where there is none of that number."""
        place, move = divmod(number, len(moves(self.grid)))
        if not 0 <= place < len(self.cells):
            raise ValueError("a drawing that is not there")
        return np.asarray(self.cells[place][moves(self.grid)[move]])


def gather_drawings(drawn: Ints, grid: Shape) -> tuple[Drawings, Ints]:
    """Return the drawings of kernels (n, cells), each once whichever way it is turned, and their numbers.

    >>> found, numbers = gather_drawings(np.array([[1, 2, 3, 4], [3, 1, 4, 2], [1, 2, 3, 4]]), (2, 2))
    >>> len(found.cells), [found.cells_of(number).tolist() for number in numbers[:2]]
    (1, [[1, 2, 3, 4], [3, 1, 4, 2]])
    """
    turned = np.stack([drawn[:, move] for move in moves(grid)], 1)
    least = np.array([min(map(tuple, item)) for item in turned.tolist()], np.int64).reshape(drawn.shape)
    cells, places = np.unique(least, axis=0, return_inverse=True)
    found = Drawings(grid, cells)
    numbers = np.zeros(len(drawn), np.int64)
    for kernel, place in enumerate(places.reshape(-1)):
        equal = (cells[place][np.stack(moves(grid))] == drawn[kernel]).all(1)
        numbers[kernel] = place * len(equal) + int(equal.argmax())
    return found, numbers


def side_of(name: str, grid: Shape, drawings: Drawings | None = None) -> Side:
    """Return what a structure needs beside its name.

    >>> side_of("mirror-v", (3, 3)), side_of("rank-one", (3, 3))
    (Side(count=0, bits=0, labels=False), Side(count=3, bits=8, labels=False))
    """
    if not name.startswith(PARTS) and name != FREE:
        structure = find(name, grid)
        if isinstance(structure, LowRank):
            return Side(structure.order * grid[1], ROW_BITS)
        if isinstance(structure, FewValued):
            return Side(math.prod(grid), max(1, (structure.count - 1).bit_length()), labels=True)
        if isinstance(structure, Drawn):
            return Side(math.prod(grid), DRAWN_BITS) if drawings is None else Side(1, drawings.bits)
    return Side()


def side_numbers(name: str, kernels: Tensor, shapes: NDArray[np.float32] | None = None) -> Ints:
    """Return the integers (n, count) beside the name for each of kernels (n, *grid)."""
    structure = find(name, tuple(kernels.shape[1:]), shapes) if name != FREE else None
    kernels = kernels.detach().cpu()
    if isinstance(structure, LowRank):
        rows = rank.factors(kernels, structure.order)[1].flatten(0, 1).numpy()
        top = 2 ** (ROW_BITS - 1) - 1
        size = np.abs(rows).max(1, keepdims=True)
        whole = np.rint(rows / np.where(size > 0, size, 1.0) * top).astype(np.int64)
        whole[size[:, 0] == 0, 0] = top
        return np.asarray(whole + top).reshape(len(kernels), -1)
    if isinstance(structure, FewValued):
        return np.asarray(structure.partition(kernels).numpy(), np.int64)
    if isinstance(structure, Drawn):
        return np.asarray(np.rint(structure.basis(kernels)[:, :, 0].numpy() * ONE), np.int64) + ONE
    return np.zeros((len(kernels), 0), np.int64)


def basis_of(
    name: str,
    grid: Shape,
    side: Sequence[int] = (),
    table: "Table | None" = None,
    drawings: Drawings | None = None,
) -> Ints:
    """Return the basis (cells, dim) of a structure; the same integers on every machine.

    Raises `KernelsimpError` for an unknown name, and ValueError for what no encoder writes.

    >>> basis_of("constant", (1, 2)).tolist() == [[11863283], [11863283]]
    True
    """
    cells = math.prod(grid)
    if cells > MOST_CELLS:
        raise ValueError(f"kernels of {cells} cells")
    if name.startswith(PARTS):
        if table is None:
            raise ValueError("parts of a table that is not there")
        return table.columns(grid)[:, table.kept(name)]
    if name == FREE or name.startswith(DENOISED):
        return ONE * np.eye(cells, dtype=np.int64)
    structure = find(name, grid)
    if isinstance(structure, LowRank):
        return _rank_basis(np.array(side, np.int64).reshape(structure.order, grid[1]), grid)
    if isinstance(structure, FewValued):
        return _spread(np.array(side, np.int64), np.ones(cells), ONE)
    if isinstance(structure, Drawn):
        level = np.full(cells, math.isqrt(ONE * ONE // cells), np.int64)
        drawn = np.array(side, np.int64) if drawings is None else drawings.cells_of(int(side[0]))
        return np.stack([drawn - ONE, level], 1)
    if not isinstance(structure, OrbitSubspace):
        raise KernelsimpError(f"structure '{name}' has no basis of integers")
    return _spread(structure.orbit, structure.sign, ONE)


def _rank_basis(rows: Ints, grid: Shape) -> Ints:
    """Return the columns of kernels whose rows are multiples of `rows`."""
    centred = rows - (2 ** (ROW_BITS - 1) - 1)
    found = np.zeros((math.prod(grid), len(rows) * grid[0]), np.int64)
    for order, row in enumerate(centred):
        scale = ONE // max(1, math.isqrt(int(np.square(row).sum())))
        for line in range(grid[0]):
            found[line * grid[1] : (line + 1) * grid[1], order * grid[0] + line] = row * scale
    return found


def _spread(orbit: Ints, sign: Floats, length: int) -> Ints:
    """Return one column an orbit, of equal cells up to their signs."""
    found = np.zeros((len(orbit), int(orbit.max(initial=-1)) + 1), np.int64)
    for place in range(found.shape[1]):
        inside = orbit == place
        found[inside, place] = math.isqrt(length * length // max(1, int(inside.sum()))) * sign[inside]
    return found


# ---------------------------------------------------------------- components


@dataclass(frozen=True)
class Table:
    """Components of kernels: `turns` are rotations in 1/512, one behind the other, a square matrix a part.

    With `square`, parts are those that the eight symmetries of a square grid keep apart: two that are each
    other's transpose share a rotation. Else there is one part, of all cells.
    """

    turns: tuple[int, ...]
    square: bool = True

    def columns(self, grid: Shape) -> Ints:
        """Return all columns (cells, cells), part by part. Raises ValueError where the turns do not fit."""
        return _columns(self.turns, grid, square=self.square)

    def kept(self, name: str) -> NDArray[np.bool_]:
        """Say which columns the parts in `name` have."""
        digits = name.removeprefix(PARTS)
        sizes = self.sizes(len(digits))
        if set(digits) - {"0", "1"}:
            raise ValueError("parts are not of this table")
        return np.repeat([digit == "1" for digit in digits], sizes)

    def sizes(self, parts: int) -> tuple[int, ...]:
        """Return how many columns each part has; raises ValueError unless there are `parts` of them."""
        found = _sizes(len(self.turns)) if self.square else (math.isqrt(len(self.turns)),)
        if len(found) != parts:
            raise ValueError("parts are not of this table")
        return found


_SIGNS = ((1, 1, 1), (-1, -1, -1), (1, 1, -1), (-1, -1, 1), (-1, 1, 0), (1, -1, 0))
"""Each part by its signs under the two mirrors and the transposition (0: none of its own)."""


@lru_cache(maxsize=64)
def _part_patterns(grid: Shape) -> tuple[Ints, ...]:
    """Return the signed orbits (cells, n) of each part; the last is the transpose of the one before."""
    if len(grid) != 2 or grid[0] != grid[1]:
        raise ValueError("parts of the square on a grid that is none")
    places = np.arange(grid[0] * grid[1]).reshape(grid)
    moves = (places[:, ::-1].ravel(), places[::-1].ravel(), places.T.ravel())
    found = []
    for signs in _SIGNS[:-1]:
        generators = [
            SignedPermutation(move, np.full(move.size, float(sign)))
            for move, sign in zip(moves, signs, strict=True)
            if sign
        ]
        space = from_generators(grid, generators)
        found.append(_spread(space.orbit, space.sign, 1 << 15))
    turned = found[-1].reshape(*grid, -1).transpose(1, 0, 2).reshape(found[-1].shape)
    return (*found, np.ascontiguousarray(turned))


def _sizes(turns: int) -> tuple[int, ...]:
    for side in range(1, 17):
        sizes = tuple(part.shape[1] for part in _part_patterns((side, side)))
        if sum(size * size for size in sizes[:-1]) == turns:
            return sizes
    raise ValueError("turns of no grid")


@lru_cache(maxsize=64)
def _columns(turns: tuple[int, ...], grid: Shape, *, square: bool) -> Ints:
    patterns = _part_patterns(grid) if square else (np.eye(math.prod(grid), dtype=np.int64) << 15,)
    found, at = [], 0
    for place, part in enumerate(patterns):
        size = part.shape[1]
        at -= size * size if square and place == len(_SIGNS) - 1 else 0  # the rotation of its transpose
        turn = np.array(turns[at : at + size * size], np.int64)
        if turn.size != size * size or np.abs(turn).max(initial=0) > _TURN:
            raise ValueError("turns that do not fit their grid")
        at += size * size
        found.append(part @ turn.reshape(size, size))
    if at != len(turns):
        raise ValueError("turns that do not fit their grid")
    return np.concatenate(found, axis=1)


def table_of(kernels: Tensor, *, square: bool = True) -> Table:
    """Return the table of the principal components of kernels (n, k, k), the greatest first within a part."""
    grid = tuple(kernels.shape[1:])
    flat = kernels.detach().cpu().double().reshape(len(kernels), -1)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-300)
    patterns = _part_patterns(grid) if square else (np.eye(flat.shape[1], dtype=np.int64) << 15,)
    spread = [flat @ torch.from_numpy(part / (1 << 15)) for part in patterns]
    turns: list[int] = []
    for place, scores in enumerate(spread[: len(_SIGNS) - 1]):
        both = [scores, spread[-1]] if square and place == len(_SIGNS) - 2 else [scores]
        second = sum(item.mT @ item for item in both)
        assert isinstance(second, Tensor)
        vectors = torch.linalg.eigh(second)[1].flip(1)
        turns += torch.round(vectors * (_TURN - 1)).long().flatten().tolist()
    return Table(tuple(turns), square)
