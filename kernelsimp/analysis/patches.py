"""The patches of images that drive a channel most, and how alike they are.

A patch is what the kernel's window covers, in pixels of the image, sampled on a small grid, its mean taken
off and its length made one: so two patches are alike (cosine 1) where they show the same up to light and
contrast, whatever the network makes of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, normalize

from kernelsimp.watch import SILENT, Watcher

SIDE = 8
"""A patch is sampled at so many points a side."""

AT_ONCE = 1 << 13
"""Patches of one image that are sampled at once."""


@dataclass(frozen=True)
class Window:
    """What a kernel covers of an image, whose height and width go from -1 to 1: (rows, columns) each.

    `side` is half of what one window covers, `first` the centre of the first, `step` what lies between two.
    """

    side: tuple[float, ...] = (1.0, 1.0)
    first: tuple[float, ...] = (0.0, 0.0)
    step: tuple[float, ...] = (0.0, 0.0)

    @staticmethod
    def of(module: nn.Conv2d, grid: Sequence[int]) -> "Window":
        """Return that of a convolution whose input has `grid` (h, w) cells, which cover the image.

        >>> Window.of(nn.Conv2d(1, 1, 3, padding=1, stride=2), (8, 8))
        Window(side=(0.375, 0.375), first=(-0.875, -0.875), step=(0.5, 0.5))
        """
        dilation, kernel, stride = module.dilation, module.kernel_size, module.stride
        before = module._reversed_padding_repeated_twice[::2][::-1]  # of named paddings, too
        span = [dilation[axis] * (kernel[axis] - 1) for axis in range(2)]
        return Window(
            tuple(min(1.0, (span[axis] + 1) / grid[axis]) for axis in range(2)),
            tuple((2 * ((span[axis] + 1) / 2 - before[axis])) / grid[axis] - 1 for axis in range(2)),
            tuple(2 * stride[axis] / grid[axis] for axis in range(2)),
        )


class TopPatches:
    """The largest answers of each channel over images, one an image: (channels, top) of the best so far.

    `image` is the number of the image, -1 where there were too few; `centre` (channels, top, 2) are rows and
    columns, from -1 to 1 over the image.
    """

    def __init__(self, channels: int, top: int) -> None:
        self.answer = torch.full((channels, top), -torch.inf)
        self.image = torch.full((channels, top), -1, dtype=torch.int64)
        self.centre = torch.zeros(channels, top, 2)
        self.window = Window()

    def add(self, answer: Tensor, first: int, window: Window) -> None:
        """Take in a batch's answers (n, channels, h, w); its first image has number `first`."""
        largest, place = answer.flatten(2).max(dim=2)  # (n, channels)
        places = torch.stack([place // answer.shape[-1], place % answer.shape[-1]], dim=2).cpu()
        centre = torch.tensor(window.first) + torch.tensor(window.step) * places
        number = torch.arange(first, first + len(answer))[:, None].expand_as(largest)
        self.window = window
        self._merge(largest.T.float().cpu(), number.T, centre.transpose(0, 1))

    def _merge(self, answer: Tensor, image: Tensor, centre: Tensor) -> None:
        answers = torch.cat([self.answer, answer], dim=1)
        self.answer, best = answers.topk(self.answer.shape[1], dim=1)
        self.image = torch.cat([self.image, image], dim=1).gather(1, best)
        self.centre = torch.cat([self.centre, centre], dim=1).gather(1, best[..., None].expand(-1, -1, 2))


def alike(
    tops: Mapping[str, TopPatches], images: Sequence[Tensor], seed: int, watcher: Watcher = SILENT
) -> dict[str, tuple[float, float]]:
    """Return for each layer the mean cosine of two patches of one channel, and of a channel dealt at random.

    0 where no channel has two patches. Images are gone through once.
    """
    sums = {name: _Sums(top, seed) for name, top in tops.items()}
    number = 0
    for batch in images:
        for image in batch:
            for item in sums.values():
                item.add(image, number)
            number += 1
        watcher.step(len(batch))
    return {name: item.result() for name, item in sums.items()}


class _Sums:
    """Sums of a layer's patches, by channel and by one dealt at random: all that a mean cosine needs."""

    def __init__(self, top: TopPatches, seed: int) -> None:
        self.top = top
        channels, most = top.image.shape
        self.own = torch.arange(channels).repeat_interleave(most)
        there = (top.image.reshape(-1) >= 0).nonzero().reshape(-1)
        dealt = there[torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))]
        self.mixed = self.own.clone()
        self.mixed[there] = self.own[dealt]
        self.order = torch.argsort(top.image.reshape(-1), stable=True)
        self.sorted = top.image.reshape(-1)[self.order]
        self.sums: tuple[Tensor, Tensor] | None = None
        self.counts = torch.bincount(self.own[there], minlength=channels)
        self.lengths = torch.zeros(2, channels)  # of patches with something on them: one, each

    def add(self, image: Tensor, number: int) -> None:
        """Take in the patches that lie in one image (C, H, W)."""
        first, last = torch.searchsorted(self.sorted, torch.tensor([number, number + 1])).tolist()
        for start in range(first, last, AT_ONCE):
            places = self.order[start : min(last, start + AT_ONCE)]
            found = patches(image, self.top.centre.reshape(-1, 2)[places], self.top.window.side).cpu()
            if self.sums is None:
                shape = (len(self.counts), found.shape[1])
                self.sums = torch.zeros(shape), torch.zeros(shape)
            for total, lengths, channel in zip(self.sums, self.lengths, (self.own, self.mixed), strict=True):
                total.index_add_(0, channel[places], found)
                lengths.index_add_(0, channel[places], found.square().sum(1))

    def result(self) -> tuple[float, float]:
        several = self.counts > 1
        if self.sums is None or not bool(several.any()):
            return 0.0, 0.0
        n = self.counts[several].double()
        pairs = (
            (total.double().square().sum(1) - lengths)[several] / (n * (n - 1))
            for total, lengths in zip(self.sums, self.lengths, strict=True)
        )
        own, mixed = (float(item.mean()) for item in pairs)
        return own, mixed


def patches(image: Tensor, centres: Tensor, side: tuple[float, ...]) -> Tensor:
    """Return patches (n, C * SIDE^2) of unit length of an image (C, H, W), around centres (n, 2) in -1..1.

    `side` is half a patch's height and width. What lies beyond the edge is the edge; a patch of one colour
    is zero.

    >>> round(patches(torch.eye(16)[None], torch.zeros(1, 2), (0.5, 0.5)).norm().item(), 3)
    1.0
    """
    steps = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    rows = centres[:, :1] + side[0] * steps  # (n, SIDE)
    columns = centres[:, 1:] + side[1] * steps
    grid = torch.stack(
        [columns[:, None, :].expand(-1, SIDE, -1), rows[:, :, None].expand(-1, -1, SIDE)], dim=3
    )
    sampled = grid_sample(
        image[None].float(),
        grid.reshape(1, -1, SIDE, 2).to(image.device),
        padding_mode="border",
        align_corners=False,
    )
    flat = sampled[0].reshape(len(image), len(centres), SIDE, SIDE).transpose(0, 1).flatten(1)
    return normalize(flat - flat.mean(1, keepdim=True), dim=1, eps=1e-6)
