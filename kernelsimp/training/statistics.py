"""Re-estimating batch-norm statistics: plain averages over training images as the network now is.

It helps where weights moved and statistics lag, and can cost points where images differ from those of the
original training (padding, augmentation), so whoever calls it keeps the better of with and without.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kernelsimp.evaluation.accuracy import evaluation_mode


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that keep running statistics."""
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [module for module in found if module.track_running_stats and module.running_mean is not None]


@torch.no_grad()
def re_estimate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
    """Set every running mean and variance to its mean over `batches`, weighing batches equally.

    Only batch norms run in training mode; dropout does not.
    """
    norms = batch_norms(model)
    with evaluation_mode(model), _cumulative(norms):
        for images, _ in batches:
            model(images.to(device, non_blocking=True))


@contextmanager
def _cumulative(norms: list[_BatchNorm]) -> Iterator[None]:
    """Start the statistics afresh and let each batch count the same; give the momentum back after."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
