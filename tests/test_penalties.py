"""Penalties: known answers, no reward for smaller weights, and the real bits that they bring down."""

import re

import pytest
import torch
from networks import Mixed
from torch import nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.coding import structure
from kernelsimp.kernels.families import SEVENTEEN, find, offered_families
from kernelsimp.training.constraints import constrain
from kernelsimp.training.curve import point
from kernelsimp.training.information import Rate, adapted_basis, mixture, value_entropy
from kernelsimp.training.penalties import (
    PENALTIES,
    SCHEDULES,
    Penalties,
    PenaltySettings,
    read_penalties,
)


def kernels(count=64, side=3, seed=0):
    return torch.randn(count, side, side, generator=torch.Generator().manual_seed(seed))


def built(name, grid=(3, 3), **settings):
    return PENALTIES[name].build(grid, PenaltySettings(rounding="straight-through", **settings))


@pytest.mark.parametrize("name", list(PENALTIES))
def test_smaller_weights_pay_nothing_off(name):
    measure, some = built(name), kernels()
    assert torch.allclose(measure(some), measure(some * 0.01), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", list(PENALTIES))
def test_every_penalty_has_a_finite_gradient_even_for_zero_and_constant_kernels(name):
    some = torch.cat([kernels(4), torch.zeros(1, 3, 3), torch.ones(1, 3, 3)]).requires_grad_()
    built(name)(some).sum().backward()
    assert bool(some.grad.isfinite().all())
    assert bool(some.grad[:4].any())


def test_asymmetry_is_the_residual_of_the_nearest_family():
    some = kernels().double()
    spaces = [item.subspace for item in offered_families((3, 3), SEVENTEEN)]
    expected = torch.stack([space.residual(some) for space in spaces]).amin(0)
    assert torch.allclose(built("asymmetry")(some), expected, atol=1e-4)
    inside = find("odd-h", (3, 3)).project(some)
    assert float(built("asymmetry", families=("odd-h",))(inside).max()) < 2e-4


def test_smoothness_and_distinct_values_have_known_answers():
    flat, step = torch.ones(1, 3, 3), torch.tensor([[[1.0, 1, 1], [1, 1, 1], [-1, -1, -1]]])
    assert float(built("smoothness")(flat)) == 0
    assert float(built("smoothness")(step)) == pytest.approx(3 * 4 / 9)
    assert float(built("distinct")(flat)) == 0
    assert float(built("distinct")(step)) == pytest.approx(2 / 2.1)


def test_entropy_counts_values():
    flat, two = torch.ones(1, 3, 3), torch.tensor([[[1.0, 1, 1], [1, -1, -1], [1, -1, -1]]])
    assert float(value_entropy(two) - value_entropy(flat)) == pytest.approx(9 * 0.991, abs=0.3)


@pytest.mark.parametrize("grid", [(1, 5), (2, 2), (3, 3), (3, 5), (5, 5), (3, 3, 3)])
def test_the_adapted_basis_is_orthonormal_and_mirrors_change_signs_only(grid):
    basis = torch.from_numpy(adapted_basis(grid))
    cells = basis.shape[0]
    assert basis.shape == (cells, cells)
    assert torch.allclose(basis.T @ basis, torch.eye(cells, dtype=torch.float64), atol=1e-12)
    shaped = basis.T.reshape(cells, *grid)
    for axis in (-1, -2):
        mirrored = shaped.flip(axis).flatten(1) @ basis
        assert torch.allclose(mirrored.abs(), torch.eye(cells, dtype=torch.float64), atol=1e-12)


def test_the_mixture_finds_the_densities_that_made_the_values():
    chances = torch.tensor([[0.9, 0.1]] * 30 + [[0.1, 0.9]] * 10)
    weights = mixture(chances)
    assert float(weights.sum()) == pytest.approx(1)
    likelihood = (chances @ weights).log().sum()
    assert likelihood > (chances @ torch.tensor([0.5, 0.5])).log().sum()
    assert float(weights[0]) > 0.75


@pytest.mark.parametrize("rounding", ["noise", "straight-through"])
def test_what_falls_with_the_rate_is_the_bits_of_the_real_code(rounding):
    torch.manual_seed(0)
    some = kernels(200).requires_grad_()
    families = [item.subspace for item in offered_families((3, 3), SEVENTEEN)]
    before = structure(some.detach(), families).bits
    rate, optimizer = Rate((3, 3), rounding), torch.optim.Adam([some], 0.02)
    start = float(rate(some).mean().detach())
    for _ in range(80):
        optimizer.zero_grad()
        rate(some).mean().backward()
        optimizer.step()
    assert float(rate(some).mean().detach()) < 0.8 * start
    assert structure(some.detach(), families).bits < 0.8 * before


def test_penalties_add_up_by_weight_and_schedule():
    torch.manual_seed(0)
    model = Mixed()
    parts = [Penalties(model, {name: 1.0})() for name in ("asymmetry", "smoothness")]
    both = Penalties(model, {"asymmetry": 2.0, "smoothness": 0.5, "distinct": 0.0})
    assert float((both(0.5) - 0.5 * (2 * parts[0] + 0.5 * parts[1])).detach()) == pytest.approx(0, abs=1e-6)
    assert both.values() == pytest.approx(
        {"asymmetry": float(parts[0].detach()), "smoothness": float(parts[1].detach())}
    )
    ends = {name: (run(0.0), run(1.0)) for name, run in SCHEDULES.items()}
    assert ends == {"constant": (1, 1), "ramp": (0, 1), "late": (0, 1), "early": (1, 0)}


def test_a_penalty_reaches_a_constrained_layer_through_what_it_computes():
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    constrain(model, "odd-h")
    penalties = Penalties(model, {"asymmetry": 1.0, "smoothness": 1.0})
    assert penalties.values()["asymmetry"] < 2e-4
    penalties().backward()
    assert bool(model[0].parametrizations.weight.original.grad.any())


def test_a_point_of_the_curve_counts_structure_that_was_planted():
    torch.manual_seed(0)
    plain, held = nn.Conv2d(8, 16, 5), nn.Conv2d(8, 16, 5)
    constrain(held, "full-square")
    assert point(plain).found <= 3
    assert point(held).found == 128
    assert point(held).bits_per_kernel < 0.5 * point(plain).bits_per_kernel


@pytest.mark.parametrize(
    ("weights", "settings", "words"),
    [
        ({"rat": 1.0}, {}, "unknown penalty 'rat'; did you mean 'rate'?"),
        ({"rate": 0.0, "entropy": 0.0}, {}, "every penalty has weight 0; give one a weight"),
        ({}, {}, "every penalty has weight 0"),
        ({"rate": -1.0}, {}, "the weight of penalty 'rate' is -1; expected 0 or more"),
        ({"rate": 1.0}, {"schedule": "rmp"}, "unknown penalty schedule 'rmp'; did you mean 'ramp'?"),
        ({"rate": 1.0}, {"rounding": "up"}, "rounding is 'up'; expected noise or straight-through"),
        (
            {"asymmetry": 1.0},
            {"families": ("miror-h",)},
            "unknown family 'miror-h'; did you mean 'mirror-h'?",
        ),
    ],
)
def test_penalties_that_make_no_sense_are_refused(weights, settings, words):
    with pytest.raises(KernelsimpError, match=re.escape(words)):
        Penalties(nn.Conv2d(2, 3, 3), weights, PenaltySettings(**settings))


def test_a_family_that_no_kernel_has_and_a_network_without_kernels_are_refused():
    with pytest.raises(KernelsimpError, match="none of quarter-turn is offered for kernels of 3x5"):
        Penalties(nn.Conv2d(2, 3, (3, 5)), {"asymmetry": 1.0}, PenaltySettings(families=("quarter-turn",)))
    with pytest.raises(KernelsimpError, match="the network has no kernel larger than 1x1"):
        Penalties(nn.Conv2d(2, 3, 1), {"rate": 1.0})


def test_penalties_can_be_spelled_as_words():
    assert read_penalties(["rate:1", "distinct: 0.5"]) == {"rate": 1.0, "distinct": 0.5}
    with pytest.raises(
        KernelsimpError, match=re.escape("--penalty 'rate'; expected NAME:WEIGHT, such as rate:1")
    ):
        read_penalties(["rate"])
