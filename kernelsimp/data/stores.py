"""Where images lie: in memory, in files, or in somebody else's data set, behind one small interface.

A store knows the images and labels of one place in a fixed order; which of them make a split is not its
business. Arrays stay uint8 in memory, files are decoded when asked for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.data.images import Geometry, read_image, to_image
from kernelsimp.error_text import kind_and_words
from kernelsimp.errors import KernelsimpError

MIDDLE_GREY = 127.5


class Store(Protocol):
    """Images and labels in a fixed order."""

    @property
    def labels(self) -> Tensor:
        """The class of each image, int64 (n,)."""

    def batch(self, indices: Sequence[int], geometry: Geometry) -> Tensor:
        """Return images (len(indices), C, H, W), float32, through `geometry`."""

    def mark(self, index: int) -> bytes:
        """Return what identifies an image, whatever becomes of it later."""


@dataclass(frozen=True, eq=False)
class ArrayStore:
    """Images in memory: `images` (n, C, H, W), uint8 or float32 in 0..1."""

    images: Tensor
    labels: Tensor

    def batch(self, indices: Sequence[int], geometry: Geometry) -> Tensor:
        return geometry(self.images[torch.as_tensor(indices, dtype=torch.int64)])

    def mark(self, index: int) -> bytes:
        return _bytes_of(self.images[index])


@dataclass(frozen=True, eq=False)
class FileStore:
    """Image files below `root`, decoded when they are asked for; `files` are relative to it."""

    root: Path
    files: tuple[str, ...]
    labels: Tensor

    def batch(self, indices: Sequence[int], geometry: Geometry) -> Tensor:
        return _stack(
            [geometry(read_image(self.root / self.files[i])[None]) for i in indices], str(self.root)
        )

    def mark(self, index: int) -> bytes:
        """Return the relative path, size and SHA-256 of the file."""
        path = self.root / self.files[index]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise KernelsimpError(f"{path}: cannot read: {error.strerror}; repair or remove it") from error
        return f"{self.files[index]}:{len(content)}:{hashlib.sha256(content).hexdigest()}".encode()


@dataclass(frozen=True, eq=False)
class ForeignStore:
    """A map-style data set of (image, label) that another package or the user wrote."""

    items: Any
    name: str

    def batch(self, indices: Sequence[int], geometry: Geometry) -> Tensor:
        return _stack([geometry(self._image(i)[None]) for i in indices], self.name)

    def mark(self, index: int) -> bytes:
        return _bytes_of(self._image(index))

    @cached_property
    def labels(self) -> Tensor:
        """The labels: from `targets` or `labels` where the data set has them, else one by one.

        Targets of several numbers each (masks, say) stay as they are, (n, ...), for a metric to read.
        """
        count = len(self.items)
        for name in ("targets", "labels", "_labels"):
            known = getattr(self.items, name, None)
            if (
                known is not None
                and len(known) == count
                and not getattr(self.items, "target_transform", None)
            ):
                return as_targets(known, self.name)
        return as_targets([self._pair(i)[1] for i in range(count)], self.name)

    def _image(self, index: int) -> Tensor:
        return to_image(self._pair(index)[0], f"{self.name}: item {index}")

    def _pair(self, index: int) -> tuple[Any, Any]:
        try:
            item = self.items[index]
        except Exception as error:  # it is the user's code: any exception can come
            reason = kind_and_words(error, 200)
            raise KernelsimpError(f"{self.name}: item {index} cannot be read: {reason}") from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            found = f"{type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
            raise KernelsimpError(f"{self.name}: item {index} is a {found}; expected a pair (image, label)")
        return item[0], item[1]


def as_targets(labels: Any, where: str) -> Tensor:
    """Return one class a label, or arrays of one shape as they are; raises `KernelsimpError` for others."""
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise KernelsimpError(
            f"{where}: targets of several shapes; expected one shape, or a class"
        ) from error
    numbers = np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_
    if array.ndim > 2 and numbers:
        return torch.from_numpy(np.ascontiguousarray(array))
    return as_labels(array, where)


def as_labels(labels: NDArray[Any], where: str) -> Tensor:
    """Return one class a label, int64 (n,), from integers (n,) or (n, 1).

    Raises `KernelsimpError` for several labels an image, for numbers with a fraction and for negative ones.
    """
    if labels.size == 0:
        return torch.zeros(0, dtype=torch.int64)
    flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1:
        raise KernelsimpError(f"{where}: labels have shape {labels.shape}; expected one class an image")
    whole = np.issubdtype(flat.dtype, np.integer) or (
        np.issubdtype(flat.dtype, np.floating) and bool(np.all(flat == np.floor(flat)))
    )
    if not whole:
        raise KernelsimpError(f"{where}: labels are {flat.dtype}; expected whole numbers from 0")
    if flat.min() < 0:
        raise KernelsimpError(f"{where}: label {int(flat.min())} is outside the classes; expected 0 or more")
    return torch.from_numpy(flat.astype(np.int64))


def as_images(array: NDArray[Any], where: str) -> Tensor:
    """Return an array of images as (n, C, H, W), uint8 or float32 in 0..1.

    Takes (n, H, W), (n, H, W, C) and (n, C, H, W) with at most four channels; whole numbers in 0..255,
    booleans, floats in 0..1, or floats in 0..255 that use more than half of that range. Raises
    `KernelsimpError` otherwise.
    """
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[3] <= 4:
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] > 4:
        raise KernelsimpError(
            f"{where}: shape {array.shape}; expected (n, H, W) or (n, H, W, C), C at most 4"
        )
    return torch.from_numpy(np.ascontiguousarray(_plain(array, where)))


def _plain(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Return the values as uint8 or float32 in 0..1."""
    if array.dtype == np.uint8 or array.size == 0:
        return array.astype(np.uint8, copy=False)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating) and low >= 0 and high <= 255:
        if high <= 1:
            return array.astype(np.float32)
        if bool((array == np.floor(array)).all()):
            return array.astype(np.uint8)
        if high > MIDDLE_GREY:  # resized pictures; below it a network's own scaling is as likely
            return (array / np.float32(255)).astype(np.float32)
    expected = "whole numbers in 0..255 or floats in 0..1"
    raise KernelsimpError(f"{where}: {array.dtype} from {low:g} to {high:g}; expected {expected}")


def _stack(images: list[Tensor], where: str) -> Tensor:
    shapes = sorted({tuple(image.shape[1:]) for image in images})
    if len(shapes) > 1:
        several = " and ".join(" x ".join(map(str, shape)) for shape in shapes[:2])
        raise KernelsimpError(f"{where}: images of {len(shapes)} shapes ({several}); pass --input-size N")
    return torch.cat(images)


def _bytes_of(image: Tensor) -> bytes:
    """Return dtype, shape and content."""
    header = f"{str(image.dtype).removeprefix('torch.')}{tuple(image.shape)}".encode()
    return header + image.contiguous().numpy().tobytes()
