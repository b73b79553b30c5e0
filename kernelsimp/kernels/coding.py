"""Bits a kernel: what a layer costs when written down, all codings at one and the same distortion.

Distortion is the relative squared error ||w - v||^2 / ||w||^2 over the layer, 1 % unless told. Every figure
carries its own side information: a 32-bit step, the alphabet, and adaptive counts, which are charged by the
Krichevsky-Trofimov estimate and so pay for learning the distribution. Only `order-0` pays nothing for its
model; it is a lower bound and says so by standing apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.cells import grid_of, rows_of
from kernelsimp.kernels.subspace import Subspace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DISTORTION = 0.01
STEP_BITS = 32
HALVINGS = 16
PASSES = 2
"""How often the symbol model and the choices that it prices are brought into line."""

MOST_LEVELS = 256


@dataclass(frozen=True, eq=False)
class Coding:
    """One way to write a layer: mean bits a kernel, the distortion reached, the quantiser's step.

    `each` (n,) are the bits of each kernel, side information spread evenly; `choice` (n,) is the structure of
    each kernel where the coding has one: -2 zero, -1 free, else an index into the subspaces; `written`
    (n, cells) is then what a decoder would read back.
    """

    name: str
    bits: float
    distortion: float
    step: float = 0.0
    each: Floats | None = None
    choice: Ints | None = None
    written: Floats | None = None


def code_layer(
    kernels: Tensor, subspaces: Sequence[Subspace] = (), distortion: float = DISTORTION
) -> dict[str, Coding]:
    """Return every coding of kernels (n, kh, kw) at the same distortion, by name.

    `structure`, `order-0` and `distinct-values` are the three codings of a kernel's structure; `fp32`,
    `uniform`, `dct` and `codebook` the yardsticks. Raises `KernelsimpError` for an empty bank, kernels that
    are not finite, or a distortion outside 0..1.
    """
    flat = _rows(kernels, distortion)
    plain = step_for(kernels, distortion)
    cosines = fft.dctn(flat.reshape(-1, *grid_of(kernels)), axes=(1, 2), norm="ortho").reshape(flat.shape)
    found = (
        structure(kernels, subspaces, distortion),
        _order_zero(flat, plain),
        _distinct(flat, plain),
        Coding("fp32", 32.0 * flat.shape[1], 0.0),
        _transform("uniform", flat, distortion),
        _transform("dct", np.asarray(cosines), distortion),
        _codebook(flat, distortion),
    )
    return {coding.name: coding for coding in found}


def step_for(kernels: Tensor, distortion: float = DISTORTION) -> float:
    """Return the step of a plain uniform quantiser that reaches `distortion` on this layer."""
    flat = _rows(kernels, distortion)
    around = _bracket(flat, distortion)
    return _search(lambda step: _share(flat, np.round(flat / step) * step), distortion, around)


def coefficient_bits(kernels: Tensor, distortion: float = DISTORTION) -> float:
    """Return b, the bits of one coefficient at the step that gives `distortion` on this layer.

    `kernels` are (n, *grid) of any number of axes: what neighbours a cell has does not count.
    """
    lines = kernels.reshape(len(kernels), 1, -1)
    flat = _rows(lines, distortion)
    return adaptive_bits(np.round(flat / step_for(lines, distortion)).astype(np.int64)) / flat.size


def adaptive_bits(symbols: Ints) -> float:
    """Return the bits of an adaptive arithmetic code of whole numbers, its alphabet included.

    Krichevsky-Trofimov: every symbol between the least and the greatest starts with half a count; the
    length, log2 of Gamma(N + A/2) / Gamma(A/2) less the same for each count, is that of coding them one by
    one while learning. The ends of the alphabet go in Elias gamma codes.
    """
    if symbols.size == 0:
        return 0.0
    low, high = int(symbols.min()), int(symbols.max())
    counts = np.bincount((symbols - low).reshape(-1))
    half, size = 0.5, len(counts)
    length = special.gammaln(symbols.size + size * half) - special.gammaln(size * half)
    length -= float(np.sum(special.gammaln(counts + half) - special.gammaln(half)))
    return float(length / math.log(2)) + _gamma_bits(low) + _gamma_bits(high - low)


def entropy_bits(symbols: Ints) -> float:
    """Return N times the order-0 entropy: what a model known beforehand, for nothing, would take."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(np.sum(counts * np.log2(symbols.size / counts)))


def structure(kernels: Tensor, subspaces: Sequence[Subspace] = (), distortion: float = DISTORTION) -> Coding:
    """Return the code that names a structure for each kernel and quantises what the structure leaves.

    Each kernel takes what minimises error + lambda * bits, lambda = step^2 ln 2 / 6, among zero, free (its
    cells, or their cosine transform) and the subspaces; coefficients in orthonormal bases share one adaptive
    model, choices another.
    """
    flat = _rows(kernels, distortion)
    cells = np.eye(flat.shape[1]).reshape(-1, *grid_of(kernels))
    cosines = np.asarray(fft.dctn(cells, axes=(1, 2), norm="ortho")).reshape(flat.shape[1], -1)
    coder = _StructureCoder(flat, (cosines, *(space.basis for space in subspaces)))
    plain = step_for(kernels, distortion)
    return coder.run(_search(lambda step: coder.run(step).distortion, distortion, (plain / 4, 2 * plain), 10))


def _rows(kernels: Tensor, distortion: float) -> Floats:
    flat, broken = rows_of(kernels)
    if len(flat) == 0 or bool(broken.any()):
        found = f"{int(broken.sum())} kernels that are not finite" if len(flat) else "no kernels"
        raise KernelsimpError(f"coding: {found}; expected finite kernels, drop the others first")
    if not 0 < distortion < 1:
        raise KernelsimpError(f"coding: distortion {distortion}; expected a number between 0 and 1")
    return np.asarray(flat.numpy())


def _share(flat: Floats, written: Floats) -> float:
    whole = float(np.square(flat).sum())
    return float(np.square(flat - written).sum()) / whole if whole else 0.0


def _bracket(flat: Floats, target: float) -> tuple[float, float]:
    """Return a step that is surely fine enough and one that is surely too coarse."""
    level = float(np.sqrt(np.mean(np.square(flat)))) or 1.0
    return level * math.sqrt(target) / 8, level * 8


def _search(
    distorted: Callable[[float], float],
    target: float,
    around: tuple[float, float],
    halvings: int = HALVINGS,
) -> float:
    """Return the largest step found whose distortion is at most `target`, by bisection of its logarithm."""
    low, high = (math.log(step) for step in around)
    for _ in range(halvings):
        middle = (low + high) / 2
        if distorted(math.exp(middle)) <= target:
            low = middle
        else:
            high = middle
    return math.exp(low)


def _gamma_bits(number: int) -> int:
    """Bits of a whole number in Elias gamma code; negative ones take the odd places."""
    folded = 2 * number + 1 if number >= 0 else -2 * number
    return 2 * (folded.bit_length() - 1) + 1


@dataclass(frozen=True, eq=False)
class _Prices:
    """Bits of each symbol under the present counts; symbols beyond the table cost as the dearest."""

    low: int
    bits: Floats

    def __call__(self, symbols: Ints) -> Floats:
        places = np.clip(symbols - self.low + 1, 0, len(self.bits) - 1)
        return np.asarray(self.bits[places], dtype=np.float64)


def _prices(symbols: Ints) -> _Prices:
    if symbols.size == 0:
        return _Prices(0, np.zeros(1))
    low = int(symbols.min())
    counts = np.bincount((symbols - low).reshape(-1)) + 0.5
    bits = np.log2(counts.sum() / counts)
    dearest = float(np.log2(counts.sum() / 0.5))
    return _Prices(low, np.concatenate([[dearest], bits, [dearest]]))


def _quantise(values: Floats, step: float, prices: _Prices | None) -> Ints:
    """Round to steps; with prices, take one step towards zero wherever that lowers error + lambda * bits."""
    nearest = np.round(values / step).astype(np.int64)
    if prices is None:
        return nearest
    lower = nearest - np.sign(nearest)
    weight = math.log(2) / 6
    cost = np.square(values / step - nearest) + weight * prices(nearest)
    other = np.square(values / step - lower) + weight * prices(lower)
    return np.where(other < cost, lower, nearest)


def _steps(symbols: Ints, step: float) -> Floats:
    return np.asarray(symbols * step, dtype=np.float64)


def _spread_bits(each: Floats, total: float) -> Floats:
    """Shift bits so that they add up to `total`."""
    return np.asarray(each + (total - each.sum()) / len(each))


def _transform(name: str, values: Floats, distortion: float) -> Coding:
    """Return the code of orthonormal coefficients (n, m) one by one, with rate-distortion rounding."""

    def written(step: float) -> Ints:
        symbols = _quantise(values, step, None)
        for _ in range(PASSES):
            symbols = _quantise(values, step, _prices(symbols))
        return symbols

    around = _bracket(values, distortion)
    step = _search(lambda step: _share(values, _steps(written(step), step)), distortion, around)
    symbols = written(step)
    total = min(_together(symbols), _by_column(symbols)) + STEP_BITS + 1
    each = _spread_bits(_prices(symbols)(symbols).sum(axis=1), total)
    return Coding(name, total / len(values), _share(values, _steps(symbols, step)), step, each)


def _together(symbols: Ints) -> float:
    return adaptive_bits(symbols)


def _by_column(symbols: Ints) -> float:
    """One model a coefficient's place: dearer to learn, cheaper where places differ (a DCT)."""
    return sum(adaptive_bits(column) for column in symbols.T)


def _order_zero(flat: Floats, step: float) -> Coding:
    symbols = _quantise(flat, step, None)
    return Coding("order-0", entropy_bits(symbols) / len(flat), _share(flat, _steps(symbols, step)), step)


def _distinct(flat: Floats, step: float) -> Coding:
    """u * b + cells * log2 u bits for a quantised kernel of u distinct values, and log2(cells) for u."""
    symbols = _quantise(flat, step, None)
    ordered = np.sort(symbols, axis=1)
    values = (np.diff(ordered, axis=1) != 0).sum(axis=1) + 1
    cells = flat.shape[1]
    b = adaptive_bits(symbols) / symbols.size
    each = values * b + cells * np.log2(values) + math.log2(cells)
    total = float(each.sum()) + STEP_BITS
    distortion = _share(flat, _steps(symbols, step))
    return Coding("distinct-values", total / len(flat), distortion, step, _spread_bits(each, total))


def _codebook(flat: Floats, distortion: float) -> Coding:
    """Return the code by the fewest k-means levels of all cells that reach the distortion.

    Levels cost 32 bits each, indices an adaptive code. A layer that 256 levels cannot reach takes 256.
    """
    ordered = np.sort(flat.reshape(-1))
    low, high = 1, MOST_LEVELS
    while low < high:
        middle = (low + high) // 2
        levels = _lloyd(ordered, middle)
        if _share(flat, levels[_nearest(flat, levels)]) <= distortion:
            high = middle
        else:
            low = middle + 1
    levels = _lloyd(ordered, high)
    indices = _nearest(flat, levels)
    total = adaptive_bits(indices) + 32 * len(levels) + 8
    each = _spread_bits(_prices(indices)(indices).sum(axis=1), total)
    return Coding("codebook", total / len(flat), _share(flat, levels[indices]), 0.0, each)


def _lloyd(ordered: Floats, levels: int) -> Floats:
    """Return k-means levels of sorted values, from evenly spaced starts, by 60 rounds on prefix sums."""
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], 2 * levels + 1)[1::2]
    for _ in range(60):
        cuts = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate([[0], cuts, [len(ordered)]])
        sizes = np.diff(ends)
        mean = np.diff(sums[ends]) / np.maximum(sizes, 1)
        centres = np.where(sizes > 0, mean, centres)
    return centres


def _nearest(values: Floats, centres: Floats) -> Ints:
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, values).astype(np.int64)


class _StructureCoder:
    """Chooses structures for one layer at any step; 0 is zero, 1 and 2 free, from 3 on the subspaces."""

    def __init__(self, flat: Floats, bases: Sequence[Floats]) -> None:
        cells = flat.shape[1]
        self.flat = flat
        self.energy = np.square(flat).sum(axis=1)
        self.bases = [np.zeros((cells, 0)), np.eye(cells), *bases]
        self.scores = [flat @ basis for basis in self.bases]

    def run(self, step: float) -> Coding:
        """Return the code at `step`: price symbols and choices, choose, count again, then charge."""
        prices = _prices(_quantise(self.flat, step, None))
        choice_bits = np.full(len(self.bases), math.log2(len(self.bases)))
        for _ in range(PASSES):
            choice = self._choose(step, prices, choice_bits)
            symbols = self._symbols(step, prices, choice)
            prices = _prices(np.concatenate([part.reshape(-1) for part in symbols]))
            counts = np.bincount(choice, minlength=len(self.bases)) + 0.5
            choice_bits = np.log2(counts.sum() / counts)
        return self._charge(step, prices, choice)

    def _choose(self, step: float, prices: _Prices, choice_bits: Floats) -> Ints:
        best, choice = np.full(len(self.flat), np.inf), np.zeros(len(self.flat), dtype=np.int64)
        for index, scores in enumerate(self.scores):
            symbols = _quantise(scores, step, prices)
            error = self._error(index, _steps(symbols, step))
            bits = prices(symbols).sum(axis=1) + choice_bits[index]
            cost = error + step**2 * math.log(2) / 6 * bits
            choice = np.where(cost < best, index, choice)
            best = np.minimum(best, cost)
        return choice

    def _error(self, index: int, written: Floats) -> Floats:
        """The squared error of each kernel: what the basis leaves out, and what rounding adds."""
        scores = self.scores[index]
        outside = np.maximum(self.energy - np.square(scores).sum(axis=1), 0)
        return np.asarray(outside + np.square(scores - written).sum(axis=1))

    def _symbols(self, step: float, prices: _Prices, choice: Ints) -> list[Ints]:
        return [_quantise(z[choice == i], step, prices) for i, z in enumerate(self.scores)]

    def _charge(self, step: float, prices: _Prices, choice: Ints) -> Coding:
        symbols = self._symbols(step, prices, choice)
        every = np.concatenate([part.reshape(-1) for part in symbols])
        alphabet = len(self.bases)
        counts = np.bincount(choice, minlength=alphabet)
        learned = special.gammaln(len(choice) + alphabet / 2) - special.gammaln(alphabet / 2)
        learned -= np.sum(special.gammaln(counts + 0.5) - special.gammaln(0.5))
        total = adaptive_bits(every) + float(learned) / math.log(2) + STEP_BITS
        final, each, written = _prices(every), np.zeros(len(choice)), np.zeros_like(self.flat)
        share = np.log2((len(choice) + alphabet / 2) / (counts + 0.5))
        for index, part in enumerate(symbols):
            rows = choice == index
            each[rows] = final(part).sum(axis=1) + share[index]
            written[rows] = _steps(part, step) @ self.bases[index].T
        bits, distortion = total / len(choice), _share(self.flat, written)
        return Coding(
            "structure", bits, distortion, step, _spread_bits(each, total), _public(choice), written
        )


def _public(choice: Ints) -> Ints:
    """Number the coder's choices as `Coding.choice` does: both ways of being free are -1."""
    return np.where(choice == 0, -2, np.maximum(choice - 3, -1))
