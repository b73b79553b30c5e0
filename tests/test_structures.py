"""Structures by name: laws of the bent sets, and the solution with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import network, smooth_images
from solving import all_exact, calibrated, error_of, with_tensors

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels import families, partitions
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.prototypes import distinct
from kernelsimp.kernels.structures import BENT, KernelSet, Prototyped, find, kernel_sets, projectors
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.layerwise import reconstruct
from kernelsimp.solver.plan_builder import data_free_plan
from kernelsimp.solver.targets import targets_of

SHAPES = [(2, 2), (3, 3), (3, 5), (5, 5), (7, 7)]
SETS = [item for shape in SHAPES for item in kernel_sets(shape) if item.name in BENT]


def some(shape: tuple[int, ...], count: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("item", SETS, ids=lambda item: f"{item.name} {item.shape}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_snapped_kernel_is_a_member_and_is_not_moved_again(item: KernelSet, dtype: torch.dtype) -> None:
    kernels = some(item.shape).to(dtype)
    snapped = item.snap(kernels)
    assert snapped.dtype == dtype
    assert bool(item.holds(snapped).all())
    assert dtype == torch.bfloat16 or not bool(item.holds(kernels).any())  # four eps of bfloat16 are 3 %
    eps = 32 * torch.finfo(dtype).eps
    assert torch.allclose(item.snap(snapped).double(), snapped.double(), rtol=eps, atol=eps)
    assert float(item.residual(snapped).max()) <= eps


@pytest.mark.parametrize("item", SETS, ids=lambda item: f"{item.name} {item.shape}")
def test_the_flat_is_a_subspace_of_members_through_the_nearest_one(item: KernelSet) -> None:
    kernels = some(item.shape).double()
    flats = projectors(item, kernels)
    assert torch.allclose(flats @ flats, flats, atol=1e-9)
    assert torch.allclose(flats, flats.mT, atol=1e-12)
    snapped = item.snap(kernels)
    through = (flats @ snapped.reshape(len(kernels), -1, 1)).reshape(snapped.shape)
    assert torch.allclose(through, snapped, atol=1e-9)
    others = (flats @ some(item.shape, seed=1).double().reshape(len(kernels), -1, 1)).reshape(snapped.shape)
    assert float(item.residual(others).max()) < 1e-9


def distance(kernels: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Return ||w - member|| / ||w|| of each kernel, (n,)."""
    return (kernels - members).flatten(1).norm(dim=1) / kernels.flatten(1).norm(dim=1)


def test_the_nearest_member_is_nearer_than_any_other_partition_of_two_values() -> None:
    kernels = some((2, 2), 20).double()
    found = find("few-values-2", (2, 2)).residual(kernels)
    for code in range(1, 8):
        labels = torch.tensor([[0, *((code >> i) & 1 for i in range(3))]]).expand(20, 4)
        assert bool((found <= distance(kernels, partitions.snap(kernels, labels)) + 1e-12).all())


def test_dimensions_and_bits_are_those_of_the_known_cases() -> None:
    known = {item.name: (item.dim, item.side_bits) for item in kernel_sets((3, 3))}
    assert [known[name][0] for name in BENT] == [5, 8, 2, 3, 4, 5]
    assert known["rank-one"][1] == 0
    assert known["few-values-2"][1] == pytest.approx(np.log2(255))  # 2^8 - 1 ways to part nine cells in two
    assert find("rank-one", (5, 7)).dim == 11


def test_families_and_zero_are_found_too() -> None:
    assert find("mirror-h", (3, 3)) is families.find("mirror-h", (3, 3))
    assert find("zero", (3, 3)).dim == 0


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("rank-two", (2, 5), "structure 'rank-two' is not offered for kernels of shape (2, 5)"),
        ("rank-one", (3, 3, 3), "structure 'rank-one' is not offered for kernels of shape (3, 3, 3)"),
        ("few-values-5", (2, 2), "structure 'few-values-5' is not offered for kernels of shape (2, 2)"),
    ],
)
def test_what_is_not_offered_is_refused_in_these_words(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(KernelsimpError) as caught:
        find(name, shape)
    assert str(caught.value) == words


def test_the_road_with_bent_sets_is_exact_and_nearer_than_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelsimp.solver.apply.find", find)
    model = network()
    stood = calibrated(model)
    settings = PlanSettings(dof=0.45, families=(*families.SEVENTEEN, "zero", *BENT))
    plan = data_free_plan(stood.bank, settings)
    used = {plan.structures[i] for layer in plan.layers for i in np.unique(layer.choice)}
    assert used & set(BENT)
    assert plan.equivalent_dof / plan.dof_before > 0.45
    reconstruction, projected = (
        reconstruct(stood, targets_of(plan), fitted=fitted) for fitted in (True, False)
    )
    made, plain = (with_tensors(network(), dict(item.tensors)) for item in (reconstruction, projected))
    assert all_exact(made, plan)
    fresh = smooth_images(40, 5)
    assert error_of(made, model, fresh) < 0.7 * error_of(plain, model, fresh)


def planted_prototypes(count: int = 120) -> torch.Tensor:
    """Kernels (count, 5, 5) that are a*X + b of three X, turned and mirrored."""
    centres, draws = some((5, 5), 3).double(), np.random.default_rng(0)
    turned = [
        torch.rot90(centres[number % 3], int(draws.integers(4))).flip(0) * draws.normal() + draws.normal()
        for number in range(count)
    ]
    return torch.stack(turned)


def test_prototypes_hold_kernels_that_share_them_and_no_others() -> None:
    kernels = planted_prototypes()
    shared = find("prototypes-3", (5, 5))
    assert isinstance(shared, Prototyped)
    own = replace(shared, shapes=shared.shapes_of(kernels))
    assert bool(own.holds(own.snap(kernels)).all())
    assert float(own.residual(kernels).max()) < 1e-6
    assert distinct(own.shapes, (5, 5)) == 3
    noise = some((5, 5), 120, seed=4).double()
    assert float(own.residual(noise).min()) > 0.1


def test_prototypes_count_their_own_numbers_among_the_degrees_of_freedom() -> None:
    item = find("prototypes-8", (5, 5))
    assert isinstance(item, Prototyped)
    assert (item.dim, item.shared) == (2, 200)
    assert item.side_bits == 6  # eight prototypes in eight positions
    with pytest.raises(KernelsimpError, match="K from 1 to 256"):
        find("prototypes-0", (5, 5))


def test_a_kernel_that_takes_a_prototype_is_imposed_whatever_was_found_of_it() -> None:
    kernels = planted_prototypes(240).float()
    kernels = (kernels + kernels.flip(2))[:, None]  # exactly left-right symmetric: all of them are found
    bank = KernelBank((LayerKernels("conv", "depthwise", kernels, 240),))
    found = data_free_plan(bank, PlanSettings(dof=0.6, families=("mirror-h",)))
    assert int((found.layers[0].found & found.layers[0].changed).sum()) > 200
    shared = data_free_plan(bank, PlanSettings(dof=0.15, families=("prototypes-3",)))
    assert shared.simplified > 200
    assert not shared.layers[0].found.any()
