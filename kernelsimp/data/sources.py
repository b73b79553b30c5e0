"""The table of data sources: each row says how a text after --data becomes three splits.

To add a source, add a row. A source gives the splits it has; what it lacks is made here: val is carved
out of train by the seed, and without test there is an error, because nothing else may be reported on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kernelsimp.data.folders import load_folder
from kernelsimp.data.foreign import load_callable, load_torchvision
from kernelsimp.data.images import Geometry
from kernelsimp.data.numpy_files import load_npy, load_npz
from kernelsimp.data.splits import Data, FoundSplits, Request, Split, carve, split_by_hash
from kernelsimp.data.stores import ArrayStore, as_images, as_labels
from kernelsimp.errors import KernelsimpError, did_you_mean, how_to_install
from kernelsimp.settings import DataSettings

__all__ = ["SOURCES", "Data", "Source", "Split", "load_data"]


@dataclass(frozen=True)
class Source:
    """One row: how it is written after --data, what it is, and `load`."""

    usage: str
    meaning: str
    load: Callable[[Request], FoundSplits]


def load_digits(request: Request) -> FoundSplits:
    """Load the 1,797 grey 8 x 8 digits that ship with scikit-learn; a fifth each is val and test.

    Raises `KernelsimpError` with the install line where scikit-learn is missing.
    """
    if request.where:
        raise KernelsimpError(f"--data digits:{request.where}: digits takes nothing after its name")
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError as error:
        advice = f"install it: {how_to_install('demo')}"
        raise KernelsimpError(
            f"--data digits needs scikit-learn, which is not installed; {advice}"
        ) from error
    bunch: Any = sklearn_digits()
    images = as_images((np.asarray(bunch.images) / 16).astype(np.float32), "digits")
    store = ArrayStore(images, as_labels(np.asarray(bunch.target), "digits"))
    names = [str(i) for i in range(len(images))]
    parts = [Split(store, part, request.geometry) for part in split_by_hash(names, "60:20:20", request.seed)]
    return FoundSplits(test=parts[2], train=parts[0], val=parts[1])


SOURCES: dict[str, Source] = {
    "digits": Source("digits", "8 x 8 grey digits shipped with scikit-learn", load_digits),
    "npz": Source("npz:FILE", "train_images, train_labels... or x_train, y_train..., in one file", load_npz),
    "npy": Source("npy:IMAGES.npy,LABELS.npy", "a pair of files; or npy:DIR with x_train.npy...", load_npy),
    "imagefolder": Source("imagefolder:DIR", "train, val, test folders of class folders", load_folder),
    "torchvision": Source("torchvision:NAME?root=DIR", "a downloaded torchvision data set", load_torchvision),
}
CALLABLE = Source("file.py:callable", "a function that returns {'train', 'val', 'test'}", load_callable)
"""The source that has no word of its own: any text whose first part ends in .py."""


def load_data(settings: DataSettings, seed: int) -> Data:
    """Load the splits of `settings.data`, with images of the network's shape.

    Raises `KernelsimpError` for an unknown source, unreadable files, an empty or missing test split, and
    labels outside the classes.
    """
    text = settings.data
    if not text:
        usages = ", ".join(row.usage for row in (*SOURCES.values(), CALLABLE))
        raise KernelsimpError(f"no data given; expected --data with one of: {usages}")
    source, where = _find(text)
    geometry = Geometry(settings.input_size, settings.crop or settings.input_size, settings.channels)
    found = source.load(Request(where, geometry, settings.split, seed))
    if settings.split != DataSettings().split and not found.parted:
        told = f"--split {settings.split} is passed over: {text} has splits of its own"
        found = replace(found, warnings=(*found.warnings, told))
    return _complete(text, found, seed)


def _find(text: str) -> tuple[Source, str]:
    word, _, where = text.partition(":")
    if word in SOURCES:
        return SOURCES[word], where
    path, _, name = text.rpartition(":")
    if path.endswith(".py") or text.endswith(".py"):
        if not path or not name.isidentifier():
            raise KernelsimpError(f"--data {text}: no function named; expected file.py:callable")
        return CALLABLE, text
    known = _form_of(text)
    if known:
        raise KernelsimpError(f"--data {text}: no source named; did you mean {known}:{text}?")
    raise KernelsimpError(f"--data {text}: unknown source '{word}'{did_you_mean(word, SOURCES)}")


def _form_of(text: str) -> str | None:
    """Return the source that reads what is written like a file or folder, if one does."""
    if text.endswith((".npz", ".npy")):
        return text[-3:]
    folder = Path(text).expanduser()
    if not folder.is_dir():
        return None
    return "npy" if any(folder.glob("*.npy")) else "imagefolder"


def _complete(name: str, found: FoundSplits, seed: int) -> Data:
    """Make the splits that are missing and check all of them."""
    if len(found.test) == 0:
        raise KernelsimpError(f"{name}: the test split is empty; expected at least one image")
    train = found.train if found.train is not None else found.test.subset([])
    val = found.val
    if val is None:
        train, val = carve(train, seed)
    data = Data(name, train, val, found.test, 0, found.warnings, found.notes)
    return replace(data, classes=_count_classes(data, found.class_count))


def _count_classes(data: Data, known: int | None) -> int:
    """Return how many classes there are; raises where a label lies outside the known ones."""
    classes = known or 0
    for word, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        largest = int(split.labels.max()) if len(split) and split.labels.ndim == 1 else -1
        if known is not None and largest >= known:
            message = f"{data.name}: {word} has label {largest}, outside the {known} classes 0..{known - 1}"
            raise KernelsimpError(f"{message}; correct the labels")
        classes = max(classes, largest + 1)
    return classes
