"""Kernels of one layer that are each other turned, mirrored and scaled; and quadrature pairs of Gabors.

The moves of a grid are the mirrors and turns that keep its shape: eight for a square, four for an oblong,
two for a line. A move is an index array: cell i of the moved kernel is cell move[i] of the kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

from kernelsimp.kernels.cells import Grid, chunks, grid_of, norms, rows_of
from kernelsimp.kernels.template_fit import TemplateFit, from_parameters, shapes

Ints = NDArray[np.int64]

MATRIX_UP_TO = 256
"""Banks up to this many kernels are compared by matrix products, larger ones through a tree."""

BLOCK = 1 << 22
"""A matrix of cosines holds at most this many numbers."""

TREE_CELLS = 12
"""A tree helps only in few dimensions: kernels of more cells are compared by matrix products."""


@dataclass(frozen=True, eq=False)
class Orbits:
    """For each of n kernels the nearest other one up to sign, scale, turns and mirrors.

    `partner` (n,) is its index, -1 where none lies within the tolerance; w_i = scale_i * w_partner moved by
    `moves(grid)[move_i]`, up to the relative `residual`. `orbit` (n,) numbers the groups that partners join,
    and `count` says how many there are; a kernel without a partner is a group of its own.
    """

    partner: Tensor
    move: Tensor
    scale: Tensor
    residual: Tensor
    orbit: Tensor
    count: int

    @property
    def paired(self) -> int:
        """How many kernels have a partner."""
        return int((self.partner >= 0).sum())


@lru_cache(maxsize=64)
def moves(grid: Grid) -> tuple[Ints, ...]:
    """Return the different moves of a grid, the identity first: turns, then turns of the mirror image."""
    cells = np.arange(grid[0] * grid[1], dtype=np.int64).reshape(grid)
    found: dict[bytes, Ints] = {}
    for sheet in (cells, cells[:, ::-1]):
        for turns in range(4):
            moved = np.rot90(sheet, turns)
            if moved.shape == grid:
                flat = np.ascontiguousarray(moved).reshape(-1)
                found.setdefault(flat.tobytes(), flat)
    return tuple(found.values())


def move_kernels(flat: Tensor, grid: Grid) -> Tensor:
    """Return every move of kernels (n, cells), (moves, n, cells)."""
    return torch.stack([flat[:, torch.from_numpy(move)] for move in moves(grid)])


def find(kernels: Tensor, tolerance: float = 0.1) -> Orbits:
    """Find each kernel's nearest relative in the same bank (n, kh, kw) within a relative residual.

    The residual of w_i against span{moved w_j} is sqrt(1 - c^2), c their cosine. Zero and broken kernels
    have no relatives.
    """
    flat, _ = rows_of(kernels)
    size = norms(flat)
    live = torch.nonzero(size > 0)[:, 0]
    unit = flat[live] / size[live, None]
    grid = grid_of(kernels)
    tree = len(live) > MATRIX_UP_TO and flat.shape[1] <= TREE_CELLS and tolerance < 0.5
    partner, move = (_by_tree if tree else _by_matrix)(unit, grid, tolerance)
    return _orbits_of_bank(flat, grid, (live, partner, move))


def quadrature_pairs(kernels: Tensor, fitted: TemplateFit, tolerance: float = 0.1) -> Tensor:
    """Return pairs (p, 2) of kernels i < j that are Gabors a quarter wave apart and otherwise alike.

    Kernel i fits a Gabor within the tolerance, and j fits the same Gabor with its phase advanced by 90
    degrees, up to a*T + b, within the tolerance.
    """
    if "gabor" not in fitted.names:
        return torch.zeros(0, 2, dtype=torch.int64)
    gabor = fitted.template == fitted.names.index("gabor")
    rows = torch.nonzero(gabor & (fitted.residual <= tolerance))[:, 0]
    flat = rows_of(kernels)[0][rows]
    centred = flat - flat.mean(dim=1, keepdim=True)
    left = (
        centred.square().sum(dim=1)[None] - (_advance_gabors(fitted, rows) @ centred.T).square()
    ).clamp_min(0)
    near = left <= tolerance**2 * flat.square().sum(dim=1)[None]
    pairs = torch.nonzero((near & near.T).triu(1))
    return rows[pairs]


def _advance_gabors(fitted: TemplateFit, rows: Tensor) -> Tensor:
    """Redraw the Gabors of `rows` a quarter wave on, (m, cells)."""
    parameters = fitted.parameters[rows].clone()
    parameters[:, -1] += torch.pi / 2
    return shapes(from_parameters(fitted.grid, fitted.names, fitted.template[rows], parameters))


def _by_matrix(unit: Tensor, grid: Grid, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return the best other kernel and its move by cosines of all pairs, a block of rows at a time."""
    n = len(unit)
    low = unit.float()
    images = move_kernels(low, grid)
    partner, move = torch.full((n,), -1), torch.zeros(n, dtype=torch.int64)
    block = max(1, BLOCK // max(n, 1))
    for first, rows in _number_chunks(low, block):
        best = torch.full((len(rows),), -1.0)
        here = torch.arange(len(rows))
        for index, image in enumerate(images):
            cosine = (rows @ image.T).abs_()
            cosine[here, first + here] = -1
            top, at = cosine.max(dim=1)
            better = top > best + 1e-7
            best = torch.where(better, top, best)
            partner[first + here[better]], move[first + here[better]] = at[better], index
    if n < 2:
        partner[:] = -1
    return _check_partners(unit, grid, (partner, move), tolerance)


def _by_tree(unit: Tensor, grid: Grid, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return the best other kernel and its move through a tree of canonical images.

    Of the signed moves of a kernel the canonical one has the largest product with a fixed direction q. If
    two kernels come within distance d after some move, then an image of the second that lies within d of
    the first's canonical image has a product no more than 2d below its own largest. So those images, and no
    others, go into the tree; nothing is missed.
    """
    reach = float(np.sqrt(2 - 2 * np.sqrt(max(1 - tolerance**2, 0.0)))) * (1 + 1e-9)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(unit.shape[1], generator=generator, dtype=torch.float64)
    direction = direction / direction.norm()
    images = move_kernels(unit, grid)
    scores = images @ direction
    signs = torch.where(scores >= 0, 1.0, -1.0)
    highest = scores.abs().amax(dim=0)
    query = _pick_images(images, signs, scores.abs().argmax(dim=0))
    both = torch.cat([scores, -scores])
    which, owner = torch.nonzero(both >= highest - 2 * reach, as_tuple=True)
    count = len(images)
    points = images[which % count, owner] * torch.where(which < count, 1.0, -1.0)[:, None]
    tree = KDTree(points.numpy())
    neighbour = _first_other(tree, query, owner, reach)
    found = neighbour >= 0
    partner = torch.where(found, owner[neighbour], -1)
    return _check_partners(unit, grid, (partner, torch.full_like(partner, -1)), tolerance)


def _pick_images(images: Tensor, signs: Tensor, which: Tensor) -> Tensor:
    here = torch.arange(images.shape[1])
    return images[which, here] * signs[which, here][:, None]


def _first_other(tree: KDTree, query: Tensor, owner: Tensor, reach: float) -> Tensor:
    """Return the nearest point of the tree that belongs to another kernel, (n,), -1 for none.

    Asks for more neighbours only where all so far are the kernel's own images (a symmetric kernel has many).
    """
    result = torch.full((len(query),), -1)
    asking, wanted = torch.arange(len(query)), 2
    while len(asking):
        near = tree.query(query[asking].numpy(), k=wanted, distance_upper_bound=reach)[1]
        at = torch.from_numpy(np.asarray(near, dtype=np.int64)).reshape(len(asking), -1)
        real = at < tree.n
        other = real & (owner[at.clamp_max(tree.n - 1)] != asking[:, None])
        hit = other.any(dim=1)
        first = at.gather(1, other.to(torch.uint8).argmax(dim=1, keepdim=True))[:, 0]
        result[asking[hit]] = first[hit]
        asking = asking[~hit & real.all(dim=1)] if wanted < tree.n else asking[:0]
        wanted = min(wanted * 4, tree.n)
    return result


def _check_partners(
    unit: Tensor, grid: Grid, found: tuple[Tensor, Tensor], tolerance: float
) -> tuple[Tensor, Tensor]:
    """Decide the move and the tolerance in float64; -1 for partners that do not hold."""
    partner = found[0]
    others = move_kernels(unit[partner.clamp_min(0)], grid) if len(unit) else move_kernels(unit, grid)
    cosine = torch.einsum("nc,mnc->mn", unit, others)
    move = cosine.abs().argmax(dim=0) if len(unit) else found[1]
    image = others[move, torch.arange(len(unit))]
    left = unit - (unit * image).sum(dim=1, keepdim=True) * image
    holds = (partner >= 0) & (left.norm(dim=1) <= tolerance)
    return torch.where(holds, partner, -1), torch.where(holds, move, 0)


def _orbits_of_bank(flat: Tensor, grid: Grid, found: tuple[Tensor, Tensor, Tensor]) -> Orbits:
    """Turn partners among live kernels into scales, residuals and groups of the whole bank."""
    live, near, turned = found
    n = len(flat)
    partner, move = torch.full((n,), -1), torch.zeros(n, dtype=torch.int64)
    partner[live] = torch.where(near >= 0, live[near.clamp_min(0)], -1) if len(live) else near
    move[live] = turned
    other = move_kernels(flat[partner.clamp_min(0)], grid)[move, torch.arange(n)] if n else flat
    energy = other.square().sum(dim=1)
    paired = partner >= 0
    scale = torch.where(paired & (energy > 0), (flat * other).sum(dim=1) / energy.clamp_min(1e-300), 0.0)
    left = norms(flat - scale[:, None] * other)
    residual = torch.where(paired, left / norms(flat).clamp_min(1e-300), torch.nan)
    rows = torch.nonzero(paired)[:, 0].numpy()
    graph = coo_array((np.ones(len(rows)), (rows, partner[paired].numpy())), shape=(n, n))
    count, groups = connected_components(graph, directed=False)
    return Orbits(partner, move, scale, residual, torch.from_numpy(groups.astype(np.int64)), int(count))


def _number_chunks(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for index, part in enumerate(chunks(rows, size)):
        yield index * size, part
