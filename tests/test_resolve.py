"""The re-solve against its slow direct twin, and what it must leave alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernelsimp.solver.moments import Moments
from kernelsimp.solver.projected_cg import FilterConstraint, Piece, UnsolvableError, resolve


def moments_of(now: Tensor, before: Tensor, original: Tensor) -> Moments:
    """Moments of rows (groups, n, D) for weights (groups, filters, D), by code of its own."""
    n, outputs = now.shape[1], before @ original.mT
    return Moments(
        now.mT @ now / n,
        outputs.mT @ now / n,
        now.mean(1),
        outputs.mean(1),
        outputs.square().mean(1),
        n,
        torch.equal(now, before),
    )


def halved(now: Tensor, before: Tensor, original: Tensor) -> Moments:
    """Moments of all rows, with those of every other one."""
    halves = tuple(moments_of(now[:, half::2], before[:, half::2], original) for half in (0, 1))
    return replace(moments_of(now, before, original), halves=halves)


@pytest.mark.parametrize(("rows", "mendable"), [(2000, True), (220, False)])
def test_a_free_layer_stays_where_it_was_unless_the_other_half_of_the_images_gains(
    rows: int, mendable: bool
) -> None:
    """What another linear map undoes is mended; noise that few rows cannot tell from it is left alone."""
    generator = torch.Generator().manual_seed(7)
    before = torch.randn(1, rows, 40, dtype=torch.float64, generator=generator)
    change = torch.randn(before.shape, dtype=torch.float64, generator=generator)
    turned = before + 0.3 * before.roll(1, 2)
    now = turned if mendable else before + 0.3 * change
    original = torch.randn(1, 5, 40, dtype=torch.float64, generator=generator)
    moments, free = halved(now, before, original), FilterConstraint(1, ())
    fresh = torch.randn(1, 5000, 40, dtype=torch.float64, generator=generator)
    seen = fresh + 0.3 * (fresh.roll(1, 2) if mendable else torch.randn(fresh.shape, generator=generator))
    judge = moments_of(seen, fresh, original)
    chosen = resolve(original, free, moments).weights
    greedy = resolve(original, free, replace(moments, halves=())).weights
    errors = [float(judge.error(item).sum()) for item in (chosen, greedy, original)]
    if mendable:
        assert errors[0] < 0.01 * errors[2]
    else:
        assert errors[0] < errors[1]
        assert errors[0] < 1.02 * errors[2]


def random_basis(generator: torch.Generator, cells: int, dim: int) -> Tensor:
    return torch.linalg.qr(torch.randn(cells, dim, dtype=torch.float64, generator=generator))[0]


def smooth_rows(generator: torch.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Correlated, badly scaled rows, as real inputs are."""
    groups, n, width = shape
    mix = torch.randn(groups, width, width, dtype=torch.float64, generator=generator) / width**0.5
    scale = torch.logspace(0, -2, width, dtype=torch.float64)
    return torch.randn(groups, n, width, dtype=torch.float64, generator=generator) * scale @ mix


def direct(original: Tensor, bases: list[list[Tensor]], moments: Moments, damping: float) -> Tensor:
    """z = (U'(G + dI)U)^-1 U'(b + d w0), one filter of one group at a time, with a dense U."""
    result = torch.empty_like(original)
    for group in range(original.shape[0]):
        gram, target = moments.gram[group], moments.target[group]
        d = damping * moments.gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(len(gram), dtype=torch.float64)
        for row in range(original.shape[1]):
            u = torch.block_diag(*bases[group * original.shape[1] + row])
            z = torch.linalg.solve(u.T @ (gram + d) @ u, u.T @ (target[row] + d @ original[group, row]))
            result[group, row] = u @ z
    return result


@pytest.mark.parametrize(("groups", "filters", "inputs"), [(1, 5, 3), (2, 3, 3), (6, 1, 1), (1, 4, 64)])
def test_conjugate_gradients_agree_with_the_direct_solve_on_random_subspaces(
    groups: int, filters: int, inputs: int
) -> None:
    generator = torch.Generator().manual_seed(inputs)
    width, kernels = inputs * 9, groups * filters * inputs
    before = smooth_rows(generator, (groups, 8 * width, width))
    now = before + 0.1 * smooth_rows(generator, (groups, 8 * width, width))
    original = torch.randn(groups, filters, width, dtype=torch.float64, generator=generator)
    moments = moments_of(now, before, original)
    dims = torch.randint(1, 9, (kernels,), generator=generator).tolist()
    bases = [random_basis(generator, 9, dim) for dim in dims]
    projectors = torch.stack([basis @ basis.T for basis in bases])
    constraint = FilterConstraint(9, (Piece(torch.arange(kernels), projectors),))
    solved = resolve(original, constraint, moments, 0.01).weights
    by_filter = [bases[i : i + inputs] for i in range(0, kernels, inputs)]
    expected = direct(original, by_filter, moments, 0.01)
    assert (solved - expected).norm() <= 1e-6 * expected.norm()


def test_shared_projectors_and_free_kernels_agree_with_the_direct_solve() -> None:
    generator = torch.Generator().manual_seed(5)
    width = 27
    rows = smooth_rows(generator, (1, 300, width))
    original = torch.randn(1, 4, width, dtype=torch.float64, generator=generator)
    bases = [torch.eye(9, dtype=torch.float64), random_basis(generator, 9, 3), random_basis(generator, 9, 5)]
    choice = torch.randint(0, 3, (12,), generator=generator)
    pieces = tuple(Piece((choice == i).nonzero()[:, 0], bases[i] @ bases[i].T) for i in (1, 2))
    solved = resolve(original, FilterConstraint(9, pieces), moments_of(rows, rows, original)).weights
    by_filter = [[bases[i] for i in choice[3 * o : 3 * o + 3].tolist()] for o in range(4)]
    expected = direct(original, by_filter, moments_of(rows, rows, original), 0.01)
    assert (solved - expected).norm() <= 1e-6 * expected.norm()


def test_the_result_is_better_than_projection_and_stays_in_the_subspaces() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = smooth_rows(generator, (1, 400, 36))
    original = torch.randn(1, 6, 36, dtype=torch.float64, generator=generator)
    moments = moments_of(rows, rows, original)
    basis = random_basis(generator, 9, 4)
    constraint = FilterConstraint(9, (Piece(torch.arange(0, 24, 2), basis @ basis.T),))
    solved = resolve(original, constraint, moments).weights

    def objective(weights: Tensor) -> float:
        return float((rows @ (weights - original).mT).square().sum())

    assert objective(solved) < 0.8 * objective(constraint.project(original))
    assert torch.allclose(constraint.project(solved), solved, atol=1e-12)


def test_nothing_to_do_moves_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = smooth_rows(generator, (1, 200, 18))
    original = torch.randn(1, 3, 18, dtype=torch.float64, generator=generator)
    solved = resolve(original, FilterConstraint(9, ()), moments_of(rows, rows, original))
    assert torch.allclose(solved.weights, original, rtol=0, atol=1e-12)


def test_inputs_that_are_never_active_keep_their_weights_projected() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = smooth_rows(generator, (1, 300, 27))
    rows[:, :, 9:18] = 0
    original = torch.randn(1, 4, 27, dtype=torch.float64, generator=generator)
    basis = random_basis(generator, 9, 4)
    constraint = FilterConstraint(9, (Piece(torch.arange(12), basis @ basis.T),))
    solved = resolve(original, constraint, moments_of(rows, rows, original)).weights
    expected = constraint.project(original)
    assert torch.allclose(solved[..., 9:18], expected[..., 9:18], atol=1e-9)
    assert not torch.allclose(solved[..., :9], expected[..., :9], atol=1e-3)


def test_too_few_rows_are_refused_in_these_words() -> None:
    rows, ones = torch.ones(1, 100, 27, dtype=torch.float64), torch.ones(1, 2, 27, dtype=torch.float64)
    with pytest.raises(UnsolvableError) as caught:
        resolve(ones, FilterConstraint(9, ()), moments_of(rows, rows, ones))
    assert str(caught.value) == "100 windows for 27 cells; expected 135 at least"


def test_inputs_that_never_vary_are_refused_in_these_words() -> None:
    rows, ones = torch.zeros(1, 200, 27, dtype=torch.float64), torch.ones(1, 2, 27, dtype=torch.float64)
    with pytest.raises(UnsolvableError) as caught:
        resolve(ones, FilterConstraint(9, ()), moments_of(rows, rows, ones))
    assert str(caught.value) == "its inputs are always the same, so there is nothing to fit to"


def test_moments_that_are_not_finite_are_refused() -> None:
    rows = torch.full((1, 200, 9), torch.nan, dtype=torch.float64)
    ones = torch.ones(1, 2, 9, dtype=torch.float64)
    with pytest.raises(UnsolvableError, match="not finite"):
        resolve(ones, FilterConstraint(9, ()), moments_of(rows, rows, ones))


NO_PIECES: tuple[Piece, ...] = ()
ONE_PIECE = (Piece(torch.arange(1), torch.eye(9, dtype=torch.float64)),)


@pytest.mark.parametrize("pieces", [NO_PIECES, ONE_PIECE])
def test_moments_that_are_not_positive_definite_are_an_error_not_a_result(pieces: tuple[Piece, ...]) -> None:
    one = torch.eye(9, dtype=torch.float64)
    gram = torch.cat([torch.cat([one, 2 * one]), torch.cat([2 * one, one])], dim=1)[
        None
    ]  # blocks are, it is not
    zeros = torch.zeros(1, 18, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(1, 2, 18, dtype=torch.float64, generator=generator)
    broken = Moments(gram, original.roll(1, 1), zeros, torch.zeros(1, 2), torch.zeros(1, 2), 100, True)
    with pytest.raises(UnsolvableError, match="not positive definite"):
        resolve(original, FilterConstraint(9, pieces), broken)


def test_a_layer_too_large_for_its_own_preconditioner_comes_to_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(6)
    rows = smooth_rows(generator, (2, 400, 36))
    original = torch.randn(2, 3, 36, dtype=torch.float64, generator=generator)
    basis = random_basis(generator, 9, 4)
    constraint = FilterConstraint(9, (Piece(torch.arange(0, 24, 2), basis @ basis.T),))
    moments = moments_of(rows, rows, original)
    blocks = resolve(original, constraint, moments)
    monkeypatch.setattr("kernelsimp.solver.projected_cg.BLOCK_NUMBERS", 0)
    means = resolve(original, constraint, moments)
    assert torch.allclose(means.weights, blocks.weights, atol=1e-7)
    assert means.steps > blocks.steps


@pytest.mark.parametrize(("groups", "filters"), [(1, 6), (3, 2)])
def test_a_layer_solved_in_parts_is_the_layer_solved_at_once(
    monkeypatch: pytest.MonkeyPatch, groups: int, filters: int
) -> None:
    generator = torch.Generator().manual_seed(groups)
    rows = smooth_rows(generator, (groups, 300, 27))
    original = torch.randn(groups, filters, 27, dtype=torch.float64, generator=generator)
    kernels = groups * filters * 3
    basis = random_basis(generator, 9, 4)
    own = torch.stack([random_basis(generator, 9, 2) for _ in range(5)])
    pieces = (
        Piece(torch.arange(0, kernels, 3), basis @ basis.T),
        Piece(torch.arange(1, 15, 3), own @ own.mT),
    )
    offset = torch.zeros(kernels, 9, dtype=torch.float64)
    offset[16] = 1.0
    constraint = FilterConstraint(9, (*pieces, Piece(torch.tensor([16]), torch.zeros(9, 9).double())), offset)
    moments = moments_of(rows, rows, original)
    whole = resolve(original, constraint, moments)
    monkeypatch.setattr("kernelsimp.solver.projected_cg.BLOCK_NUMBERS", 2 * 27 * 9)
    parts = resolve(original, constraint, moments)
    assert torch.allclose(whole.weights, parts.weights, rtol=0, atol=1e-9)
    assert whole.steps == parts.steps
