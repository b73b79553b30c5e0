"""Nulls against exact distributions, Monte Carlo, and the published facts on a real network."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from kernelsimp.kernels.covariance import (
    gaussian_kernels,
    permuted_kernels,
    ring_covariance,
    second_moment,
)
from kernelsimp.kernels.families import SEVENTEEN, offered_families
from kernelsimp.kernels.nulls import (
    NODES,
    Null,
    gaussian_null,
    matched_null,
    ring_null,
    sampled_null,
    white_null,
)
from kernelsimp.kernels.residuals import residuals
from kernelsimp.kernels.subspace import Subspace

SHAPES = [(1, 3), (2, 2), (3, 3), (3, 5), (5, 5), (7, 7)]


@cache
def families(shape: tuple[int, ...]) -> tuple[Subspace, ...]:
    return tuple(row.subspace for row in offered_families(shape, pairs=shape != (7, 7)))


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A covariance with neighbouring cells alike, one axis more than the other, and cells of unlike size."""
    rows, columns = (axis.reshape(-1) for axis in np.indices(shape))
    apart = (rows[:, None] - rows) ** 2 + 2 * (columns[:, None] - columns) ** 2
    size = np.random.default_rng(seed).uniform(0.5, 2, len(rows))
    return np.asarray(size[:, None] * (np.exp(-apart / 4) + 0.1 * np.eye(len(rows))) * size)


def exact_white(space: Subspace, r: np.ndarray) -> np.ndarray:
    return np.asarray(stats.beta.logcdf(r**2, (space.cells - space.dim) / 2, space.dim / 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("through_imhof", [False, True], ids=["beta", "matched with C = I"])
def test_white_is_the_beta_distribution(shape: tuple[int, ...], through_imhof: bool) -> None:
    """Both tables within 1 % of the exact p down to 1e-25, the target being 5 % down to 1e-8."""
    spaces = families(shape)
    null = gaussian_null("matched", np.eye(spaces[0].cells), spaces) if through_imhof else white_null(spaces)
    r = np.float32(np.exp(np.random.default_rng(0).uniform(-12, 0, 3000))).astype(np.float64)
    r = np.append(r, 1 - r)
    for number, space in enumerate(spaces):
        exact = exact_white(space, r)
        table = null.log_p(number, torch.from_numpy(r).float()).numpy()
        np.testing.assert_allclose(table[exact > -57], exact[exact > -57], atol=0.01)


@pytest.mark.parametrize("kind", ["white", "matched", "ring"])
@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (3, 5), (5, 5)])
def test_p_values_are_uniform_under_their_own_null(shape: tuple[int, ...], kind: str) -> None:
    spaces = families(shape)
    covariance = {"white": np.eye(spaces[0].cells), "matched": smooth(shape)}.get(
        kind, ring_covariance(smooth(shape), shape)
    )
    kernels = gaussian_kernels(covariance, shape, 4000, seed=1)
    null = white_null(spaces) if kind == "white" else gaussian_null(kind, covariance, spaces)
    p = null.p_values(residuals(kernels, spaces)).numpy()
    worst = min(stats.kstest(column, "uniform").pvalue for column in p.T)
    assert worst > 0.01 / len(spaces)


@pytest.mark.parametrize("shape", [(3, 3), (5, 5)])
def test_the_null_estimated_from_kernels_is_that_of_their_covariance(shape: tuple[int, ...]) -> None:
    kernels = gaussian_kernels(smooth(shape), shape, 20_000, seed=2)
    spaces = families(shape)
    for estimated, exact in [
        (matched_null(kernels, spaces), gaussian_null("matched", smooth(shape), spaces)),
        (ring_null(kernels, spaces), gaussian_null("ring", ring_covariance(smooth(shape), shape), spaces)),
    ]:
        assert estimated.note is None
        assert estimated.name == exact.name
        near = exact.table > np.log(1e-6)
        assert (estimated.table - exact.table)[near].abs().max() < 0.4


def test_monte_carlo_reaches_the_tail() -> None:
    """Half a million draws from a smooth covariance: counts at p = 1e-4 and 1e-3 are as the table says."""
    spaces, covariance = families((3, 3)), smooth((3, 3))
    null = gaussian_null("matched", covariance, spaces)
    kernels = gaussian_kernels(covariance, (3, 3), 500_000, seed=3)
    log_p = null.log_p_values(residuals(kernels, spaces)).numpy()
    for level in (1e-4, 1e-3, 1e-2):
        hits = (log_p <= np.log(level)).sum(axis=0)
        p = [stats.binomtest(int(hit), len(kernels), level).pvalue for hit in hits]
        assert min(p) > 1e-3 / len(spaces)


def test_ring_covariance_keeps_the_ring_energies_and_all_symmetries() -> None:
    C = smooth((5, 5))
    ring = ring_covariance(C, (5, 5))
    np.testing.assert_allclose(np.trace(ring), np.trace(C))
    np.testing.assert_allclose(ring.mean(), C.mean())
    np.testing.assert_allclose(ring_covariance(ring, (5, 5)), ring, atol=1e-12)
    for row in offered_families((5, 5), ("mirror-h", "transpose", "half-turn", "quarter-turn"), pairs=False):
        P = row.subspace.projector
        np.testing.assert_allclose(P @ ring, ring @ P, atol=1e-12)
    np.testing.assert_allclose(ring_covariance(np.eye(15), (3, 5)), np.eye(15), atol=1e-12)


def test_second_moment_is_uncentred() -> None:
    kernels = torch.randn(40_000, 2, 2, generator=torch.Generator().manual_seed(0)) + 1
    expected = kernels.double().flatten(1)
    np.testing.assert_allclose(second_moment(kernels), (expected.T @ expected / 40_000).numpy())
    assert second_moment(kernels).mean() > 1


@pytest.mark.parametrize(
    ("build", "count", "note"),
    [
        (
            matched_null,
            17,
            "matched null not estimated: 17 live kernels of 9 cells, at least 18 needed for their covariance;"
            " white used instead",
        ),
        (
            ring_null,
            11,
            "ring null not estimated: 11 live kernels, at least 12 needed for the energies of 6 rings;"
            " white used instead",
        ),
    ],
)
def test_too_few_kernels_fall_back_to_white(build, count: int, note: str) -> None:
    spaces = families((3, 3))
    kernels = torch.randn(count + 1, 3, 3, generator=torch.Generator().manual_seed(0))
    null = build(kernels[:count], spaces)
    assert null.note == note
    assert torch.equal(null.table, white_null(spaces).table)
    assert build(kernels, spaces).note is None


def test_a_singular_covariance_falls_back_to_white() -> None:
    kernels = torch.randn(100, 3, 3, generator=torch.Generator().manual_seed(0))
    symmetric = kernels + kernels.flip(2)
    note = "matched null not estimated: the kernels' covariance is singular; white used instead"
    assert matched_null(symmetric, families((3, 3))).note == note
    zero = "ring null not estimated: the kernels' covariance is singular; white used instead"
    assert ring_null(torch.zeros(100, 3, 3), families((3, 3))).note == zero


def test_log_p_rises_and_ends_at_one() -> None:
    for null in (white_null(families((5, 5))), gaussian_null("m", smooth((5, 5)), families((5, 5)))):
        assert (null.table.diff(dim=1) >= 0).all()
        assert (null.table <= 0).all()
        assert null.p_values(torch.ones(1, len(families((5, 5)))))[0].min() > 0.99


def test_zero_residuals_have_a_finite_log_p() -> None:
    null = white_null(families((7, 7)))
    assert null.log_p_values(torch.zeros(1, len(families((7, 7))))).isfinite().all()
    assert null.p_values(torch.zeros(1, len(families((7, 7))))).max() < 1e-6


def test_the_quick_minimum_is_the_minimum() -> None:
    spaces = families((3, 3))
    null = white_null(spaces)
    r = residuals(torch.randn(3000, 3, 3, generator=torch.Generator().manual_seed(0)), spaces)
    full = null.log_p_values(r).amin(dim=1)
    torch.testing.assert_close(null.smallest_log_p(r), full)
    quick = null.smallest_log_p(r, largest=0.05)
    small = full <= np.log(0.05)
    assert small.sum() > 500
    torch.testing.assert_close(quick[small], full[small])
    torch.testing.assert_close((20 * quick.exp()).clamp(max=1), (20 * full.exp()).clamp(max=1))


def test_expected_and_its_inverse() -> None:
    spaces = families((3, 3))
    null = white_null(spaces)
    for number, space in enumerate(spaces):
        assert null.expected_share(0.3, number) == pytest.approx(
            np.exp(exact_white(space, np.array(0.3))), rel=1e-3
        )
        at = null.residual_at(0.01)[number]
        assert 0.01 <= null.expected_share(at, number) * (1 + 1e-5) < 0.012
    assert (NODES[1:] > NODES[:-1]).all()


def test_permuted_kernels_keep_their_cells() -> None:
    kernels = torch.arange(18.0).reshape(2, 3, 3)
    drawn = permuted_kernels(kernels, 500, seed=0)
    ordered = drawn.flatten(1).sort(dim=1).values
    low = ordered[:, 0] == 0
    assert 200 < low.sum() < 300
    assert torch.equal(ordered[low][0], torch.arange(9.0))
    assert torch.equal(ordered[~low][0], torch.arange(9.0, 18.0))
    assert drawn.flatten(1)[low].mean(0).std() < 0.5
    assert torch.equal(permuted_kernels(kernels, 500, seed=0), drawn)


def rank_one_residual(kernels: Tensor) -> Tensor:
    energy = torch.linalg.svdvals(kernels.double()).square()
    return (1 - energy[:, 0] / energy.sum(1)).clamp_min(0).sqrt()


def test_sampled_null_is_uniform_and_goes_on_below_its_sample() -> None:
    covariance = smooth((3, 3))
    null = sampled_null("gaussian", rank_one_residual(gaussian_kernels(covariance, (3, 3), 100_000, 0)), 4)
    fresh = rank_one_residual(gaussian_kernels(covariance, (3, 3), 20_000, 1))
    assert stats.kstest(null.log_p(fresh).exp().numpy(), "uniform").pvalue > 0.01
    assert null.expected_share(0.2) == pytest.approx(float((fresh <= 0.2).double().mean()), rel=0.1)
    many = rank_one_residual(gaussian_kernels(covariance, (3, 3), 400_000, 2)).sort().values
    for hits in (20, 100):  # p = 5e-5 and 2.5e-4, below the anchor of the sample
        assert float(null.log_p(many[hits]).exp()) == pytest.approx((hits + 1) / 4e5, rel=0.6)
    assert float(sampled_null("permuted", torch.rand(999)).log_p(torch.tensor(0.0)).exp()) == pytest.approx(
        1 / 1000
    )


def layers_of_resnet20(shared_data: Path) -> list[Tensor]:
    path = shared_data / "checkpoints" / "resnet20-12fca82f.th"
    tensors = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    return [w.reshape(-1, 3, 3) for w in tensors.values() if w.ndim == 4 and w.shape[-1] == 3]


def live(kernels: Tensor) -> Tensor:
    energy = kernels.double().square().sum((1, 2))
    return kernels[energy > 0.01 * energy.mean()]


def test_resnet20_mirrors_are_mostly_chance(shared_data: Path) -> None:
    """Left-right mirrors at 95 % of the energy: 12.7 % observed, 4.6 % white, 11.7 % matched."""
    spaces = [row.subspace for row in offered_families((3, 3), ("mirror-h",))]
    shares = np.zeros(3)
    count = 0
    for kernels in layers_of_resnet20(shared_data):
        nulls: list[Null] = [white_null(spaces), matched_null(live(kernels), spaces)]
        seen = int((residuals(kernels, spaces)[:, 0] <= 0.05**0.5).sum())
        shares += [seen, *(len(kernels) * null.expected_share(0.05**0.5, 0) for null in nulls)]
        count += len(kernels)
    assert count == 29_744
    np.testing.assert_allclose(100 * shares / count, [12.7, 4.6, 11.7], atol=0.05)


def test_depthwise_structure_is_no_chance(shared_data: Path) -> None:
    """YOLO-FastestV2's backbone: 62 % within 0.1 of one of the 17 or rank one; about 16 % when shuffled."""
    path = shared_data / "checkpoints" / "yolofastestv2-coco.pth"
    tensors = torch.load(path, weights_only=True, map_location="cpu")
    weights = [
        w[:, 0].float()
        for name, w in tensors.items()
        if "backbone" in name and w.ndim == 4 and w.shape[1] == 1 and w.shape[-1] > 1
    ]
    seventeen = [row.subspace for row in offered_families((3, 3), SEVENTEEN, pairs=False)]

    def near(kernels: Tensor) -> int:
        linear = residuals(kernels, seventeen).amin(dim=1) <= 0.1
        return int((linear | (rank_one_residual(kernels) <= 0.1)).sum())

    count = sum(len(w) for w in weights)
    assert 0.615 < sum(near(w) for w in weights) / count < 0.63
    assert 0.13 < sum(near(permuted_kernels(w, len(w), seed=0)) for w in weights) / count < 0.19
