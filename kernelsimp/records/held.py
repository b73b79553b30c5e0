"""What was held, in a form that a report can carry and a later check can verify bit for bit."""

import base64
import hashlib
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CRC_PER_KERNEL_UP_TO = 100_000
"""Layers of more kernels than this carry one checksum for the layer."""


@dataclass(frozen=True)
class HeldLayer:
    """One layer's assignment and checksums, as in report.json under `layers[].hold`.

    `assignment` is the run-length code, base64, of the choice of each kernel in canonical order: pairs of
    little-endian uint16 structure and uint32 length. `frozen_crc32` has one CRC-32 a frozen kernel in that
    order (or a single one for a large layer) over the stored bytes; `sha256` is over all frozen kernels.
    Frozen are all simplified kernels, or where structure is tied those that were denoised. `shapes` has by
    what kernels are drawn, in that order, base64: four little-endian float32 a template; in a layer with
    prototypes all the cells of a kernel, deflated.
    `coded_sha256` is over the frozen kernels as the run's coded file decodes to them, where there is one.
    """

    assignment: str
    frozen_crc32: tuple[int, ...]
    sha256: str
    shapes: str = ""
    coded_sha256: str = ""


def encode_assignment(choice: NDArray[np.int16]) -> str:
    """Run-length code the choices, flattened in canonical order."""
    flat = choice.reshape(-1)
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]]) if flat.size else np.array([], dtype=np.int64)
    lengths = np.diff(np.r_[starts, flat.size])
    pairs = np.zeros(starts.size, dtype=[("structure", "<u2"), ("length", "<u4")])
    pairs["structure"], pairs["length"] = flat[starts], lengths
    return base64.b64encode(pairs.tobytes()).decode()


def decode_assignment(text: str, shape: tuple[int, int]) -> NDArray[np.int16]:
    """Undo `encode_assignment` for a layer of `shape` (out, in / groups).

    Raises ValueError where the text is damaged or describes another number of kernels.
    """
    pairs = np.frombuffer(
        base64.b64decode(text, validate=True), dtype=[("structure", "<u2"), ("length", "<u4")]
    )
    if int(pairs["length"].sum(dtype=np.int64)) != int(np.prod(shape)):
        raise ValueError(f"assignment of {pairs['length'].sum()} kernels for a layer of {shape}")
    flat = np.repeat(pairs["structure"].astype(np.int16), pairs["length"].astype(np.int64))
    return flat.reshape(shape)


PLAIN = 4
"""Rows of so many numbers, those of templates, are written as they are."""


def encode_shapes(shapes: NDArray[np.float32]) -> str:
    """Write the numbers (kernels, 4 or more) by which kernels are drawn as text.

    Of templates all differ; of prototypes many are the same, so that wide rows are deflated.
    """
    stored = np.ascontiguousarray(shapes, dtype="<f4").tobytes()
    return base64.b64encode(stored if shapes.shape[1] == PLAIN else zlib.compress(stored, 9)).decode()


def decode_shapes(text: str, count: int, width: int = PLAIN) -> NDArray[np.float32]:
    """Undo `encode_shapes` for `count` kernels; raises ValueError where the text is damaged."""
    stored = base64.b64decode(text, validate=True)
    if width != PLAIN:
        stored = _inflate(stored, 4 * count * width)
    values = np.frombuffer(stored, dtype="<f4")
    if values.size != width * count:
        raise ValueError(f"numbers of {values.size / width:g} drawn kernels for {count}")
    return values.astype(np.float32).reshape(count, width)


def _inflate(stored: bytes, size: int) -> bytes:
    """Inflate to `size` bytes and not further; raises ValueError where the stream is damaged."""
    try:
        return zlib.decompressobj().decompress(stored, size)
    except zlib.error as error:
        raise ValueError(str(error)) from error


def hold_layer(
    choice: NDArray[np.int16],
    stored: NDArray[np.uint8],
    *,
    frozen: bool,
    kept: NDArray[np.bool_] | None = None,
) -> HeldLayer:
    """Return the record of one layer; `stored` is (kernels, bytes a kernel), the written bytes.

    With `frozen` false (structure kept, values free) only the kernels in `kept`, shaped like `choice`, have
    checksums.
    """
    held = choice != 0 if frozen else np.zeros(choice.shape, bool) if kept is None else kept
    rows = stored[held.reshape(-1)]
    whole = rows.tobytes()
    one_by_one = choice.size <= CRC_PER_KERNEL_UP_TO
    sums = tuple(zlib.crc32(row.tobytes()) for row in rows) if one_by_one else (zlib.crc32(whole),)
    return HeldLayer(encode_assignment(choice), sums if whole else (), hashlib.sha256(whole).hexdigest())
