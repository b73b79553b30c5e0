"""Kernels held at a rank, or in a flat, while they train: how near the member is, what a step does to it."""

import pytest
import torch
from torch import Tensor

from kernelsimp.kernels.structures import find
from kernelsimp.training.kernel_sets import AtRank, InFlats
from kernelsimp.training.parametrisations import Tied

RANKS = {"rank-one": 1, "rank-two": 2}
GRIDS = [(3, 3), (3, 5), (5, 5), (7, 7)]
CASES = [(name, grid) for name in RANKS for grid in GRIDS]


def near(name: str, grid: tuple[int, int], away: float) -> Tensor:
    """Return kernels (40, 2, *grid) whose next singular value is about `away` of the last one of the rank."""
    dice = torch.Generator().manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(40, 2, *grid, dtype=torch.float64, generator=dice))
    order, least = RANKS[name], min(grid)
    values = torch.full_like(s, away)
    values[..., :order] = torch.linspace(2, 1, order).double()
    return (u[..., :least] * values[..., None, :]) @ v[..., :least, :] * 3


def held(name: str, kernels: Tensor) -> Tied:
    count, cells = kernels.shape[0] * kernels.shape[1], kernels[0, 0].numel()
    part = AtRank(torch.arange(count), kernels, tuple(kernels.shape[2:]), RANKS[name])
    itself = torch.arange(count * cells)
    return Tied(itself, torch.ones(count * cells, dtype=kernels.dtype), [part])


@pytest.mark.parametrize(("name", "grid"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_near_a_rank_goes_exactly_into_it_and_to_the_nearest_member(name, grid, dtype):
    kernels = near(name, grid, 0.05).to(dtype)
    part = held(name, kernels)
    made, nearest = part(kernels), part.project(kernels)
    assert made.dtype == nearest.dtype == dtype
    assert find(name, grid).holds(made.flatten(0, 1)).all()
    assert find(name, grid).holds(nearest.flatten(0, 1)).all()
    left = [float((item.double() - kernels.double()).norm()) for item in (made, nearest)]
    assert left[0] == pytest.approx(left[1], rel=1e-5 if dtype != torch.bfloat16 else 2e-2)
    tolerance = max(0.05**6, 8 * torch.finfo(dtype).eps)
    assert float((made.double() - nearest.double()).norm() / kernels.double().norm()) < tolerance


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_far_from_the_rank_it_is_still_a_member_and_project_gives_the_nearest(name, grid):
    kernels = near(name, grid, 0.9)
    part = held(name, kernels)
    structure = find(name, grid)
    assert structure.holds(part(kernels).flatten(0, 1)).all()
    expected = structure.snap(kernels.flatten(0, 1)).reshape(kernels.shape)
    assert torch.allclose(part.project(kernels), expected, atol=1e-9)


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_a_member_stays_and_its_gradient_is_the_projection_on_the_tangent(name, grid):
    member = near(name, grid, 0.0).requires_grad_()
    part = held(name, member)
    made = part(member)
    assert torch.allclose(made, member, atol=1e-12)
    push = torch.randn(member.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (pulled,) = torch.autograd.grad(made, member, push)
    moved = (part(member + 1e-6 * push) - part(member - 1e-6 * push)).detach() / 2e-6  # symmetric: P' = P
    assert torch.allclose(pulled, moved, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_kernels_of_less_than_their_rank_stay_what_they_are(grid):
    kernels = torch.stack([torch.zeros(2, *grid), near("rank-one", grid, 0.0)[0].float()])
    kernels[1, 1] = 1.0
    kernels[1, 1, 0] = 2.0
    for name in RANKS:
        assert torch.allclose(held(name, kernels)(kernels), kernels, atol=1e-6)


def test_what_is_fixed_follows_to_a_device_and_no_cast_reaches_it():
    kernels = near("rank-one", (3, 3), 0.0)
    basis = torch.linalg.qr(kernels.reshape(80, 9, 1).expand(-1, -1, 2) + torch.eye(9, 2).double())[0]
    part = InFlats(torch.arange(80), kernels, basis)
    tied = Tied(torch.arange(720), torch.ones(720).double(), [part]).half()
    assert part.basis.dtype == torch.float64
    assert torch.equal(part.basis, basis)
    tied.to("meta")
    assert part.basis.device == part.rows.device == torch.device("meta")


@pytest.mark.parametrize("name", ["rank-one", "rank-two", "flats"])
def test_the_compiler_traces_a_tie_of_sets_both_ways(name):
    kernels = near("rank-two", (3, 3), 0.05)
    basis = torch.linalg.qr(torch.randn(80, 9, 2, dtype=torch.float64))[0]
    part = held(name, kernels) if name in RANKS else None
    if part is None:
        part = Tied(torch.arange(720), torch.ones(720).double(), [InFlats(torch.arange(80), kernels, basis)])
    ends = []
    for function in (part, torch.compile(part, backend="aot_eager", fullgraph=True)):
        free = kernels.clone().requires_grad_()
        made = function(free)
        made.square().sum().backward()
        ends += [made.detach(), free.grad]
    assert torch.allclose(ends[0], ends[2])
    assert torch.allclose(ends[1], ends[3])
