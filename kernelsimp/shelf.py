"""Tensors that stay in memory while they fit, and go to files beyond that.

Files are read into fresh memory and never mapped, so that what lies in them does not count as the
process's own. A file of images has no name and is gone when its process is; the folder of a shelf has one,
and `sweep_shelves` removes what killed processes left.
"""

import shutil
import tempfile
import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from kernelsimp.errors import KernelsimpError

PREFIX = "shelf-"

SPARE = 1 << 28
"""Bytes of disk that are left alone."""


def check_disk(folder: Path | None, wanted: int) -> None:
    """Raise `KernelsimpError` where the disk of `folder` (None: temporary files) has less than `wanted`."""
    place = folder or Path(tempfile.gettempdir())
    existing = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(existing).free - SPARE
    if free < wanted:
        need, have = (f"{size / 1e9:.1f} GB" for size in (wanted, max(0, free)))
        raise KernelsimpError(
            f"{place}: {need} of files are needed beside the memory, and the disk has {have}; make room, "
            "pass fewer images with --calibration, or more memory with --memory"
        )


def sweep_shelves(folder: Path) -> None:
    """Remove the shelves that killed processes left in `folder`."""
    for left in folder.glob(f"{PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


class Shelf:
    """Values by key, nested tensors each: `limit` bytes of them in memory, the others in files in `folder`.

    What `get` returns is a copy, and what `put` takes is copied.

    >>> shelf = Shelf(limit=0)
    >>> shelf.put("a", {"x": torch.arange(3)})
    >>> shelf.get("a")["x"].tolist()
    [0, 1, 2]
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder
        self._near: dict[Hashable, tuple[Any, int]] = {}
        self._far: dict[Hashable, _Filed] = {}
        self._held = 0
        self._number = 0
        self._directory: Path | None = None

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a copy of `value` in place of what was there."""
        self.drop(key)
        size = sum(item.nbytes for item in tree_flatten(value)[0] if isinstance(item, Tensor))
        if self._held + size <= self.limit:
            self._near[key] = (tree_map_only(Tensor, Tensor.clone, value), size)
            self._held += size
        else:
            self._far[key] = _file(value, self._next_path())

    def get(self, key: Hashable) -> Any:
        """Return a copy of what was kept; raises `KeyError` where nothing was."""
        if key in self._near:
            return tree_map_only(Tensor, Tensor.clone, self._near[key][0])
        return self._far[key].read()

    def drop(self, key: Hashable) -> None:
        """Forget a value, if it is there."""
        if key in self._near:
            self._held -= self._near.pop(key)[1]
        elif key in self._far:
            self._far.pop(key).path.unlink(missing_ok=True)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._near or key in self._far

    def _next_path(self) -> Path:
        if self._directory is None:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.folder))
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._number += 1
        return self._directory / str(self._number)


@dataclass(frozen=True)
class _Filed:
    """A value in a file: its leaves one behind the other, with what is no tensor kept beside them."""

    path: Path
    leaves: tuple[Any, ...]
    structure: Any

    def read(self) -> Any:
        with self.path.open("rb") as file:
            leaves = [item.read(file) if isinstance(item, _Kind) else item for item in self.leaves]
        return tree_unflatten(leaves, self.structure)


@dataclass(frozen=True)
class _Kind:
    """What a tensor in a file is: `channels_last` says in which order its numbers lie."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    channels_last: bool

    @staticmethod
    def of(tensor: Tensor) -> "_Kind":
        last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        return _Kind(tensor.shape, tensor.dtype, tensor.device, last and not tensor.is_contiguous())

    def write(self, tensor: Tensor, file: IO[bytes]) -> None:
        laid = tensor.permute(0, 2, 3, 1) if self.channels_last else tensor.contiguous()
        laid.detach().cpu().reshape(-1).view(torch.uint8).numpy().tofile(file)

    def read(self, file: IO[bytes]) -> Tensor:
        shape = self.shape
        laid = (shape[0], *shape[2:], shape[1]) if self.channels_last else tuple(shape)
        raw = np.fromfile(file, np.uint8, count=shape.numel() * self.dtype.itemsize)
        tensor = torch.from_numpy(raw).view(self.dtype).reshape(laid)
        return (tensor.permute(0, 3, 1, 2) if self.channels_last else tensor).to(self.device)


def _file(value: Any, path: Path) -> _Filed:
    leaves, structure = tree_flatten(value)
    kinds = tuple(_Kind.of(item) if isinstance(item, Tensor) else item for item in leaves)
    try:
        with path.open("wb") as file:
            for kind, leaf in zip(kinds, leaves, strict=True):
                if isinstance(kind, _Kind):
                    kind.write(leaf, file)
    except OSError as error:
        raise KernelsimpError(f"{path}: cannot write: {error.strerror or error}; make room") from error
    return _Filed(path, kinds, structure)


@dataclass(eq=False)
class ImageStack:
    """Images of one shape, (n, C, H, W) float32: in memory up to `limit` bytes, else in a nameless file.

    Their channels come last in memory: convolutions run faster so, and windows are read faster.

    >>> stack = ImageStack.of([torch.ones(2, 1, 4, 4), torch.zeros(1, 1, 4, 4)])
    >>> stack.count, stack.rows(1, 3).amax((1, 2, 3)).tolist()
    (3, [1.0, 0.0])
    """

    limit: int = 1 << 62
    folder: Path | None = None
    count: int = 0
    _shape: tuple[int, ...] = ()
    _device: torch.device | None = None
    _parts: list[Tensor] = field(default_factory=list)
    _file: IO[bytes] | None = None

    @staticmethod
    def of(batches: Iterable[Tensor], limit: int = 1 << 62, folder: Path | None = None) -> "ImageStack":
        """Return the images of all batches; raises `KernelsimpError` where their shapes differ."""
        stack = ImageStack(limit, folder)
        for batch in batches:
            stack._append(batch)
        stack._parts = [torch.cat(stack._parts)] if len(stack._parts) > 1 else stack._parts
        return stack

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the images from `start` up to `stop`, on the device they came from."""
        if self._file is None:
            return self._parts[0][start:stop]
        numbers = int(np.prod(self._shape))
        self._file.seek(start * numbers * 4)
        raw = torch.from_numpy(np.fromfile(self._file, np.float32, count=(stop - start) * numbers))
        if len(self._shape) != 3:
            return raw.reshape(-1, *self._shape).to(self._device)
        channels, *sides = self._shape
        return raw.reshape(-1, *sides, channels).permute(0, 3, 1, 2).to(self._device)

    def _append(self, batch: Tensor) -> None:
        batch = _channels_last(batch.float())
        if not self.count:
            self._shape, self._device = tuple(batch.shape[1:]), batch.device
        if tuple(batch.shape[1:]) != self._shape:
            two = " and ".join(" x ".join(map(str, shape)) for shape in (self._shape, batch.shape[1:]))
            raise KernelsimpError(f"images of several shapes ({two}); pass --input-size N")
        self.count += len(batch)
        if self._file is None:
            self._parts.append(batch)
            if self.count * int(np.prod(self._shape)) * 4 > self.limit:
                self._file = tempfile.TemporaryFile(dir=self._made_folder())  # noqa: SIM115 (to the end)
                weakref.finalize(self, self._file.close)
                for part in self._parts:
                    self._write(part)
                self._parts = []
        else:
            self._write(batch)

    def _made_folder(self) -> Path | None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def _write(self, batch: Tensor) -> None:
        assert self._file is not None
        try:
            (batch.movedim(1, -1) if batch.ndim == 4 else batch).cpu().contiguous().numpy().tofile(self._file)
            self._file.flush()
        except OSError as error:
            where = self.folder or tempfile.gettempdir()
            raise KernelsimpError(f"{where}: cannot write: {error.strerror or error}; make room") from error


@dataclass(frozen=True, eq=False)
class ImageBatches(Sequence[Tensor]):
    """A range of a stack in batches of `size`; with `flip`, each image is followed by its mirror image.

    With `part` (rank, processes) these are one process's parts of the batches, which together are the whole
    of each; a last batch may be too small to have a part for all.

    >>> stack = ImageStack.of([torch.arange(5.0).reshape(5, 1, 1, 1)])
    >>> [batch.flatten().tolist() for batch in ImageBatches(stack, 0, 5, 4, part=(1, 2))]
    [[2.0, 3.0], [4.0]]
    >>> [batch.flatten().tolist() for batch in ImageBatches(stack, 0, 5, 4, part=(0, 2))]
    [[0.0, 1.0]]
    """

    stack: ImageStack
    start: int
    stop: int
    size: int
    flip: bool = False
    part: tuple[int, int] = (0, 1)

    @property
    def images(self) -> int:
        """How many images there are in all parts, mirror images too."""
        return (self.stop - self.start) * (1 + self.flip)

    @property
    def whole_size(self) -> int:
        """How many images the parts of the first batch have together."""
        return min(self.images, self._step * (1 + self.flip))

    @property
    def whole(self) -> "ImageBatches":
        """The batches with the parts of all processes."""
        return replace(self, part=(0, 1))

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield for each batch the place of its first image among all, and how many images it has."""
        for place in range(len(self)):
            begin, end = self._range(place)
            yield (begin - self.start) * (1 + self.flip), (end - begin) * (1 + self.flip)

    def first(self, images: int) -> Tensor:
        """Return the first `images` (n, C, H, W)."""
        return self._rows(self.start, min(self.stop, self.start + -(-images // (1 + self.flip))))[:images]

    def __len__(self) -> int:
        batches = -(-(self.stop - self.start) // self._step)
        begin, end = self._range(batches - 1) if batches else (0, 1)
        return batches - (begin == end)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, place: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self._rows(*self._range(place % len(self)))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def _range(self, place: int) -> tuple[int, int]:
        """Return where in the stack this process's part of a batch begins and ends."""
        first = self.start + place * self._step
        count = min(self.stop, first + self._step) - first
        rank, processes = self.part
        return first + count * rank // processes, first + count * (rank + 1) // processes

    @property
    def _step(self) -> int:
        """How many images of the stack a batch takes; each process has a part of a whole batch."""
        return max(self.part[1], self.size // (1 + self.flip))

    def _rows(self, start: int, stop: int) -> Tensor:
        images = self.stack.rows(start, stop)
        return (
            _channels_last(torch.stack([images, images.flip(-1)], 1).flatten(0, 1)) if self.flip else images
        )


@dataclass(frozen=True, eq=False)
class LabelledBatches(Sequence[tuple[Tensor, Tensor]]):
    """Batches of images with their labels (n, ...), both on the images' device."""

    batches: ImageBatches
    labels: Tensor

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[tuple[Tensor, Tensor]]: ...
    def __getitem__(self, place: int | slice) -> tuple[Tensor, Tensor] | Sequence[tuple[Tensor, Tensor]]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        images = self.batches[place]
        start = place % len(self) * self.batches.size
        return images, self.labels[start : start + len(images)].to(images.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[place] for place in range(len(self)))


def images_of(batches: Sequence[tuple[Tensor, Tensor]]) -> Sequence[Tensor]:
    """Return the images of labelled batches alone."""
    return batches.batches if isinstance(batches, LabelledBatches) else [images for images, _ in batches]


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def count_images(batches: Sequence[Tensor]) -> int:
    """Return how many images there are in all batches, and in all processes' parts of them."""
    return batches.images if isinstance(batches, ImageBatches) else sum(len(batch) for batch in batches)


def batch_size(batches: Sequence[Tensor]) -> int:
    """Return how many images a whole batch has, all processes' parts of it."""
    return batches.whole_size if isinstance(batches, ImageBatches) else len(batches[0])


def smaller_batches(batches: Sequence[Tensor], images: int) -> Sequence[Tensor]:
    """Return the same images in batches of at most so many; an image and its mirror image stay together."""
    if isinstance(batches, ImageBatches):
        return replace(batches, size=min(batches.size, images))
    return [part for batch in batches for part in torch.split(batch, images)]


def spans_of(batches: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Yield for each batch the place of its first image among all, and how many images it has."""
    if isinstance(batches, ImageBatches):
        yield from batches.spans()
        return
    first = 0
    for batch in batches:
        yield first, len(batch)
        first += len(batch)


def first_images(batches: Sequence[Tensor], images: int) -> Sequence[Tensor]:
    """Return the batches of the first `images` of all, the last one cut."""
    if isinstance(batches, ImageBatches):
        wanted = max(batches.part[1], -(-images // (1 + batches.flip)))
        return replace(batches, stop=min(batches.stop, batches.start + wanted))
    found: list[Tensor] = []
    for batch in batches:
        if images <= 0:
            break
        found.append(batch[:images])
        images -= len(found[-1])
    return found
