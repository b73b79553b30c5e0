"""The fast residuals against their slow twin: one family and one projection at a time, in float64."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from kernelsimp.kernels.families import find, offered
from kernelsimp.kernels.residuals import mean_removed_residuals, residuals, route
from kernelsimp.kernels.subspace import SpanSubspace, Subspace

SHAPES = [(1, 3), (2, 2), (3, 3), (3, 5), (5, 5), (7, 7), (4, 4), (11, 11), (1, 2), (2, 3, 3)]


@cache
def families(shape: tuple[int, ...]) -> tuple[Subspace, ...]:
    return tuple(row.subspace for row in offered(shape))


def slow_twin(kernels: Tensor, subspaces: tuple[Subspace, ...]) -> Tensor:
    return torch.stack([space.residual(kernels) for space in subspaces], dim=1)


def random_kernels(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_agree_with_the_plain_loop(shape: tuple[int, ...]) -> None:
    kernels = random_kernels(300, shape)
    fast = residuals(kernels, families(shape))
    assert fast.shape == (300, len(families(shape)))
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast.double(), slow_twin(kernels, families(shape)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("shape", [(3, 3), (5, 5)])
def test_float64_stays_float64(shape: tuple[int, ...]) -> None:
    kernels = random_kernels(50, shape).double()
    fast = residuals(kernels, families(shape))
    assert fast.dtype == torch.float64
    torch.testing.assert_close(fast, slow_twin(kernels, families(shape)), atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_stored(dtype: torch.dtype) -> None:
    kernels = random_kernels(50, (3, 3)).to(dtype)
    torch.testing.assert_close(
        residuals(kernels, families((3, 3))).double(),
        slow_twin(kernels, families((3, 3))),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("shape", [(3, 3), (5, 5), (7, 7), (11, 11)])
def test_a_tiny_residual_is_not_lost(shape: tuple[int, ...]) -> None:
    """A residual of 1e-5 reads 1e-5; differences of squared norms would read 0 or 1e-4."""
    for column, space in enumerate(families(shape)):
        member = space.project(random_kernels(20, shape).double())
        outside = random_kernels(20, shape, 1).double()
        outside = outside - space.project(outside)
        scale = (member.flatten(1).norm(dim=1) / outside.flatten(1).norm(dim=1)).view(-1, *[1] * len(shape))
        measured = residuals((member + 1e-5 * scale * outside).float(), families(shape))[:, column]
        assert ((measured > 0.9e-5) & (measured < 1.1e-5)).all()


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-15, 1e15, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    kernels = (random_kernels(64, (3, 3)).double() * scale).float()
    exact = slow_twin(kernels, families((3, 3)))
    torch.testing.assert_close(residuals(kernels, families((3, 3))).double(), exact, atol=1e-6, rtol=0)


def test_zero_reads_zero_and_not_a_number_stays_so() -> None:
    kernels = random_kernels(4, (3, 3))
    kernels[0], kernels[1, 0, 0], kernels[2, 1, 1] = 0, torch.nan, torch.inf
    result = residuals(kernels, families((3, 3)))
    assert (result[0] == 0).all()
    assert result[1:3].isnan().all()
    torch.testing.assert_close(
        result[3:].double(), slow_twin(kernels[3:], families((3, 3))), atol=1e-6, rtol=0
    )


def test_nothing_in_nothing_out() -> None:
    assert residuals(torch.zeros(0, 3, 3), families((3, 3))).shape == (0, len(families((3, 3))))
    assert residuals(torch.zeros(5, 3, 3), ()).shape == (5, 0)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = random_kernels(1500, (3, 3))
    whole = residuals(kernels, families((3, 3)))
    monkeypatch.setattr("kernelsimp.kernels.residuals.CHUNK_CELLS", 9 * 256)
    torch.testing.assert_close(residuals(kernels, families((3, 3))), whole, atol=1e-6, rtol=0)


def test_a_view_of_stored_kernels_will_do() -> None:
    stored = random_kernels(40, (3, 3)).requires_grad_()
    turned = stored.transpose(1, 2)
    result = residuals(turned, families((3, 3)))
    assert not result.requires_grad
    torch.testing.assert_close(
        result.double(), slow_twin(turned.detach(), families((3, 3))), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (5, 5)])
def test_mean_removed(shape: tuple[int, ...]) -> None:
    kernels = random_kernels(100, shape) + 2
    exact = kernels.double() - kernels.double().flatten(1).mean(1).view(-1, *[1] * len(shape))
    fast = mean_removed_residuals(kernels, families(shape))
    torch.testing.assert_close(fast.double(), slow_twin(exact, families(shape)), atol=5e-6, rtol=0)


def test_mean_removed_of_a_constant_is_zero() -> None:
    assert (mean_removed_residuals(torch.full((1, 3, 3), 0.1), families((3, 3))) == 0).all()


@pytest.mark.parametrize(("shape", "most"), [((3, 3), 16), ((5, 5), 46), ((7, 7), 88)])
def test_commuting_families_share_columns(shape: tuple[int, ...], most: int) -> None:
    """Two bases of all cells and a separate one for equal lines would need more columns."""
    made = route(families(shape))
    assert len(made.basis) <= most
    np.testing.assert_allclose(np.linalg.norm(made.basis, axis=1), 1)
    for row, family in zip(made.selector, made.linear, strict=True):
        chosen = made.basis[row > 0]
        complement = np.eye(families(shape)[family].cells) - families(shape)[family].projector
        np.testing.assert_allclose(chosen.T @ chosen, complement, atol=1e-9)


def test_an_arbitrary_subspace_needs_no_orbits() -> None:
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 4)))
    spaces = (SpanSubspace((3, 3), basis), find("mirror-h", (3, 3)))
    kernels = random_kernels(50, (3, 3))
    torch.testing.assert_close(
        residuals(kernels, spaces).double(), slow_twin(kernels, spaces), atol=1e-6, rtol=0
    )


def test_subspaces_of_two_shapes_are_refused() -> None:
    spaces = (find("mirror-h", (3, 3)), find("mirror-h", (5, 5)))
    with pytest.raises(ValueError, match=r"subspaces of one shape expected, found \[\(3, 3\), \(5, 5\)\]"):
        residuals(torch.zeros(1, 3, 3), spaces)
