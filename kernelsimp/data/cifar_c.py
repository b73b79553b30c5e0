"""The official CIFAR-10-C folder: one .npy of uint8 (5 n, 32, 32, 3) a corruption, and labels.npy.

The first n pictures are severity 1, the last n severity 5. They are read when asked for and never mapped: a
map of a file that somebody cuts short would end the process.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.data.corruptions import SEVERITIES, Suite
from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Split
from kernelsimp.data.stores import as_labels
from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError, did_you_mean

MAIN = (
    *(
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
    ),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The fifteen that the mean is over."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


@dataclass(frozen=True, eq=False)
class PictureFile:
    """Pictures (n, H, W, 3) uint8 in a .npy file, whose first stands at byte `start`."""

    path: Path
    shape: tuple[int, ...]
    start: int
    labels: Tensor

    def batch(self, indices: Sequence[int], geometry: Geometry) -> Tensor:
        with self.path.open("rb") as file:
            rows = b"".join(self._row(file, int(index)) for index in indices)
        pixels = np.frombuffer(bytearray(rows), np.uint8).reshape(-1, *self.shape[1:])
        return geometry(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))

    def mark(self, index: int) -> bytes:
        with self.path.open("rb") as file:
            return self._row(file, index)

    def _row(self, file: BinaryIO, index: int) -> bytes:
        size = math.prod(self.shape[1:])
        file.seek(self.start + index * size)
        row = file.read(size)
        if len(row) != size:
            raise KernelsimpError(f"{self.path}: became shorter while it was read; fetch it again")
        return row


def official_suite(folder: Path, geometry: Geometry, names: Sequence[str] | None = None) -> Suite:
    """Yield (name, severity, split) from a CIFAR-10-C folder: the fifteen main corruptions, or `names`.

    Raises `KernelsimpError` before the first one where a file is missing, damaged or of another shape.
    """
    chosen = tuple(names or MAIN)
    unknown = next((name for name in chosen if name not in (*MAIN, *EXTRA)), None)
    if unknown:
        raise KernelsimpError(f"unknown corruption '{unknown}'{did_you_mean(unknown, (*MAIN, *EXTRA))}")
    missing = [f"{name}.npy" for name in (*chosen, "labels") if not (folder / f"{name}.npy").is_file()]
    if missing:
        raise KernelsimpError(f"{folder}: {', '.join(missing)} missing; expected a whole CIFAR-10-C folder")
    labels = as_labels(_array(folder / "labels.npy"), f"{folder}/labels.npy")
    stores = {name: _pictures(folder / f"{name}.npy", labels) for name in chosen}
    return _suite(stores, geometry)


def _suite(stores: dict[str, PictureFile], geometry: Geometry) -> Suite:
    for name, store in stores.items():
        count = len(store.labels) // len(SEVERITIES)
        for severity in SEVERITIES:
            places = np.arange(count) + (severity - 1) * count
            yield name, severity, Split(store, places, geometry)


def _pictures(path: Path, labels: Tensor) -> PictureFile:
    count = len(labels)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read[version](file)
            start = file.tell()
            size = file.seek(0, os.SEEK_END)
    except Exception as error:
        raise _unreadable(path, error) from error
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[0] != count or count % 5 or fortran:
        wanted = f"uint8 ({count}, H, W, 3), one picture a label and five severities"
        raise KernelsimpError(f"{path}: {dtype} {shape}; expected {wanted}")
    if size - start < math.prod(shape):
        raise _unreadable(path, ValueError("it is cut short"))
    return PictureFile(path, shape, start, labels)


def _array(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except Exception as error:  # numpy raises ValueError, OSError, EOFError and more
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> KernelsimpError:
    return KernelsimpError(f"{path}: cannot read as .npy: {short(error, 200)}; fetch it again")
