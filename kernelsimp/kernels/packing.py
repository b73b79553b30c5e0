"""Kernels written with the free numbers of their structure alone, and read back bit for bit.

What is written are stored cells as they are, never coefficients of a basis: of equal cells one, of a rank-one
kernel a row and a column, of a zero kernel nothing. Where a structure gives cells only up to rounding, the
steps between neighbouring numbers of the dtype that are missing stand beside. A kernel that its structure
does not give back exactly is written whole, so packing loses nothing whatever it is told.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.kernels.structures import KernelSet, LowRank, find
from kernelsimp.kernels.subspace import OrbitSubspace, Shape

Bits = NDArray[np.unsignedinteger]
"""Cells (n, cells), or a pool of them (m,), as unsigned integers of their dtype's width."""
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FREE = 0
"""The structure of a kernel that is written whole."""

MOST_CELLS = 256
"""Kernels of more cells are written whole unless their structure is linear: a place takes one byte."""

CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Coded:
    """The kernels of one layer: `choice` (n,) of structures, `values` (m,) stored cells, `side` the rest."""

    choice: NDArray[np.int16]
    values: Bits
    side: Bytes


class Pool:
    """Numbers that are taken from the front; raises ValueError where more are asked for than are left."""

    def __init__(self, data: NDArray[np.unsignedinteger]) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> NDArray[np.unsignedinteger]:
        """Return the next `count` numbers."""
        begin, self._at = self._at, self._at + count
        if self._at > len(self._data) or count < 0:
            raise ValueError(f"{self._at} numbers are asked for, {len(self._data)} are there")
        return self._data[begin : self._at]

    @property
    def left(self) -> int:
        return len(self._data) - self._at


def encode(kernels: Tensor, choice: NDArray[np.int16], structures: tuple[str, ...]) -> Coded:
    """Write kernels (out, in / groups, *grid) by the structures that `choice` (out, in / groups) gives them.

    In `Coded.choice` the kernels that are not given back exactly are free.
    """
    shape, flat = tuple(kernels.shape[2:]), choice.reshape(-1).copy()
    bits = bits_of(kernels).reshape(flat.size, -1)
    values, side = [], []
    for index in np.unique(flat):
        if index != FREE:
            coder = _coder(structures[index], shape, kernels.dtype)
            rows = np.flatnonzero(flat == index)
            exact = _exact(coder, bits[rows])
            flat[rows[~exact]] = FREE
            if not exact.any():
                continue
            cells, beside = coder.write(bits[rows[exact]])
            values.append(cells)
            side.append(beside)
    values.append(bits[flat == FREE].reshape(-1))
    return Coded(flat, np.concatenate(values), np.concatenate([*side, np.zeros(0, np.uint8)]))


def decode(shape: tuple[int, ...], dtype: torch.dtype, coded: Coded, structures: tuple[str, ...]) -> Tensor:
    """Undo `encode` for kernels of `shape` (out, in / groups, *grid).

    Raises ValueError where the numbers do not add up, `KernelsimpError` for an unknown structure.
    """
    flat, values, side = coded.choice, Pool(coded.values), Pool(coded.side)
    count, cells = int(np.prod(shape[:2])), int(np.prod(shape[2:]))
    if flat.shape != (count,) or (count and not 0 <= int(flat.min()) <= int(flat.max()) < len(structures)):
        raise ValueError(f"{flat.size} structures for {count} kernels, or one that is not named")
    bits = np.zeros((count, cells), coded.values.dtype)
    for index in np.unique(flat):
        if index != FREE:
            coder = _coder(structures[index], tuple(shape[2:]), dtype)
            rows = np.flatnonzero(flat == index)
            bits[rows] = coder.read(len(rows), values, side)
    free = flat == FREE
    bits[free] = values.take(int(free.sum()) * cells).reshape(-1, cells)
    if values.left or side.left:
        raise ValueError(f"{values.left} numbers and {side.left} bytes are left over")
    return tensor_of(bits, dtype).reshape(shape)


def bits_of(tensor: Tensor) -> Bits:
    """Return the stored numbers of a tensor, flat, as unsigned integers of the same width."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    width = tensor.element_size()
    return data.view(f"<u{width}") if width <= 8 else data.reshape(-1, width)


def tensor_of(bits: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    """Return a tensor (m,) of the numbers whose stored bytes these are."""
    return torch.from_numpy(np.ascontiguousarray(bits).reshape(-1).view(np.uint8)).view(dtype)


class _Coder:
    """How the kernels of one structure are written; each kernel by itself."""

    def write(self, bits: Bits) -> tuple[Bits, Bytes]:
        """Return the stored cells of kernels (n, cells), flat, and the bytes beside them."""
        raise NotImplementedError

    def read(self, count: int, values: Pool, side: Pool) -> Bits:
        """Return `count` kernels (n, cells)."""
        raise NotImplementedError

    def pays(self, bits: Bits) -> Bools:
        """Say which kernels (n, cells) become shorter so."""
        return np.ones(len(bits), np.bool_)


def _coder(name: str, shape: Shape, dtype: torch.dtype) -> _Coder:
    """Return how a structure is written: one of three ways, each for any shape and dtype."""
    structure, cells = find(name, shape), int(np.prod(shape))
    if isinstance(structure, OrbitSubspace):
        return _Orbits(structure, 8 * dtype.itemsize - 1)
    if cells > MOST_CELLS:
        return _Whole(cells)
    return _Outer(structure, dtype) if isinstance(structure, LowRank) else _Equal(structure, dtype.itemsize)


def _exact(coder: _Coder, bits: Bits) -> Bools:
    """Say which kernels (n, cells) a coder gives back bit for bit, in fewer bytes."""
    parts = [bits[start : start + CHUNK] for start in range(0, len(bits), CHUNK)]
    exact = [(_decode_order(coder, part) == part).all(axis=1) & coder.pays(part) for part in parts]
    return np.concatenate([*exact, np.zeros(0, np.bool_)])


def _decode_order(coder: _Coder, bits: Bits) -> Bits:
    values, side = coder.write(bits)
    return coder.read(len(bits), Pool(values), Pool(side))


@dataclass(frozen=True, eq=False)
class _Whole(_Coder):
    """Every cell."""

    cells: int

    def write(self, bits: Bits) -> tuple[Bits, Bytes]:
        return bits.reshape(-1), np.zeros(0, np.uint8)

    def read(self, count: int, values: Pool, side: Pool) -> Bits:  # noqa: ARG002
        return values.take(count * self.cells).reshape(count, self.cells)


@dataclass(frozen=True, eq=False)
class _Orbits(_Coder):
    """One cell of each orbit; a negative sign is the dtype's sign bit, the `top` one, turned over."""

    space: OrbitSubspace
    top: int

    def write(self, bits: Bits) -> tuple[Bits, Bytes]:
        return bits[:, self.space.representatives].reshape(-1), np.zeros(0, np.uint8)

    def read(self, count: int, values: Pool, side: Pool) -> Bits:  # noqa: ARG002
        taken = values.take(count * self.space.dim).reshape(count, self.space.dim)
        inside = np.flatnonzero(self.space.orbit >= 0)
        turned = np.where(self.space.sign[inside] < 0, 1 << self.top, 0).astype(taken.dtype)
        bits = np.zeros((count, self.space.cells), taken.dtype)
        bits[:, inside] = taken[:, self.space.orbit[inside]] ^ turned
        return bits


@dataclass(frozen=True, eq=False)
class _Equal(_Coder):
    """One cell of each distinct value, and beside them a byte a cell that says which value it has."""

    structure: KernelSet
    width: int

    def write(self, bits: Bits) -> tuple[Bits, Bytes]:
        parts = [bits[start : start + CHUNK] for start in range(0, len(bits), CHUNK)]
        firsts = np.concatenate([*(_firsts(part) for part in parts), np.zeros((0, self._cells), np.int64)])
        leads = firsts == np.arange(self._cells)
        labels = np.take_along_axis(leads.cumsum(axis=1) - 1, firsts, axis=1)
        return bits[leads], labels.astype(np.uint8).reshape(-1)

    def read(self, count: int, values: Pool, side: Pool) -> Bits:
        labels = side.take(count * self._cells).reshape(count, self._cells).astype(np.int64)
        classes = labels.max(axis=1, initial=-1) + 1
        offset = np.cumsum(classes) - classes
        return np.asarray(values.take(int(classes.sum()))[offset[:, None] + labels])

    def pays(self, bits: Bits) -> Bools:
        """Count half a byte for each label, which is about what is left of it."""
        distinct = (_firsts(bits) == np.arange(self._cells)).sum(axis=1)
        return np.asarray(self.width * distinct + self._cells / 2 < self.width * self._cells)

    @property
    def _cells(self) -> int:
        return int(np.prod(self.structure.shape))


def _firsts(bits: Bits) -> Ints:
    """Return for each cell (n, cells) the first cell with the same bits."""
    return np.asarray((bits[:, :, None] == bits[:, None, :]).argmax(axis=2), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Outer(_Coder):
    """Rows and columns through pivots, the rest from their products up to the steps that stand beside.

    With pivots at rows I and columns J a kernel of rank |I| is w[:, J] w[I, J]^-1 w[I, :] (the cross, or CUR,
    factorisation). Only float64 sums, products and quotients of single numbers are used, in a fixed order,
    so that another machine gets the same bits.
    """

    structure: LowRank
    dtype: torch.dtype

    def write(self, bits: Bits) -> tuple[Bits, Bytes]:
        wide = _wide(bits, self.dtype).reshape(-1, *self._grid)
        pivots = self._pivots(wide)
        kept = self._kept_cells(pivots)
        expected = self._expected_bits(wide, pivots)
        missing = (_order_bits(bits, self._top) - _order_bits(expected, self._top))[~kept]
        steps = missing.clip(-128, 127).astype(np.int8).view(np.uint8)
        return bits[kept], np.concatenate([pivots.astype(np.uint8).reshape(-1), steps])

    def read(self, count: int, values: Pool, side: Pool) -> Bits:
        order, cells = self.structure.order, int(np.prod(self._grid))
        pivots = side.take(count * order).reshape(count, order).astype(np.int64)
        if (pivots >= cells).any():
            raise ValueError("a pivot lies outside its kernel")
        kept = self._kept_cells(pivots)
        if (kept.sum(axis=1) != self.structure.dim).any():
            raise ValueError("two pivots share a line")
        taken = values.take(count * self.structure.dim)
        bits = np.zeros((count, cells), taken.dtype)
        bits[kept] = taken
        wide = _wide(bits, self.dtype).reshape(count, *self._grid)
        expected = _order_bits(self._expected_bits(wide, pivots), self._top)[~kept]
        steps = side.take(expected.size).view(np.int8)
        bits[~kept] = _undo_order(expected + steps, self._top).astype(taken.dtype)
        return bits

    @property
    def _grid(self) -> tuple[int, int]:
        return self.structure.shape[0], self.structure.shape[1]

    @property
    def _top(self) -> int:
        return 8 * self.dtype.itemsize - 1

    def _pivots(self, wide: Floats) -> Ints:
        """Return the largest cell of each kernel, then the largest of what its cross leaves, (n, order)."""
        left, every = wide.copy(), np.arange(len(wide))
        usable = np.ones(wide.shape, np.bool_)
        pivots = np.zeros((len(wide), self.structure.order), np.int64)
        for step in range(self.structure.order):
            size = np.where(usable, np.nan_to_num(np.abs(left)), -1.0)
            pivots[:, step] = size.reshape(len(wide), -1).argmax(axis=1)
            row, column = np.divmod(pivots[:, step], self._grid[1])
            usable[every, row] = False
            usable[every, :, column] = False
            corner = left[every, row, column][:, None, None]
            with np.errstate(all="ignore"):
                left = left - left[every, :, column][:, :, None] * left[every, row][:, None] / corner
        return pivots

    def _kept_cells(self, pivots: Ints) -> Bools:
        """Say which cells (n, cells) lie in a row or a column of a pivot."""
        row, column = np.divmod(pivots, self._grid[1])
        rows = (np.arange(self._grid[0])[None, None] == row[:, :, None]).any(axis=1)
        columns = (np.arange(self._grid[1])[None, None] == column[:, :, None]).any(axis=1)
        return np.asarray((rows[:, :, None] | columns[:, None, :]).reshape(len(pivots), -1))

    def _expected_bits(self, wide: Floats, pivots: Ints) -> Bits:
        """Return the cells (n, cells) that the products give, rounded to the dtype."""
        row, column = np.divmod(pivots, self._grid[1])
        every = np.arange(len(wide))[:, None]
        down, across = wide[every, :, column], wide[every, row]  # (n, order, kh) and (n, order, kw)
        corner = wide[every[:, :, None], row[:, :, None], column[:, None, :]]
        with np.errstate(all="ignore"):
            made = _through(down, across, corner)
        narrow = torch.from_numpy(np.nan_to_num(made)).to(self.dtype)
        return bits_of(narrow).reshape(len(wide), -1)


def _through(down: Floats, across: Floats, corner: Floats) -> Floats:
    """Return C M^-1 R for the columns (n, r, kh), rows (n, r, kw) and corners (n, r, r); r is 1 or 2."""
    first, one = down[:, 0, :, None], across[:, 0, None, :]
    if corner.shape[1] == 1:
        return first * one / corner
    second, two = down[:, 1, :, None], across[:, 1, None, :]
    a, b, c, d = (corner[:, i, j, None, None] for i in (0, 1) for j in (0, 1))
    return np.asarray((first * (d * one - b * two) + second * (a * two - c * one)) / (a * d - b * c))


def _wide(bits: Bits, dtype: torch.dtype) -> Floats:
    return tensor_of(bits, dtype).double().numpy()


def _order_bits(bits: Bits, top: int) -> Ints:
    """Number the values of a dtype in their order, 0 for zero: neighbours differ by one."""
    wide = bits.astype(np.uint64)
    size = (wide & np.uint64((1 << top) - 1)).astype(np.int64)
    return np.where(wide >> np.uint64(top), -size, size)


def _undo_order(places: Ints, top: int) -> NDArray[np.uint64]:
    size = np.abs(places).astype(np.uint64)
    return np.where(places < 0, size | np.uint64(1 << top), size)
