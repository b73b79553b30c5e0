"""Code a matrix of small integers with adaptive counts in a simple context; lossless, integers alone.

A matrix (rows, columns) of a layer goes column by column: a row is a filter, a column one cell of its inputs.
An integer is: is it zero, its sign, then one more or not, up to `UNARY`, and the rest in an Elias-gamma code.
How large its neighbours, its row and its column have been on average picks the context. The counts go on
from one matrix to the next, of which they remember little.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelsimp.kernels.compiled import AVAILABLE, compiled, vector
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

UNARY = 15
"""Magnitudes below this have a code of their own in each context."""

BINS = UNARY
CONTEXTS = 13
GAMMA = CONTEXTS * BINS
"""Where the chances of the Elias-gamma lengths begin; those of lone vectors follow."""

LENGTHS = 24
"""An integer of 2^23 or more has no code; a stream that holds one is damaged."""

CHOICES, UNARY_CHOICES = GAMMA + 2 * LENGTHS, 32
"""Where the chances of choices of structure begin, and how many choices have a code of their own."""

CHANCES = CHOICES + UNARY_CHOICES + LENGTHS

MOST_SEEN, REMEMBERED = 255, 30
"""A chance is a mean over so many last events; how many of them count when the next matrix begins."""

UNIT = 16
"""Mean magnitudes are kept in sixteenths."""

LEAST = 64

ROOM = 32
"""Bytes that an integer takes at most."""


def new_memory() -> Integers:
    """Return the chances and counts at the beginning of a file."""
    return vector(np.concatenate([np.full(CHANCES, EVEN), np.zeros(CHANCES, np.int64)]))


def fade(memory: Integers) -> None:
    """Let the next matrix weigh more than those before it."""
    for place in range(CHANCES, 2 * CHANCES):
        memory[place] = min(memory[place], REMEMBERED)


@compiled
def learn(memory: Integers, place: int, bit: int) -> None:
    """Move a chance towards what was seen: by 1/(n + 1.5) of the way after n events, in integers."""
    seen = memory[CHANCES + place]
    aim = 65535 if bit else 0
    chance = memory[place] + (2 * (aim - memory[place])) // (2 * seen + 3)
    memory[place] = min(max(chance, LEAST), 65536 - LEAST)
    if seen < MOST_SEEN:
        memory[CHANCES + place] = seen + 1


@compiled
def context(row: int, column: int, left: int, up: int) -> int:
    """Return the context of an integer, by the means of its row and column (in sixteenths) and neighbours."""
    mean = (3 * row + 3 * column + 16 * left + 16 * up) >> 2
    if mean < 14:
        return 0 if mean < 2 else 1 if mean < 4 else 2 if mean < 7 else 3 if mean < 10 else 4
    if mean < 50:
        return 5 if mean < 19 else 6 if mean < 26 else 7 if mean < 36 else 8
    return 9 if mean < 72 else 10 if mean < 110 else 11 if mean < 180 else 12


@compiled
def moved(mean: int, size: int) -> int:
    """Return a running mean after one more magnitude."""
    return mean + ((16 * size - mean) >> 3)


@compiled
def encode_bin(coder: Integers, out: Integers, memory: Integers, place: int, bit: int) -> None:
    encode_bit(coder, out, memory[place], bit)
    learn(memory, place, bit)


@compiled
def decode_bin(coder: Integers, data: Integers, memory: Integers, place: int) -> int:
    bit = decode_bit(coder, data, memory[place])
    learn(memory, place, bit)
    return bit


@compiled
def encode_gamma(coder: Integers, out: Integers, memory: Integers, first: int, value: int) -> None:
    """Write an integer of at least 1: how many binary digits follow the leading one, then these."""
    length = 0
    while value >> (length + 1):
        length += 1
    for step in range(length + 1):
        encode_bin(coder, out, memory, first + step, 1 if step < length else 0)
    for digit in range(length - 1, -1, -1):
        encode_bit(coder, out, EVEN, (value >> digit) & 1)


@compiled
def decode_gamma(coder: Integers, data: Integers, memory: Integers, first: int) -> int:
    length = 0
    while decode_bin(coder, data, memory, first + length):
        length += 1
        if length >= LENGTHS:
            coder[BAD] = 1
            return 1
    value = 1
    for _ in range(length):
        value = 2 * value + decode_bit(coder, data, EVEN)
    return value


@compiled
def encode_value(coder: Integers, out: Integers, memory: Integers, place: int, value: int) -> None:
    """Write an integer in the context `place`: whether it is 0, its sign, its size step by step, the rest."""
    first, size = BINS * place, abs(value)
    encode_bin(coder, out, memory, first, 1 if size else 0)
    if size:
        encode_bit(coder, out, EVEN, 1 if value < 0 else 0)
        for step in range(1, min(size, UNARY - 1) + 1):
            encode_bin(coder, out, memory, first + step, 1 if size > step else 0)
        if size >= UNARY:
            encode_gamma(coder, out, memory, GAMMA, size - UNARY + 1)


@compiled
def decode_value(coder: Integers, data: Integers, memory: Integers, place: int) -> int:
    """Undo `encode_value`."""
    first = BINS * place
    size = decode_bin(coder, data, memory, first)
    if not size:
        return 0
    sign = 1 - 2 * decode_bit(coder, data, EVEN)
    while size < UNARY and decode_bin(coder, data, memory, first + size):
        size += 1
    if size == UNARY:
        size += decode_gamma(coder, data, memory, GAMMA) - 1
    return sign * size


@compiled
def encode_columns(
    values: Integers, shape: Integers, means: Integers, memory: Integers, coder: Integers, out: Integers
) -> None:
    """Encode columns `shape[1]` to `shape[2]` of a matrix of `shape[0]` rows, stored column by column."""
    rows = shape[0]
    for place in range(rows * shape[1], rows * shape[2]):
        row = place % rows
        value = values[place]
        size = abs(value)
        left = abs(values[place - rows]) if place >= rows else 0
        up = abs(values[place - 1]) if row else 0
        encode_value(coder, out, memory, context(means[row], means[rows], left, up), value)
        means[row] = moved(means[row], size)
        means[rows] = moved(means[rows], size)


@compiled
def decode_columns(
    values: Integers, rows: int, means: Integers, memory: Integers, coder: Integers, data: Integers
) -> None:
    """Undo `encode_columns` of a whole matrix, into `values`; stop where the stream is damaged."""
    for place in range(len(values)):
        row = place % rows
        left = abs(values[place - rows]) if place >= rows else 0
        up = abs(values[place - 1]) if row else 0
        values[place] = decode_value(coder, data, memory, context(means[row], means[rows], left, up))
        size = abs(values[place])
        means[row] = moved(means[row], size)
        means[rows] = moved(means[rows], size)
        if coder[BAD] or coder[PLACE] > len(data) + 8:
            coder[BAD] = 1
            return


@compiled
def encode_vector(values: Integers, memory: Integers, coder: Integers, out: Integers) -> None:
    """Encode integers of any size that have no neighbours."""
    for value in values:
        encode_gamma(coder, out, memory, GAMMA + LENGTHS, abs(value) + 1)
        if value:
            encode_bit(coder, out, EVEN, 1 if value < 0 else 0)


@compiled
def decode_vector(values: Integers, memory: Integers, coder: Integers, data: Integers) -> None:
    for place in range(len(values)):
        size = decode_gamma(coder, data, memory, GAMMA + LENGTHS) - 1
        values[place] = -size if size and decode_bit(coder, data, EVEN) else size
        if coder[BAD] or coder[PLACE] > len(data) + 8:
            coder[BAD] = 1
            return


def encode(values: NDArray[np.int64], memory: Integers) -> bytes:
    """Return the code of a matrix (rows, columns), or of a vector, of integers below 2^23; `memory` learns.

    Raises `ValueError` for a larger one.

    >>> import numpy as np
    >>> matrix = np.array([[0, -1, 2], [40, 0, 0]])
    >>> stream = encode(matrix, new_memory())
    >>> bool((decode(stream, matrix.shape, new_memory()) == matrix).all())
    True
    """
    if np.abs(values).max(initial=0) >= 1 << LENGTHS - 1:
        raise ValueError("an integer is too large for its code")
    coder, parts = new_coder(), [b""]
    if values.ndim == 1:
        parts.append(
            written(values.size, coder, lambda out: encode_vector(vector(values), memory, coder, out))
        )
    else:
        rows, columns = values.shape
        flat, means = vector(values.T), vector(np.full(rows + 1, UNIT))
        for first in range(0, columns, step := max(1, (1 << 16) // max(rows, 1))):
            shape = vector([rows, first, min(columns, first + step)])
            cells = rows * step
            parts.append(
                written(cells, coder, lambda out: encode_columns(flat, shape, means, memory, coder, out))  # noqa: B023
            )
    parts.append(written(0, coder, lambda out: finish(coder, out)))
    fade(memory)
    return b"".join(parts).rstrip(b"\0")


def written(cells: int, coder: Integers, write: Any) -> bytes:
    """Return what `write` puts into the room for so many integers and for the bytes that were pending."""
    out = vector(np.zeros(ROOM * cells + coder[3] + 16, np.int64))
    coder[PLACE] = 0
    write(out)
    return bytes(np.asarray(out[: coder[PLACE]], np.uint8).tobytes())


def decode(stream: bytes, shape: tuple[int, ...], memory: Integers) -> NDArray[np.int64]:
    """Return the integers of a stream; `memory` must be what it was when they were encoded.

    Raises `ValueError` where the stream ends too early, goes on too long, or is damaged.
    """
    data, coder = np.frombuffer(stream, np.uint8) if AVAILABLE else stream, new_coder()
    start_decoding(coder, data)
    values = vector(np.zeros(int(np.prod(shape)), np.int64))
    if len(shape) == 1:
        decode_vector(values, memory, coder, data)
    else:
        decode_columns(values, shape[0], vector(np.full(shape[0] + 1, UNIT)), memory, coder, data)
    if coder[BAD] or coder[PLACE] < len(data):
        raise ValueError("a stream of integers does not end where it should")
    fade(memory)
    found = np.asarray(values, np.int64)
    return found if len(shape) == 1 else found.reshape(shape[1], shape[0]).T
