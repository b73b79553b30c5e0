"""The three splits of a data set, kept apart: train and val choose, test is only reported.

A split is a list of places in a store, seen through one geometry. Whatever is random here follows from
the seed alone.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kernelsimp.data.images import Geometry
from kernelsimp.data.stores import Store
from kernelsimp.errors import KernelsimpError

Places = NDArray[np.int64]

VAL_SHARE = 0.1
"""The share of train that becomes val where a source has none."""


class Split(Dataset[tuple[Tensor, int]]):
    """Some images of a store: item i is (image (C, H, W) float32, label).

    uint8 sources come out in 0..1, before any normalising. `places` (n,) are the positions in the store.
    """

    def __init__(self, store: Store, places: Sequence[int] | Places, geometry: Geometry) -> None:
        self.store = store
        self.places = np.asarray(places, dtype=np.int64)
        self.geometry = geometry

    def __len__(self) -> int:
        return int(self.places.size)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.fetch([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return several items at once: torch's DataLoader calls this where it is there."""
        images, labels = self.fetch(indices)
        return list(zip(images, labels.tolist(), strict=True))

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (images (n, C, H, W) float32, labels (n,) int64): the fast way to a batch."""
        index = np.asarray(indices, dtype=np.int64)
        places = self.places[index]
        return self.store.batch(places.tolist(), self.geometry), self.labels[torch.from_numpy(index)]

    @cached_property
    def labels(self) -> Tensor:
        """The class of each image, int64 (n,); or targets (n, ...) that only a metric can read."""
        return self.store.labels[torch.from_numpy(self.places)]

    def subset(self, indices: Sequence[int] | Places) -> "Split":
        """Return the split of the images at `indices` of this one, in that order."""
        return Split(self.store, self.places[np.asarray(indices, dtype=np.int64)], self.geometry)

    def fingerprint(self) -> str:
        """Return the SHA-256 of labels and image content, in order; it ignores the geometry."""
        labels = self.labels.numpy()
        digest = hashlib.sha256((labels.astype("<i8") if labels.ndim == 1 else labels).tobytes())
        for place in self.places.tolist():
            digest.update(self.store.mark(place))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Data:
    """What one source gave. `classes` is how many there are; `test` has chosen nothing and never may."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the test split: labels and image content, whatever the preprocessing."""
        return self.test.fingerprint()

    def calibration(self, count: int, seed: int) -> Split:
        """Return `count` seeded images that choose without labels: of train, or of val where it has more.

        They come in a random order, so that the first ones of them stand for all.
        val serves only where train has fewer than `count`; fewer images than asked for are all of them.
        Raises `KernelsimpError` where both are empty: the test set never serves.
        """
        if count < 1:
            raise KernelsimpError(f"--calibration is {count}; expected at least 1")
        source = self.train if len(self.train) >= min(count, len(self.val)) else self.val
        if len(source) == 0:
            advice = "give it training images, for instance with --split 30:0:70"
            raise KernelsimpError(f"{self.name}: no train or val images to calibrate on; {advice}")
        order = np.random.default_rng((seed, 1)).permutation(len(source))
        return source.subset(order[:count])


def carve(train: Split, seed: int) -> tuple[Split, Split]:
    """Part a seeded tenth of `train` off as val; return (train, val)."""
    order = np.random.default_rng((seed, 2)).permutation(len(train))
    cut = max(1, round(VAL_SHARE * len(train))) if len(train) > 1 else 0
    return train.subset(np.sort(order[cut:])), train.subset(np.sort(order[:cut]))


@dataclass(frozen=True)
class Cut:
    """How many images go to each split, from the text of --split."""

    train: int
    val: int
    test: int


def read_cut(text: str, count: int) -> Cut:
    """Read ``train:val:test`` for `count` images: shares that sum to 1 or 100, else counts.

    Raises `KernelsimpError` for another form, for counts that need more images than there are, and where
    test would be empty.
    """
    if not re.fullmatch(r"\d+(\.\d+)?(:\d+(\.\d+)?){2}", text):
        raise KernelsimpError(f"--split is '{text}'; expected train:val:test, such as 80:10:10 or 300:0:700")
    numbers = [float(part) for part in text.split(":")]
    total = sum(numbers)
    if abs(total - 1) < 1e-6 or total == 100:
        val, test = (round(count * number / total) for number in numbers[1:])
        cut = Cut(count - val - test, val, test)
    elif not all(number.is_integer() for number in numbers):
        raise KernelsimpError(f"--split is '{text}', which sums to {total:g}; expected shares of 1 or 100")
    elif total > count:
        raise KernelsimpError(f"--split {text} needs {total:g} images; there are {count}: ask for fewer")
    else:
        cut = Cut(*(int(number) for number in numbers))
    if cut.test < 1:
        raise KernelsimpError(f"--split {text} leaves no test image of {count}; give test a larger part")
    return cut


def split_by_hash(names: Sequence[str], text: str, seed: int) -> tuple[Places, Places, Places]:
    """Return the places of train, val and test among `names`, by a hash of each name.

    Which images are test depends on the names and `text` alone, so that runs with different seeds are
    measured on the same images and none trains on another's test set; the seed parts train from val.
    """
    cut = read_cut(text, len(names))
    fixed = _rank_names(names, "test")
    test, rest = fixed[: cut.test], fixed[cut.test :]
    order = rest[_rank_names([names[i] for i in rest], str(seed))]
    return np.sort(order[cut.val : cut.val + cut.train]), np.sort(order[: cut.val]), np.sort(test)


def _rank_names(names: Sequence[str], key: str) -> Places:
    digests = [hashlib.sha256(f"{key}\0{name}".encode()).digest() for name in names]
    return np.array(sorted(range(len(names)), key=digests.__getitem__), dtype=np.int64)


@dataclass(frozen=True)
class Request:
    """`where` is the text behind the source's word, `split` the text of --split."""

    where: str
    geometry: Geometry
    split: str
    seed: int


@dataclass(frozen=True)
class FoundSplits:
    """The splits a source has; None where it has none. `class_count` is None where only labels tell.

    `parted` says that --split made them.
    """

    test: Split
    train: Split | None = None
    val: Split | None = None
    class_count: int | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parted: bool = False
