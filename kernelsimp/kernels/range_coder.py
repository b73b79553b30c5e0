"""A binary range coder over integers: the same bytes on every machine.

A coder is eight integers, a `Coder`; a chance is that of a one, in 1/65,536, from 64 to 65,472. Carries are
held back as in LZMA's coder (Martin, Range encoding, 1979; Pavlov). Zeros at the end of a stream are left
off: past its end a decoder reads zeros.
"""

from typing import Any

from kernelsimp.kernels.compiled import compiled, vector

LOW, RANGE, CACHE, PENDING, PLACE, CODE, BAD = range(7)

WHOLE, TOP = 0xFFFFFFFF, 1 << 24

EVEN = 1 << 15
"""The chance of one bit of which nothing is known."""

Integers = Any
"""A one-dimensional int64 array, or a list of int where nothing is compiled."""


def new_coder() -> Integers:
    """Return an encoder at its beginning."""
    return vector([0, WHOLE, -1, 0, 0, 0, 0])


@compiled
def encode_bit(coder: Integers, out: Integers, chance: int, bit: int) -> None:
    """Write one bit into `out`, which must have room for it and for what is pending."""
    bound = (coder[RANGE] >> 16) * chance
    if bit:
        coder[RANGE] = bound
    else:
        coder[LOW] += bound
        coder[RANGE] -= bound
    while coder[RANGE] < TOP:
        coder[RANGE] = (coder[RANGE] << 8) & WHOLE
        shift(coder, out)


@compiled
def shift(coder: Integers, out: Integers) -> None:
    """Move the top byte out, once no carry can reach it any more."""
    low = coder[LOW]
    if low < 0xFF000000 or low > WHOLE:
        carry = low >> 32
        if coder[CACHE] >= 0:
            out[coder[PLACE]] = (coder[CACHE] + carry) & 255
            coder[PLACE] += 1
        while coder[PENDING] > 0:
            out[coder[PLACE]] = (255 + carry) & 255
            coder[PLACE] += 1
            coder[PENDING] -= 1
        coder[CACHE] = (low >> 24) & 255
    else:
        coder[PENDING] += 1
    coder[LOW] = (low & 0x00FFFFFF) << 8


@compiled
def finish(coder: Integers, out: Integers) -> None:
    """Write the number in the last interval that has most zeros at its end, and all that is pending."""
    last = coder[LOW] + coder[RANGE] - 1
    for bits in range(32, -1, -1):
        value = (last >> bits) << bits
        if value >= coder[LOW]:
            coder[LOW] = value
            break
    for _ in range(5):
        shift(coder, out)


@compiled
def start_decoding(coder: Integers, data: Integers) -> None:
    """Read the first bytes."""
    coder[RANGE] = WHOLE
    for _ in range(4):
        coder[CODE] = (coder[CODE] << 8) | _next_byte(coder, data)


@compiled
def _next_byte(coder: Integers, data: Integers) -> int:
    place = coder[PLACE]
    coder[PLACE] = place + 1
    return data[place] if place < len(data) else 0


@compiled
def decode_bit(coder: Integers, data: Integers, chance: int) -> int:
    """Read one bit."""
    bound = (coder[RANGE] >> 16) * chance
    if coder[CODE] < bound:
        coder[RANGE] = bound
        bit = 1
    else:
        coder[CODE] -= bound
        coder[RANGE] -= bound
        bit = 0
    while coder[RANGE] < TOP:
        coder[RANGE] = (coder[RANGE] << 8) & WHOLE
        coder[CODE] = ((coder[CODE] << 8) | _next_byte(coder, data)) & WHOLE
    return bit
