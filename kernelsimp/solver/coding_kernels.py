"""What structures the kernels of a layer have, or may take, while they are coded.

A plan gives each kernel one, which it keeps; a table of components offers each kernel of a depthwise layer
some of its parts, and the search takes what pays.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kernelsimp.kernels.integer_bases import (
    DRAWN_BITS,
    FREE,
    ONE,
    PARTS,
    Drawings,
    Table,
    basis_of,
    gather_drawings,
    side_numbers,
    side_of,
    table_of,
)
from kernelsimp.kernels.kernel_coding import CodedKernels
from kernelsimp.kernels.kernel_rounding import Offers, RoundedKernels
from kernelsimp.kernels.rounding import Array
from kernelsimp.kernels.structures import DENOISED
from kernelsimp.models.stages import layer_modules, matrix_of
from kernelsimp.models.stored_order import canonical
from kernelsimp.records.plan import LayerPlan
from kernelsimp.solver.moments import Moments
from kernelsimp.solver.projected_cg import UnsolvableError, resolve
from kernelsimp.solver.targets import constraint_of

Ints = NDArray[np.int64]

NEAR = 1e-9
"""Damping of the fit within structures, whose metric is damped already."""


MOST_SIDE = 9


@dataclass(frozen=True, eq=False)
class Beside:
    """Integers beside the name of each offer, (F, n), zeros behind; of what draws, a number of `drawings`."""

    side: Ints
    drawings: Drawings | None = None


class KernelMenu:
    """What structures the kernels (outputs, inputs / groups, *grid) of one layer may take."""

    grid: tuple[int, ...]
    kind = "dense"
    groups = 1
    optional = False
    """Whether cells may be coded instead, where that is cheaper."""
    toll = 0.0
    """Bits that are paid elsewhere where an optional menu is taken."""

    def canonical(self, weight: Tensor) -> Tensor:
        """Return a stored weight as kernels."""
        return canonical(weight, self.kind, self.groups)

    def aim(self, weights: Array, inputs: Array) -> Array:  # noqa: ARG002
        """Return the weights (outputs, D) that rounding begins at, in the metric `inputs` (groups, D, D)."""
        return weights

    def offers(self, weights: Array) -> tuple[Offers, Beside]:
        """Return what is offered around weights (outputs, D), and what stands beside the offers."""
        raise NotImplementedError

    def coded(self, rounded: RoundedKernels, beside: Beside, step: np.float32) -> CodedKernels:
        """Return kernels as they are written: a menu of what was taken, the commonest first."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class PlannedMenu(KernelMenu):
    """Each kernel has the structure that a plan gives it; denoised ones are free."""

    layer: LayerPlan
    structures: tuple[str, ...]

    @property
    def grid(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.layer.grid

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.layer.kind

    @property
    def groups(self) -> int:  # type: ignore[override]
        return self.layer.groups

    @property
    def names(self) -> tuple[str, ...]:
        """What each structure of the plan is coded as."""
        return tuple(FREE if name.startswith(DENOISED) else name for name in self.structures)

    def aim(self, weights: Array, inputs: Array) -> Array:
        """Return the weights within the structures whose outputs are nearest to those of `weights`."""
        gram, there = (
            torch.from_numpy(inputs),
            torch.from_numpy(weights).reshape(len(inputs), -1, inputs.shape[-1]),
        )
        constraint = constraint_of(
            there.reshape(*self.layer.choice.shape, *self.grid), self.layer, self.structures
        )
        none = torch.zeros(there.shape[:2], dtype=torch.float64)
        moments = Moments(gram, there @ gram, torch.zeros_like(gram[:, 0]), none, none, 1 << 62, same=False)
        try:
            found = resolve(there, constraint, moments, NEAR).weights
        except UnsolvableError:
            found = constraint.place(there)
        return np.asarray(found.reshape(weights.shape))

    def offers(self, weights: Array) -> tuple[Offers, Beside]:
        """Return an offer a structure, or a kernel where integers stand beside the name."""
        kernels = torch.from_numpy(weights).reshape(-1, *self.grid)
        choice, names = self.layer.choice.reshape(-1), self.names
        which, sides, labels = np.zeros(len(choice), np.int64), list[Ints](), list[int]()
        for index in np.unique(choice):
            mask = choice == index
            shapes = self.layer.shapes(mask.reshape(self.layer.choice.shape))
            if side_of(names[index], self.grid).count:
                numbers = side_numbers(names[index], kernels[torch.from_numpy(mask)], shapes)
            else:
                numbers = np.zeros((1, 0), np.int64)
            which[mask] = len(sides) + (np.arange(mask.sum()) if numbers.shape[1] else 0)
            sides += list(numbers)
            labels += [int(index)] * len(numbers)
        named = [names[index] for index in labels]
        sides, drawings = _shared(named, sides, self.grid)
        bases, dims = _bases(list(zip(named, sides, strict=True)), self.grid, None, drawings)
        bits = {name: side_of(name, self.grid, drawings).bits for name in set(named)}
        beside = np.array([len(side) * bits[name] for name, side in zip(named, sides, strict=True)], float)
        padded = np.zeros((len(sides), max(map(len, sides))), np.int64)
        for row, side in zip(padded, sides, strict=True):
            row[: len(side)] = side
        by_kernel = which.reshape(*self.layer.choice.shape, 1)
        offers = Offers(bases, dims, np.array(labels), beside, by_kernel, len(names))
        return offers, Beside(padded, drawings)

    def coded(self, rounded: RoundedKernels, beside: Beside, step: np.float32) -> CodedKernels:
        """Return the kernels with a menu of the structures that the plan uses here."""
        names = np.array(self.names, object)[self.layer.choice]
        return _coded(self.grid, names, (rounded, beside, step))


def _shared(names: list[str], sides: list[Ints], grid: tuple[int, ...]) -> tuple[list[Ints], Drawings | None]:
    """Return what stands beside each name, drawings by number where that takes fewer bits, and these."""
    drawn = [place for place, name in enumerate(names) if side_of(name, grid).bits == DRAWN_BITS]
    if not drawn:
        return sides, None
    drawings, numbers = gather_drawings(np.stack([sides[place] for place in drawn]), grid)
    each = DRAWN_BITS * drawings.cells.shape[1]
    if len(drawings.cells) * each + len(drawn) * drawings.bits >= len(drawn) * each:
        return sides, None
    found = list(sides)
    for place, number in zip(drawn, numbers, strict=True):
        found[place] = np.array([number])
    return found, drawings


TURN_COST = 20
"""Bits that one number of a table takes in a header, deflated."""

PART_CHOICES = (
    "111111",
    "000000",
    "100000",
    "101000",
    "100100",
    "101100",
    "111100",
    "000010",
    "000001",
    "000011",
    "100010",
    "100001",
)
"""The parts that a kernel may be made of: all, none, even ones, odd ones, one of these with the first."""


@dataclass(frozen=True, eq=False)
class PartsMenu(KernelMenu):
    """Each kernel is made of some parts of a table; `choices` are digits a part, what pays is taken."""

    table: Table
    side: int
    toll: float = 0.0
    choices: tuple[str, ...] = PART_CHOICES
    optional = True

    @property
    def grid(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.side, self.side)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(PARTS + digits for digits in self.choices)

    def offers(self, weights: Array) -> tuple[Offers, Beside]:
        """Return an offer a choice of parts, each to every kernel."""
        bases, dims = _bases([(name, ()) for name in self.names], self.grid, self.table)
        kernels, count = weights.shape[1] // len(bases[0]), len(self.names)
        which = np.broadcast_to(np.arange(count), (len(weights), kernels, count))
        offers = Offers(bases, dims, np.arange(count), np.zeros(count), which, count)
        return offers, Beside(np.zeros((count, 0), np.int64))

    def coded(self, rounded: RoundedKernels, beside: Beside, step: np.float32) -> CodedKernels:
        """Return the kernels with a menu of the parts that they took."""
        names = np.array(self.names, object)[rounded.picked]
        return _coded(self.grid, names, (rounded, beside, step), self.table)


def _bases(
    named: Sequence[tuple[str, Sequence[int] | Ints]],
    grid: tuple[int, ...],
    table: Table | None = None,
    drawings: Drawings | None = None,
) -> tuple[Array, Ints]:
    """Return the columns of each structure with its integers, of length about one, and how many there are."""
    found = [basis_of(name, grid, list(side), table, drawings) for name, side in named]
    bases = np.zeros((len(found), len(found[0]), len(found[0])))
    for place, basis in enumerate(found):
        bases[place, :, : basis.shape[1]] = basis / ONE
    return bases, np.array([basis.shape[1] for basis in found])


def _coded(
    grid: tuple[int, ...],
    names: NDArray[np.object_],
    made: tuple[RoundedKernels, Beside, np.float32],
    table: Table | None = None,
) -> CodedKernels:
    rounded, beside, step = made
    menu = tuple(str(name) for name, _ in Counter(names.reshape(-1).tolist()).most_common())
    places = {name: place for place, name in enumerate(menu)}
    choice = np.array([places[name] for name in names.reshape(-1)]).reshape(names.shape)
    width = max(side_of(name, grid, beside.drawings).count for name in menu)
    side = beside.side[rounded.picked][:, :, :width]
    return CodedKernels(grid, menu, choice, rounded.values, side, step, table, rounded.bits, beside.drawings)


def planned_menus(layers: tuple[LayerPlan, ...], structures: tuple[str, ...]) -> dict[str, PlannedMenu]:
    """Return the menu of each layer in which a plan gives a kernel a structure."""
    keeps = np.array([name != FREE and not name.startswith(DENOISED) for name in structures])
    return {layer.name: PlannedMenu(layer, structures) for layer in layers if keeps[layer.choice].any()}


def parts_menus(model: nn.Module) -> dict[str, PartsMenu]:
    """Return the menu of each depthwise layer of square kernels: parts of one table for all of a size."""
    sizes: dict[int, list[str]] = {}
    layers = {name: items[0] for name, items in layer_modules(model).items()}
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            height, width = layer.kernel_size
            if height == width and 1 < height <= MOST_SIDE and bool(layer.weight.isfinite().all()):
                sizes.setdefault(height, []).append(name)
    found: dict[str, PartsMenu] = {}
    for side, names in sizes.items():
        kernels = torch.cat([matrix_of(layers[name]).reshape(-1, side, side) for name in names])
        table = table_of(kernels)
        toll = TURN_COST * len(table.turns) / len(names)
        found |= {name: PartsMenu(table, side, toll) for name in names}
    return found
