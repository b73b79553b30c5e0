"""Round the kernels of a layer to whole numbers of the bases of their structures, with feedback.

As `rounding`, but a kernel at a time: within the metric of its cells, which the kernels before it have been
answered for, its coefficients are found one by one, and the `breadth` best are kept. Where a kernel may take
one of several structures, each is tried, with what naming it costs. What no structure can follow is answered
for by the kernels that come later.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.compiled import AVAILABLE, compiled, compiled_freely
from kernelsimp.kernels.integer_coding import CONTEXTS, UNARY, UNIT, context, moved
from kernelsimp.kernels.kernel_coding import slot_mean
from kernelsimp.kernels.range_coder import Integers
from kernelsimp.kernels.rounding import NO_COMPILER, Array, Factors, Rate, learn_size, length_of, lengths

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Offers:
    """The structures that the kernels of a layer may take, F of them.

    `bases` (F, cells, cells) have columns of length one, as many as `dims` (F,) says; zeros follow. `names`
    (F,) is the place of each in a menu of `menu` names, `beside` (F,) the bits that stand beside the name.
    `which` (outputs, inputs / groups, n) says which of the F each kernel may take.
    """

    bases: Array
    dims: Ints
    names: Ints
    beside: Array
    which: Ints
    menu: int

    @property
    def cells(self) -> int:
        return int(self.bases.shape[1])


@dataclass(frozen=True, eq=False)
class RoundedKernels:
    """`picked` (outputs, inputs / groups) of what was offered, `values` (..., cells), and their bits."""

    picked: Ints
    values: Ints
    bits: float


def round_kernels(
    target: Array, factors: Factors, offers: Offers, rate: Rate, memory: Integers
) -> RoundedKernels:
    """Return the structure and the coefficients of each kernel of weights `target` (outputs, D).

    `memory` holds the coder's chances and learns as the coder will. Raises `KernelsimpError` without numba.
    """
    if not AVAILABLE:
        raise KernelsimpError(NO_COMPILER)
    search = _Search(target, factors, offers, rate, memory)
    for kernel in range(target.shape[1] // offers.cells):
        for group in range(len(factors.columns)):
            search.block(kernel, group)
    return RoundedKernels(search.picked, search.values, float(search.bits[0]))


class _Search:
    """What a search keeps between blocks: a block is one input's kernels of all filters of a group."""

    def __init__(self, target: Array, factors: Factors, offers: Offers, rate: Rate, memory: Integers) -> None:
        self.target, self.factors, self.offers, self.rate, self.memory = target, factors, offers, rate, memory
        outputs, cells = len(target), offers.cells
        self.errors = np.zeros(target.shape)
        self.picked = np.zeros((outputs, target.shape[1] // cells), np.int64)
        self.values = np.zeros((*self.picked.shape, cells), np.int64)
        self.means = np.full(outputs, UNIT)
        self.slots = np.full(offers.menu * cells, -1)
        self.last = np.zeros(offers.menu * cells, np.int64)
        self.seen = np.full(offers.menu, 0.5)
        self.bits = np.zeros(1)

    def block(self, kernel: int, group: int) -> None:
        """Find one input's kernels of the filters of a group."""
        cells, factors, offers = self.offers.cells, self.factors, self.offers
        count = factors.rows.shape[1]
        rows = slice(group * count, (group + 1) * count)
        first = kernel * cells
        here, lower = slice(first, first + cells), factors.columns[group]
        root = np.sqrt(factors.column_pivots[group, here])
        fed = self.errors[rows, :first] @ lower[here, :first].T
        aims = (self.target[rows, here] @ lower[here, here].T + fed) * root
        used, places = np.unique(offers.which[rows, kernel], return_inverse=True)
        seen = root[:, None] * (lower[here, here] @ offers.bases[used])
        turned, triangles = _lower_factors(seen, offers.dims[used])
        picked, values = np.zeros(count, np.int64), np.zeros((count, cells), np.int64)
        _search_block(
            np.ascontiguousarray(aims),
            0.5 * factors.row_pivots[group],
            np.ascontiguousarray(factors.rows[group]),
            (seen, turned, triangles, offers.dims[used], offers.names[used], offers.beside[used]),
            np.ascontiguousarray(places.reshape(count, -1)),
            np.array([self.rate.step, self.rate.price]),
            self.rate.breadth,
            (self.means[rows], self.slots, self.last, self.seen, self.bits),
            self.memory,
            picked,
            values,
        )
        self.picked[rows, kernel], self.values[rows, kernel] = used[picked], values
        written = self.rate.step * np.einsum("rcd,rd->rc", offers.bases[used[picked]], values)
        self.errors[rows, here] = self.target[rows, here] - written


def _lower_factors(matrices: Array, dims: Ints) -> tuple[Array, Array]:
    """Return Q and lower triangular L, (F, cells, cells), of matrices Q L; zeros stand past `dims`."""
    turned, triangles = np.zeros(matrices.shape), np.zeros(matrices.shape)
    for dim in np.unique(dims):
        if dim:
            some = np.flatnonzero(dims == dim)
            q, r = np.linalg.qr(matrices[some][:, :, :dim][:, :, ::-1])
            turned[some, :, :dim] = q[:, :, ::-1]
            triangles[some, :dim, :dim] = r[:, ::-1, ::-1]
    return turned, triangles


@compiled_freely
def _search_coefficients(
    aims: Array,
    triangle: Array,
    dim: int,
    weight: float,
    rate: Array,
    table: Array,
    slots: Integers,
    last: Integers,
    row_mean: int,
    paths: Any,
) -> float:
    """Leave the best coefficients found in the first of `paths`; return their cost."""
    values, costs, means, cheapest, picks = paths
    breadth, step, price = len(cheapest), rate[0], rate[1]
    kept, now, costs[0, 0], means[0, 0] = 1, 0, 0.0, row_mean
    for item in range(dim):
        pivot, count = triangle[item, item] * step, 0
        for path in range(kept):
            aim = aims[item]
            for before in range(item):
                aim -= step * triangle[item, before] * values[now, path, before]
            place = context(
                means[now, path],
                slot_mean(slots, item, means[now, path]),
                abs(values[now, path, item - 1]) if item else 0,
                last[item],
            )
            wanted = aim / pivot if abs(pivot) > 1e-12 * (1e-30 + abs(aim)) else 0.0
            floor: Any = np.int64(math.floor(wanted))
            for choice in range(3):
                value = floor + choice if choice < 2 else 0
                if choice == 2 and (floor == 0 or floor == -1):
                    break
                left = aim - pivot * value
                cost = costs[now, path] + weight * left * left + price * length_of(table, place, abs(value))
                if count == breadth and cost >= cheapest[count - 1]:
                    continue
                spot = count if count < breadth else breadth - 1
                count = min(count + 1, breadth)
                while spot > 0 and cheapest[spot - 1] > cost:
                    cheapest[spot] = cheapest[spot - 1]
                    picks[spot, 0], picks[spot, 1] = picks[spot - 1, 0], picks[spot - 1, 1]
                    spot -= 1
                cheapest[spot], picks[spot, 0], picks[spot, 1] = cost, value, path
        after = 1 - now
        for path in range(count):
            value, source = picks[path, 0], picks[path, 1]
            values[after, path, :item] = values[now, source, :item]
            values[after, path, item] = value
            costs[after, path] = cheapest[path]
            means[after, path] = moved(means[now, source], abs(value))
        kept, now = count, after
    values[0, 0, :dim] = values[now, 0, :dim]
    return costs[now, 0]  # type: ignore[no-any-return]


@compiled
def _commit(
    values: Integers, dim: int, slots: Integers, last: Integers, mean: int, memory: Integers, table: Array
) -> tuple[int, float]:
    """Let all that the coder keeps see the coefficients of one kernel; return its filter's mean, and bits."""
    before, bits = 0, 0.0
    for item in range(dim):
        size, slot = abs(values[item]), slot_mean(slots, item, mean)
        place = context(mean, slot, before, last[item])
        bits += length_of(table, place, size)
        learn_size(memory, place, size)
        mean, slots[item] = moved(mean, size), moved(slot, size)
        last[item], before = size, size
    return mean, bits


@compiled_freely
def _gather_goal(row: int, aims: Array, lower: Array, left: Array, goal: Array) -> None:
    """Leave in `goal` what a filter is to meet, with the errors of those before it."""
    for cell in range(len(goal)):
        goal[cell] = aims[row, cell]
        for before in range(row):
            goal[cell] += lower[row, before] * left[before, cell]


@compiled_freely
def _project(turned: Array, goal: Array, dim: int, scores: Array) -> float:
    """Leave the scores of `goal` in a structure; return the square of what the structure cannot follow."""
    rest = 0.0
    for cell in range(len(goal)):
        rest += goal[cell] * goal[cell]
    for place in range(dim):
        score = 0.0
        for cell in range(len(goal)):
            score += turned[cell, place] * goal[cell]
        scores[place] = score
        rest -= score * score
    return max(rest, 0.0)


@compiled_freely
def _bits_of_name(counts: Array, name: int, beside: float) -> float:
    """Return what naming a structure takes, by how often it was taken, with what stands beside its name."""
    return beside - (math.log2(counts[name] / counts.sum()) if len(counts) > 1 else 0.0)


@compiled_freely
def _search_block(
    aims: Array,
    weights: Array,
    lower: Array,
    offered: Any,
    which: Integers,
    rate: Array,
    breadth: int,
    state: Any,
    memory: Integers,
    picked: Integers,
    found: Integers,
) -> None:
    """Fill in `picked` and `found`, filter after filter."""
    seen, turned, triangles, dims, names, beside = offered
    means, slots, last, counts, bits = state
    rows, cells = aims.shape
    table, left, goal, scores = (
        np.zeros((CONTEXTS, UNARY + 1)), np.zeros((rows, cells)), np.zeros(cells), np.zeros(cells)
    )  # fmt: skip
    paths = (
        np.zeros((2, breadth, cells), np.int64),
        np.zeros((2, breadth)),
        np.zeros((2, breadth), np.int64),
        np.zeros(breadth),
        np.zeros((breadth, 2), np.int64),
    )
    for row in range(rows):
        lengths(memory, table)
        _gather_goal(row, aims, lower, left, goal)
        best = math.inf
        for option in range(which.shape[1]):
            item = which[row, option]
            dim, first = dims[item], names[item] * cells
            rest = _project(turned[item], goal, dim, scores)
            cost = weights[row] * rest + rate[1] * _bits_of_name(counts, names[item], beside[item])
            near = slice(first, first + cells)
            cost += _search_coefficients(
                scores, triangles[item], dim, weights[row], rate,
                table, slots[near], last[near], means[row], paths,
            )  # fmt: skip
            if cost < best:
                best, picked[row] = cost, item
                found[row, :dim] = paths[0][0, 0, :dim]
                found[row, dim:] = 0
        item = picked[row]
        dim, first = dims[item], names[item] * cells
        bits[0] += _bits_of_name(counts, names[item], beside[item])
        counts[names[item]] += 1
        near = slice(first, first + cells)
        means[row], spent = _commit(found[row], dim, slots[near], last[near], means[row], memory, table)
        bits[0] += spent
        for cell in range(cells):
            left[row, cell] = aims[row, cell]
            for place in range(dim):
                left[row, cell] -= rate[0] * seen[item, cell, place] * found[row, place]
