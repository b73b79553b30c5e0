"""Code the kernels of a layer by the free numbers of their structures; lossless, integers alone.

Kernels go input by input, a filter at a time: which structure of the layer's menu, the integers beside its
name, then its coefficients. What several kernels draw stands in front, once. How large the coefficient before
was, the same one of the kernel before with this structure, and both on average, picks the context; the
chances are those of `integer_coding`.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kernelsimp.kernels.compiled import AVAILABLE, compiled, vector
from kernelsimp.kernels.integer_bases import (
    DRAWN_BITS,
    MOST_CELLS,
    ONE,
    Drawings,
    Table,
    basis_of,
    side_of,
)
from kernelsimp.kernels.integer_coding import (
    CHANCES,
    CHOICES,
    UNARY_CHOICES,
    UNIT,
    context,
    decode_bin,
    decode_gamma,
    decode_value,
    encode_bin,
    encode_gamma,
    encode_value,
    fade,
    moved,
    written,
)
from kernelsimp.kernels.range_coder import (
    BAD,
    EVEN,
    PLACE,
    Integers,
    decode_bit,
    encode_bit,
    finish,
    new_coder,
    start_decoding,
)

Ints = NDArray[np.int64]

MOST_STRUCTURES = 4096

AT_ONCE = 4096
"""Kernels that are encoded into one buffer."""


@dataclass(frozen=True, eq=False)
class CodedKernels:
    """Kernels (outputs, inputs / groups, *grid) as integers in front of the bases of their structures.

    `choice` (outputs, inputs / groups) indexes `menu`; `values` (outputs, inputs / groups, cells) begin with
    as many coefficients as the structure has, `side` (outputs, inputs / groups, n) with the integers beside
    its name, or with the number of what it draws, where there are `drawings`; zeros follow. `step` is that of
    a coefficient whose column has length one.
    """

    grid: tuple[int, ...]
    menu: tuple[str, ...]
    choice: Ints
    values: Ints
    side: Ints
    step: np.float32
    table: Table | None = None
    bits: float = 0.0
    drawings: Drawings | None = None

    def numbers(self) -> NDArray[np.float32]:
        """Return the weights (outputs, cells of a filter): a whole number times the step over `ONE`, each."""
        whole = np.zeros(self.values.shape, np.int64)
        for index, name in enumerate(self.menu):
            mask = self.choice == index
            count = side_of(name, self.grid, self.drawings).count
            if not count:
                basis = basis_of(name, self.grid, (), self.table)
                whole[mask] = self.values[mask][:, : basis.shape[1]] @ basis.T
                continue
            for row, kernel in np.argwhere(mask):
                side = self.side[row, kernel, :count].tolist()
                basis = basis_of(name, self.grid, side, None, self.drawings)
                whole[row, kernel] = basis @ self.values[row, kernel, : basis.shape[1]]
        product: NDArray[np.float32] = whole.astype(np.float32) * np.float32(self.step / np.float32(ONE))
        return product.reshape(len(whole), -1)


def encode_kernels(item: CodedKernels, memory: Integers) -> bytes:
    """Return the code of kernels; `memory` learns. Raises `ValueError` for an integer of 2^23 or more."""
    if np.abs(item.values).max(initial=0) >= 1 << 23:
        raise ValueError("an integer is too large for its code")
    form = KernelForm(
        item.grid, item.menu, item.table, 0 if item.drawings is None else len(item.drawings.cells)
    )
    state = _State(item.choice.shape, form, item.drawings, memory)
    choice, values, side = (
        np.moveaxis(part, 1, 0).reshape(item.choice.size, -1)
        for part in (item.choice, item.values, item.side)
    )
    dims = _dims(item.choice, item.side, state)
    coder, parts, encode = new_coder(), [_packed(item.drawings)], cast(Any, _encode)
    for first in range(0, len(choice), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        flat: Any = [vector(part[some]) for part in (choice, values, side, dims)]
        size = len(flat[1]) + len(flat[2]) + 4 * len(flat[0])
        each = (*flat, *state.parts)
        shape = vector([state.rows, first, state.cells, side.shape[1], len(item.menu)])
        parts.append(
            written(size, coder, lambda out: encode(shape, *each, memory, coder, out))  # noqa: B023
        )
    parts.append(written(0, coder, lambda out: finish(coder, out)))
    fade(memory)
    return parts[0] + b"".join(parts[1:]).rstrip(b"\0")


def _packed(drawings: Drawings | None) -> bytes:
    """Return the integers of drawings, `DRAWN_BITS` bits each, the highest first."""
    if drawings is None:
        return b""
    digits = drawings.cells.reshape(-1, 1) >> np.arange(DRAWN_BITS - 1, -1, -1)
    return np.packbits((digits & 1).astype(np.uint8).reshape(-1)).tobytes()


def _unpacked(stream: bytes, form: "KernelForm") -> tuple[Drawings | None, bytes]:
    """Return the drawings in front of a stream, and what follows them."""
    cells = int(np.prod(form.grid, dtype=object))
    size = -(-form.drawings * cells * DRAWN_BITS // 8)
    if not form.drawings:
        return None, stream
    if form.drawings < 0 or not 0 < cells <= MOST_CELLS or size > len(stream):
        raise ValueError("a stream of kernels ends in its drawings")
    digits = np.unpackbits(np.frombuffer(stream[:size], np.uint8), count=form.drawings * cells * DRAWN_BITS)
    weights = 1 << np.arange(DRAWN_BITS - 1, -1, -1, dtype=np.int64)
    numbers = digits.reshape(form.drawings, cells, DRAWN_BITS).astype(np.int64) @ weights
    return Drawings(form.grid, numbers), stream[size:]


@dataclass(frozen=True)
class KernelForm:
    """What a stream of kernels does not say itself; `drawings` is how many stand in front of it."""

    grid: tuple[int, ...]
    menu: tuple[str, ...]
    table: Table | None = None
    drawings: int = 0


def decode_kernels(stream: bytes, shape: tuple[int, int], form: KernelForm, memory: Integers) -> CodedKernels:
    """Undo `encode_kernels` for `shape` (outputs, inputs / groups); step 1.

    Raises `ValueError` for a damaged stream or a form that is none, `KernelsimpError` for an unknown name.
    """
    grid, menu, table = form.grid, form.menu, form.table
    drawings, stream = _unpacked(stream, form)
    state = _State(shape, form, drawings, memory)
    count, beside = shape[0] * shape[1], max(part.count for part in state.sides)
    data, coder = np.frombuffer(stream, np.uint8) if AVAILABLE else stream, new_coder()
    start_decoding(coder, data)
    places, fixed = vector([state.rows, 0, state.cells, beside, len(menu)]), state.fixed_dims()
    choice, values, side = (
        vector(np.zeros(size, np.int64)) for size in (count, count * state.cells, count * beside)
    )
    _decode(places, choice, values, side, vector(fixed), *state.parts, memory, coder, data)
    if coder[BAD] or coder[PLACE] < len(data):
        raise ValueError("a stream of kernels does not end where it should")
    fade(memory)
    found = (
        np.moveaxis(np.asarray(part, np.int64).reshape(shape[1], shape[0], -1), 0, 1)
        for part in (choice, values, side)
    )
    picked, numbers, integers = found
    step = np.float32(1.0)
    return CodedKernels(grid, menu, picked[:, :, 0], numbers, integers, step, table, drawings=drawings)


class _State:
    """What both directions keep: running means, last magnitudes, and how each structure is written."""

    def __init__(
        self, shape: tuple[int, ...], form: KernelForm, drawings: Drawings | None, memory: Integers
    ) -> None:
        grid, menu = form.grid, form.menu
        self.cells, self.rows = int(np.prod(grid, dtype=object)), shape[0]
        if not 0 < self.cells <= MOST_CELLS or not 0 < len(menu) <= MOST_STRUCTURES:
            raise ValueError(f"kernels of {self.cells} cells, {len(menu)} structures")
        self.form, self.drawings = form, drawings
        self.sides = [side_of(name, grid, drawings) for name in menu]
        slots = len(menu) * self.cells
        self.parts = (
            vector(np.full(self.rows, UNIT)),
            vector(np.full(slots, -1)),
            vector(np.zeros(slots, np.int64)),
            vector([part.count for part in self.sides]),
            vector([part.bits for part in self.sides]),
        )
        for place in range(CHOICES, CHANCES):
            memory[place], memory[CHANCES + place] = EVEN, 0

    def fixed_dims(self) -> list[int]:
        """Return how many coefficients each structure has; one with labels beside it has as many as those."""
        return [
            -1
            if side.labels
            else basis_of(name, self.form.grid, [1] * side.count, self.form.table, self.drawings).shape[1]
            for name, side in zip(self.form.menu, self.sides, strict=True)
        ]


def _dims(choice: Ints, side: Ints, state: _State) -> Ints:
    """Return how many coefficients each kernel has, in the order of coding."""
    fixed = np.array(state.fixed_dims())
    dims = fixed[choice]
    labels = np.array([part.count if part.labels else 0 for part in state.sides])[choice]
    for row, kernel in np.argwhere(labels > 0):
        dims[row, kernel] = 1 + side[row, kernel, : labels[row, kernel]].max()
    return np.asarray(dims.T.reshape(-1))


@compiled
def encode_choice(coder: Integers, out: Integers, memory: Integers, value: int) -> None:
    for place in range(min(value + 1, UNARY_CHOICES)):
        encode_bin(coder, out, memory, CHOICES + place, 1 if value > place else 0)
    if value >= UNARY_CHOICES:
        encode_gamma(coder, out, memory, CHOICES + UNARY_CHOICES, value - UNARY_CHOICES + 1)


@compiled
def decode_choice(coder: Integers, data: Integers, memory: Integers) -> int:
    value = 0
    while value < UNARY_CHOICES and decode_bin(coder, data, memory, CHOICES + value):
        value += 1
    if value == UNARY_CHOICES:
        value += decode_gamma(coder, data, memory, CHOICES + UNARY_CHOICES) - 1
    return value


@compiled
def slot_mean(means: Integers, slot: int, row: int) -> int:
    """Return the mean magnitude of a coefficient so far; that of its filter where there is none."""
    return means[slot] if means[slot] >= 0 else row


@compiled
def _encode(
    shape: Integers,
    choice: Integers,
    values: Integers,
    side: Integers,
    dims: Integers,
    rows: Integers,
    means: Integers,
    last: Integers,
    counts: Integers,
    widths: Integers,
    memory: Integers,
    coder: Integers,
    out: Integers,
) -> None:
    cells, beside = shape[2], shape[3]
    for place in range(len(choice)):
        row, picked = (shape[1] + place) % shape[0], choice[place]
        if shape[4] > 1:
            encode_choice(coder, out, memory, picked)
        for item in range(counts[picked]):
            for digit in range(widths[picked] - 1, -1, -1):
                encode_bit(coder, out, EVEN, (side[place * beside + item] >> digit) & 1)
        before = 0
        for item in range(dims[place]):
            value, slot = values[place * cells + item], picked * cells + item
            size, mean = abs(value), slot_mean(means, slot, rows[row])
            encode_value(coder, out, memory, context(rows[row], mean, before, last[slot]), value)
            rows[row], means[slot] = moved(rows[row], size), moved(mean, size)
            last[slot], before = size, size


@compiled
def _decode(
    shape: Integers,
    choice: Integers,
    values: Integers,
    side: Integers,
    fixed: Integers,
    rows: Integers,
    means: Integers,
    last: Integers,
    counts: Integers,
    widths: Integers,
    memory: Integers,
    coder: Integers,
    data: Integers,
) -> None:
    cells, beside = shape[2], shape[3]
    for place in range(len(choice)):
        row, picked = place % shape[0], 0
        if shape[4] > 1:
            picked = decode_choice(coder, data, memory)
        if picked >= shape[4]:
            coder[BAD] = 1
            return
        choice[place], most = picked, 0
        for item in range(counts[picked]):
            number = 0
            for _ in range(widths[picked]):
                number = 2 * number + decode_bit(coder, data, EVEN)
            side[place * beside + item] = number
            most = max(most, number)
        count, before = fixed[picked], 0
        if count < 0:
            count = min(most + 1, cells)
        for item in range(count):
            slot = picked * cells + item
            mean = slot_mean(means, slot, rows[row])
            value = decode_value(coder, data, memory, context(rows[row], mean, before, last[slot]))
            values[place * cells + item], size = value, abs(value)
            rows[row], means[slot] = moved(rows[row], size), moved(mean, size)
            last[slot], before = size, size
        if coder[BAD] or coder[PLACE] > len(data) + 8:
            coder[BAD] = 1
            return
