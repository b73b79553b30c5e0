"""The table of linear families: each row says what a kind of structure is, for a kernel of any shape.

Axis names: rows run top to bottom, columns left to right. `mirror-h` is unchanged when left and right
are swapped, `mirror-v` when top and bottom are. A family gives signed cell permutations for a shape
(kh, kw), or None where it has no meaning (a transpose of an oblong kernel). Kernels of Conv1d are
(1, k); those of Conv3d are (kd, kh, kw), and mirrors and turns act on each (kh, kw) slice alike.
To add a family, add a row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels.subspace import (
    Ints,
    OrbitSubspace,
    Shape,
    SignedPermutation,
    from_generators,
    from_orbits,
    permutation,
    zeroing,
)

Generators = list[SignedPermutation]
Build = Callable[[Shape], Generators | None]


@dataclass(frozen=True)
class Family:
    """One row: `name`, a sentence `meaning`, and `build`, the generators for a shape or None."""

    name: str
    meaning: str
    build: Build


@dataclass(frozen=True)
class Offered:
    """A family at one shape: its subspace, and the other names of the same projector."""

    name: str
    subspace: OrbitSubspace
    aliases: tuple[str, ...] = ()


def _grid(shape: Shape) -> Ints:
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)


def _grid_moves_builder(*moves: tuple[str, float]) -> Build:
    """Return a builder for grid moves (`h`, `v`, `turn`, `half`, `transpose`, `anti`) with signs."""

    def build(shape: Shape) -> Generators | None:
        square = shape[-1] == shape[-2]
        if not square and any(move in ("turn", "transpose", "anti") for move, _ in moves):
            return None
        return [permutation(_MOVES[move](_grid(shape)), sign) for move, sign in moves]

    return build


_MOVES: dict[str, Callable[[Ints], Ints]] = {
    "h": lambda grid: grid[..., ::-1],
    "v": lambda grid: grid[..., ::-1, :],
    "half": lambda grid: grid[..., ::-1, ::-1],
    "turn": lambda grid: np.rot90(grid, axes=(-2, -1)),
    "transpose": lambda grid: np.swapaxes(grid, -1, -2),
    "anti": lambda grid: np.swapaxes(grid[..., ::-1, ::-1], -1, -2),
}


def _equal_lines_builder(*axes: int) -> Build:
    """Return a builder whose kernels do not change along `axes` (equal lines)."""
    return lambda shape: [permutation(np.roll(_grid(shape), 1, axis=axis)) for axis in axes]


def _equal_pair_builder(axis: int, first: int, second: int) -> Build:
    """Return a builder whose lines `first` and `second` along `axis` are equal."""

    def build(shape: Shape) -> Generators | None:
        order = np.arange(shape[axis])
        order[[first, second]] = order[[second, first]]
        return [permutation(np.take(_grid(shape), order, axis=axis))]

    return build


def _radial(shape: Shape) -> Generators | None:
    """Cells at one distance from the centre are equal, joined in a ring of swaps."""
    centred = [2 * place - side + 1 for place, side in zip(np.indices(shape), shape, strict=True)]
    distance = np.square(centred).sum(axis=0)
    target = _grid(shape).reshape(-1)
    for value in np.unique(distance):
        ring = np.flatnonzero(distance.reshape(-1) == value)
        target[ring] = np.roll(ring, 1)
    return [permutation(target)]


def _only(keep: Callable[[Ints, Ints], np.ndarray]) -> Build:
    """Return a builder whose kernels are zero wherever `keep` is false.

    `keep` sees twice the signed distance from the centre in rows and in columns.
    """

    def build(shape: Shape) -> Generators | None:
        if len(shape) != 2:
            return None
        rows, columns = np.indices(shape)
        kept = keep(2 * rows - shape[-2] + 1, 2 * columns - shape[-1] + 1)
        return [zeroing(~kept)] if kept.any() else None

    return build


FAMILIES: tuple[Family, ...] = (
    Family("mirror-h", "the same when left and right are swapped", _grid_moves_builder(("h", 1))),
    Family("mirror-v", "the same when top and bottom are swapped", _grid_moves_builder(("v", 1))),
    Family("transpose", "the same when mirrored on the main diagonal", _grid_moves_builder(("transpose", 1))),
    Family(
        "anti-transpose", "the same when mirrored on the other diagonal", _grid_moves_builder(("anti", 1))
    ),
    Family("half-turn", "the same after half a turn", _grid_moves_builder(("half", 1))),
    Family("both-mirrors", "the same under both axis mirrors", _grid_moves_builder(("h", 1), ("v", 1))),
    Family(
        "both-transposes",
        "the same under both diagonal mirrors",
        _grid_moves_builder(("transpose", 1), ("anti", 1)),
    ),
    Family(
        "full-square",
        "the same under every turn and mirror of the square",
        _grid_moves_builder(("turn", 1), ("h", 1)),
    ),
    Family("quarter-turn", "the same after a quarter turn", _grid_moves_builder(("turn", 1))),
    Family("radial", "equal at equal distance from the centre", _radial),
    Family("odd-h", "the negative of itself when left and right are swapped", _grid_moves_builder(("h", -1))),
    Family("odd-v", "the negative of itself when top and bottom are swapped", _grid_moves_builder(("v", -1))),
    Family(
        "odd-transpose",
        "the negative when mirrored on the main diagonal",
        _grid_moves_builder(("transpose", -1)),
    ),
    Family(
        "odd-anti-transpose",
        "the negative when mirrored on the other diagonal",
        _grid_moves_builder(("anti", -1)),
    ),
    Family("odd-half-turn", "the negative of itself after half a turn", _grid_moves_builder(("half", -1))),
    Family(
        "odd-h-even-v",
        "odd left-right, even top-bottom: Sobel's class",
        _grid_moves_builder(("h", -1), ("v", 1)),
    ),
    Family(
        "even-h-odd-v",
        "even left-right, odd top-bottom: Sobel's class",
        _grid_moves_builder(("h", 1), ("v", -1)),
    ),
    Family(
        "odd-turn-even-h",
        "the negative after a quarter turn, even mirrors",
        _grid_moves_builder(("turn", -1), ("h", 1)),
    ),
    Family(
        "odd-turn-odd-h",
        "the negative after a quarter turn, odd mirrors",
        _grid_moves_builder(("turn", -1), ("h", -1)),
    ),
    Family(
        "odd-square",
        "the same after a quarter turn, odd mirrors",
        _grid_moves_builder(("turn", 1), ("h", -1)),
    ),
    Family("equal-rows", "every row is the same", _equal_lines_builder(-2)),
    Family("equal-columns", "every column is the same", _equal_lines_builder(-1)),
    Family("constant", "every cell is the same", _equal_lines_builder(-2, -1)),
    Family("centre-cell", "zero but in the centre", _only(lambda y, x: (y == 0) & (x == 0))),
    Family("centre-row", "zero but in the centre row", _only(lambda y, x: (y == 0) & (x == x))),
    Family("centre-column", "zero but in the centre column", _only(lambda y, x: (x == 0) & (y == y))),
    Family("cross", "zero but in the centre row and column", _only(lambda y, x: (y == 0) | (x == 0))),
)

ZERO = "zero"
"""The structure of a kernel that is taken out: a choice of a plan, never scanned."""

SEVENTEEN: tuple[str, ...] = (
    *("mirror-h", "mirror-v", "transpose", "anti-transpose", "half-turn", "both-mirrors", "both-transposes"),
    *("full-square", "odd-h", "odd-v", "odd-transpose", "odd-anti-transpose", "odd-half-turn"),
    *("equal-rows", "equal-columns", "constant", "centre-cell"),
)
"""The linear families that the project's published figures use."""


MOST_LINES = 11


def line_pairs(shape: Shape) -> Iterator[Family]:
    """Yield one family for each single pair of equal rows or columns; lines are numbered from 0.

    Kernels with a side over `MOST_LINES` have none: their pairs are too many to mean anything.
    """
    if max(shape) > MOST_LINES:
        return
    for axis, line in ((-2, "rows"), (-1, "columns")):
        for first, second in combinations(range(shape[axis]), 2):
            meaning = f"{line} {first} and {second} are the same"
            yield Family(f"{line}-{first}-{second}", meaning, _equal_pair_builder(axis, first, second))


@lru_cache(maxsize=256)
def offered_families(
    shape: Shape, names: tuple[str, ...] | None = None, *, pairs: bool = True
) -> tuple[Offered, ...]:
    """Return the families that mean something at `shape`, each different projector once, in table order.

    `names` restricts the table; `pairs` adds single pairs of equal lines. A family is offered only where
    0 < dim < cells. Raises `KernelsimpError` for an unknown name.
    """
    rows = [*FAMILIES, *(line_pairs(shape) if pairs else ())]
    for name in names or ():
        check_name(name)
    chosen = [row for row in rows if names is None or row.name in names]
    built: dict[bytes, tuple[str, OrbitSubspace]] = {}
    aliases: dict[str, list[str]] = {}
    for row in chosen:
        generators = row.build(shape)
        subspace = from_generators(shape, generators) if generators is not None else None
        if subspace is None or not 0 < subspace.dim < subspace.cells:
            continue
        first, _ = built.setdefault(subspace.key, (row.name, subspace))
        if first != row.name:
            aliases.setdefault(first, []).append(row.name)
    return tuple(Offered(name, space, tuple(aliases.get(name, ()))) for name, space in built.values())


@lru_cache(maxsize=4096)
def find(name: str, shape: Shape) -> OrbitSubspace:
    """Return the subspace of the family called `name`, or of `zero`, at `shape`.

    Raises `KernelsimpError` where the family is unknown or has no meaning at this shape.
    """
    if name == ZERO:
        return from_orbits(shape, np.full(int(np.prod(shape)), -1), np.ones(int(np.prod(shape))))
    for row in (*FAMILIES, *line_pairs(shape)):
        if row.name == name:
            generators = row.build(shape)
            if generators is not None:
                return from_generators(shape, generators)
            raise KernelsimpError(f"family '{name}' is not offered for kernels of shape {shape}")
    raise KernelsimpError(f"unknown family '{name}'{did_you_mean(name, [row.name for row in FAMILIES])}")


def check_name(name: str) -> None:
    """Raise `KernelsimpError` with the nearest known name unless `name` is a family."""
    head, _, tail = name.partition("-")
    pair = head in ("rows", "columns") and tail.replace("-", "").isdigit()
    if not pair and name not in (names := [row.name for row in FAMILIES]):
        raise KernelsimpError(f"unknown family '{name}'{did_you_mean(name, names)}")
