"""How long simplifying will take: a few images are timed, and the linear algebra is counted.

Times are seconds on this machine as it is now. They are meant to be right within a factor of two.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.models.hooks import Use
from kernelsimp.solver.batch_size import forward_and_backward
from kernelsimp.solver.layerwise import CalibratedNetwork
from kernelsimp.solver.moments import rows_wanted

STEPS = 40
"""Steps of conjugate gradients that a layer takes, about."""

TIMED = 4
"""Images that are timed; in a whole batch one may take half of that."""

SIDE = 512
"""Matrices of this side are multiplied to time the machine."""

GATHERED = 6e7
"""Numbers a second that windows are read at, about: it is memory that limits them."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of the survey, of one re-solve, and of judging one on the images held back."""

    survey: float
    solve: float
    judge: float

    def total(self, solves: int) -> float:
        """Return the seconds of everything with this many re-solves."""
        return self.survey + solves * (self.solve + self.judge)


def estimate(calibrated: CalibratedNetwork) -> Estimate:
    """Time a few images forward and backward, and two products of matrices."""
    batch = calibrated.images[0][:TIMED]
    with torch.no_grad():
        forward = _seconds(lambda: calibrated.model(batch), batch) / len(batch)
    both = _seconds(lambda: forward_and_backward(calibrated.model, batch), batch) / len(batch)
    uses = [(use, calibrated.bank.by_name[use.name]) for use in calibrated.traced.uses]
    single, double = (_rate(dtype, batch) for dtype in (torch.float32, torch.float64))
    read = [calibrated.images_for(use, layer.kernels[0].numel())[1] for use, layer in uses]
    processes = calibrated.group.size
    algebra = sum(
        _numbers(use, layer, images) / GATHERED / processes
        + _products(use, layer, images) / single / processes
        + _fits(layer) / double
        for (use, layer), images in zip(uses, read, strict=True)
    )
    held = sum(len(part) for part in calibrated.held_back[:1]) * len(calibrated.held_back)
    forwards = 2 * max(read, default=0) * forward / processes
    return Estimate(calibrated.count * both / processes, forwards + algebra, held * forward)


def _rows(use: Use, layer: LayerKernels, images: int) -> int:
    return min(rows_wanted(layer.kernels[0].numel()), images * use.positions)


def _numbers(use: Use, layer: LayerKernels, images: int) -> float:
    """Return how many numbers the windows of a layer have, of both networks."""
    return 2.0 * _rows(use, layer, images) * layer.groups * layer.kernels[0].numel()


def _products(use: Use, layer: LayerKernels, images: int) -> float:
    """Return the operations of a layer's moments."""
    width, filters = layer.kernels[0].numel(), len(layer.kernels)
    each = 2.0 * layer.groups * width**2 + 4.0 * filters * width
    return _rows(use, layer, images) * each


def _fits(layer: LayerKernels) -> float:
    """Return the operations of a layer's fit: conjugate gradients, or one factorisation of a 1x1 layer."""
    width = layer.kernels[0].numel()
    steps = STEPS if layer.kernels[0, 0].numel() > 1 else 2
    return 2.0 * steps * len(layer.kernels) * width**2 + layer.groups * width**3 / 3


def _rate(dtype: torch.dtype, like: Tensor) -> float:
    """Return the operations a second of a product of matrices."""
    matrix = torch.ones(SIDE, SIDE, dtype=dtype, device=like.device)
    return 2.0 * SIDE**3 / _seconds(lambda: matrix @ matrix, like)


def _seconds(work: Callable[[], object], like: Tensor) -> float:
    """Return the time of the second of two runs: the first one may allocate and compile."""
    took = 0.0
    for _ in range(2):
        start = time.perf_counter()
        work()
        if like.device.type == "cuda":
            torch.cuda.synchronize(like.device)
        took = time.perf_counter() - start
    return max(took, 1e-9)
