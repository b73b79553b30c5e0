"""Every window of a layer, and inputs whose axes tell themselves apart."""

import math

import torch
from torch import Tensor, nn

from kernelsimp.solver.moments import WindowSampling, rows_of, windows


def input_for(module: nn.Module, seed: int = 0) -> Tensor:
    axes = len(module.kernel_size)  # type: ignore[arg-type]
    return torch.randn(3, 4, *(9, 11, 7)[:axes], generator=torch.Generator().manual_seed(seed))


def every_row(module: nn.Module, images: Tensor) -> Tensor:
    """All windows (groups, rows, D), rows in order of image and position."""
    view = windows((module, images))
    positions = math.prod(view.shape[2 : images.ndim])
    return rows_of((module, images), *WindowSampling(1.0, 0).places(len(images), positions, 0))
