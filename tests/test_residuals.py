"""The fast residuals against their slow twin: one family and one projection at a time, in float64."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from kernelsimp.kernels.families import find, offered_families
from kernelsimp.kernels.residuals import mean_removed_residuals, residual_chunks, residuals
from kernelsimp.kernels.routes import Classes, Product, residual_routes
from kernelsimp.kernels.subspace import SpanSubspace, Subspace

SHAPES = [
    (1, 3),
    (2, 2),
    (3, 3),
    (3, 5),
    (5, 5),
    (7, 7),
    (4, 4),
    (11, 11),
    (1, 2),
    (2, 3, 3),
    (1, 31),
    (8, 10),
]


@cache
def families(shape: tuple[int, ...]) -> tuple[Subspace, ...]:
    return tuple(row.subspace for row in offered_families(shape))


def slow_twin(kernels: Tensor, subspaces: tuple[Subspace, ...]) -> Tensor:
    return torch.stack([space.residual(kernels) for space in subspaces], dim=1)


def plain_loop(kernels: Tensor, subspaces: Sequence[Subspace]) -> Tensor:
    """One kernel, one family and one formula at a time: what the speed is measured against."""
    return torch.tensor(
        [
            [float((kernel - space.project(kernel)).norm() / kernel.norm()) for space in subspaces]
            for kernel in kernels
        ]
    )


def random_kernels(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_agree_with_the_plain_loop(shape: tuple[int, ...]) -> None:
    kernels = random_kernels(300, shape)
    fast = residuals(kernels, families(shape))
    assert fast.shape == (300, len(families(shape)))
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast.double(), slow_twin(kernels, families(shape)), atol=2e-6, rtol=0)


def test_agree_with_one_kernel_at_a_time() -> None:
    kernels = random_kernels(5, (5, 5))
    torch.testing.assert_close(
        residuals(kernels, families((5, 5))), plain_loop(kernels, families((5, 5))), atol=1e-6, rtol=0
    )


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


@pytest.mark.parametrize("shape", [(3, 3), (9, 9)])
def test_what_lies_wholly_outside_reads_one_and_no_more(shape: tuple[int, ...]) -> None:
    for column, space in enumerate(families(shape)):
        kernels = random_kernels(200, shape).double()
        outside = (kernels - space.project(kernels)).float()
        r = residuals(outside, families(shape))
        assert r.max() <= 1
        assert r[:, column].min() > 1 - 1e-6


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


@pytest.mark.parametrize(("shape", "most"), [((3, 3), 25), ((5, 5), 73), ((7, 7), 145)])
def test_families_share_columns(shape: tuple[int, ...], most: int) -> None:
    """24 or 26 complements of their own would need several times the columns."""
    spaces = tuple(row.subspace for row in offered_families(shape, pairs=False))
    classes, product = residual_routes(spaces, torch.float64)
    assert isinstance(classes, Classes)
    assert isinstance(product, Product)
    assert len(classes.basis) + len(product.basis) <= most
    np.testing.assert_allclose(classes.basis @ classes.basis.T, np.eye(len(classes.basis)), atol=1e-9)
    np.testing.assert_allclose(product.basis.norm(dim=1), 1)
    for row, family in zip(product.selector, product.families, strict=True):
        chosen = product.basis[row > 0].numpy()
        outside = np.eye(spaces[0].cells) - spaces[family - 1].projector
        np.testing.assert_allclose(chosen.T @ chosen, outside, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 3), (5, 5), (7, 7), (9, 9), (2, 4), (3, 5)])
def test_every_way_keeps_a_residual_of_a_billionth(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    for family in offered_families(shape):
        kernels = torch.randn(4, *shape, dtype=torch.float64, generator=generator)
        inside = family.subspace.project(kernels)
        outside = kernels - inside
        scale = 1e-9 * inside.flatten(1).norm(dim=1) / outside.flatten(1).norm(dim=1)
        near = inside + scale[:, None, None] * outside
        r = residuals(near, [row.subspace for row in offered_families(shape)])
        place = [row.name for row in offered_families(shape)].index(family.name)
        np.testing.assert_allclose(r[:, place], 1e-9, rtol=1e-4)


def test_large_kernels_are_folded_not_multiplied() -> None:
    kinds = {type(way).__name__ for way in residual_routes(families((9, 9)), torch.float32)}
    assert kinds == {"Pairs", "Means", "Folded", "Supports"}


def test_chunks_arrive_in_order() -> None:
    kernels = random_kernels(20_000, (2, 2))
    parts = [chunk.clone() for chunk in residual_chunks(kernels, families((2, 2)))]
    assert [len(part) for part in parts] == [8192, 8192, 3616]
    assert torch.equal(torch.cat(parts), residuals(kernels, families((2, 2))))


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
