"""The official CIFAR-10-C folder: one .npy of uint8 (5 n, 32, 32, 3) a corruption, and labels.npy.

The first n pictures are severity 1, the last n severity 5; the arrays stay on disk until asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.data.corruptions import SEVERITIES, Suite
from kernelsimp.data.images import Geometry
from kernelsimp.data.splits import Split
from kernelsimp.data.stores import as_labels
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
class MappedStore:
    """Pictures (n, H, W, 3) uint8 in a file that is mapped, not read."""

    pixels: NDArray[np.uint8]
    labels: Tensor

    def batch(self, indices: Sequence[int], geometry: Geometry) -> Tensor:
        chosen = self.pixels[np.asarray(indices, dtype=np.int64)]
        return geometry(torch.from_numpy(np.ascontiguousarray(chosen.transpose(0, 3, 1, 2))))

    def mark(self, index: int) -> bytes:
        return bytes(self.pixels[index].tobytes())


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
    labels = as_labels(np.asarray(_mapped(folder / "labels.npy")), f"{folder}/labels.npy")
    arrays = {name: _pictures(folder / f"{name}.npy", len(labels)) for name in chosen}
    return _suite(arrays, labels, geometry)


def _suite(arrays: dict[str, NDArray[np.uint8]], labels: Tensor, geometry: Geometry) -> Suite:
    count = len(labels) // len(SEVERITIES)
    for name, array in arrays.items():
        for severity in SEVERITIES:
            places = np.arange(count) + (severity - 1) * count
            yield name, severity, Split(MappedStore(array, labels), places, geometry)


def _pictures(path: Path, count: int) -> NDArray[np.uint8]:
    array = _mapped(path)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or len(array) != count or count % 5:
        wanted = f"uint8 ({count}, H, W, 3), one picture a label and five severities"
        raise KernelsimpError(f"{path}: {array.dtype} {array.shape}; expected {wanted}")
    return array


def _mapped(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # numpy raises ValueError, OSError, EOFError and more
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise KernelsimpError(f"{path}: cannot read as .npy: {reason}; fetch it again") from error
