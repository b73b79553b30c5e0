"""Orbits: the moves of each grid, planted relatives, and three ways to the same partners."""

import math

import numpy as np
import pytest
import torch
from builders import white64

from kernelsimp.kernels import orbits
from kernelsimp.kernels.orbits import find, move_kernels, moves, quadrature_pairs
from kernelsimp.kernels.template_fit import fit
from kernelsimp.kernels.templates import by_name, draw


def brute_force(kernels, tolerance):
    """The least residual of each kernel against every other, every move, one pair at a time."""
    best = np.full(len(kernels), np.inf)
    square = kernels.shape[1] == kernels.shape[2]
    for i, w in enumerate(kernels):
        for j, other in enumerate(kernels):
            if i == j or not w.any() or not other.any():
                continue
            for flipped in (other, other[:, ::-1]):
                for turns in range(4) if square else (0, 2):
                    x = np.rot90(flipped, turns)
                    a = (w * x).sum() / (x * x).sum()
                    best[i] = min(best[i], np.linalg.norm(w - a * x) / np.linalg.norm(w))
    return np.where(best <= tolerance, best, np.nan)


@pytest.mark.parametrize(("grid", "count"), [((3, 3), 8), ((2, 2), 8), ((3, 5), 4), ((1, 5), 2), ((1, 1), 1)])
def test_moves_form_the_group_of_the_grid(grid, count):
    every = moves(grid)
    assert len(every) == count
    assert every[0].tolist() == list(range(grid[0] * grid[1]))
    known = {move.tobytes() for move in every}
    for first in every:
        for second in every:
            assert first[second].tobytes() in known


def test_moved_kernels_are_turned_and_mirrored_kernels():
    kernel = torch.arange(9.0).reshape(1, 3, 3).double()
    images = {tuple(image.reshape(-1).tolist()) for image in move_kernels(kernel.flatten(1), (3, 3))}
    grid = kernel[0].numpy()
    expected = {tuple(np.rot90(sheet, k).reshape(-1)) for sheet in (grid, grid.T) for k in range(4)}
    assert images == expected


@pytest.mark.parametrize("grid", [(3, 3), (2, 3), (1, 4)])
@pytest.mark.parametrize("limit", [0, 10**9])
@pytest.mark.parametrize("tolerance", [0.1, 0.3])
def test_tree_and_matrix_find_what_brute_force_finds(monkeypatch, grid, limit, tolerance):
    monkeypatch.setattr(orbits, "MATRIX_UP_TO", limit)
    kernels = white64(40, *grid)
    kernels[20:30] = -3 * kernels[:10].flip(2) + 0.05 * white64(10, *grid, seed=5)
    kernels[30], kernels[31] = 0, torch.ones(grid)
    found = find(kernels, tolerance)
    expected = brute_force(kernels.numpy(), tolerance)
    assert np.allclose(found.residual.numpy(), expected, atol=1e-6, equal_nan=True)
    assert bool(((found.partner >= 0) == torch.from_numpy(np.isfinite(expected))).all())


@pytest.mark.parametrize("limit", [0, 10**9])
def test_scale_and_move_rebuild_the_kernel(monkeypatch, limit):
    monkeypatch.setattr(orbits, "MATRIX_UP_TO", limit)
    kernels = white64(30, 3, 3)
    kernels[10:20] = -0.2 * kernels[:10].mT
    found = find(kernels, 1e-6)
    assert found.paired == 20
    assert found.partner[:20].tolist() == [*range(10, 20), *range(10)]
    for i in range(20):
        image = kernels[found.partner[i]].reshape(-1)[torch.from_numpy(moves((3, 3))[found.move[i]])]
        assert torch.allclose(found.scale[i] * image, kernels[i].reshape(-1), atol=1e-12)
    assert found.count == 20
    assert torch.equal(found.orbit[:10], found.orbit[10:20])


def test_symmetric_kernels_find_each_other_past_their_own_images(monkeypatch):
    monkeypatch.setattr(orbits, "MATRIX_UP_TO", 0)
    kernels = white64(12, 3, 3)
    kernels[:4] = torch.tensor([[1.0, 2, 1], [2, 5, 2], [1, 2, 1]]).double() * torch.tensor(
        [1.0, -2, 3, 0.1]
    ).double().reshape(4, 1, 1)
    found = find(kernels, 0.01)
    assert found.partner[:4].ge(0).all()
    assert found.count == 9


def test_random_kernels_of_many_cells_have_no_relatives():
    found = find(white64(100, 7, 7))
    assert found.paired == 0
    assert found.count == 100


def test_zero_broken_single_and_empty_banks():
    kernels = white64(4, 3, 3)
    kernels[0], kernels[1, 0, 0] = 0, torch.nan
    found = find(kernels)
    assert found.partner[:2].tolist() == [-1, -1]
    assert find(kernels[2:3]).partner.tolist() == [-1]
    empty = find(kernels[:0])
    assert empty.count == 0
    assert len(empty.partner) == 0


def gabors(phases, angle=0.5):
    parameters = torch.tensor([[3.0, 1.2, angle, phase] for phase in phases], dtype=torch.float64)
    return draw(by_name("gabor"), (7, 7), parameters).reshape(-1, 7, 7)


def test_quadrature_pairs_are_a_quarter_wave_apart():
    kernels = torch.cat(
        [
            gabors([0.3]) + 0.01,
            -2 * gabors([0.3 + math.pi / 2]),
            gabors([0.8]),
            gabors([0.3], 1.4),
            white64(3, 7, 7),
        ]
    )
    pairs = quadrature_pairs(kernels, fit(kernels), 0.1)
    assert pairs.tolist() == [[0, 1]]


def test_no_gabors_no_pairs():
    kernels = white64(5, 2, 2)
    assert quadrature_pairs(kernels, fit(kernels)).shape == (0, 2)
    kernels = white64(5, 7, 7)
    assert quadrature_pairs(kernels, fit(kernels), 0.05).shape == (0, 2)
