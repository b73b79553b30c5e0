"""Images in one .npz file by the MedMNIST convention: train_images, train_labels, val_*, test_*.

`_x` and `_y` serve as well. Nothing in the file is ever run: object arrays are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from kernelsimp.data.splits import FoundSplits, Request, Split
from kernelsimp.data.stores import ArrayStore, as_images, as_labels
from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError

SUFFIXES = (("_images", "_labels"), ("_x", "_y"))


def load_npz(request: Request) -> FoundSplits:
    """Read the splits of an .npz file into memory.

    Raises `KernelsimpError` where the file is missing or damaged, has no test arrays, or holds images and
    labels that do not match.
    """
    path = Path(request.where).expanduser()
    if not request.where:
        raise KernelsimpError("--data npz: no file named; expected npz:FILE")
    arrays = _read(path)
    splits = {word: _split(arrays, word, path, request) for word in ("train", "val", "test")}
    if splits["test"] is None:
        found = ", ".join(sorted(arrays)) or "no arrays"
        raise KernelsimpError(
            f"{path}: found {found}; expected test_images and test_labels (or test_x, test_y)"
        )
    return FoundSplits(test=splits["test"], train=splits["train"], val=splits["val"])


def _read(path: Path) -> Mapping[str, NDArray[Any]]:
    """Return the arrays that belong to a split, and empty stand-ins for the other names."""
    if not path.is_file():
        raise KernelsimpError(f"{path}: no such file; expected an .npz file of images")
    if not is_zipfile(path):
        raise KernelsimpError(f"{path}: no zip archive; expected an .npz file with test_images, test_labels")
    wanted = {word + end for word in ("train", "val", "test") for pair in SUFFIXES for end in pair}
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] if key in wanted else np.empty(0) for key in archive.files}
    except Exception as error:  # zip, zlib, numpy and the system each have their own exceptions
        reason = short(error, 200)
        raise KernelsimpError(f"{path}: cannot read as .npz: {reason}; repair or replace it") from error


def _split(arrays: Mapping[str, NDArray[Any]], word: str, path: Path, request: Request) -> Split | None:
    for first, second in SUFFIXES:
        have = [word + end for end in (first, second) if word + end in arrays]
        if len(have) == 1:
            other = word + (second if have[0].endswith(first) else first)
            raise KernelsimpError(f"{path}: found {have[0]} without {other}; expected both")
        if have:
            images = as_images(arrays[have[0]], f"{path}: {have[0]}")
            labels = as_labels(arrays[have[1]], f"{path}: {have[1]}")
            if len(images) != len(labels):
                raise KernelsimpError(
                    f"{path}: {have[0]} has {len(images)} images, {have[1]} {len(labels)} labels"
                )
            return Split(ArrayStore(images, labels), np.arange(len(images)), request.geometry)
    return None
