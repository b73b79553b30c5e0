"""The two ways a convolution's weight is held: as values, or as structure with free coefficients.

Both keep the module's own parameter (same object, shape and dtype) as the free part and compute the
weight from it at every forward pass, so no optimiser, decay, momentum or clipping can move what is held.
Index and mask tensors are in the module's stored layout. Source: torch.nn.utils.parametrize.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """Hold values: weight = where(mask, frozen, free), with `mask` over the stored weight's cells.

    A layer that is held as a whole returns its constant, so no gradient is computed for it.
    """

    mask: Tensor
    frozen: Tensor
    witness: object

    def __init__(self, mask: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.whole = bool(mask.all())
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("frozen", weight.detach().clone(), persistent=False)

    def forward(self, free: Tensor) -> Tensor:
        return self.frozen if self.whole else torch.where(self.mask, self.frozen, free)


class Tied(nn.Module):
    """Hold structure: weight[i] = sign[i] * free[source[i]], over the flat cells of the stored weight.

    `source` names the representative of each cell's orbit; a cell of sign 0 is zero and its own source.
    The gradient that reaches a representative is the mean, not the sum, of sign * gradient over its orbit:
    a step of plain SGD then moves the weight by the projected gradient P g, as if U in w = U z were
    orthonormal, while the copy stays exact bit for bit.
    """

    source: Tensor
    sign: Tensor
    share: Tensor
    witness: object

    def __init__(self, source: Tensor, sign: Tensor) -> None:
        super().__init__()
        flat = source.reshape(-1)
        size = torch.bincount(flat, minlength=flat.numel()).clamp_min(1).to(sign.dtype)
        self.register_buffer("source", flat, persistent=False)
        self.register_buffer("sign", sign.reshape(-1), persistent=False)
        self.register_buffer("share", sign.reshape(-1) / size[flat], persistent=False)

    def forward(self, free: Tensor) -> Tensor:
        return _Spread.apply(free, self.source, self.sign, self.share)  # type: ignore[no-any-return]


class _Spread(torch.autograd.Function):
    """Copy representatives to their orbits; average gradients back."""

    @staticmethod
    def forward(context: Any, free: Tensor, source: Tensor, sign: Tensor, share: Tensor) -> Tensor:
        context.save_for_backward(source, share)
        return (free.reshape(-1).gather(0, source) * sign).reshape(free.shape)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        source, share = context.saved_tensors
        gradient = gradients[0].reshape(-1)
        pulled = torch.zeros_like(gradient).scatter_add_(0, source, gradient * share)
        return pulled.reshape(gradients[0].shape), None, None, None
