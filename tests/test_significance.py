"""From p-values to found: planted truth, nothing found in noise, and the arithmetic of false discovery."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kernelsimp.kernels.families import offered
from kernelsimp.kernels.nulls import matched_null, ring_null, white_null
from kernelsimp.kernels.residuals import residuals
from kernelsimp.kernels.significance import (
    discoveries,
    effective_tests,
    enrichment,
    judge,
    kernel_p,
    least_over,
    local_false_share,
    share_found,
)

NULLS = {"white": lambda kernels, spaces: white_null(spaces), "ring": ring_null, "matched": matched_null}


def draw(count: int, shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(shape: tuple[int, int], residual: float, seed: int) -> Tensor:
    """20 full-square kernels at exactly `residual`, before 1,000 random ones."""
    space = next(row.subspace for row in offered(shape) if row.name == "full-square")
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
    spaces = [row.subspace for row in offered(shape, pairs=False)]
    found = judge(NULLS[null](kernels, spaces), residuals(kernels, spaces)).found
    assert found[:20].all()
    assert found[20:].sum() <= 3


@pytest.mark.parametrize("shape", [(3, 3), (5, 5), (2, 2), (1, 5)])
def test_noise_holds_next_to_nothing(shape: tuple[int, int]) -> None:
    """In layers of noise alone any discovery is false: at most about 5 % of the layers may have one."""
    spaces = [row.subspace for row in offered(shape, pairs=False)]
    null = white_null(spaces)
    layers = [residuals(draw(500, shape, seed).float(), spaces) for seed in range(100)]
    assert sum(bool(judge(null, r).found.any()) for r in layers) <= 14  # P(X > 14) = 1e-4 at 5 %


@pytest.mark.parametrize(
    ("shape", "pairs"), [((3, 3), False), ((3, 3), True), ((5, 5), False), ((1, 5), False)]
)
def test_corrected_p_values_are_not_too_small(shape: tuple[int, int], pairs: bool) -> None:
    spaces = [row.subspace for row in offered(shape, pairs=pairs)]
    p = judge(white_null(spaces), residuals(draw(40_000, shape, 5).float(), spaces)).p
    for level in (0.2, 0.05, 0.01):
        assert level / 2 < (p <= level).mean() < 1.3 * level


def test_judge_takes_the_least_of_all_families() -> None:
    spaces = [row.subspace for row in offered((3, 3))]
    null, r = white_null(spaces), residuals(draw(300, (3, 3), 1).float(), spaces)
    expected = np.minimum(1, effective_tests(len(spaces)) * null.p_values(r).numpy().min(axis=1))
    np.testing.assert_allclose(judge(null, r).p, expected, rtol=1e-5)
    assert judge(null, r).null == "white"
    few = matched_null(draw(5, (3, 3), 0), spaces)
    assert judge(few, r).note == few.note


def test_effective_tests() -> None:
    assert effective_tests(17) == 13
    assert [effective_tests(count) for count in (0, 1, 11, 13, 15)] == [1, 1, 11, 13, 13]
    assert effective_tests(34) == 26
    assert kernel_p(torch.tensor([-1.0, -10.0]), 13).tolist() == pytest.approx([1, 13 * np.exp(-10)])


def test_benjamini_hochberg_by_hand() -> None:
    p = np.array([0.039, 0.001, 0.045, 0.008, 0.9, 0.012])
    # thresholds 0.05 k / 6: 0.0083, 0.0167, 0.025, 0.0333, ...; the third smallest, 0.012, is the last below
    assert discoveries(p).tolist() == [False, True, False, True, False, True]
    assert discoveries(p, fdr=0.5).sum() == 5
    assert discoveries(np.array([])).tolist() == []
    assert not discoveries(np.ones(10)).any()


def test_local_false_share() -> None:
    spaces = [row.subspace for row in offered((3, 3), ("mirror-h",))]
    null = white_null(spaces)
    noise = residuals(draw(100_000, (3, 3), 2).float(), spaces)[:, 0]
    assert local_false_share(null, 0, noise, 0.2) == pytest.approx(1, abs=0.06)
    inside = torch.cat([noise, torch.full((20_000,), 0.2)])
    low, high = null.expected(0.16, 0), null.expected(0.25, 0)
    expected = 120_000 * (high - low)
    share = local_false_share(null, 0, inside, 0.2)
    assert share == pytest.approx(expected / (20_000 + 100_000 * (high - low)), rel=0.05)
    assert local_false_share(null, 0, torch.ones(10), 0.2) is None


def test_small_helpers() -> None:
    assert enrichment(6, 3.0) == 2
    assert enrichment(6, 0.0) is None
    assert least_over([torch.tensor([-1.0, -5.0]), torch.tensor([-2.0, -3.0])]).tolist() == [-2, -5]
    spaces = [row.subspace for row in offered((3, 3))]
    r = residuals(draw(10, (3, 3), 0).float(), spaces)
    assert share_found(judge(white_null(spaces), r)) == 0
    assert share_found(judge(white_null(spaces), r[:0])) == 0
