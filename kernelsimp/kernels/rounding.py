"""Round a layer's weights to integers times one step, at the least loss and length of code together.

The loss is tr(G E H E') / 2, E the error of the weights, H the second moment of the layer's inputs and G that
of the loss's gradient at its outputs. Both are U D U' with U unit upper triangular, so the loss is a sum of
squares in which each integer comes after those above and left of it: what was rounded before is answered for
by what comes later (the greedy form is that of Frantar et al., GPTQ, arXiv 2210.17323). A column at a time,
the `breadth` best partial columns are kept, with the adaptive code of `integer_coding` as their length.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelsimp.errors import KernelsimpError, how_to_install
from kernelsimp.kernels.compiled import AVAILABLE, compiled, compiled_freely
from kernelsimp.kernels.integer_coding import (
    BINS,
    CONTEXTS,
    GAMMA,
    UNARY,
    UNIT,
    context,
    learn,
    moved,
)
from kernelsimp.kernels.range_coder import Integers

Array = NDArray[np.float64]

NO_COMPILER = f"--to coded searches in compiled loops and numba is not here; {how_to_install('coding')}"

BREADTH = 16
COARSE = 1.3
"""How much longer a step is than that of a fine quantiser at the same price of a bit."""


@dataclass(frozen=True, eq=False)
class Metric:
    """What errors cost: `inputs` (groups, D, D) and `outputs` (groups, rows, rows), each damped.

    Rows are the filters of one group.
    """

    inputs: Array
    outputs: Array

    def loss(self, errors: Array) -> float:
        """Return tr(G E H E') / 2 of errors (groups * rows, D), summed over groups."""
        split = errors.reshape(len(self.inputs), -1, errors.shape[1])
        return 0.5 * float(np.sum((self.outputs @ split @ self.inputs) * split))

    def factors(self) -> "Factors":
        """Return both matrices as U D U'. Raises `np.linalg.LinAlgError` where one is not positive."""
        return Factors(*unit_upper(self.inputs), *unit_upper(self.outputs))


@dataclass(frozen=True, eq=False)
class Factors:
    """Unit upper triangular matrices, transposed, and pivots: of the inputs, and of the outputs."""

    columns: Array
    column_pivots: Array
    rows: Array
    row_pivots: Array

    @property
    def pivot(self) -> float:
        """The mean weight of a squared error, once all that comes later answers for it."""
        return float(np.mean(self.column_pivots.mean(1) * self.row_pivots.mean(1)))


def unit_upper(matrices: Array) -> tuple[Array, Array]:
    """Return U', lower triangular with a unit diagonal, and D, of matrices U D U'.

    >>> import numpy as np
    >>> lower, pivots = unit_upper(np.array([[[2.0, 1.0], [1.0, 2.0]]]))
    >>> (lower[0].T * pivots[0] @ lower[0]).round(12).tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    """
    root = np.linalg.cholesky(matrices[:, ::-1, ::-1])[:, ::-1, ::-1]
    diagonal = np.diagonal(root, axis1=1, axis2=2)
    return np.ascontiguousarray((root / diagonal[:, None, :]).transpose(0, 2, 1)), diagonal**2


def step_for(price: float, pivot: float, coarse: float = COARSE) -> float:
    """Return the step at which a bit is worth `price`: Delta^2 = coarse^2 * 12 price / (ln 2 * pivot)."""
    return coarse * math.sqrt(12 * price / (math.log(2) * pivot))


@dataclass(frozen=True)
class Rate:
    """What to spend: `price` of a bit in units of the loss, the `step`, and how many columns to keep."""

    price: float
    step: float
    breadth: int = BREADTH


def round_matrix(
    target: Array, factors: Factors, rate: Rate, memory: Integers
) -> tuple[NDArray[np.int64], float]:
    """Return integers (rows, D) whose multiples of the step replace `target`, and their length in bits.

    `memory` holds the coder's chances and learns as the coder will.

    >>> import numpy as np
    >>> from kernelsimp.kernels.integer_coding import new_memory
    >>> metric = Metric(np.eye(2)[None], np.eye(1)[None])
    >>> round_matrix(np.array([[0.9, -2.2]]), metric.factors(), Rate(0.0, 1.0), new_memory())[0].tolist()
    [[1, -2]]
    """
    if not AVAILABLE:
        raise KernelsimpError(NO_COMPILER)
    found = np.zeros(target.shape, np.int64)
    bits = _search(
        np.ascontiguousarray(target),
        factors.columns,
        factors.column_pivots,
        factors.rows,
        factors.row_pivots,
        np.array([rate.step, rate.price]),
        rate.breadth,
        memory,
        found,
    )
    return found, bits


def round_vector(target: Array, factors: Factors, step: float) -> NDArray[np.int64]:
    """Return integers (rows,) for a vector whose input is always one, with feedback along its rows."""
    groups, rows = factors.row_pivots.shape
    found = np.zeros((groups, rows))
    left, aim = np.zeros((groups, rows)), target.reshape(groups, rows)
    for row in range(rows):
        before = np.einsum("gp,gp->g", factors.rows[:, row, :row], left[:, :row])
        found[:, row] = np.rint((aim[:, row] + before) / step)
        left[:, row] = aim[:, row] - step * found[:, row]
    return found.reshape(-1).astype(np.int64)


@compiled
def lengths(memory: Integers, table: Array) -> None:
    """Fill in the bits of each magnitude in each context, as the chances are now."""
    for place in range(CONTEXTS):
        some = memory[place * BINS] / 65536.0
        table[place, 0] = -math.log2(1.0 - some)
        total = 1.0 - math.log2(some)
        for size in range(1, UNARY):
            more = memory[place * BINS + size] / 65536.0
            table[place, size] = total - math.log2(1.0 - more)
            total -= math.log2(more)
        table[place, UNARY] = total


@compiled
def length_of(table: Array, place: int, size: int) -> float:
    if size < UNARY:
        return table[place, size]  # type: ignore[no-any-return]
    return table[place, UNARY] + 2 * math.log2(size - UNARY + 1.0) + 1.0  # type: ignore[no-any-return]


@compiled
def learn_size(memory: Integers, place: int, size: int) -> None:
    """Let the chances see one magnitude, as the coder does."""
    first = place * BINS
    learn(memory, first, 1 if size else 0)
    for step in range(1, min(size, UNARY - 1) + 1):
        learn(memory, first + step, 1 if size > step else 0)
    if size >= UNARY:
        length = 0
        while (size - UNARY + 1) >> (length + 1):
            length += 1
        for step in range(length + 1):
            learn(memory, GAMMA + step, 1 if step < length else 0)


@compiled_freely
def _aims(target: Array, errors: Array, lower: Array, column: int, aims: Array) -> None:
    """Set `aims` to a column of weights with the errors of all columns before it fed back."""
    rows = len(target) // len(lower)
    for row in range(len(target)):
        fed = 0.0
        for before in range(column):
            fed += errors[row, before] * lower[row // rows, column, before]
        aims[row] = target[row, column] + fed


@compiled_freely
def _fed_back(lower: Array, errors: Array, row: int) -> float:
    """Return what the errors of the rows above in the same group ask of this one."""
    total, rows = 0.0, len(lower[0])
    group, first = row // rows, row - row % rows
    for before in range(row - first):
        total += lower[group, row - first, before] * errors[first + before]
    return total


@compiled
def _insert(costs: Array, picks: Integers, count: int, cost: float, pick: tuple[int, int]) -> int:
    """Put a candidate in its place among the cheapest, if it is one of them; return how many there are."""
    if count == len(costs):
        if cost >= costs[count - 1]:
            return count
        place = count - 1
    else:
        place = count
        count += 1
    while place > 0 and costs[place - 1] > cost:
        costs[place] = costs[place - 1]
        picks[place, 0], picks[place, 1] = picks[place - 1, 0], picks[place - 1, 1]
        place -= 1
    costs[place] = cost
    picks[place, 0], picks[place, 1] = pick
    return count


@compiled_freely
def _best_column(
    aims: Array,
    weights: Array,
    lower: Array,
    rate: Array,
    table: Array,
    means: Integers,
    before: Integers,
    breadth: int,
) -> Integers:
    """Return the integers of one column: the best of the partial columns kept along the rows."""
    rows = len(aims)
    values: Any = np.zeros((2, breadth, rows), np.int64)
    errors = np.zeros((2, breadth, rows))
    costs: Any = np.zeros((2, breadth))
    mean: Any = np.zeros((2, breadth), np.int64)
    cheapest, picks = np.zeros(breadth), np.zeros((breadth, 2), np.int64)
    mean[0, 0] = means[rows]
    kept, now, step, price = 1, 0, rate[0], rate[1]
    for row in range(rows):
        count = 0
        for path in range(kept):
            aim = aims[row] + _fed_back(lower, errors[now, path], row)
            up = abs(values[now, path, row - 1]) if row else 0
            place = context(means[row], mean[now, path], abs(before[row]), up)
            floor: Any = np.int64(math.floor(aim / step))
            for choice in range(3):
                value = floor + choice if choice < 2 else 0
                if choice == 2 and (floor == 0 or floor == -1):
                    break
                error = aim - step * value
                cost = costs[now, path] + weights[row] * error * error
                cost += price * length_of(table, place, abs(value))
                count = _insert(cheapest, picks, count, cost, (value, path))
        after = 1 - now
        first = row - row % len(lower[0])
        for path in range(count):
            value, source = picks[path, 0], picks[path, 1]
            values[after, path, :row] = values[now, source, :row]
            errors[after, path, first:row] = errors[now, source, first:row]
            values[after, path, row] = value
            errors[after, path, row] = aims[row] - step * value
            costs[after, path] = cheapest[path]
            mean[after, path] = moved(mean[now, source], abs(value))
        kept, now = count, after
    return values[now, 0].copy()


@compiled
def _search(
    target: Array,
    columns: Array,
    column_pivots: Array,
    rows: Array,
    row_pivots: Array,
    rate: Array,
    breadth: int,
    memory: Integers,
    found: Integers,
) -> float:
    """Fill in `found`, column after column; return the bits."""
    height, width = target.shape
    errors, aims, weights = np.zeros((height, width)), np.zeros(height), np.zeros(height)
    table = np.zeros((CONTEXTS, UNARY + 1))
    means: Any = np.full(height + 1, UNIT)
    before: Any = np.zeros(height, np.int64)
    flat, size, bits = row_pivots.reshape(-1), height // len(columns), 0.0
    for column in range(width):
        lengths(memory, table)
        _aims(target, errors, columns, column, aims)
        for row in range(height):
            weights[row] = 0.5 * flat[row] * column_pivots[row // size, column]
        best = _best_column(aims, weights, rows, rate, table, means, before, breadth)
        for row in range(height):
            up = abs(best[row - 1]) if row else 0
            place = context(means[row], means[height], abs(before[row]), up)
            magnitude = abs(best[row])
            bits += length_of(table, place, magnitude)
            learn_size(memory, place, magnitude)
            means[row] = moved(means[row], magnitude)
            means[height] = moved(means[height], magnitude)
            found[row, column] = best[row]
            errors[row, column] = target[row, column] - rate[0] * best[row]
        before = best
    return bits
