"""pictures.npz in a run: the gallery's kernels as numbers, so that a run can be rendered again.

The original checkpoint may be gone by then. Arrays only, one set a layer, numbered in the order of the
gallery; nothing in it can run code.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernelsimp.error_text import printable
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_atomically
from kernelsimp.report.pictures.gallery import Gallery, Label, Picture

LABELS: tuple[Label, ...] = ("found", "imposed", "zeroed", "denoised")

_DAMAGE = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)
"""What numpy and zipfile raise over a damaged file."""

Arrays = dict[str, NDArray[np.generic]]


def save_gallery(gallery: Gallery, path: Path) -> None:
    """Write the gallery to `path`, whole or not at all; raises `KernelsimpError` where it cannot."""
    grouped: dict[str, list[Picture]] = {}
    for picture in gallery.pictures:
        grouped.setdefault(picture.layer, []).append(picture)
    arrays: Arrays = {"left_out": np.array(gallery.left_out)}
    for place, pictures in enumerate(grouped.values()):
        arrays |= {f"{place}.{key}": value for key, value in _arrays(pictures).items()}
    write_atomically(path, lambda partial: _write(partial, arrays))


def load_gallery(path: Path) -> Gallery:
    """Read a gallery; an empty one where there is no file. Raises `KernelsimpError` where it is damaged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            layers = sorted({int(key.split(".")[0]) for key in data.files if "." in key})
            pictures = [item for place in layers for item in _pictures(data, place)]
            return Gallery(tuple(pictures), int(data["left_out"]))
    except FileNotFoundError:
        return Gallery(())
    except _DAMAGE as error:
        why, advice = printable(str(error))[:80], "remove the file to render without"
        raise KernelsimpError(f"{path}: pictures cannot be read ({why}); {advice}") from error


def _arrays(pictures: list[Picture]) -> Arrays:
    figures = [(_nan(picture.residual), _nan(picture.p)) for picture in pictures]
    return {
        "layer": np.array(pictures[0].layer),
        "index": np.array([picture.index for picture in pictures], dtype=np.int64),
        "family": np.array([picture.family for picture in pictures]),
        "label": np.array([LABELS.index(picture.label) for picture in pictures], dtype=np.uint8),
        "before": np.stack([picture.before for picture in pictures]).astype(np.float32),
        "after": np.stack([picture.after for picture in pictures]).astype(np.float32),
        "figures": np.array(figures, dtype=np.float64),
    }


def _pictures(data: "np.lib.npyio.NpzFile", place: int) -> list[Picture]:
    names = ("index", "family", "label", "before", "after", "figures")
    columns = [data[f"{place}.{name}"] for name in names]
    layer = str(data[f"{place}.layer"])
    return [_picture(layer, row) for row in zip(*columns, strict=True)]


def _picture(layer: str, row: tuple[NDArray[np.generic], ...]) -> Picture:
    index, family, label, before, after, figures = row
    residual, p = (None if np.isnan(value) else float(value) for value in figures.astype(np.float64))
    kernels = (before.astype(np.float32), after.astype(np.float32))
    place = (int(index[0]), int(index[1]))
    return Picture(layer, place, str(family), LABELS[int(label)], *kernels, residual, p)


def _write(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as stream:  # a stream: numpy would add .npz to a name
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def _nan(value: float | None) -> float:
    return np.nan if value is None else value
