"""From p-values to found: planted truth, nothing found in noise, and the arithmetic of false discovery."""

import math
from functools import reduce

import numpy as np
import pytest
import torch
from scipy import fft, stats
from torch import Tensor

from kernelsimp.kernels.covariance import gaussian_kernels, ring_numbers
from kernelsimp.kernels.families import offered_families
from kernelsimp.kernels.nulls import gaussian_null, matched_null, ring_null, white_null
from kernelsimp.kernels.residuals import residuals
from kernelsimp.kernels.significance import (
    discoveries,
    effective_tests,
    enrichment,
    judge,
    kernel_p,
    local_false_share,
    near_tolerance,
)

NULLS = {"white": lambda kernels, spaces: white_null(spaces), "ring": ring_null, "matched": matched_null}


def draw(count: int, shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(shape: tuple[int, int], residual: float, seed: int) -> Tensor:
    """20 full-square kernels at exactly `residual`, before 1,000 random ones."""
    space = next(row.subspace for row in offered_families(shape) if row.name == "full-square")
    member, other = space.project(draw(20, shape, seed)), draw(20, shape, seed + 1)
    other = other - space.project(other)
    member /= member.flatten(1).norm(dim=1)[:, None, None]
    other /= other.flatten(1).norm(dim=1)[:, None, None]
    mixed = (1 - residual**2) ** 0.5 * member + residual * other
    return torch.cat([3 * mixed, draw(1000, shape, seed + 2)]).float()


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize(("shape", "residual"), [((3, 3), 0.01), ((5, 5), 0.1)])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_twenty_planted_kernels_are_found(
    shape: tuple[int, int], residual: float, null: str, seed: int
) -> None:
    kernels = planted(shape, residual, seed)
    spaces = [row.subspace for row in offered_families(shape, pairs=False)]
    found = judge(NULLS[null](kernels, spaces), residuals(kernels, spaces)).found
    assert found[:20].all()
    assert found[20:].sum() <= 3


@pytest.mark.parametrize("shape", [(3, 3), (5, 5), (2, 2), (1, 5)])
def test_noise_holds_next_to_nothing(shape: tuple[int, int]) -> None:
    """In layers of noise alone any discovery is false: at most about 5 % of the layers may have one."""
    spaces = [row.subspace for row in offered_families(shape, pairs=False)]
    null = white_null(spaces)
    layers = [residuals(draw(500, shape, seed).float(), spaces) for seed in range(100)]
    assert sum(bool(judge(null, r).found.any()) for r in layers) <= 14  # P(X > 14) = 1e-4 at 5 %


@pytest.mark.parametrize("seed", range(20))
def test_benjamini_hochberg_is_that_of_scipy(seed: int) -> None:
    random = np.random.default_rng(seed)
    p = random.random(200) ** random.integers(1, 6)
    assert (discoveries(p, 0.1) == (stats.false_discovery_control(p) <= 0.1)).all()


@pytest.mark.parametrize("null", ["white", "ring"])
@pytest.mark.parametrize("shape", [(1, 7), (5, 5), (3, 3, 3)])
def test_one_layer_in_twenty_of_pure_chance_has_a_discovery(shape: tuple[int, ...], null: str) -> None:
    """The false discovery rate under the null itself, with the whole table of each grid."""
    layers, kernels = 2000, 100
    spaces = [row.subspace for row in offered_families(shape)]
    covariance = np.eye(math.prod(shape))
    if null == "ring":  # every ring of frequencies half as strong as the one before
        rings = ring_numbers(shape)
        basis = reduce(np.kron, [fft.dct(np.eye(side), axis=0, norm="ortho") for side in shape])
        covariance = basis.T @ (0.5 ** rings[:, None] * basis)
    known = gaussian_null(null, covariance, spaces)
    random = gaussian_kernels(covariance, shape, layers * kernels, seed=1)
    r = residuals(random, spaces).reshape(layers, kernels, -1)
    share = float(np.mean([judge(known, layer).found.any() for layer in r]))
    assert 0.02 < share < 0.065  # 0.05 and three standard errors; counting 13 tests gives 0.065 to 0.15


@pytest.mark.parametrize(
    ("shape", "pairs"), [((3, 3), False), ((3, 3), True), ((5, 5), False), ((1, 5), False)]
)
def test_corrected_p_values_are_not_too_small(shape: tuple[int, int], pairs: bool) -> None:
    spaces = [row.subspace for row in offered_families(shape, pairs=pairs)]
    p = judge(white_null(spaces), residuals(draw(40_000, shape, 5).float(), spaces)).p
    for level in (0.2, 0.05, 0.01):
        assert level / 2 < (p <= level).mean() < 1.3 * level


def test_judge_takes_the_least_of_all_families() -> None:
    spaces = [row.subspace for row in offered_families((3, 3))]
    null, r = white_null(spaces), residuals(draw(300, (3, 3), 1).float(), spaces)
    expected = np.minimum(1, effective_tests(len(spaces)) * null.p_values(r).numpy().min(axis=1))
    np.testing.assert_allclose(judge(null, r).p, expected, rtol=1e-5)
    assert judge(null, r).null == "white"
    few = matched_null(draw(5, (3, 3), 0), spaces)
    assert judge(few, r).note == few.note


def test_effective_tests() -> None:
    assert effective_tests(17) == 13
    assert [effective_tests(count) for count in (0, 1, 11, 13, 28)] == [1, 1, 11, 13, 28]
    assert kernel_p(torch.tensor([-1.0, -10.0]), 13).tolist() == pytest.approx([1, 13 * np.exp(-10)])


def test_benjamini_hochberg_by_hand() -> None:
    p = np.array([0.039, 0.001, 0.045, 0.008, 0.9, 0.012])
    # thresholds 0.05 k / 6: 0.0083, 0.0167, 0.025, 0.0333, ...; the third smallest, 0.012, is the last below
    assert discoveries(p).tolist() == [False, True, False, True, False, True]
    assert discoveries(p, fdr=0.5).sum() == 5
    ties = np.array([0.02, 0.02, 0.02, 0.9])
    assert discoveries(ties).tolist() == [True, True, True, False]  # 0.02 <= 3/4 of 0.05, not 1/4 of it
    assert discoveries(np.array([])).tolist() == []
    assert not discoveries(np.ones(10)).any()


def test_local_false_share() -> None:
    spaces = [row.subspace for row in offered_families((3, 3), ("mirror-h",))]
    null = white_null(spaces)
    noise = residuals(draw(100_000, (3, 3), 2).float(), spaces).numpy()
    (share,) = local_false_share(null, near_tolerance(noise, 0.2), len(noise), 0.2)
    assert share == pytest.approx(1, abs=0.06)
    inside = np.concatenate([noise, np.full((20_000, 1), 0.2, dtype=np.float32)])
    low, high = null.expected_share(0.16, 0), null.expected_share(0.25, 0)
    expected = 120_000 * (high - low)
    (share,) = local_false_share(null, near_tolerance(inside, 0.2), len(inside), 0.2)
    assert share == pytest.approx(expected / (20_000 + 100_000 * (high - low)), rel=0.05)
    assert local_false_share(null, near_tolerance(np.ones((10, 1), np.float32), 0.2), 10, 0.2) == [None]


def test_small_helpers() -> None:
    assert enrichment(6, 3.0) == 2
    assert enrichment(6, 0.0) is None
    spaces = [row.subspace for row in offered_families((3, 3))]
    r = residuals(draw(10, (3, 3), 0).float(), spaces)
    assert not judge(white_null(spaces), r).found.any()
    assert judge(white_null(spaces), r[:0]).found.size == 0
