"""The ways a weight is computed where its structure is no signed permutation of cells.

As in `parametrisations`, the module's own parameter stays the free part, with its shape. Here each kernel's
numbers stand in its own cells: `rows` are the kernels concerned, numbered in the stored layout, where every
pair of the first two axes is one kernel; all others pass through. `pack` is the way back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import orbits, prototypes, rank
from kernelsimp.kernels.cells import Grid
from kernelsimp.kernels.subspace import Subspace

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
        return self._on_rows(free, self.made)

    def pack(self, weight: Tensor) -> Tensor:
        """Return the free part whose weight is nearest to `weight` (a, b, *grid)."""
        return self._on_rows(weight, self.packed)

    def made(self, numbers: Tensor) -> Tensor:
        """Return kernels (m, cells) from their free numbers, in the same cells."""
        raise NotImplementedError

    def packed(self, kernels: Tensor) -> Tensor:
        """Return the free numbers (m, cells) of the members nearest to kernels (m, cells)."""
        raise NotImplementedError

    def _on_rows(self, weight: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        flat = weight.reshape(-1, self.cells)
        with torch.autocast(weight.device.type, enabled=False):  # a weight is held in its own precision
            made = function(flat if self.whole else flat[self.rows])
        return (made if self.whole else flat.index_copy(0, self.rows, made)).reshape(weight.shape)


class Spanned(OnRows):
    """Hold kernels in a subspace without orbits: w = P z, so a step moves w by the projected gradient."""

    projector: Tensor

    def __init__(self, rows: Tensor, weight: Tensor, subspace: Subspace) -> None:
        super().__init__(rows, weight)
        self.register_buffer("projector", torch.from_numpy(subspace.projector).to(weight), persistent=False)

    def made(self, numbers: Tensor) -> Tensor:
        return numbers @ self.projector

    def packed(self, kernels: Tensor) -> Tensor:
        return kernels @ self.projector


class Outer(OnRows):
    """Hold kernels at rank one: w = c r', c in the first kh cells, r in the next kw, the rest unused."""

    def __init__(self, rows: Tensor, weight: Tensor, grid: Grid) -> None:
        super().__init__(rows, weight)
        self.grid = grid

    def made(self, numbers: Tensor) -> Tensor:
        height, width = self.grid
        column, row = numbers[:, :height], numbers[:, height : height + width]
        return (column[:, :, None] * row[:, None, :]).flatten(1)

    def packed(self, kernels: Tensor) -> Tensor:
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

    def made(self, numbers: Tensor) -> Tensor:
        turned = self.centres[self.index].gather(1, self.move)
        return numbers[:, :1] * turned + numbers[:, 1:2]

    @torch.no_grad()
    def packed(self, kernels: Tensor) -> Tensor:
        turned = self.centres[self.index].gather(1, self.move)
        numbers = torch.zeros_like(kernels)
        numbers[:, 1] = kernels.mean(dim=1)
        numbers[:, 0] = ((kernels - numbers[:, 1:2]) * turned).sum(dim=1)
        return numbers
