"""Laws of subspaces, over every family at every shape of the catalogue."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelsimp.kernels.families import FAMILIES, find, line_pairs, offered_families
from kernelsimp.kernels.subspace import (
    OrbitSubspace,
    SignedPermutation,
    Subspace,
    from_generators,
    permutation,
    zeroing,
)

SHAPES = [(1, 3), (2, 2), (3, 3), (3, 5), (5, 5), (7, 7)]
CATALOGUE = [
    pytest.param(shape, row.subspace, id=f"{row.name}-{'x'.join(map(str, shape))}")
    for shape in SHAPES
    for row in offered_families(shape)
]
laws = pytest.mark.parametrize(("shape", "space"), CATALOGUE)


def kernels_of(shape: tuple[int, ...], count: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@laws
def test_projector_laws(shape: tuple[int, ...], space: OrbitSubspace) -> None:
    P = space.projector
    np.testing.assert_allclose(P @ P, P, atol=1e-12)
    np.testing.assert_allclose(P, P.T, atol=1e-12)
    assert np.linalg.matrix_rank(P) == space.dim
    np.testing.assert_allclose(space.complement @ space.complement.T, np.eye(space.cells) - P, atol=1e-12)


@laws
def test_a_member_is_unmoved_and_a_projection_has_no_residual(
    shape: tuple[int, ...], space: Subspace
) -> None:
    kernels = kernels_of(shape)
    member = space.project(kernels)
    torch.testing.assert_close(space.project(member), member, atol=1e-12, rtol=0)
    assert (space.residual(member) < 1e-12).all()


@laws
def test_residuals_lie_in_0_to_1_and_know_no_scale_or_sign(shape: tuple[int, ...], space: Subspace) -> None:
    kernels = kernels_of(shape)
    r = space.residual(kernels)
    assert ((r >= 0) & (r <= 1)).all()
    for factor in (-1.0, 1e-7, 1e9):
        torch.testing.assert_close(space.residual(factor * kernels), r)
    distance = (kernels - space.project(kernels)).flatten(1).norm(dim=1) / kernels.flatten(1).norm(dim=1)
    torch.testing.assert_close(r, distance)


@laws
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_snap_is_exact_in_the_stored_dtype(
    shape: tuple[int, ...], space: OrbitSubspace, dtype: torch.dtype
) -> None:
    kernels = kernels_of(shape, 8).to(dtype)
    snapped = space.snap(kernels)
    assert snapped.dtype == dtype
    assert space.holds(snapped).all()
    assert not space.holds(kernels).any()
    assert torch.equal(space.snap(snapped), snapped)
    nearest = space.project(kernels)
    assert (snapped.double() - nearest).abs().max() <= 2 * torch.finfo(dtype).eps * nearest.abs().max()


def group_average(cells: int, generators: list[SignedPermutation]) -> np.ndarray:
    """Average sign(g) T_g over the group that the generators make: the slow twin of orbits."""
    matrices = []
    for generator in generators:
        matrix = np.zeros((cells, cells))
        matrix[np.arange(cells), generator.target] = generator.sign
        matrices.append(matrix)
    group, queue = {np.eye(cells).tobytes(): np.eye(cells)}, [np.eye(cells)]
    while queue:
        element = queue.pop()
        for matrix in matrices:
            product = matrix @ element + 0.0
            if product.tobytes() not in group:
                group[product.tobytes()] = product
                queue.append(product)
    return np.asarray(sum(group.values()) / len(group))


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (3, 3), (3, 5), (5, 5)])
def test_projector_is_the_average_over_the_group(shape: tuple[int, ...]) -> None:
    checked = 0
    for row in (*FAMILIES, *line_pairs(shape)):
        generators = row.build(shape)
        if generators is None or row.name == "radial":  # its rings make a group too large to list
            continue
        expected = group_average(int(np.prod(shape)), generators)
        np.testing.assert_allclose(from_generators(shape, generators).projector, expected, atol=1e-12)
        checked += 1
    assert checked >= 12


def test_zero_lies_in_every_subspace() -> None:
    assert find("mirror-h", (3, 3)).residual(torch.zeros(2, 4, 3, 3)).tolist() == [[0.0] * 4] * 2


def test_leading_axes_are_kept() -> None:
    space, kernels = find("mirror-h", (3, 3)), torch.randn(2, 5, 3, 3, dtype=torch.float64)
    assert space.project(kernels).shape == (2, 5, 3, 3)
    assert space.residual(kernels).shape == (2, 5)
    assert space.holds(kernels).shape == (2, 5)
    torch.testing.assert_close(space.residual(kernels)[1, 3], space.residual(kernels[1, 3]))


def test_an_orbit_that_is_its_own_negative_is_zero() -> None:
    flip = np.array([2, 1, 0])
    space = from_generators((1, 3), [permutation(flip, -1.0)])
    assert space.dim == 1
    assert space.orbit.tolist() == [0, -1, 0]
    assert space.sign[0] == -space.sign[2]
    assert from_generators((1, 3), [zeroing(np.array([True, False, True]))]).dim == 1


def test_representatives_have_sign_plus_one() -> None:
    for row in offered_families((5, 5)):
        first = row.subspace.representatives
        assert (row.subspace.sign[first] == 1).all()
        assert (row.subspace.orbit[first] == np.arange(row.subspace.dim)).all()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_signed_permutations_give_their_group_average(data: st.DataObject) -> None:
    cells = data.draw(st.integers(2, 4))
    generators = [
        SignedPermutation(
            np.array(data.draw(st.permutations(range(cells)))),
            np.array(data.draw(st.lists(st.sampled_from([1.0, -1.0]), min_size=cells, max_size=cells))),
        )
        for _ in range(data.draw(st.integers(1, 2)))
    ]
    space = from_generators((1, cells), generators)
    np.testing.assert_allclose(space.projector, group_average(cells, generators), atol=1e-12)
