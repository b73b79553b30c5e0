"""One multiplier for the whole network: each kernel takes the structure of least cost + lambda * bits.

bits = dim * b + v * (side bits + log2(1 / how often the layer chooses it)), b the bits of a coefficient at
one per cent distortion of the original layer, v what the choice weighs. With v = 1 bits are well spent; with
less, degrees of freedom are: structures that are long to name, and keep few numbers, are chosen more often.
Numbers that kernels share (prototypes) are paid in equal parts by those that take them. How many these are,
and the frequencies, follow from the choices, and these from them, so all are iterated, from equal
frequencies: the outcome depends on the multiplier alone. A table is one layer's table of costs (kernels,
structures).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError

HALVINGS = 44
ROUNDS = 15
"""Most rounds of frequencies and choices at one multiplier."""

STILL = 1e-3
"""Frequencies stand still when none moves by more than this."""

LEAST, MOST = -50.0, 30.0
"""The multiplier runs from 2^-50 to 2^30 of the network's cost a bit of taking everything out."""

HALF = 0.5
"""A structure that was never chosen is counted as half a kernel."""


@dataclass(frozen=True, eq=False)
class CostTable:
    """One layer: `costs` (n, structures), `dims`, `side_bits` and `shared` (structures,), `bits` b, `cells`.

    Column 0 is 'free' and costs nothing. `allowed` (n,) says which kernels may be anything else, and
    `choice_weight` what the bits of the choice weigh beside those of coefficients.
    """

    name: str
    costs: Tensor
    dims: Tensor
    side_bits: Tensor
    shared: Tensor
    bits: float
    cells: int
    allowed: Tensor
    choice_weight: float = 1.0

    @property
    def count(self) -> int:
        return int(self.costs.shape[0])

    def dof_left(self, chosen: Tensor) -> int:
        """Return the degrees of freedom of choices (n,), what kernels share counted once."""
        return int(self.dims[chosen].sum() + self.shared[torch.unique(chosen)].sum())


@dataclass(frozen=True, eq=False)
class Choices:
    """The structure of every kernel, (n,) a menu, at one `multiplier`."""

    multiplier: float
    structures: tuple[Tensor, ...]


Reached = Callable[[Sequence[CostTable], Choices], bool]


def dof_share(tables: Sequence[CostTable], choices: Choices) -> float:
    """Return the degrees of freedom left, as a share of all cells."""
    left = sum(table.dof_left(chosen) for table, chosen in zip(tables, choices.structures, strict=True))
    return left / sum(table.count * table.cells for table in tables)


def simplified_share(tables: Sequence[CostTable], choices: Choices) -> float:
    """Return the share of kernels that are not free."""
    changed = sum(int((chosen != 0).sum()) for chosen in choices.structures)
    return changed / sum(table.count for table in tables)


def choose_for_dof(tables: Sequence[CostTable], share: float) -> Choices:
    """Return the choices of the least multiplier that leaves at most `share` of the degrees of freedom.

    Raises `KernelsimpError` where the share is no share or these structures cannot reach it.
    """
    found = choose_near_dof(tables, share)
    if dof_share(tables, found) > share:
        left = dof_share(tables, found)
        raise KernelsimpError(f"--dof {share:g} is out of reach: these structures leave {left:.3f} at least")
    return found


def choose_near_dof(tables: Sequence[CostTable], share: float) -> Choices:
    """Return the same, or where these structures cannot reach the share what they leave at least."""
    check_share("--dof", share)
    return _least(tables, lambda tables, choices: dof_share(tables, choices) <= share)


def choose_for_count(tables: Sequence[CostTable], share: float) -> Choices:
    """Return the choices of the least multiplier that simplifies at least `share` of the kernels.

    Every kernel is described as shortly as that one price of a bit allows, those that the share did not need
    to be so simple too. Raises `KernelsimpError` as `choose_for_dof` does.
    """
    check_share("--simplified", share)
    found = _least(tables, lambda tables, choices: simplified_share(tables, choices) >= share)
    if simplified_share(tables, found) < share:
        most = simplified_share(tables, found)
        raise KernelsimpError(f"--simplified {share:g} is out of reach: at most {most:.3f} can be")
    return found


def choices_at(tables: Sequence[CostTable], multiplier: float) -> Choices:
    """Return the choices at one multiplier."""
    return Choices(multiplier, tuple(_settle(table, multiplier) for table in tables))


def choice_bits(tables: Sequence[CostTable], choices: Choices) -> float:
    """Return the bits that name all choices: n times their entropy in each layer, and side bits."""
    total = 0.0
    for table, chosen in zip(tables, choices.structures, strict=True):
        counts = torch.bincount(chosen, minlength=len(table.dims)).double()
        used = counts[counts > 0]
        total += float((used * (table.count / used).log2()).sum() + (counts * table.side_bits).sum())
    return total


def coefficient_bits(tables: Sequence[CostTable]) -> float:
    """Return b, averaged over all cells of the network."""
    cells = [table.count * table.cells for table in tables]
    return sum(n * table.bits for n, table in zip(cells, tables, strict=True)) / sum(cells)


def _least(tables: Sequence[CostTable], reached: Reached) -> Choices:
    """Return the choices of the least multiplier that has `reached`, by bisection of its logarithm."""
    unit = _unit(tables)
    low, high = LEAST, MOST
    best = choices_at(tables, unit * 2**high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        here = choices_at(tables, unit * 2**middle)
        if reached(tables, here):
            high, best = middle, here
        else:
            low = middle
    return best


def _unit(tables: Sequence[CostTable]) -> float:
    """Return the cost a bit of giving every kernel its smallest structure."""
    cost = sum(float(table.costs[:, int(table.dims.argmin())].double().sum()) for table in tables)
    bits = sum(table.count * table.cells * table.bits for table in tables)
    return cost / bits if cost > 0 and bits > 0 else 1.0


def _settle(table: CostTable, multiplier: float) -> Tensor:
    """Iterate choices and their frequencies until these stand still, or for the most rounds."""
    chosen = torch.zeros(table.count, dtype=torch.int64)
    share = torch.full((len(table.dims),), 1 / len(table.dims))
    sharers = torch.full_like(share, table.count)
    for _ in range(ROUNDS):
        bits = (table.dims + table.shared / sharers) * table.bits + table.choice_weight * (
            table.side_bits - share.log2()
        )
        price = table.costs + (multiplier * bits).to(table.costs.dtype)
        chosen = torch.where(table.allowed, price.argmin(1), 0)
        counts = torch.bincount(chosen, minlength=len(table.dims)).float() + HALF
        fresh = counts / counts.sum()
        moved = float((fresh - share).abs().max())
        share, sharers = fresh, counts
        if moved < STILL:
            break
    return chosen


def check_share(option: str, value: float) -> None:
    """Raise `KernelsimpError` unless `value` is from 0 to 1."""
    if not 0 <= value <= 1:
        raise KernelsimpError(f"{option} is {value:g}; expected a number from 0 to 1")
