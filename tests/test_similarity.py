"""The measures of similarity: known answers, what each does not see, and slow twins written another way."""

from itertools import permutations
from math import acos, sqrt

import pytest
import torch
from torch import Tensor

from kernelsimp.analysis.similarity import (
    MEASURES,
    MINIBATCH,
    RBF_SAMPLES,
    ActivationPair,
    Features,
    compute_measures,
)

EXACT = 1e-8
NAMES = tuple(MEASURES)
ALIKE = [name for name in NAMES if name not in ("procrustes", "angular", "relative_error")]
FAR = ("procrustes", "angular", "relative_error")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(n: int, p: int) -> Tensor:
    """Centred columns of norm 1, at right angles."""
    x = randn(n, p)
    return torch.linalg.qr(x - x.mean(0))[0]


def rotation(p: int) -> Tensor:
    return torch.linalg.qr(randn(p, p, seed=9))[0]


def related(n: int = 60, p: int = 5, q: int = 4) -> tuple[Tensor, Tensor]:
    x = randn(n, p) * torch.linspace(0.5, 3, p) + 2
    return x, x[:, :q] @ randn(q, q, seed=1) + 0.7 * randn(n, q, seed=2) - 1


def of(name: str, x: Tensor, y: Tensor, **how: bool) -> float | None:
    return compute_measures(ActivationPair(Features(x), Features(y), **how), (name,))[name]


def value(name: str, x: Tensor, y: Tensor, **how: bool) -> float:
    found = of(name, x, y, **how)
    assert found is not None
    return found


# --- known answers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(300, 7), (40, 60)], ids=["tall", "wide"])
def test_a_layer_is_alike_to_itself(name: str, shape: tuple[int, int]) -> None:
    x = randn(*shape) + 5
    expected = 0 if name in FAR else 1
    assert value(name, x, x.clone(), aligned=True, force=True) == pytest.approx(expected, abs=EXACT)


def test_stretched_columns() -> None:
    x = orthonormal(50, 4)
    y = x * torch.tensor([1.0, 2, 3, 4])
    assert value("cka", x, y) == pytest.approx(0.7972410051791008, abs=EXACT)
    assert value("nbs", x, y) == pytest.approx(0.9128709291752769, abs=EXACT)
    assert value("procrustes", x, y) == pytest.approx(2 * (1 - 0.9128709291752769), abs=EXACT)
    assert value("angular", x, y) == pytest.approx(acos(0.9128709291752769), abs=EXACT)
    for name in ("cca", "pwcca", "pwcca_b"):
        assert value(name, x, y) == pytest.approx(1, abs=EXACT)


@pytest.mark.parametrize("name", ["cka", "nbs", "cca", "svcca", "pwcca", "pwcca_b"])
def test_half_of_the_directions_shared(name: str) -> None:
    both = orthonormal(80, 8)
    x, y = both[:, 0:4], both[:, 2:6]
    if name.startswith("pwcca"):  # four equal correlations 1, 1, 0, 0 in any basis of each pair of planes
        assert 0 < value(name, x, y) < 1
    else:
        assert value(name, x, y) == pytest.approx(0.5, abs=EXACT)


def test_pwcca_weighs_by_the_columns_of_its_own_side() -> None:
    """Two directions at right angles: correlations 1 and 0, weights the sizes of A's columns."""
    both = orthonormal(50, 3)
    x, y = both[:, :2] * torch.tensor([3.0, 1.0]), both[:, [0, 2]]
    assert value("cca", x, y) == pytest.approx(0.5, abs=EXACT)
    assert value("pwcca", x, y) == pytest.approx(0.75, abs=EXACT)
    assert value("pwcca", y, x) == pytest.approx(0.5, abs=EXACT)
    assert value("pwcca_b", x, y) == pytest.approx(value("pwcca", y, x), abs=EXACT)


def test_svcca_drops_what_carries_no_variance() -> None:
    both = orthonormal(90, 5)
    x = both[:, [0, 1, 2]] * torch.tensor([3.0, 3.0, 1e-3])
    y = both[:, [0, 1, 3]] * torch.tensor([1.0, 1.0, 1e-3])
    assert value("cca", x, y) == pytest.approx(2 / 3, abs=EXACT)
    assert value("svcca", x, y) == pytest.approx(1, abs=EXACT)


def test_aligned_measures() -> None:
    x = torch.tensor([[1.0, 2.0], [2.0, 0.0], [3.0, 1.0], [5.0, 7.0]], dtype=torch.float64)
    y = torch.stack([x[:, 0] * 2, -x[:, 1]], 1)
    error = sqrt((x[:, 0].square().sum() + 4 * x[:, 1].square().sum()) / x.square().sum())
    assert value("relative_error", x, y, aligned=True) == pytest.approx(error, abs=EXACT)
    assert value("channel_correlation", x, y, aligned=True) == pytest.approx(0, abs=EXACT)
    assert value("channel_correlation_lowest", x, y, aligned=True) == pytest.approx(-1, abs=EXACT)
    assert all(of(name, x, y) is None for name in NAMES if MEASURES[name].aligned)


@pytest.mark.parametrize("shape", [(1000, 16), (1000, 512), (2000, 100)])
def test_independent_samples_are_not_alike(shape: tuple[int, int]) -> None:
    x, y = randn(*shape, seed=3), randn(*shape, seed=4)
    assert abs(value("cka_debiased", x, y)) < 0.01
    if shape[1] == 512:
        assert value("cka", x, y) > 0.3  # what the debiasing is for


# --- what a measure does not see

ORTHOGONAL = (
    "cka",
    "cka_debiased",
    "cka_minibatch",
    "cka_rbf",
    "cka_rbf_debiased",
    "nbs",
    "procrustes",
    "angular",
)
CHANGES = {
    "permutation": lambda x: x[:, torch.tensor([2, 0, 1, *range(3, x.shape[1])])],
    "rotation": lambda x: x @ rotation(x.shape[1]),
    "scale": lambda x: 7.5 * x,
    "shift": lambda x: x + torch.arange(x.shape[1]) * 3.0,
    "invertible": lambda x: x @ (randn(x.shape[1], x.shape[1], seed=5) + 3 * torch.eye(x.shape[1])),
}
UNSEEN = {name: {"permutation", "rotation", "scale", "shift"} for name in ORTHOGONAL}
UNSEEN |= {"svcca": {"permutation", "rotation", "scale", "shift"}, "cca": set(CHANGES)}
UNSEEN |= {"pwcca": {"permutation", "scale", "shift"}, "pwcca_b": set(CHANGES)}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", UNSEEN)
def test_what_a_measure_does_not_see_of_a(name: str, change: str) -> None:
    x, y = related(300)
    if name == "svcca":  # 99 % of the variance is less than all of it
        x = torch.cat([x, 1e-2 * randn(300, 1, seed=7)], 1)
    same = abs(value(name, CHANGES[change](x), y) - value(name, x, y)) < EXACT
    assert same == (change in UNSEEN[name])


def test_pwcca_sees_no_invertible_map_of_b() -> None:
    x, y = related(300)
    for change in CHANGES.values():
        assert value("pwcca", x, change(y)) == pytest.approx(value("pwcca", x, y), abs=EXACT)


# --- slow twins


def gram(x: Tensor) -> Tensor:
    return x @ x.T


def hsic1_by_definition(k: Tensor, m: Tensor) -> float:
    """The U-statistic over all quadruples of different samples."""
    total = [
        float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])) for i, j, q, r in permutations(range(len(k)), 4)
    ]
    return sum(total) / len(total)


def hsic1_by_matrices(k: Tensor, m: Tensor) -> float:
    """Equation 4 of Song et al. 2012."""
    n = len(k)
    k, m = k - k.diagonal().diag(), m - m.diagonal().diag()
    one = torch.ones(n, dtype=torch.float64)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float(((k @ m).trace() + middle - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3)))


def debiased(k: Tensor, m: Tensor) -> float:
    return hsic1_by_matrices(k, m) / sqrt(hsic1_by_matrices(k, k) * hsic1_by_matrices(m, m))


def biased(k: Tensor, m: Tensor) -> float:
    h = torch.eye(len(k), dtype=torch.float64) - 1 / len(k)
    k, m = h @ k @ h, h @ m @ h
    return float((k * m).sum() / (k.norm() * m.norm()))


def rbf(x: Tensor) -> Tensor:
    d = torch.tensor([[float((a - b).norm()) for b in x] for a in x], dtype=torch.float64)
    away = sorted(float(d[i, j]) for i in range(len(x)) for j in range(i))
    median = (away[(len(away) - 1) // 2] + away[len(away) // 2]) / 2
    return torch.exp(-d.square() / (2 * (0.8 * median) ** 2))


def test_the_debiased_estimate_is_the_u_statistic() -> None:
    x, y = related(7)
    k, m = gram(x), gram(y)
    assert hsic1_by_matrices(k, m) == pytest.approx(hsic1_by_definition(k, m), abs=1e-10)
    own = (hsic1_by_definition(k, k), hsic1_by_definition(m, m))
    expected = hsic1_by_definition(k, m) / sqrt(own[0] * own[1])
    assert value("cka_debiased", x, y) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("p", [5, 80], ids=["tall", "wide"])
def test_cka_is_what_kernels_of_samples_say(p: int) -> None:
    x, y = related(50, p)
    assert value("cka", x, y) == pytest.approx(biased(gram(x), gram(y)), abs=EXACT)
    assert value("cka_debiased", x, y) == pytest.approx(debiased(gram(x), gram(y)), abs=EXACT)
    assert value("cka_rbf", x, y) == pytest.approx(biased(rbf(x), rbf(y)), abs=EXACT)
    assert value("cka_rbf_debiased", x, y) == pytest.approx(debiased(rbf(x), rbf(y)), abs=EXACT)


def test_minibatch_cka_averages_before_it_divides() -> None:
    x, y = related(2 * MINIBATCH + 30)  # the last thirty are not used
    parts = [slice(0, MINIBATCH), slice(MINIBATCH, 2 * MINIBATCH)]
    sums = [
        sum(hsic1_by_matrices(gram(a[part]), gram(b[part])) for part in parts)
        for a, b in ((x, y), (x, x), (y, y))
    ]
    expected = sums[0] / sqrt(sums[1] * sums[2])
    assert value("cka_minibatch", x, y) == pytest.approx(expected, abs=EXACT)
    assert abs(expected - value("cka_debiased", x, y)) > 1e-4


def test_kernels_of_distances_see_the_first_samples() -> None:
    x, y = related(RBF_SAMPLES + 50)
    first = slice(0, RBF_SAMPLES)
    assert value("cka_rbf_debiased", x, y) == pytest.approx(
        value("cka_rbf_debiased", x[first], y[first]), abs=EXACT
    )


def test_canonical_correlations_solve_the_eigenvalue_problem() -> None:
    x, y = related(200)
    a, b = x - x.mean(0), y - y.mean(0)
    product = torch.linalg.solve(a.T @ a, a.T @ b) @ torch.linalg.solve(b.T @ b, b.T @ a)
    squares, directions = torch.linalg.eig(product)
    order = squares.real.argsort(descending=True)[:4]
    rho = squares.real[order].sqrt()
    assert value("cca", x, y) == pytest.approx(float(rho.mean()), abs=EXACT)
    h = a @ directions.real[:, order]
    weights = (h / h.norm(dim=0)).T.matmul(a).abs().sum(1)
    assert value("pwcca", x, y) == pytest.approx(float((weights * rho).sum() / weights.sum()), abs=EXACT)


def test_procrustes_is_what_the_best_rotation_leaves() -> None:
    x, y = related(100, 4, 4)
    a, b = x - x.mean(0), y - y.mean(0)
    a, b = a / a.norm(), b / b.norm()
    u, _, vt = torch.linalg.svd(b.T @ a)
    best = float((a - b @ (u @ vt)).square().sum())
    assert value("procrustes", x, y) == pytest.approx(best, abs=EXACT)
    assert all(float((a - b @ rotation(4)).square().sum()) >= best for _ in range(3))


# --- degenerate


def test_a_constant_layer_has_no_similarity_but_an_error() -> None:
    x, y = torch.full((40, 3), 2.5, dtype=torch.float64), randn(40, 3)
    found = compute_measures(ActivationPair(Features(x), Features(y), aligned=True), NAMES)
    assert Features(x).defect == "is constant"
    assert {name for name, figure in found.items() if figure is not None} == {"relative_error"}


def test_a_layer_with_nan_has_nothing() -> None:
    x, y = randn(40, 3), randn(40, 3, seed=1)
    x[3, 1] = float("nan")
    assert Features(x).defect == "holds NaN or Inf"
    assert set(compute_measures(ActivationPair(Features(x), Features(y), aligned=True), NAMES).values()) == {
        None
    }


def test_a_dead_column_changes_nothing_but_correlations_leave_it_out() -> None:
    x, y = related(100, 4, 4)
    zero = torch.zeros(100, 1, dtype=torch.float64)
    wide = torch.cat([x, zero], 1), torch.cat([y, zero], 1)
    for name in ("cka", "cca", "pwcca", "nbs", "channel_correlation"):
        assert value(name, *wide, aligned=True) == pytest.approx(value(name, x, y, aligned=True), abs=EXACT)


def test_rounding_noise_of_float32_is_no_direction() -> None:
    x = randn(500, 3).float()
    copied = torch.cat([x, x[:, :1] * (1 + 1e-7 * randn(500, 1, seed=3).float())], 1)
    assert Features(copied).sizes.numel() == 3


@pytest.mark.parametrize("n", [9, 10])
def test_correlations_need_more_samples_than_columns(n: int) -> None:
    x, y = randn(n, 5), randn(n, 4, seed=1)
    for name in ("cca", "pwcca", "pwcca_b"):
        assert (of(name, x, y) is None) == (n <= 9)
        assert of(name, x, y, force=True) is not None


def test_other_samples_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="5 samples against 6"):
        ActivationPair(Features(randn(5, 2)), Features(randn(6, 2)))
