"""How kernels are tied that lie in no family's orbits: of low rank, a template a*T + b, or denoised.

Each is computed from its own cells of the free part, and takes the free part to the nearest member, so that
a step of plain SGD moves the weight by the gradient projected on the member's flat. What is fixed
(templates, values) is no buffer: no cast of the network reaches it. All of it is calculated in float64, which
autocast leaves alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernelsimp.kernels.cells import Grid

Kept = tuple[Tensor, ...]
"""What a set keeps of a forward pass for the way back."""


class HeldSet(nn.Module):
    """The kernels `rows` (m,) of a stored weight, where every pair of the first two axes is one kernel.

    `fixed` is what a set keeps of its kernels, if anything: it follows to a device, and no cast reaches it.
    """

    rows: Tensor

    def __init__(self, rows: Tensor, weight: Tensor, fixed: Tensor | None = None) -> None:
        super().__init__()
        self.cells = weight[0, 0].numel()
        self.fixed = fixed if fixed is None else fixed.to(weight.device)
        self.register_buffer("rows", rows.to(weight.device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HeldSet":  # noqa: FBT001, FBT002
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.fixed is not None:
            self.fixed = self.fixed.to(self.rows.device)
        return self

    def made(self, numbers: Tensor) -> tuple[Tensor, Kept]:
        """Return kernels (m, cells) in the set from their free numbers, and what `pulled` needs of them."""
        raise NotImplementedError

    def pulled(self, gradient: Tensor, kept: Kept) -> Tensor:
        """Return gradients (m, cells) of kernels projected on the flats through them."""
        raise NotImplementedError

    def nearest(self, kernels: Tensor) -> Tensor:
        """Return the members (m, cells) nearest to kernels (m, cells)."""
        return self.made(kernels)[0]

    def of(self, weight: Tensor) -> Tensor:
        """Return the rows (m, cells) of a stored weight that are this set's."""
        return weight.reshape(-1, self.cells).index_select(0, self.rows)

    def put(self, weight: Tensor, kernels: Tensor) -> None:
        """Write kernels (m, cells) in their places of a contiguous weight."""
        weight.view(-1, self.cells).index_copy_(0, self.rows, kernels.to(weight.dtype))


class InFlats(HeldSet):
    """Hold each kernel in a subspace of its own: w = B B'z, B (m, cells, q) orthonormal: span{T, 1}."""

    def __init__(self, rows: Tensor, weight: Tensor, basis: Tensor) -> None:
        super().__init__(rows, weight, basis.double())

    def made(self, numbers: Tensor) -> tuple[Tensor, Kept]:
        return self.pulled(numbers, ()), ()

    def pulled(self, gradient: Tensor, kept: Kept) -> Tensor:  # noqa: ARG002
        assert self.fixed is not None
        inside = torch.bmm(gradient.double()[:, None], self.fixed)
        return torch.bmm(inside, self.fixed.mT)[:, 0]


class AtRank(HeldSet):
    """Hold kernels at rank `order`: w is a member next to the free part, and both factors train.

    The gradient is projected on the tangent space at w, U U'G + G V V' - U U'G V V'. Source: Vandereycken,
    Low-rank matrix completion by Riemannian optimization, 2013. A step leaves the free part near the rank, so
    a few turns of subspace iteration find its leading directions, in a fifth of the time of singular values.
    """

    def __init__(self, rows: Tensor, weight: Tensor, grid: Grid, order: int) -> None:
        super().__init__(rows, weight)
        self.grid, self.order = grid, order

    def made(self, numbers: Tensor) -> tuple[Tensor, Kept]:
        kernels = numbers.double().reshape(-1, *self.grid)
        right, gram = _leading_rows(kernels, self.order), torch.bmm(kernels.mT, kernels)
        for _ in range(TURNS):
            right = torch.bmm(right, gram)
            right = right if self.order == 1 else _orthonormal(right)  # one row keeps its direction as it is
        left = _orthonormal(torch.bmm(right, kernels.mT))
        inside = torch.bmm(left, kernels)
        return torch.bmm(left.mT, inside).flatten(1), (left, _orthonormal(inside))

    def pulled(self, gradient: Tensor, kept: Kept) -> Tensor:
        left, right = kept  # U' and V'
        wide = gradient.double().reshape(-1, *self.grid)
        columns = torch.bmm(left.mT, torch.bmm(left, wide))
        rest = torch.bmm(torch.bmm(wide - columns, right.mT), right)
        return columns.add_(rest).flatten(1)

    def nearest(self, kernels: Tensor) -> Tensor:
        grids = kernels.double().reshape(-1, *self.grid)
        left, values, right = torch.linalg.svd(grids, full_matrices=False)
        kept = left[:, :, : self.order] * values[:, None, : self.order]
        return torch.bmm(kept, right[:, : self.order]).flatten(1)


class Still(HeldSet):
    """Hold values: a denoised kernel has no structure to tie, so it stays what it is."""

    def __init__(self, rows: Tensor, weight: Tensor) -> None:
        super().__init__(rows, weight)
        self.fixed = self.of(weight.detach())

    def made(self, numbers: Tensor) -> tuple[Tensor, Kept]:  # noqa: ARG002
        assert self.fixed is not None
        return self.fixed, ()

    def pulled(self, gradient: Tensor, kept: Kept) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(gradient)


TURNS = 2
"""Turns of subspace iteration: with q = s2 / s1, the ratio of the singular values at the rank, the rows of a
matrix begin about q away from its leading directions, and every turn takes q^2 of what is left."""


def _leading_rows(kernels: Tensor, order: int) -> Tensor:
    """Return of each matrix (n, a, b) the largest row, then the one that adds most to it... (n, order, b)."""
    rest = kernels
    found: list[Tensor] = []
    every = torch.arange(len(kernels), device=kernels.device)
    for _ in range(order):
        if found:
            rest = rest - torch.bmm(torch.bmm(rest, found[-1].mT), found[-1])
        largest = torch.linalg.vector_norm(rest, dim=2).argmax(1)
        found.append(_unit(rest[every, largest][:, None]))
    return torch.cat(found, dim=1)


def _orthonormal(rows: Tensor) -> Tensor:
    """Return rows (n, order, b) made orthonormal, one after the other; a row of zeros stays one.

    Each is made orthogonal twice, so that one that all but depends on the others ends in a direction of its
    own. Source: Giraud, Langou and Rozloznik, The loss of orthogonality in the Gram-Schmidt process, 2005.
    """
    if rows.shape[1] == 1:
        return _unit(rows)
    made: list[Tensor] = []
    for place in range(rows.shape[1]):
        unit = _unit(rows[:, place : place + 1])
        for _ in range(2 if made else 0):
            for other in made:
                unit = unit - (unit * other).sum(dim=2, keepdim=True) * other
            unit = _unit(unit)
        made.append(unit)
    return torch.cat(made, dim=1)


def _unit(rows: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    scaled: Tensor = rows / size.clamp_min(torch.finfo(rows.dtype).tiny)
    return scaled
