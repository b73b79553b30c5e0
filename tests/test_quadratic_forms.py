"""Tails of quadratic forms against closed forms, Imhof's own integral and Monte Carlo."""

import numpy as np
import pytest
from scipy import integrate, special, stats

from kernelsimp.kernels.quadratic_forms import log_probability_below_zero


@pytest.mark.parametrize("cells", [2, 3, 4, 9, 25, 49, 121])
def test_beta_is_reproduced_far_into_the_tail(cells: int) -> None:
    """With C = I: sum over the complement of (1 - t) z^2 <= sum over the rest of t z^2 is Beta <= t."""
    for dim in sorted({1, cells // 3, cells // 2, cells - 1} - {0}):
        a, b = (cells - dim) / 2, dim / 2
        p = np.array([0.999, 0.9, 0.5, 0.1, 1e-2, 1e-4, 1e-8, 1e-12, 1e-30])
        t = special.betaincinv(a, b, p)
        t = t[(t > 1e-12) & (t < 1 - 1e-9)]
        rows = np.where(np.arange(cells) < cells - dim, 1 - t[:, None], -t[:, None])
        log_p = log_probability_below_zero(rows)
        np.testing.assert_allclose(log_p, np.log(special.betainc(a, b, t)), atol=1e-5)


def imhof(eigenvalues: np.ndarray) -> float:
    """P(S <= 0) by Imhof's integral (1961, formula 3.2), unmoved: the slow twin where p is not small."""

    def integrand(u: float) -> float:
        theta = 0.5 * np.arctan(eigenvalues * u).sum()
        return float(np.sin(theta) / (u * np.prod((1 + np.square(eigenvalues * u)) ** 0.25)))

    value, _ = integrate.quad(integrand, 0, np.inf, limit=2000, epsabs=1e-12)
    return float(0.5 - value / np.pi)


@pytest.mark.parametrize("seed", range(8))
def test_imhof_agrees_where_it_reaches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(6, 30))
    eigenvalues = np.exp(2 * rng.normal(size=count)) * np.where(rng.random(count) < 0.4, -1, 1)
    eigenvalues[:2] = -1, 1
    eigenvalues /= np.abs(eigenvalues).max()
    np.testing.assert_allclose(
        np.exp(log_probability_below_zero(eigenvalues)[0]), imhof(eigenvalues), rtol=1e-6
    )


def test_monte_carlo_agrees_where_it_reaches() -> None:
    eigenvalues = np.array([3.0, 1.0, 0.5, 0.25, 0.1, -0.02, -0.01])
    normal = np.random.default_rng(0).standard_normal((400_000, 7))
    hits = int((np.square(normal) @ eigenvalues <= 0).sum())
    p = float(np.exp(log_probability_below_zero(eigenvalues)[0]))
    assert stats.binomtest(hits, 400_000, p).pvalue > 1e-3


def test_saddle_point_formula_is_near_but_no_more() -> None:
    """Lugannani and Rice: a few percent off where the integral is exact."""
    eigenvalues = np.array([1.0] * 6 + [-0.01] * 3)
    s = -1e-9
    for _ in range(200):  # Newton on K'(s) = 0, damped into (1 / 2 min l, 0)
        factor = 1 - 2 * s * eigenvalues
        step = (eigenvalues / factor).sum() / (2 * np.square(eigenvalues / factor).sum())
        s = max(s - step, (s + 0.5 / eigenvalues.min()) / 2)
    factor = 1 - 2 * s * eigenvalues
    w = -np.sqrt(np.log(factor).sum())
    v = s * np.sqrt(2 * np.square(eigenvalues / factor).sum())
    saddle = stats.norm.cdf(w + np.log(v / w) / w)
    exact = float(np.exp(log_probability_below_zero(eigenvalues)[0]))
    assert 0.001 < abs(saddle / exact - 1) < 0.1


def test_one_sided_forms() -> None:
    log_p = log_probability_below_zero(np.array([[1.0, 2.0], [-1.0, -2.0], [0.0, -1.0], [1.0, 0.0]]))
    assert log_p.tolist() == [-np.inf, 0.0, 0.0, -np.inf]


def test_scale_does_not_matter_and_signs_are_complements() -> None:
    rows = np.random.default_rng(3).normal(size=(20, 9))
    log_p = log_probability_below_zero(rows)
    np.testing.assert_allclose(log_probability_below_zero(1e-30 * rows), log_p, rtol=1e-9)
    np.testing.assert_allclose(np.exp(log_p) + np.exp(log_probability_below_zero(-rows)), 1, atol=1e-9)
