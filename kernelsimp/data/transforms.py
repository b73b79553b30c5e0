"""From images in 0..1 to the network's input: augmentation, then normalising, in batches.

Everything random follows from seeds and from an image's place in its split, never from the batch size,
the number of workers or of processes. Padding is black *before* normalising, as the published networks
were trained; padded after it, batch norm sees other statistics.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from kernelsimp.data.splits import Split
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.settings import DataSettings

DRAWS = 5
"""Uniform numbers an image gets in an epoch, whatever the augmentation makes of them."""

CIFAR_PADDING = 4
RESIZED_AREA = (0.08, 1.0)
RESIZED_ASPECT = (3 / 4, 4 / 3)

Batch = tuple[Tensor, Tensor]


def _crop_and_flip(images: Tensor, draws: Tensor) -> Tensor:
    """Pad with four black pixels a side, cut the old size anywhere, flip left and right half the time."""
    count, _, height, width = images.shape
    span = 2 * CIFAR_PADDING + 1
    padded = pad(images, (CIFAR_PADDING,) * 4)
    top, left = (draws[:, :2] * span).long().clamp_max(span - 1).unbind(1)
    rows = top[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    columns = left[:, None] + torch.where(draws[:, 2:3] < 0.5, columns.flip(1), columns)
    picked = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    return padded.permute(0, 2, 3, 1)[picked].permute(0, 3, 1, 2).contiguous()


def _flip(images: Tensor, draws: Tensor) -> Tensor:
    """Flip left and right half the time."""
    return torch.where(draws[:, 2, None, None, None] < 0.5, images.flip(3), images)


def _resized_crop(images: Tensor, draws: Tensor) -> Tensor:
    """Enlarge a random box (8..100 % of the area, aspect 3:4..4:3) to the old size; flip half the time.

    A box longer than the image is cut to it. Boxes only grow, so plain bilinear sampling needs no
    antialiasing.
    """
    height, width = images.shape[2:]
    low, high = RESIZED_AREA
    area = (low + (high - low) * draws[:, 0]) * height * width
    aspect = RESIZED_ASPECT[0] * (RESIZED_ASPECT[1] / RESIZED_ASPECT[0]) ** draws[:, 1]
    box = torch.stack([(area * aspect).sqrt() / width, (area / aspect).sqrt() / height], 1).clamp_max(1)
    centre = (2 * draws[:, 2:4] - 1) * (1 - box)
    flip = torch.where(draws[:, 4] < 0.5, -1.0, 1.0)
    xs = centre[:, :1] + (box[:, 0] * flip)[:, None] * _pixel_centres(width)
    ys = centre[:, 1:] + box[:, 1:] * _pixel_centres(height)
    grid = torch.stack([xs[:, None].expand(-1, height, -1), ys[:, :, None].expand(-1, -1, width)], dim=-1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _pixel_centres(side: int) -> Tensor:
    """Return the middles of `side` pixels on -1..1."""
    return (torch.arange(side) * 2 + 1) / side - 1


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "none": None,
    "flip": _flip,
    "cifar": _crop_and_flip,
    "imagenet": _resized_crop,
}
"""Each row maps images (n, C, H, W) in 0..1 and draws (n, DRAWS) in [0, 1) to images of the same shape."""


@dataclass(frozen=True)
class Preprocess:
    """What happens to images (n, C, H, W) in 0..1: `augment` while training, then (x - mean) / std.

    `mean` and `std` have one number a channel, or one for all; None leaves the images as they are.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmentation: str = "none"

    def __post_init__(self) -> None:
        if self.augmentation not in AUGMENTATIONS:
            tail = did_you_mean(self.augmentation, AUGMENTATIONS)
            raise KernelsimpError(f"unknown augmentation '{self.augmentation}'{tail}")
        if (self.mean is None) != (self.std is None):
            given, missing = ("--mean", "--std") if self.std is None else ("--std", "--mean")
            raise KernelsimpError(f"{given} is given without {missing}; give both or none")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                message = f"--mean has {len(self.mean)} numbers and --std {len(self.std)}"
                raise KernelsimpError(f"{message}; give one a channel to each")
            if min(self.std) <= 0:
                raise KernelsimpError(f"--std has {min(self.std):g}; expected numbers above 0")

    def normalise(self, images: Tensor) -> Tensor:
        """Return (images - mean) / std, float32.

        Raises `KernelsimpError` where the images have another number of channels.
        """
        if self.mean is None or self.std is None:
            return images
        if len(self.mean) not in (1, images.shape[1]):
            found = f"--mean and --std have {len(self.mean)} numbers, the images {images.shape[1]} channels"
            raise KernelsimpError(f"{found}; give one a channel, or set --channels {len(self.mean)}")
        shape = (1, len(self.mean), 1, 1)
        mean, std = (torch.tensor(row, device=images.device).reshape(shape) for row in (self.mean, self.std))
        return (images - mean) / std

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images changed at random; the draws come from `generator`, one row an image."""
        return self.augment_by(images, torch.rand(len(images), DRAWS, generator=generator))

    def augment_by(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return images changed as `draws` (n, DRAWS) in [0, 1) say."""
        change = AUGMENTATIONS[self.augmentation]
        return images if change is None else change(images, draws)


def preprocess_of(settings: DataSettings) -> Preprocess:
    """Return the preprocessing that the settings ask for; raises `KernelsimpError` as `Preprocess` does."""
    return Preprocess(settings.mean, settings.std, settings.augment)


def epoch_seed(seed: int, epoch: int, purpose: str = "") -> int:
    """Return a seed for one epoch and purpose: neighbouring seeds and epochs share nothing."""
    digest = hashlib.sha256(f"{seed}:{epoch}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True, eq=False)
class Batches:
    """Iterate over (images, labels): float32 normalised (n, C, H, W) and int64 (n,).

    Without `shuffle_seed` images come in their own order, without `augment_seed` unchanged. `workers`
    threads prepare batches ahead; `pinned` ones lie in memory that a GPU copies from by itself. `shard`
    (rank, world) takes every world-th image of each batch of `batch_size * world`: together the processes
    see the batches that one process sees at that larger size. A shuffled epoch then drops the last images
    (fewer than world) that would not go round.
    """

    split: Split
    preprocess: Preprocess
    batch_size: int
    _: KW_ONLY
    shuffle_seed: int | None = None
    augment_seed: int | None = None
    workers: int = 0
    pinned: bool = False
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise KernelsimpError(f"--batch-size is {self.batch_size}; expected at least 1")
        if self.workers < 0:
            raise KernelsimpError(f"--workers is {self.workers}; expected 0 or more")
        if not 0 <= self.shard[0] < self.shard[1]:
            raise KernelsimpError(f"shard {self.shard}; expected (rank, world) with 0 <= rank < world")

    def __len__(self) -> int:
        return -(-self._order_length() // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order, draws = self._order(), self._draws()
        parts = (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))
        jobs = (partial(self._load, part, draws) for part in parts)
        yield from (job() for job in jobs) if self.workers == 0 else _ahead(jobs, self.workers)

    def _order_length(self) -> int:
        (rank, world), count = self.shard, len(self.split)
        return count // world if self.shuffle_seed is not None else len(range(rank, count, world))

    def _order(self) -> Tensor:
        """Return the places of this shard's images in the split, in order."""
        count = len(self.split)
        order = torch.arange(count)
        if self.shuffle_seed is not None:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.shuffle_seed))
        return order[self.shard[0] :: self.shard[1]][: self._order_length()]

    def _draws(self) -> Tensor | None:
        """Return the random numbers of every image of the split, by place: (n, DRAWS)."""
        if self.augment_seed is None:
            return None
        generator = torch.Generator().manual_seed(self.augment_seed)
        return torch.rand(len(self.split), DRAWS, generator=generator)

    def _load(self, part: Tensor, draws: Tensor | None) -> Batch:
        images, labels = self.split.fetch(part.tolist())
        if draws is not None:
            images = self.preprocess.augment_by(images, draws[part])
        images = self.preprocess.normalise(images)
        return (images.pin_memory(), labels.pin_memory()) if self.pinned else (images, labels)


batches = Batches
"""The name by which the other rooms make them."""


def _ahead(jobs: Iterator[Callable[[], Batch]], workers: int) -> Iterator[Batch]:
    """Run jobs in threads, in order, two a worker ahead: decoding releases the interpreter's lock."""
    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        waiting: deque[Future[Batch]] = deque(pool.submit(job) for job in islice(jobs, 2 * workers))
        try:
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(job) for job in islice(jobs, 1))
                yield done
        finally:
            for job in waiting:
                job.cancel()
