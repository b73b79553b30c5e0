"""Images in folders: DIR/CLASS/IMAGE, or DIR/train/CLASS/IMAGE with val and test beside train.

The label of an image is the place of its class folder in sorted order, over all splits together.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kernelsimp.data.splits import FoundSplits, Request, Split, split_by_hash
from kernelsimp.data.stores import FileStore
from kernelsimp.errors import KernelsimpError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
)
VAL_NAMES = ("val", "valid", "validation")


def load_folder(request: Request) -> FoundSplits:
    """List the images of a folder; folders train, val, test are the splits, else a hash of the path splits.

    Raises `KernelsimpError` where there is no such folder, no image in it, or train but no test.
    """
    root = Path(request.where).expanduser()
    if not request.where or not root.is_dir():
        found = "no folder named" if not request.where else f"{root} is no folder"
        raise KernelsimpError(f"--data imagefolder: {found}; expected imagefolder:DIR")
    names = [path.name for path in _folders(root)]
    if "train" in names or "test" in names:
        return _ready(root, names, request)
    store, count = _store(root, [""])
    train, val, test = split_by_hash(store.files, request.split, request.seed)
    left_out = len(store.files) - train.size - val.size - test.size
    note = f"--split {request.split} leaves {left_out} of {len(store.files)} images out"
    splits = [Split(store, part, request.geometry) for part in (train, val, test)]
    return FoundSplits(splits[2], splits[0], splits[1], count, (note,) if left_out else ())


def _ready(root: Path, names: list[str], request: Request) -> FoundSplits:
    """Take the splits that the folders make; a missing val is carved out of train later."""
    val = next((name for name in VAL_NAMES if name in names), None)
    if "test" not in names:
        advice = f"rename {val} to test" if val else "add a folder test, or give only class folders"
        raise KernelsimpError(f"{root}: found {', '.join(names)}; expected a folder test: {advice}")
    words = [word for word in ("train", val, "test") if word in names]
    store, count = _store(root, [f"{word}/" for word in words])
    splits = {}
    for word in words:
        places = [i for i, file in enumerate(store.files) if file.startswith(f"{word}/")]
        splits[word] = Split(store, np.array(places, dtype=np.int64), request.geometry)
    return FoundSplits(splits["test"], splits.get("train"), splits.get(val or ""), count)


def _store(root: Path, prefixes: list[str]) -> tuple[FileStore, int]:
    """Return every image below root / prefix / CLASS, sorted, and the number of classes."""
    found = [
        (path.relative_to(root).as_posix(), folder.name)
        for prefix in prefixes
        for folder in _folders(root / prefix)
        for path in _images(folder)
    ]
    if not found:
        raise KernelsimpError(
            f"{root}: no images found; expected folders of classes with images, CLASS/0.jpg"
        )
    classes = sorted({folder.name for prefix in prefixes for folder in _folders(root / prefix)})
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[name] for _, name in found], dtype=torch.int64)
    return FileStore(root, tuple(file for file, _ in found), labels), len(classes)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path
