"""How kernels are tied that lie in no family's orbits: of low rank, a template a*T + b, or denoised.

Each computes its kernels from the free part's own cells, as `bent` does, and takes the free part to the
nearest member, so that a step of plain SGD moves the weight by the gradient projected on the member's flat.
What is fixed (templates, values) are plain attributes in float64: no cast of the network reaches them.
"""

from typing import Any

import torch
from torch import Tensor

from kernelsimp.kernels.cells import Grid
from kernelsimp.training.bent import OnRows


class InFlats(OnRows):
    """Hold each kernel in a subspace of its own: w = B B'z, B (m, cells, q) orthonormal: span{T, 1}."""

    def __init__(self, rows: Tensor, weight: Tensor, basis: Tensor) -> None:
        super().__init__(rows, weight)
        self.basis = basis.double()

    def made(self, numbers: Tensor) -> Tensor:
        self.basis = basis = self.basis.to(numbers.device)
        inside = basis @ (basis.mT @ numbers.double()[:, :, None])
        return inside[:, :, 0].to(numbers.dtype)

    def packed(self, kernels: Tensor) -> Tensor:
        return self.made(kernels)


class AtRank(OnRows):
    """Hold kernels at rank `order`: w is the member nearest to the free part, and both factors train.

    The gradient is projected on the tangent space at w, U U'G + G V V' - U U'G V V'. Source: Vandereycken,
    Low-rank matrix completion by Riemannian optimization, 2013.
    """

    def __init__(self, rows: Tensor, weight: Tensor, grid: Grid, order: int) -> None:
        super().__init__(rows, weight)
        self.grid, self.order = grid, order

    def made(self, numbers: Tensor) -> Tensor:
        kernels = numbers.reshape(-1, *self.grid)
        return _Truncated.apply(kernels, self.order).flatten(1)  # type: ignore[no-any-return]

    def packed(self, kernels: Tensor) -> Tensor:
        return self.made(kernels)


class Kept(OnRows):
    """Hold values: a denoised kernel has no structure to tie, so it stays what it is."""

    def __init__(self, rows: Tensor, weight: Tensor) -> None:
        super().__init__(rows, weight)
        self.values = weight.detach().reshape(-1, self.cells)[self.rows].clone()

    def made(self, numbers: Tensor) -> Tensor:
        self.values = self.values.to(numbers.device)
        return self.values.to(numbers.dtype)

    def packed(self, kernels: Tensor) -> Tensor:
        return self.made(kernels)


class _Truncated(torch.autograd.Function):
    """Keep the largest singular values; project gradients on the tangent space there."""

    @staticmethod
    def forward(context: Any, kernels: Tensor, order: int) -> Tensor:
        left, values, right = torch.linalg.svd(kernels.double(), full_matrices=False)
        u, v = left[:, :, :order], right[:, :order]
        context.save_for_backward(u, v)
        truncated: Tensor = (u * values[:, None, :order]) @ v
        return truncated.to(kernels.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        u, v = context.saved_tensors
        gradient = gradients[0].double()
        columns = u @ (u.mT @ gradient)
        tangent = columns + (gradient - columns) @ v.mT @ v
        return tangent.to(gradients[0].dtype), None
