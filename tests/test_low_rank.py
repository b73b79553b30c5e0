"""Layers of low rank fitted to their original outputs, and the choice of ranks at one price."""

import copy
import math

import pytest
import torch
from networks import network, smooth_images
from torch import Tensor, nn

from kernelsimp.kernels.separable import full_rank, ranks_of
from kernelsimp.models.factorised import factorise, separable_layers
from kernelsimp.models.hooks import Call
from kernelsimp.models.layers import bank_from_model
from kernelsimp.models.thin import Thin
from kernelsimp.solver.layerwise import CalibratedNetwork, reconstruct
from kernelsimp.solver.low_rank import LowRank
from kernelsimp.solver.moments import Moments, WindowSampling, pair_moments
from kernelsimp.solver.projected_cg import UnsolvableError
from kernelsimp.solver.rank_choice import Ladder, Rung, choose, choose_for_cost, cost_of, losses_at, steepest
from kernelsimp.solver.solve import calibrated_network

CASES = {"dense": (6, 8, 1), "grouped": (6, 8, 2), "depthwise": (6, 6, 6)}


def problem(groups: int, out: int, *, moved: bool = False) -> tuple[Tensor, Moments, tuple[int, ...]]:
    """Return weights (groups, filters, D), moments of smooth images and the kernels' shape."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, out, (5, 3), groups=groups)
    images = smooth_images(48, side=12).repeat(1, 2, 1, 1) + 0.3 * torch.randn(48, 6, 12, 12)
    was = images + 0.1 * torch.randn_like(images) if moved else images
    original = layer.weight.detach().double().reshape(groups, out // groups, -1)
    now: list[list[Call]] = [[(layer, images)]]
    before: list[list[Call]] | None = [[(layer, was)]] if moved else None
    moments = pair_moments(now, before, original, WindowSampling(1.0, 0))
    assert moments is not None
    return original, moments, tuple(layer.weight.shape)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("moved", [False, True])
def test_the_fit_has_its_rank_and_beats_the_plain_decomposition(name: str, moved: bool) -> None:
    _, out, groups = CASES[name]
    original, moments, shape = problem(groups, out, moved=moved)
    wanted = LowRank(2, shape, groups, torch.ones(out, dtype=torch.float64))
    fitted = wanted.fit(original, moments)
    assert int(ranks_of(fitted.reshape(shape), groups, 1e-9).max()) == 2
    plain = wanted.nearest(original.reshape(shape)).reshape(original.shape)
    assert moments.error(fitted).sum() < moments.error(plain).sum()


def test_a_rank_that_restricts_nothing_keeps_the_outputs() -> None:
    original, moments, shape = problem(1, 8)
    fitted = LowRank(full_rank(shape, 1), shape, 1, torch.ones(8)).fit(original, moments)
    assert float((fitted - original).norm() / original.norm()) < 1e-6


def test_the_turns_are_least_squares() -> None:
    """The slow twin: at the end neither half can be made better, by the gradient of the whole objective."""
    from kernelsimp.solver import low_rank

    original, moments, shape = problem(1, 8, moved=True)
    minds = torch.linspace(0.1, 2, 8, dtype=torch.float64)
    item = low_rank._Problem(LowRank(2, shape, 1, minds), original, moments)
    down = item.verticals(2)
    for _ in range(100):
        across = item.horizontal(down)
        down = item.vertical(down, across)
    across = item.horizontal(down)
    halves = (down.clone().requires_grad_(), across.clone().requires_grad_())
    weights = (halves[0][:, None] @ halves[1]).flatten(2)
    square = (weights @ item.operator * weights).sum(-1) - 2 * (weights * item.aim.flatten(2)).sum(-1)
    (square * item.weights).sum().backward()
    size = float((item.weights[..., None] * item.aim.flatten(2)).norm())
    assert all(float(half.grad.norm()) < 1e-4 * size for half in halves if half.grad is not None)


def test_what_the_loss_minds_is_fitted_better() -> None:
    original, moments, shape = problem(1, 8)
    errors = []
    for first in (1.0, 100.0):
        minds = torch.ones(8, dtype=torch.float64)
        minds[0] = first
        errors.append(moments.error(LowRank(2, shape, 1, minds).fit(original, moments))[0, 0])
    assert errors[1] < 0.5 * errors[0]


def test_losses_fall_with_the_rank_and_are_those_of_a_fit() -> None:
    original, moments, shape = problem(1, 8)
    item = LowRank(3, shape, 1, torch.ones(8, dtype=torch.float64))
    losses = item.losses(original, moments, (1, 2, 4, 8))
    assert losses == sorted(losses, reverse=True)
    assert float(moments.error(item.fit(original, moments)).sum()) <= item.losses(original, moments, (3,))[0]


def test_too_few_rows_are_refused() -> None:
    original, moments, shape = problem(1, 8)
    few = Moments(**{**moments.__dict__, "rows": 3})
    with pytest.raises(UnsolvableError, match="3 windows for 90 cells"):
        LowRank(2, shape, 1, torch.ones(8)).fit(original, few)


# ---------------------------------------------------------------- a whole network


@pytest.fixture(scope="module")
def calibrated() -> CalibratedNetwork:
    model = network()
    images = smooth_images(128, 1)
    return calibrated_network(model, bank_from_model(model), [images], 0)


def test_a_reconstruction_makes_layers_of_low_rank_that_factorise_exactly(
    calibrated: CalibratedNetwork,
) -> None:
    plan = {"conv1": Thin(4), "conv2": Thin(3), "deep": Thin(1)}
    layers = separable_layers(calibrated.model)[0]
    targets = {
        name: LowRank(
            thin.rank, tuple(layers[name].weight.shape), layers[name].groups, torch.ones(8)
        ).target()
        for name, thin in plan.items()
    }
    made = reconstruct(calibrated, targets)
    assert not made.notes
    images = smooth_images(16, 2)
    with torch.no_grad():
        whole, thin = made.model(images), factorise(made.model, plan)(images)
        plain = copy.deepcopy(calibrated.model)
        plain_answers = factorise(plain, plan)(images)
        original = calibrated.model(images)
    assert float((whole - thin).norm() / whole.norm()) < 1e-5
    assert float((whole - original).norm()) < 0.7 * float((plain_answers - original).norm())


def test_losses_of_a_network_are_of_the_layers_asked_for(calibrated: CalibratedNetwork) -> None:
    found = losses_at(calibrated, {}, {"conv1": (1, 2, 6), "deep": (1,)})
    assert set(found) == {"conv1", "deep"}
    assert found["conv1"][1] > found["conv1"][2] > found["conv1"][6] > 0


# ---------------------------------------------------------------- the choice

LADDERS = {
    "steep": Ladder(10.0, (Rung(Thin(1), 2.0, 8.0), Rung(Thin(2), 5.0, 1.0))),
    "flat": Ladder(8.0, (Rung(Thin(1), 1.0, 0.5),)),
    "none": Ladder(4.0, ()),
}


def test_nothing_is_chosen_for_nothing() -> None:
    assert choose(LADDERS, 0.0) == {}
    assert cost_of(LADDERS, {}) == 22.0


def test_at_a_high_price_every_layer_is_on_its_cheapest_rung() -> None:
    chosen = choose(LADDERS, steepest(LADDERS))
    assert {name: rung.way.rank for name, rung in chosen.items()} == {"steep": 1, "flat": 1}


@pytest.mark.parametrize(
    ("cost", "expected"), [(22.0, {}), (16.0, {"flat": 1}), (10.0, {"flat": 1, "steep": 2})]
)
def test_the_least_loss_within_a_cost(cost: float, expected: dict[str, int]) -> None:
    chosen = choose_for_cost(LADDERS, cost)
    assert chosen is not None
    assert {name: rung.way.rank for name, rung in chosen.items()} == expected
    assert cost_of(LADDERS, chosen) <= cost


def test_a_cost_that_no_choice_meets_gives_none() -> None:
    assert choose_for_cost(LADDERS, 6.9) is None
    assert math.isfinite(steepest({}))
