"""Rank one and two: against the plain decomposition of each kernel, and exact to the dtype's rounding."""

import numpy as np
import pytest
import torch
from builders import white64

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import rank

GRIDS = [(1, 3), (2, 2), (3, 3), (3, 5), (5, 3), (5, 5), (7, 7)]


@pytest.mark.parametrize("grid", GRIDS)
def test_residuals_match_the_definition_kernel_by_kernel(grid):
    kernels = white64(40, *grid)
    found = rank.residuals(kernels).numpy()
    for kernel, row in zip(kernels.numpy(), found, strict=True):
        s = np.linalg.svd(kernel, compute_uv=False)
        expected = [np.sqrt((s[k:] ** 2).sum() / (s**2).sum()) for k in range(1, len(s) + 1)]
        assert np.allclose(row, expected, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_snapped_kernels_hold_and_lie_as_far_as_the_residual_says(grid, order, dtype):
    kernels = white64(40, *grid).to(dtype)
    written = rank.snap(kernels, order)
    assert written.dtype == dtype
    assert bool(rank.holds(written, order).all())
    far = (written.double() - kernels.double()).flatten(1).norm(dim=1) / kernels.double().flatten(1).norm(
        dim=1
    )
    assert torch.allclose(far, rank.residual(kernels, order), atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("noise", [0, 1e-12, 1e-7, 1e-3, 1.0])
@pytest.mark.parametrize("order", [1, 2])
def test_the_formula_for_nine_cells_agrees_with_the_decomposition(noise, order):
    members = white64(3 * order, 3, 3, seed=1).reshape(order, 3, 3, 3)[:, :2]
    left, right = (part.expand(500, order, 3, 3)[:, :, 0] for part in members.unbind(1))
    weights = torch.randn(500, order, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    kernels = torch.einsum("nr,nri,nrj->nij", weights, left, right) + noise * white64(500, 3, 3, seed=3)
    fast, slow = rank.residuals(kernels), torch.stack([rank.residual(kernels, k) for k in (1, 2, 3)], 1)
    one, two = (fast - slow).abs()[:, :2].T
    assert bool((one <= 1e-6 * slow[:, 0] + 1e-14).all())
    assert bool((two <= 1e-10 + slow[:, 0].where(slow[:, 0] < 1e-6, 0)).all())
    assert bool((fast[:, 1] <= fast[:, 0]).all())


def test_the_formula_knows_equal_and_missing_singular_values():
    special = torch.stack(
        [torch.eye(3), torch.zeros(3, 3), torch.ones(3, 3), torch.diag(torch.tensor([1.0, 1, 0]))]
    )
    expected = torch.tensor([[2 / 3, 1 / 3], [0, 0], [0, 0], [1 / 2, 0]], dtype=torch.float64).sqrt()
    assert torch.allclose(rank.residuals(special)[:, :2], expected, atol=1e-14)
    assert rank.residuals(torch.zeros(0, 3, 3)).shape == (0, 3)


def test_random_kernels_do_not_hold():
    assert not bool(rank.holds(white64(40, 3, 3), 2).any())


def test_a_tiny_residual_is_not_read_as_nothing():
    kernel = torch.outer(torch.tensor([1.0, 2, 3]), torch.tensor([3.0, -1, 1])).double()
    kernel[0, 0] += 1e-9
    r = float(rank.residual(kernel[None])[0])
    assert 1e-11 < r < 1e-9


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e200])
def test_scale_does_not_matter(scale):
    kernels = white64(40, 3, 3)
    assert torch.allclose(rank.residuals(kernels * scale), rank.residuals(kernels), atol=1e-9)


def test_factors_multiply_to_the_nearest_kernel():
    columns, rows = rank.factors(white64(40, 5, 3), 2)
    assert columns.shape == (40, 5, 2)
    assert rows.shape == (40, 2, 3)
    assert torch.allclose(columns @ rows, rank.snap(white64(40, 5, 3), 2), atol=1e-12)
    assert torch.allclose(columns.norm(dim=1), rows.norm(dim=2), atol=1e-12)


def test_zero_and_broken_kernels():
    kernels = white64(3, 3, 3)
    kernels[0], kernels[1, 0, 0] = 0, torch.nan
    r = rank.residual(kernels)
    assert r[0] == 0
    assert bool(r[1].isnan())
    assert not bool(rank.holds(kernels)[1])
    assert len(rank.residual(kernels[:0])) == 0


def test_degrees_of_freedom_and_offers():
    assert [rank.dof((k, k), 1) for k in (3, 5, 7)] == [5, 9, 13]
    assert rank.dof((3, 3), 2) == 8
    assert rank.is_offered((3, 3), 1)
    assert rank.is_offered((3, 3), 2)
    assert not rank.is_offered((2, 2), 2)
    assert not rank.is_offered((1, 7), 1)


def test_a_rank_below_one_is_refused():
    with pytest.raises(KernelsimpError, match=r"^rank 0; expected 1 or more$"):
        rank.residual(white64(40, 3, 3), 0)
