"""The ways a convolution's weight is held: as values, as structure, or as shape with a free scale.

All keep the module's own parameter (same object, shape and dtype) as the free part and compute the weight
from it at every forward pass, so no optimiser, decay, momentum or clipping can move what is held. Index
and mask tensors are in the module's stored layout. Source: torch.nn.utils.parametrize.
"""

from collections.abc import Iterable
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


class Scaled(nn.Module):
    """Hold shape: a held kernel is scale * its value at the time, with one trained scale a kernel.

    `kernel` numbers each cell's held kernel from 0, and is -1 where the cell is free. The gradient of a
    scale is divided by its kernel's squared norm: a step of plain SGD then moves the weight by the
    projected gradient P g, with P the projector on the line through the kernel.
    """

    mask: Tensor
    frozen: Tensor
    kernel: Tensor
    size: Tensor
    witness: object
    whole = False

    def __init__(self, kernel: Tensor, weight: Tensor) -> None:
        super().__init__()
        flat = kernel.reshape(-1)
        count = int(flat.max()) + 1
        frozen = weight.detach().clone()
        squares = torch.zeros(count + 1, dtype=frozen.dtype, device=frozen.device)
        squares.index_add_(0, torch.where(flat < 0, count, flat), frozen.reshape(-1).square())
        self.register_buffer("mask", kernel >= 0, persistent=False)
        self.register_buffer("frozen", frozen, persistent=False)
        self.register_buffer("kernel", flat.clamp_min(0), persistent=False)
        self.register_buffer("size", squares[:-1].clamp_min(torch.finfo(frozen.dtype).tiny), persistent=False)
        self.scale = nn.Parameter(torch.ones(count, dtype=frozen.dtype, device=frozen.device))

    def forward(self, free: Tensor) -> Tensor:
        held = _Stretch.apply(self.scale, self.frozen, self.kernel, self.size)
        return torch.where(self.mask, held, free)


class Tied(nn.Module):
    """Hold structure: weight[i] = sign[i] * free[source[i]], over the flat cells of the stored weight.

    `source` names the representative of each cell's orbit; a cell of sign 0 is zero and its own source.
    The gradient that reaches a representative is the mean, not the sum, of sign * gradient over its orbit:
    a step of plain SGD then moves the weight by the projected gradient P g, as if U in w = U z were
    orthonormal, while the copy stays exact bit for bit. `bends` go on from there: each computes the kernels
    of one set that has no orbits, which stand for themselves in `source`.
    """

    source: Tensor
    sign: Tensor
    share: Tensor
    witness: object
    whole = False

    def __init__(self, source: Tensor, sign: Tensor, bends: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.bends = nn.ModuleList(bends)
        flat = source.reshape(-1)
        size = torch.bincount(flat, minlength=flat.numel()).clamp_min(1).to(sign.dtype)
        self.register_buffer("source", flat, persistent=False)
        self.register_buffer("sign", sign.reshape(-1), persistent=False)
        self.register_buffer("share", sign.reshape(-1) / size[flat], persistent=False)

    def forward(self, free: Tensor) -> Tensor:
        return self._bent(_Spread.apply(free, self.source, self.sign, self.share))

    def project(self, weight: Tensor) -> Tensor:
        """Return P w, exactly in the structure."""
        pulled = _pull(weight.reshape(-1), self.source, self.share)
        return self._bent((pulled.gather(0, self.source) * self.sign).reshape(weight.shape))

    def _bent(self, weight: Tensor) -> Tensor:
        for bend in self.bends:
            weight = bend(weight)
        return weight

    def pack(self, weight: Tensor) -> Tensor:
        """Return the free part whose weight is nearest to `weight`: the projection itself."""
        return self.project(weight)


def _pull(flat: Tensor, source: Tensor, share: Tensor) -> Tensor:
    """Average sign * value over each orbit, into the place of its representative."""
    return torch.zeros_like(flat).scatter_add_(0, source, flat * share)


class _Spread(torch.autograd.Function):
    """Copy representatives to their orbits; average gradients back."""

    @staticmethod
    def forward(context: Any, free: Tensor, source: Tensor, sign: Tensor, share: Tensor) -> Tensor:
        context.save_for_backward(source, share)
        return (free.reshape(-1).gather(0, source) * sign).reshape(free.shape)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        source, share = context.saved_tensors
        pulled = _pull(gradients[0].reshape(-1), source, share)
        return pulled.reshape(gradients[0].shape), None, None, None


class _Stretch(torch.autograd.Function):
    """Scale each held kernel; its scale's gradient is <g, w0> / ||w0||^2."""

    @staticmethod
    def forward(context: Any, scale: Tensor, frozen: Tensor, kernel: Tensor, size: Tensor) -> Tensor:
        context.save_for_backward(frozen, kernel, size)
        return frozen * scale[kernel].reshape(frozen.shape)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        frozen, kernel, size = context.saved_tensors
        parts = (gradients[0] * frozen).reshape(-1)  # 0 where the cell is free: `where` took the other branch
        return torch.zeros_like(size).index_add_(0, kernel, parts) / size, None, None, None
