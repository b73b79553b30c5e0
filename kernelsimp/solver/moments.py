"""Second moments of what a convolution really sees, and how much the loss minds its outputs.

A row is one window of the input, cells in the canonical order of the layer's kernels, D = in / groups *
cells; moments have one matrix a group, (groups, D, D), in float64. Rule of positions: `rows_wanted` windows
spread evenly over `images_wanted` images, the first ones, drawn without replacement inside each from the seed
and the image's place alone: an original and a simplified network are read at the same places, whatever the
size of a batch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernelsimp.memory import numbers_at_once
from kernelsimp.models.hooks import Call, Use
from kernelsimp.models.layers import TRANSPOSED
from kernelsimp.solver.process_group import ALONE, ProcessGroup

ROWS_AT_LEAST, ROWS_ENOUGH = 16_384, 65_536
ROWS_A_CELL, ROWS_A_CELL_AT_LEAST = 128, 10
"""A layer is read at 128 D windows, from 16,384 to 65,536 of them, at 10 D at least, or at all it has: the
more numbers a filter has, the more windows its moments take to be as good."""

READ_AT_MOST = 0.25
IMAGES_AT_LEAST = 128
"""No more than a quarter of an image's windows are read while there are other images, nor fewer images than
this: neighbouring windows say the same."""

ROWS_AT_ONCE = 1 << 23
"""Windows times cells in memory at once, on a CPU."""

BYTES_A_CELL = 16
"""What a cell of a window takes on a GPU: windows of two networks in float32, and copies on the way."""

SUMS = ("gram", "target", "mean", "level", "power")
"""The tensors of moments, which are sums over windows."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What one layer's inputs look like, before (x) and after (t) the layers upstream were changed.

    `gram` = T'T/n, (groups, D, D); `target` = w0'X'T/n, what a filter's weights are fitted to, (groups,
    filters, D); `mean` of t, (groups, D); `level` and `power` are the mean and the mean square of each
    filter's original output without bias, (groups, filters); `rows` is n. `same` says that nothing upstream
    changed: t is x. `halves` are those of every other image, where they were asked for: what is fitted to
    one can be judged by the other.
    """

    gram: Tensor
    target: Tensor
    mean: Tensor
    level: Tensor
    power: Tensor
    rows: int
    same: bool
    halves: tuple["Moments", ...] = ()

    @property
    def width(self) -> int:
        """D, the cells of one filter."""
        return int(self.gram.shape[-1])

    @property
    def scale(self) -> float:
        """The mean square of a cell of t, which damping is measured in."""
        return float(self.gram.diagonal(dim1=1, dim2=2).mean())

    def to(self, where: torch.device | str | torch.dtype) -> "Moments":
        """Return the same moments on a device, or in a dtype."""
        halves = tuple(half.to(where) for half in self.halves)
        return replace(self, halves=halves, **{name: getattr(self, name).to(where) for name in SUMS})

    def centred(self) -> "Moments":
        """Return covariances in place of raw moments, for a layer whose bias takes care of the means."""
        gram = torch.baddbmm(self.gram, self.mean[:, :, None], self.mean[:, None, :], alpha=-1)
        target = self.target - self.level[:, :, None] * self.mean[:, None, :]
        halves = tuple(half.centred() for half in self.halves)
        power = self.power - self.level.square()
        return replace(self, gram=gram, target=target, power=power, halves=halves)

    def error(self, weights: Tensor) -> Tensor:
        """Return the mean square of t'w - x'w0 of each filter, weights and result as `power` is laid out.

        The means' part of it is left out of `centred` moments, where a bias takes care of it.
        """
        square = (weights @ self.gram * weights).sum(-1)
        product = (weights * self.target).sum(-1)
        return (square - 2 * product + self.power).clamp_min(0)


def rows_wanted(width: int) -> int:
    """Return how many windows are read of a layer with D = `width`."""
    enough = min(ROWS_ENOUGH, max(ROWS_AT_LEAST, ROWS_A_CELL * width))
    return max(enough, ROWS_A_CELL_AT_LEAST * width)


def images_wanted(use: Use, width: int) -> int:
    """Return how many images give a layer of D = `width` its windows; there may be fewer."""
    return images_giving(rows_wanted(width), use.positions)


def images_giving(rows: int, positions: int) -> int:
    """Return how many images give so many windows, where each has so many `positions`."""
    return max(IMAGES_AT_LEAST, math.ceil(rows / (READ_AT_MOST * positions)))


def windows_at_once(device: torch.device, cells: int) -> int:
    """Return how many windows of so many cells are in memory at once."""
    return max(256, numbers_at_once(device, ROWS_AT_ONCE, BYTES_A_CELL) // cells)


def windows(call: Call) -> Tensor:
    """Return the windows of one call as a view (n, channels, *positions, *grid).

    Multiplying by a kernel in canonical cell order and summing gives the layer's output. A transposed
    convolution is an ordinary one over its input spread with zeros, with its cells in reverse.
    """
    module: Any = call[0]
    images = call[1] if call[1].ndim == len(module.kernel_size) + 2 else call[1][None]
    transposed = isinstance(module, TRANSPOSED)
    spread = _dilate(images, module.stride) if transposed else images
    sides = _transposed_sides(module) if transposed else _sides(module)
    mode = {"zeros": "constant"}.get(module.padding_mode, module.padding_mode)
    flat_sides = [side for pair in reversed(sides) for side in pair]
    view = pad(spread, flat_sides, mode=mode) if any(flat_sides) else spread
    axes = len(module.kernel_size)
    for axis in range(axes):
        dilation, length = module.dilation[axis], module.kernel_size[axis]
        step = 1 if transposed else module.stride[axis]
        view = view.unfold(axis + 2, dilation * (length - 1) + 1, step)[..., ::dilation]
    return view.flip(tuple(range(-axes, 0))) if transposed else view


def _sides(module: Any) -> list[tuple[int, int]]:
    """Return the padding before and after along each axis."""
    pairs = list(zip(module.kernel_size, module.dilation, strict=True))
    if module.padding == "valid":
        return [(0, 0)] * len(pairs)
    if module.padding == "same":
        totals = [dilation * (length - 1) for length, dilation in pairs]
        return [(total // 2, total - total // 2) for total in totals]
    return [(side, side) for side in module.padding]


def _transposed_sides(module: Any) -> list[tuple[int, int]]:
    sides = []
    for axis, length in enumerate(module.kernel_size):
        edge = module.dilation[axis] * (length - 1) - module.padding[axis]
        sides.append((edge, edge + module.output_padding[axis]))
    return sides


def _dilate(images: Tensor, stride: Sequence[int]) -> Tensor:
    """Put stride - 1 zeros between neighbouring cells."""
    lengths = [(side - 1) * step + 1 for side, step in zip(images.shape[2:], stride, strict=True)]
    spread = images.new_zeros(*images.shape[:2], *lengths)
    every: tuple[Any, ...] = (..., *(slice(None, None, step) for step in stride))
    spread[every] = images
    return spread


@dataclass(frozen=True)
class WindowSampling:
    """Where a layer is read: `share` of the positions of each image, from `seed`."""

    share: float
    seed: int

    def places(self, images: int, positions: int, first: int, call: int = 0) -> tuple[Tensor, Tensor]:
        """Return (image, position) of each row of a batch whose first image has the place `first` of all.

        `call` tells the calls of a layer in one pass apart.
        """
        count = min(positions, max(1, math.ceil(self.share * positions)))
        image = torch.arange(images)[:, None].expand(images, count)
        if count == positions:
            return image.reshape(-1), torch.arange(positions).repeat(images)
        draws = torch.empty(images, positions)
        generator = torch.Generator()
        for number in range(images):
            generator.manual_seed((self.seed * 1_000_003 + first + number) * 101 + call)
            draws[number].uniform_(generator=generator)
        return image.reshape(-1), draws.topk(count, dim=1).indices.reshape(-1)


def sampling_for(use: Use, width: int, images: int, seed: int) -> WindowSampling:
    """Return the sampling that gives a layer the rows of the rule, over `images` images."""
    return WindowSampling(min(1.0, rows_wanted(width) / max(1, images * use.positions)), seed)


def rows_of(call: Call, image: Tensor, place: Tensor) -> Tensor:
    """Return the chosen windows as float32 (groups, rows, D)."""
    module: Any = call[0]
    view = windows(call)
    axes = len(module.kernel_size)
    sizes = view.shape[2 : 2 + axes]
    index = torch.unravel_index(place.to(view.device), sizes)
    image = image.to(view.device)
    taken = view.movedim(1, 1 + axes)[(image, *index)].float()  # (rows, channels, *grid)
    return taken.reshape(len(image), module.groups, -1).transpose(0, 1).contiguous()


def pair_moments(
    now: Iterable[list[Call]],
    before: Iterable[list[Call]] | None,
    weights: Tensor,
    sampling: WindowSampling,
    *,
    halved: bool = False,
    spans: Iterable[tuple[int, int]] | None = None,
    group: ProcessGroup = ALONE,
) -> Moments | None:
    """Return the moments of one layer over batches of calls; `before` is None where nothing changed.

    `weights` (groups, filters, D) are the original ones; with `halved`, the moments of both halves of the
    images come along. `spans` tells of each batch the place of its first image and how many it has; without
    it, batches follow one another. With a `group`, the moments are those of the images of all its processes.
    None where the layer was never called.
    """
    sums: dict[int, _MomentSums] = {}
    first = 0
    known = iter(spans) if spans is not None else None
    for calls, originals in _together(now, before):
        if known is not None:  # a network may take an image apart into several inputs of a layer
            begin, images = next(known)
            first = begin * len(calls[0][1]) // images
        for number, call in enumerate(calls):
            for half, image, place in _parts(call, sampling, (first, number), halved=halved):
                current = rows_of(call, image, place)
                original = rows_of(originals[number], image, place) if originals is not None else None
                if half not in sums:
                    sums[half] = _MomentSums.like(current, weights)
                sums[half].add(current, original)
        first += len(calls[0][1])
    parts = [part.moments(weights) for part in _shared_sums(sums, weights, group)]
    if len(parts) == 2:
        return _joined(parts)
    return parts[0] if parts else None


def _shared_sums(
    sums: Mapping[int, "_MomentSums"], weights: Tensor, group: ProcessGroup
) -> list["_MomentSums"]:
    """Return the sums of both halves, or of what there is of them, over the images of all processes."""
    if group.size == 1:
        return [sums[half] for half in sorted(sums)]
    named = {(half, name): value for half, item in sums.items() for name, value in item.tensors().items()}
    whole = group.sums(named)
    halves = sorted({half for half, _ in whole})
    return [
        _MomentSums.of({name: value for (own, name), value in whole.items() if own == half}, weights)
        for half in halves
    ]


def _joined(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all rows of `parts`, which become their halves."""
    rows = sum(part.rows for part in parts)
    whole = {name: sum(getattr(part, name) * (part.rows / rows) for part in parts) for name in SUMS}
    return Moments(**whole, rows=rows, same=all(part.same for part in parts), halves=tuple(parts))


def _together(
    now: Iterable[list[Call]], before: Iterable[list[Call]] | None
) -> Iterator[tuple[list[Call], list[Call] | None]]:
    if before is None:
        yield from ((calls, None) for calls in now)
    else:
        yield from zip(now, before, strict=True)


def _parts(
    call: Call, sampling: WindowSampling, place: tuple[int, int], *, halved: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (half, images, positions) of one call in pieces that fit in memory.

    `place` is (first image, call). With `halved` images of even and odd place come apart, or all are half 0.
    """
    view = windows(call)
    axes = len(call[0].kernel_size)  # type: ignore[arg-type]
    positions = math.prod(view.shape[2 : 2 + axes])
    image, where = sampling.places(view.shape[0], positions, *place)
    cells = view.shape[1] * math.prod(view.shape[2 + axes :])
    size = windows_at_once(view.device, cells)
    own = (image + place[0]) % 2 if halved else torch.zeros_like(image)
    for half in range(1 + int(halved)):
        mine = own == half
        if bool(mine.any()):
            pieces = zip(torch.split(image[mine], size), torch.split(where[mine], size), strict=True)
            yield from ((half, *piece) for piece in pieces)


@dataclass
class _MomentSums:
    """Running sums in float64; those of one piece are taken in float32."""

    weights: Tensor
    gram: Tensor
    target: Tensor
    mean: Tensor
    level: Tensor
    power: Tensor
    rows: int = 0
    same: bool = True

    @staticmethod
    def like(rows: Tensor, weights: Tensor) -> "_MomentSums":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=rows.device)

        groups, _, width = rows.shape
        filters = weights.shape[1]
        return _MomentSums(
            weights.to(rows.device, torch.float32),
            gram=zeros(groups, width, width),
            target=zeros(groups, filters, width),
            mean=zeros(groups, width),
            level=zeros(groups, filters),
            power=zeros(groups, filters),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that adds up over images."""
        counts = torch.tensor([self.rows, not self.same])
        return {name: getattr(self, name) for name in SUMS} | {"counts": counts}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], weights: Tensor) -> "_MomentSums":
        """Return the sums that `tensors` tells of."""
        rows, changed = tensors["counts"].tolist()
        own = {name: tensors[name] for name in SUMS}
        return _MomentSums(weights, **own, rows=rows, same=not changed)

    def add(self, current: Tensor, original: Tensor | None) -> None:
        same = original is None or torch.equal(current, original)
        outputs = (current if original is None else original) @ self.weights.mT  # (groups, rows, filters)
        self.rows += current.shape[1]
        self.same &= same
        self.gram += current.mT @ current
        self.target += outputs.mT @ current
        self.mean += current.sum(1)
        self.level += outputs.sum(1)
        self.power += outputs.square().sum(1)

    def moments(self, weights: Tensor) -> Moments:
        n = self.rows
        gram, mean, target, level = self.gram.div_(n), self.mean / n, self.target / n, self.level / n
        if self.same:  # the original weights are the answer to the last bit
            original = weights.to(gram.device)
            target, level = original @ gram, (original @ mean[:, :, None])[:, :, 0]
        return Moments(gram, target, mean, level, self.power / n, n, self.same)
