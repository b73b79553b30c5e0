"""What one layer is fitted to while it is coded: its inputs as they have become, and what is still missing.

T are windows of the inputs, n rows; R is what the original network has at the place where the layer's output
is seen, less what the coded one has there while the layer still has its old weights, (n, filters). The best
new weights are W + (H + dI)^-1 T'R/n, H the second moment of T, centred where the layer has a bias.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn, split

from kernelsimp.models.stages import groups_of, matrix_of
from kernelsimp.solver.moments import (
    ROWS_A_CELL_AT_LEAST,
    ROWS_ENOUGH,
    WindowSampling,
    images_giving,
    rows_of,
    rows_wanted,
    windows,
    windows_at_once,
)

Array = NDArray[np.float64]

DAMPING = 0.01
"""Of the mean of H's diagonal; without it, directions that no image shows would be free."""

ROUNDING = 1e-4
"""What float32 leaves of a moment where nothing varies, as a share of the inputs' mean square."""


@dataclass(frozen=True, eq=False)
class FitMoments:
    """`gram` T'T/n (groups, D, D), `cross` T'R/n (groups, D, filters), means of T and R; `rows` is n.

    `scale` is the mean square of T before any centring.
    """

    gram: Array
    cross: Array
    mean: Array
    missing: Array
    rows: int
    scale: float = 1.0

    def centred(self) -> "FitMoments":
        """Return covariances, for a layer whose bias takes care of the means."""
        gram = self.gram - self.mean[:, :, None] * self.mean[:, None, :]
        cross = self.cross - self.mean[:, :, None] * self.missing[:, None, :]
        return replace(self, gram=gram, cross=cross)

    def metric(self) -> Array:
        """Return H damped: positive, whatever the inputs were, and more where there are few rows."""
        few = max(1.0, ROWS_A_CELL_AT_LEAST * self.gram.shape[-1] / self.rows) if self.rows else 1.0
        size = np.trace(self.gram, axis1=1, axis2=2) / self.gram.shape[-1]
        # a layer that sees nothing, or always the same, counts every cell alike
        least = np.maximum(few * DAMPING * size, ROUNDING * self.scale or 1.0)
        damped: Array = self.gram + np.eye(self.gram.shape[-1]) * least[:, None, None]
        return damped

    def change(self) -> Array:
        """Return what to add to the weights (groups, filters, D), before any rounding."""
        best: Array = np.linalg.solve(self.metric(), self.cross).transpose(0, 2, 1).astype(np.float64)
        return best


def identity_moments(groups: int, width: int, filters: int) -> FitMoments:
    """Return the moments that stand for inputs of which nothing is known."""
    gram = np.broadcast_to(np.eye(width), (groups, width, width)).copy()
    empty = np.zeros((groups, width, filters))
    return FitMoments(gram, empty, np.zeros((groups, width)), np.zeros((groups, filters)), 0)


Seen = tuple[Tensor, Tensor | None]
"""A layer's input in one call, and what is missing where its output is seen (None: nothing)."""


def fit_moments(layer: nn.Module, seen: Iterable[Seen], share: float, seed: int) -> FitMoments:
    """Return the moments of one layer over batches, read at `share` of the positions of each image."""
    sums, pilot, rows = list[Tensor](), Tensor(), 0
    for batch, (inputs, missing) in enumerate(seen):
        for taken, rest in _rows(layer, (inputs, missing), WindowSampling(share, seed), batch):
            answer = rest.reshape(len(rest), groups_of(layer), -1).transpose(0, 1)
            if not sums:
                pilot = taken.mean(1, keepdim=True)
            taken.sub_(pilot)  # inputs that hardly vary would lose all they have to float32
            parts = [taken.mT @ taken, taken.mT @ answer, taken.sum(1), answer.sum(1)]
            if not sums:
                sums = [part.double() for part in parts]
            else:
                for one, part in zip(sums, parts, strict=True):
                    one.add_(part)  # of a wide layer each is hundreds of megabytes
            rows += len(rest)
    gram, cross, mean, left = (item.div_(rows).cpu().numpy() for item in sums)
    far = pilot[:, 0].double().cpu().numpy()
    gram += far[:, :, None] * mean[:, None, :]  # in place: each is as large as the layer's inputs squared
    mean += far
    gram += mean[:, :, None] * far[:, None, :]
    cross += far[:, :, None] * left[:, None, :]
    size = float(np.trace(gram, axis1=1, axis2=2).mean()) / gram.shape[-1]
    return FitMoments(gram, cross, mean, left, rows, size)


@dataclass(frozen=True)
class Reading:
    """How a layer is read: at `share` of the positions of each of the first `images`."""

    images: int
    share: float


def reading_of(layer: nn.Module, inputs: Tensor, images: int) -> Reading:
    """Return how a layer is read of so many images, from its `inputs` for some of them.

    As many windows as its moments take, a quarter of an image's at most while there are other images, and of
    128 images at least: early layers, whose outputs are large, do with fewer of them. A kernel that alone
    makes an output has few numbers and needs fewer windows.
    """
    positions, rows = max(1, _positions(layer, inputs)), _rows_enough(layer)
    taken = min(images, images_enough(layer, positions))
    return Reading(taken, min(1.0, rows / max(1, taken * positions)))


def images_enough(layer: nn.Module, positions: int) -> int:
    """Return how many images a layer of so many `positions` an image is read of; there may be fewer."""
    return images_giving(_rows_enough(layer), positions)


def _rows_enough(layer: nn.Module) -> int:
    wanted = rows_wanted(matrix_of(layer).shape[1])
    return wanted if groups_of(layer) > 1 else max(ROWS_ENOUGH, wanted)


def _positions(layer: nn.Module, inputs: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return math.prod(inputs.shape[1:-1])
    return math.prod(windows((layer, inputs)).shape[2 : 2 + len(layer.kernel_size)])  # type: ignore[arg-type]


def _rows(
    layer: nn.Module, seen: Seen, sampling: WindowSampling, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield windows (groups, rows, D) and what is missing there (rows, all filters), in pieces."""
    inputs, missing = seen
    linear = isinstance(layer, nn.Linear)
    image, place = sampling.places(len(inputs), _positions(layer, inputs), batch)
    filters = int(layer.out_features if linear else layer.out_channels)  # type: ignore[arg-type]
    at_once = windows_at_once(inputs.device, groups_of(layer) * matrix_of(layer).shape[1])
    for some, where in zip(split(image, at_once), split(place, at_once), strict=True):
        some, where = some.to(inputs.device), where.to(inputs.device)
        if linear:
            taken = inputs.reshape(len(inputs), -1, inputs.shape[-1])[some, where].float()[None]
        else:
            taken = rows_of((layer, inputs), some, where)
        if missing is None:
            rest = taken.new_zeros(len(some), filters)
        elif linear:
            rest = missing.reshape(len(missing), -1, filters)[some, where].float()
        else:
            rest = missing.flatten(2)[some, :, where].float()
        yield taken, rest
