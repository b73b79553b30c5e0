"""Images in NumPy's files: one .npz, a folder of .npy, or a pair of .npy with images and labels.

A key says split and side in either order and any case: train_images and train_labels (MedMNIST), x_train and
y_train (Keras), X_valid, test_y... A pair without a split's word is parted by --split. Nothing in the files
is ever run: object arrays are refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray

from kernelsimp.data.layout import split_word
from kernelsimp.data.splits import FoundSplits, Request, Split, split_by_hash
from kernelsimp.data.stores import ArrayStore, as_images, as_labels
from kernelsimp.errors import KernelsimpError
from kernelsimp.zip_records import check_sizes

SIDES = {
    "images": "labels",
    "imgs": "labels",
    "image": "label",
    "x": "y",
    "data": "targets",
    "inputs": "targets",
}
"""How the images are called in a key, and what the labels beside them are usually called."""

LABELS = ("labels", "label", "y", "targets", "target")

Arrays = Mapping[str, NDArray[Any]]
Place = tuple[str, str]
"""A split, '' where a key names none, and which of a pair an array is: images or labels."""


def load_npz(request: Request) -> FoundSplits:
    """Read the splits of an .npz file into memory.

    Raises `KernelsimpError` where the file is missing or damaged, has no test arrays, or holds images and
    labels that do not match.
    """
    path = Path(request.where).expanduser()
    if not request.where:
        raise KernelsimpError("--data npz: no file named; expected npz:FILE")
    return _splits(_read_npz(path), path, request)


def load_npy(request: Request) -> FoundSplits:
    """Read ``IMAGES.npy,LABELS.npy``, or a folder of .npy files that are named as the keys of an .npz.

    Raises `KernelsimpError` as `load_npz` does.
    """
    names = [part for part in request.where.split(",") if part]
    if len(names) == 2:
        arrays = {side: _read_npy(Path(name)) for side, name in zip(("images", "labels"), names, strict=True)}
        return _splits(arrays, Path(names[0]), request)
    folder = Path(request.where).expanduser()
    if len(names) != 1 or not folder.is_dir():
        forms = "npy:IMAGES.npy,LABELS.npy or npy:DIR with x_train.npy, y_train.npy..."
        raise KernelsimpError(f"--data npy:{request.where}: expected {forms}")
    files = [path for path in sorted(folder.glob("*.npy")) if place_of(path.stem)]
    return _splits({path.stem: _read_npy(path) for path in files}, folder, request)


def place_of(key: str) -> Place | None:
    """Return the split and the side that a key names; None where it belongs to no image set."""
    for side, names in (("images", tuple(SIDES)), ("labels", LABELS)):
        either = "|".join(names)
        found = re.fullmatch(
            rf"(?:(?P<a>{either})(?:[\W_]+(?P<b>\w+?))?|(?P<c>\w+?)[\W_]+(?:{either}))", key.casefold()
        )
        if found:
            word = found["b"] or found["c"] or ""
            split = split_word(word) if word else ""
            if split is not None:
                return split, side
    return None


def _splits(arrays: Arrays, path: Path, request: Request) -> FoundSplits:
    keys: dict[Place, str] = {}
    for key in arrays:
        place = place_of(key)
        if place and place in keys:
            raise KernelsimpError(f"{path}: {keys[place]} and {key} are the same; keep one of them")
        if place:
            keys[place] = key
    splits = {word: _split(arrays, keys, word, path, request) for word in ("train", "val", "test")}
    whole = _split(arrays, keys, "", path, request) if not any(splits.values()) else None
    if whole is not None:
        return _parted(whole, request)
    if splits["test"] is None:
        found = ", ".join(sorted(arrays)) or "no arrays"
        raise KernelsimpError(
            f"{path}: found {found}; expected test_images and test_labels (or test_x, test_y)"
        )
    return FoundSplits(test=splits["test"], train=splits["train"], val=splits["val"])


def _parted(whole: Split, request: Request) -> FoundSplits:
    """Part images without splits by a hash of their place and --split."""
    names = [str(place) for place in range(len(whole))]
    train, val, test = split_by_hash(names, request.split, request.seed)
    left_out = len(names) - train.size - val.size - test.size
    told = f"--split {request.split} leaves {left_out} of {len(names)} images out"
    warnings = (told,) if left_out else ()
    parts = whole.subset(test), whole.subset(train), whole.subset(val)
    return FoundSplits(*parts, warnings=warnings, parted=True)


def _split(
    arrays: Arrays, keys: Mapping[Place, str], word: str, path: Path, request: Request
) -> Split | None:
    first, second = keys.get((word, "images")), keys.get((word, "labels"))
    if first is None and second is None:
        return None
    if first is None or second is None:
        have = str(first or second)
        raise KernelsimpError(f"{path}: found {have} without {_other_key(have)}; expected both")
    images = as_images(arrays[first], f"{path}: {first}")
    labels = as_labels(arrays[second], f"{path}: {second}")
    if len(images) != len(labels):
        raise KernelsimpError(f"{path}: {first} has {len(images)} images, {second} {len(labels)} labels")
    return Split(ArrayStore(images, labels), np.arange(len(images)), request.geometry)


def _other_key(key: str) -> str:
    """Return the key that is wanted beside one of a pair."""
    pairs = {**SIDES, **{label: image for image, label in reversed(SIDES.items())}, "target": "data"}
    parts = re.split(r"([\W_]+)", key)
    return "".join(pairs.get(part.casefold(), part) for part in parts)


def _read_npz(path: Path) -> Arrays:
    """Return the arrays that belong to a split, and empty stand-ins for the other names."""
    if not path.is_file():
        raise KernelsimpError(f"{path}: no such file; expected an .npz file of images")
    if not is_zipfile(path):
        raise KernelsimpError(f"{path}: no zip archive; expected an .npz file with test_images, test_labels")
    try:
        with ZipFile(path) as archive:
            check_sizes(archive)
        with np.load(path, allow_pickle=False) as arrays:
            return {key: _array(arrays, key) if place_of(key) else np.empty(0) for key in arrays.files}
    except Exception as error:  # zip, zlib, numpy and the system each have their own exceptions
        raise _unreadable(path, ".npz", error) from error


def _array(arrays: Mapping[str, Any], key: str) -> NDArray[Any]:
    """Return an array of an .npz file, which gives the bytes of a record that is none."""
    array = arrays[key]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"'{key}' is no .npy record")
    return array


def _read_npy(path: Path) -> NDArray[Any]:
    path = path.expanduser()
    if not path.is_file():
        raise KernelsimpError(f"{path}: no such file; expected an .npy file of images or labels")
    try:
        with path.open("rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except Exception as error:
        raise _unreadable(path, ".npy", error) from error


def _unreadable(path: Path, kind: str, error: Exception) -> KernelsimpError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return KernelsimpError(f"{path}: cannot read as {kind}: {reason}; repair or replace it")
