"""How kernels are tied that lie in no family's orbits: of low rank, a template a*T + b, or denoised.

Each is computed from its own cells of the free part, and takes the free part to the nearest member, so that
a step of plain SGD moves the weight by the gradient projected on the member's flat. What is fixed
(templates, values) is no buffer: no cast of the network reaches it. All of it is calculated in float64, which
autocast leaves alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import orbits, prototypes, rank
from kernelsimp.kernels.cells import Grid

Kept = tuple[Tensor, ...]
"""What a set keeps of a forward pass for the way back."""


class HeldSet(nn.Module):
    """The kernels `rows` (m,) of a stored weight, where every pair of the first two axes is one kernel.

    What a set keeps of its kernels is a plain attribute: it follows to a device, and no cast reaches it.
    """

    rows: Tensor

    def __init__(self, rows: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.cells = weight[0, 0].numel()
        self.register_buffer("rows", rows.to(weight.device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HeldSet":  # noqa: FBT001, FBT002
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        fixed = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        vars(self).update({name: value.to(self.rows.device) for name, value in fixed.items()})
        return self

    def members(self, numbers: Tensor) -> tuple[Tensor, Kept]:
        """Return kernels (m, cells) in the set from their free numbers, and what `pulled` needs of them."""
        raise NotImplementedError

    def project_gradient(self, gradient: Tensor, kept: Kept) -> Tensor:
        """Return gradients (m, cells) of kernels projected on the flats through them."""
        raise NotImplementedError

    def nearest(self, kernels: Tensor) -> Tensor:
        """Return the members (m, cells) nearest to kernels (m, cells)."""
        return self.members(kernels)[0]

    def of(self, weight: Tensor) -> Tensor:
        """Return the rows (m, cells) of a stored weight that are this set's."""
        return weight.reshape(-1, self.cells).index_select(0, self.rows)

    def put(self, weight: Tensor, kernels: Tensor) -> None:
        """Write kernels (m, cells) in their places of a contiguous weight."""
        weight.view(-1, self.cells).index_copy_(0, self.rows, kernels.to(weight.dtype))


class InFlats(HeldSet):
    """Hold each kernel in a flat: w = o + B B'(z - o), with B orthonormal or a projector itself.

    `basis` B (m, cells, q) has a subspace for each kernel, (cells, q) one for all; o is 0, or `around` the
    kernels where each is now. In a `Tied` the gradient is projected by hand; a set that is a part of its own
    leaves it to autograd, which comes to the same.
    """

    def __init__(self, rows: Tensor, weight: Tensor, basis: Tensor, *, around: bool = False) -> None:
        super().__init__(rows, weight)
        self.basis = basis.to(weight.device).double()
        self.start = self.of(weight.detach()).double() if around else None

    def members(self, numbers: Tensor) -> tuple[Tensor, Kept]:
        if self.start is None:
            return self.project_gradient(numbers, ()), ()
        return self.start + self.project_gradient(numbers - self.start, ()), ()

    def project_gradient(self, gradient: Tensor, kept: Kept) -> Tensor:  # noqa: ARG002
        return (gradient.double()[:, None] @ self.basis @ self.basis.mT)[:, 0]

    def forward(self, free: Tensor) -> Tensor:
        flat = free.reshape(-1, self.cells)
        made = self.members(self.of(free))[0].to(free.dtype)
        return flat.index_copy(0, self.rows, made).reshape(free.shape)

    def pack(self, weight: Tensor) -> Tensor:
        """Return the free part whose weight is nearest to `weight`: the projection itself."""
        return self(weight)  # type: ignore[no-any-return]


class AtRank(HeldSet):
    """Hold kernels at rank `order`: w is a member next to the free part, and both factors train.

    The gradient is projected on the tangent space at w, U U'G + G V V' - U U'G V V'. Source: Vandereycken,
    Low-rank matrix completion by Riemannian optimization, 2013. A step leaves the free part near the rank, so
    a few turns of subspace iteration find its leading directions, in a fifth of the time of singular values.
    """

    def __init__(self, rows: Tensor, weight: Tensor, grid: Grid, order: int) -> None:
        super().__init__(rows, weight)
        self.grid, self.order = grid, order

    def members(self, numbers: Tensor) -> tuple[Tensor, Kept]:
        kernels = numbers.double().reshape(-1, *self.grid)
        right, gram = _leading_rows(kernels, self.order), torch.bmm(kernels.mT, kernels)
        for _ in range(TURNS):
            right = torch.bmm(right, gram)
            right = right if self.order == 1 else _orthonormal(right)  # one row keeps its direction as it is
        left = _orthonormal(torch.bmm(right, kernels.mT))
        inside = torch.bmm(left, kernels)
        return torch.bmm(left.mT, inside).flatten(1), (left, _orthonormal(inside))

    def project_gradient(self, gradient: Tensor, kept: Kept) -> Tensor:
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
        self.values = self.of(weight.detach())

    def members(self, numbers: Tensor) -> tuple[Tensor, Kept]:  # noqa: ARG002
        return self.values, ()

    def project_gradient(self, gradient: Tensor, kept: Kept) -> Tensor:  # noqa: ARG002
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


_ALL = 1 - 1e-9
"""The coverage that a search for prototypes never reaches, so that it uses as many as it may."""


@dataclass(frozen=True)
class Layout:
    """How many prototypes kernels of a grid share at most, and the seed of the search for them."""

    grid: Grid
    count: int
    seed: int = 0


class OnRows(nn.Module):
    """Compute the kernels `rows` (m,) of a stored weight (a, b, *grid) from their own cells."""

    rows: Tensor

    def __init__(self, rows: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.whole = len(rows) == weight.shape[0] * weight.shape[1]
        self.cells = weight[0, 0].numel()
        self.register_buffer("rows", rows.to(weight.device), persistent=False)

    def forward(self, free: Tensor) -> Tensor:
        return self._on_rows(free, self.members)

    def pack(self, weight: Tensor) -> Tensor:
        """Return the free part whose weight is nearest to `weight` (a, b, *grid)."""
        return self._on_rows(weight, self.coordinates)

    def members(self, numbers: Tensor) -> Tensor:
        """Return kernels (m, cells) from their free numbers, in the same cells."""
        raise NotImplementedError

    def coordinates(self, kernels: Tensor) -> Tensor:
        """Return the free numbers (m, cells) of the members nearest to kernels (m, cells)."""
        raise NotImplementedError

    def _on_rows(self, weight: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        flat = weight.reshape(-1, self.cells)
        with torch.autocast(weight.device.type, enabled=False):  # a weight is held in its own precision
            made = function(flat if self.whole else flat[self.rows])
        return (made if self.whole else flat.index_copy(0, self.rows, made)).reshape(weight.shape)


class Outer(OnRows):
    """Hold kernels at rank one: w = c r', c in the first kh cells, r in the next kw, the rest unused."""

    def __init__(self, rows: Tensor, weight: Tensor, grid: Grid) -> None:
        super().__init__(rows, weight)
        self.grid = grid

    def members(self, numbers: Tensor) -> Tensor:
        height, width = self.grid
        column, row = numbers[:, :height], numbers[:, height : height + width]
        return (column[:, :, None] * row[:, None, :]).flatten(1)

    def coordinates(self, kernels: Tensor) -> Tensor:
        columns, rows = rank.factors(kernels.reshape(-1, *self.grid))
        unused = kernels.new_zeros(len(kernels), self.cells - sum(self.grid))
        return torch.cat([columns[:, :, 0].to(unused), rows[:, 0].to(unused), unused], dim=1)


class Shared(OnRows):
    """Hold kernels to few shared prototypes: w = a x + b, x turned or mirrored as each kernel needs it.

    a and b are the first two cells of each kernel; the prototypes x (count, cells) are a parameter of their
    own. Which prototype and which move a kernel has is fixed by the weights at the time.
    """

    index: Tensor
    move: Tensor

    def __init__(self, rows: Tensor, weight: Tensor, layout: Layout) -> None:
        super().__init__(rows, weight)
        kernels = weight.detach().reshape(-1, *layout.grid)[self.rows]
        search = prototypes.PrototypeSettings(_ALL, layout.count, layout.seed)
        found = prototypes.find(kernels.cpu(), search)
        if not found.count:
            raise KernelsimpError("prototypes: every kernel is constant; initialise the layer first")
        moves = torch.stack([torch.from_numpy(move) for move in orbits.moves(layout.grid)])
        self.register_buffer("index", found.index.to(weight.device), persistent=False)
        self.register_buffer("move", moves[found.move].to(weight.device), persistent=False)
        self.centres = nn.Parameter(found.centres.flatten(1).to(weight))

    def members(self, numbers: Tensor) -> Tensor:
        turned = self.centres[self.index].gather(1, self.move)
        return numbers[:, :1] * turned + numbers[:, 1:2]

    @torch.no_grad()
    def coordinates(self, kernels: Tensor) -> Tensor:
        turned = self.centres[self.index].gather(1, self.move)
        numbers = torch.zeros_like(kernels)
        numbers[:, 1] = kernels.mean(dim=1)
        numbers[:, 0] = ((kernels - numbers[:, 1:2]) * turned).sum(dim=1)
        return numbers
