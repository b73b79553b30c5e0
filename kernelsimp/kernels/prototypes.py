"""Prototypes: how few kernels, turned, mirrored, scaled and shifted, stand for a whole layer.

A kernel is covered by a prototype x through its best a * (x moved) + b. Prototypes have zero mean and unit
norm; since b is free, each kernel's mean counts as covered. Shares are of the layer's energy, so that small
kernels weigh little; the search is seeded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.cells import Grid, chunks, grid_of, rows_of
from kernelsimp.kernels.orbits import moves

SAMPLE = 8192
"""Prototypes are learnt from at most this many kernels, a seeded sample; all are then assigned."""

SAMPLE_MARGIN = 0.002
"""A sample is covered a little better than the rest: it is asked for this much more."""

CHUNK = 8192
ROUNDS = 12

_ALL = 1 - 1e-9
"""The coverage that a search never reaches, so that it uses as many prototypes as it may."""


@dataclass(frozen=True)
class PrototypeSettings:
    """`coverage` is the share of energy to reach, `limit` the most prototypes, `seed` the search's."""

    coverage: float = 0.95
    limit: int = 256
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Prototypes:
    """What covers a layer: `centres` (k, kh, kw) and for each of n kernels w ~ a * centre moved + b.

    `index` (n,) names the centre, `move` (n,) the entry of `orbits.moves(grid)`; `coverage` is the share of
    energy covered, `offsets` the share that the means b alone cover, and `reached` says whether the coverage
    asked for was met within the limit.
    """

    centres: Tensor
    index: Tensor
    move: Tensor
    a: Tensor
    b: Tensor
    coverage: float
    offsets: float
    reached: bool

    @property
    def count(self) -> int:
        return len(self.centres)


@dataclass(frozen=True, eq=False)
class _Assigned:
    """Best centre, move and cosine-like product a of each centred kernel."""

    index: Tensor
    move: Tensor
    a: Tensor


def find(kernels: Tensor, settings: PrototypeSettings = PrototypeSettings()) -> Prototypes:
    """Find how many prototypes cover the asked share of the energy of kernels (n, kh, kw).

    Doubles the number until it suffices, then halves the interval; each number is clustered anew. Broken
    kernels are taken as zero. Raises `KernelsimpError` for a coverage outside 0..1 or a limit below 1.
    """
    _check(settings)
    flat, _ = rows_of(kernels)
    centred = flat - flat.mean(dim=1, keepdim=True)
    whole, loose = float(flat.square().sum()), float(centred.square().sum())
    learner = _Learner(_sample(centred, settings.seed), grid_of(kernels), settings.seed)
    margin = SAMPLE_MARGIN if len(centred) > SAMPLE else 0.0
    needed = (settings.coverage + margin - 1) * whole / loose + 1 if loose > 0 else 0.0
    centres = learner.fewest(needed, settings.limit) if needed > 0 else centred[:0]
    every = _assign(centred, centres, _moves(grid_of(kernels)))
    covered = whole - loose + float(every.a.square().sum())
    coverage = covered / whole if whole > 0 else 1.0
    return Prototypes(
        centres=centres.reshape(-1, *grid_of(kernels)),
        index=every.index,
        move=every.move,
        a=every.a,
        b=flat.mean(dim=1),
        coverage=coverage,
        offsets=1 - loose / whole if whole > 0 else 1.0,
        reached=coverage >= settings.coverage,
    )


def leading_prototypes(found: Prototypes, most: int) -> tuple[Tensor, Tensor]:
    """Return the centres (k, kh, kw) that cover most, and each one's share of what all cover."""
    used = found.index >= 0
    covered = torch.zeros(found.count, dtype=torch.float64)
    covered.index_add_(0, found.index[used], found.a[used].double().square())
    order = covered.argsort(descending=True, stable=True)[:most]
    return found.centres[order], covered[order] / covered.sum().clamp_min(1e-300)


def moved_centres(kernels: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return the prototype of each of kernels (n, kh, kw), moved as suits it, (n, cells).

    There are `count` prototypes or fewer.

    Rows are zero where no prototype was found: every kernel is constant.
    """
    found = find(kernels, PrototypeSettings(_ALL, count, seed))
    if not found.count:
        return torch.zeros(len(kernels), kernels[0].numel(), dtype=torch.float64)
    return found.centres.flatten(1)[found.index].gather(1, _moves(grid_of(kernels))[found.move])


def distinct(centres: Tensor, grid: Grid) -> int:
    """Return how many prototypes there are among moved ones (n, cells), whatever the moves."""
    images = centres[:, _moves(grid)]  # (n, moves, cells); one prototype's images are the same rows
    rank = torch.arange(images.shape[1]).expand(len(images), -1)
    for cell in reversed(range(images.shape[2])):
        order = images[:, :, cell].gather(1, rank).argsort(dim=1, stable=True)
        rank = rank.gather(1, order)
    least = images[torch.arange(len(images)), rank[:, 0]]
    return len(torch.unique(least, dim=0))


def _check(settings: PrototypeSettings) -> None:
    if not 0 < settings.coverage < 1:
        raise KernelsimpError(f"coverage {settings.coverage}; expected a share between 0 and 1")
    if settings.limit < 1:
        raise KernelsimpError(f"limit of {settings.limit} prototypes; expected 1 or more")


def _moves(grid: tuple[int, int]) -> Tensor:
    return torch.stack([torch.from_numpy(move) for move in moves(grid)])


def _sample(centred: Tensor, seed: int) -> Tensor:
    if len(centred) <= SAMPLE:
        return centred
    generator = torch.Generator().manual_seed(seed)
    return centred[torch.randperm(len(centred), generator=generator)[:SAMPLE]]


def _assign(centred: Tensor, centres: Tensor, turns: Tensor) -> _Assigned:
    """Return each kernel's best centre and move by |<w, centre moved>|, in chunks."""
    n = len(centred)
    if len(centres) == 0:
        nothing = torch.zeros(n, dtype=torch.int64)
        return _Assigned(nothing - 1, nothing, torch.zeros(n, dtype=torch.float64))
    images = centres[:, turns].reshape(-1, centres.shape[1])
    parts = []
    for part in chunks(centred, max(1, min(CHUNK, (1 << 23) // len(images)))):
        best = (part.float() @ images.float().T).abs_().argmax(dim=1)
        parts.append((best, (part * images[best]).sum(dim=1)))
    best, a = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Assigned(best // len(turns), best % len(turns), a)


class _Learner:
    """Clusters one sample into any number of lines through the origin, invariant under the moves."""

    def __init__(self, sample: Tensor, grid: tuple[int, int], seed: int) -> None:
        self.sample = sample
        self.turns = _moves(grid)
        self.back = torch.argsort(self.turns, dim=1)
        self.energy = sample.square().sum(dim=1)
        self.seed = seed

    def fewest(self, share: float, limit: int) -> Tensor:
        """Return the fewest centres found whose share of the sample's energy is at least `share`.

        The interval is halved until its width is under a thirtieth: clustering itself is no more exact.
        """
        high, best = 1, self.cluster(1)
        while self.share(best) < share and high < limit:
            high = min(2 * high, limit)
            best = self.cluster(high)
        low = high // 2 if self.share(best) >= share else high
        while high - low > max(1, high // 32):
            middle = (low + high) // 2
            tried = self.cluster(middle)
            if self.share(tried) >= share:
                high, best = middle, tried
            else:
                low = middle
        return best

    def share(self, centres: Tensor) -> float:
        covered = _assign(self.sample, centres, self.turns).a.square().sum()
        return float(covered / self.energy.sum())

    def cluster(self, count: int) -> Tensor:
        """Return `count` or fewer unit centres: k-means++ starts, then Lloyd's rounds.

        A centre is the top eigenvector of the sum of vv' over its kernels, each moved back: the line that
        holds most of their energy.
        """
        centres = self._start(count)
        before = -1.0
        for _ in range(ROUNDS):
            found = _assign(self.sample, centres, self.turns)
            now = float(found.a.square().sum())
            if now - before <= 1e-4 * abs(now):
                break
            before = now
            centres = self._centres(found, centres)
        return centres

    def _centres(self, found: _Assigned, old: Tensor) -> Tensor:
        straight = self.sample.gather(1, self.back[found.move])
        cells = straight.shape[1]
        order = found.index.argsort()
        moment = torch.zeros(len(old), cells, cells, dtype=torch.float64)
        for part in chunks(order, 1024):
            outer = straight[part][:, :, None] * straight[part][:, None, :]
            moment.index_add_(0, found.index[part], outer)
        _, vectors = torch.linalg.eigh(moment)
        used = moment.diagonal(dim1=1, dim2=2).sum(dim=1) > 0
        return torch.where(used[:, None], vectors[:, :, -1], old)

    def _start(self, count: int) -> Tensor:
        """Draw starts with chance proportional to the energy not yet covered (k-means++), a few at a time."""
        generator = torch.Generator().manual_seed(self.seed)
        left, centres = self.energy.clone(), self.sample[:0]
        while len(centres) < count:
            live = int((left > 1e-12 * self.energy).sum())
            wanted = min(max(1, len(centres) // 2), count - len(centres), live)
            if wanted == 0:
                break
            drawn = torch.multinomial(left.clamp_min(0), wanted, generator=generator)
            fresh = self.sample[drawn] / self.energy[drawn, None].sqrt()
            centres = torch.cat([centres, fresh])
            covered = _assign(self.sample, fresh, self.turns).a.square()
            left = torch.minimum(left, (self.energy - covered).clamp_min(0))
        return centres
