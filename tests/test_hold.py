"""Nothing that is held may move: every kind of convolution, both modes, both optimisers."""

import copy

import numpy as np
import pytest
import torch
from held import OPTIMIZERS, STRUCTURES, assert_kept, kernels_of, made, plan_for, simplified, train
from networks import Mixed
from torch import nn

from kernelsimp.kernels.families import find
from kernelsimp.models.layers import canonical
from kernelsimp.records.plan import LayerPlan, Plan
from kernelsimp.training.hold import (
    held_share,
    hold,
    projections,
    release,
    verify,
    witnesses,
)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_kernels_keep_every_bit_and_the_others_train(name, autocast):
    model, plan = made()
    before = copy.deepcopy(model)
    hold(model, plan, "freeze")
    train(model, OPTIMIZERS[name](model.parameters()), autocast=autocast)
    verify(model.eval())
    release(model)
    for layer in plan.layers:
        now, then = kernels_of(model, plan, layer), kernels_of(before, plan, layer)
        held = torch.from_numpy(layer.changed)
        assert torch.equal(now[held].view(torch.int32), then[held].view(torch.int32)), layer.name
        assert (now[~held] != then[~held]).flatten(1).any(1).all(), layer.name


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tied_kernels_keep_their_structure_exactly_and_their_coefficients_train(name, autocast):
    model, plan = made(1)
    before = copy.deepcopy(model)
    hold(model, plan, "tie")
    train(model, OPTIMIZERS[name](model.parameters()), autocast=autocast)
    verify(model)
    release(model)
    for layer in plan.layers:
        now, then = kernels_of(model, plan, layer), kernels_of(before, plan, layer)
        for index, structure in enumerate(STRUCTURES):
            rows = torch.from_numpy(layer.choice == index)
            space = find(structure, layer.grid) if index else None
            if space is not None:
                assert space.holds(now[rows]).all(), (layer.name, structure)
            if space is None or space.dim:
                assert (now[rows] != then[rows]).flatten(1).any(1).all(), (layer.name, structure)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaled_kernels_keep_their_shape_and_only_their_scale_trains(name, autocast):
    model, plan = made(1)
    before = copy.deepcopy(model)
    hold(model, plan, "scale")
    train(model, OPTIMIZERS[name](model.parameters()), autocast=autocast)
    verify(model)
    release(model)
    moved = 0
    for layer in plan.layers:
        now, then = kernels_of(model, plan, layer), kernels_of(before, plan, layer)
        held = torch.from_numpy(layer.changed)
        assert (now[~held] != then[~held]).flatten(1).any(1).all(), layer.name
        now, then = now[held].flatten(1), then[held].flatten(1)
        cosine = torch.nn.functional.cosine_similarity(now.double(), then.double(), dim=1)
        live = then.abs().sum(1) > 0
        torch.testing.assert_close(cosine[live], torch.ones_like(cosine[live]), rtol=0, atol=1e-6)
        assert not now[~live].any()
        moved += int((now != then).any(1).sum())
    assert moved > 20
    assert not [name for name, _ in model.named_parameters() if "scale" in name]


def test_a_step_on_a_scale_is_the_projected_gradient_step():
    """The slow twin: w - lr * <g, w> w / ||w||^2, in float64."""
    model, plan = made(2)
    model = model.double()
    dense = copy.deepcopy(model)
    hold(model, plan, "scale")
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 7, 9, generator=generator).double(), torch.tensor([0, 1, 2, 0])
    for net in (model, dense):
        net.train()
        nn.functional.cross_entropy(net(images), labels).backward()
    torch.optim.SGD(model.parameters(), 0.5).step()
    for layer in plan.layers:
        now = kernels_of(model, plan, layer).flatten(2)
        module = dict(dense.named_modules())[layer.name]
        kind = "transposed" if "transposed" in layer.name else layer.kind
        weight = canonical(module.weight.detach(), kind, layer.groups).flatten(2)
        gradient = canonical(module.weight.grad, kind, layer.groups).flatten(2)
        along = (gradient * weight).sum(2, keepdim=True) / weight.square().sum(2, keepdim=True).clamp_min(
            1e-300
        )
        held = torch.from_numpy(layer.changed)
        step = torch.where(held[..., None], along * weight, gradient)
        torch.testing.assert_close(now, weight - 0.5 * step, rtol=1e-9, atol=1e-12)


def test_a_step_on_tied_weights_is_the_projected_gradient_step():
    """The slow twin: w - lr * P g with the dense projector, in float64."""
    model, plan = made(2)
    model = model.double()
    dense = copy.deepcopy(model)
    hold(model, plan, "tie")
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 7, 9, generator=generator).double(), torch.tensor([0, 1, 2, 0])
    for net in (model, dense):
        net.train()
        nn.functional.cross_entropy(net(images), labels).backward()
    torch.optim.SGD(model.parameters(), 0.5).step()
    for layer in plan.layers:
        now = kernels_of(model, plan, layer).flatten(2)
        module = dict(dense.named_modules())[layer.name]
        kind = "transposed" if "transposed" in layer.name else layer.kind
        weight = canonical(module.weight.detach(), kind, layer.groups).flatten(2)
        gradient = canonical(module.weight.grad, kind, layer.groups).flatten(2)
        for index, structure in enumerate(STRUCTURES):
            rows = torch.from_numpy(layer.choice == index)
            projector = np.eye(weight.shape[2]) if index == 0 else find(structure, layer.grid).projector
            expected = weight[rows] - 0.5 * gradient[rows] @ torch.from_numpy(projector)
            torch.testing.assert_close(now[rows], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["freeze", "tie", "scale"])
def test_hold_and_release_change_no_bit_no_name_no_order_and_no_parameter_object(mode):
    model, plan = made(3)
    names = [name for name, _ in model.named_parameters()]
    parameters = dict(model.named_parameters())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    hold(model, plan, mode)
    for module in plan.layers:
        now = dict(model.named_modules())[module.name].weight
        assert torch.equal(now.view(torch.int32), state[f"{module.name}.weight"].view(torch.int32))
    release(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == list(state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [type(module) for module in model.modules()] == classes


def test_an_optimizer_made_before_the_hold_and_used_after_the_release_still_works():
    model, plan = made(4)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, steps=1)
    simplified(model, plan)
    hold(model, plan, "freeze")
    frozen = kernels_of(model, plan, plan.layers[0]).clone()
    train(model, optimizer, steps=2)
    release(model)
    held = torch.from_numpy(plan.layers[0].changed)
    assert torch.equal(kernels_of(model, plan, plan.layers[0])[held], frozen[held])
    train(model, optimizer, steps=1)
    assert not torch.equal(kernels_of(model, plan, plan.layers[0])[held], frozen[held])


def test_a_layer_frozen_as_a_whole_computes_no_gradient():
    model, plan = made(5, chosen=1)
    hold(model, plan, "freeze")
    train(model, OPTIMIZERS["adamw"](model.parameters()), steps=1)
    free = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not [name for name in free if "original" in name]
    assert not model.dense.weight.requires_grad
    assert model.depthwise.bias.grad is not None
    model.requires_grad_(True)  # a loop that thaws everything still computes nothing here
    assert not model.dense.weight.requires_grad
    release(model)
    assert model.dense.weight.requires_grad


def test_frozen_minus_zero_stays_minus_zero():
    model, plan = made(6)
    held = tuple(np.argwhere(plan.layers[0].changed)[0])
    with torch.no_grad():
        model.dense.weight[held] = -0.0
    hold(model, plan, "freeze")
    train(model, OPTIMIZERS["sgd"](model.parameters()), steps=2)
    release(model)
    assert torch.signbit(model.dense.weight[held]).all()


class Shared(nn.Module):
    """One module used twice, and one weight in two modules, of which one has a bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.again = self.first
        self.other = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.other.weight = self.first.weight
        self.out = nn.Linear(3, 3)

    def forward(self, images):
        return self.out(self.other(self.again(self.first(images).relu()).relu()).mean((2, 3)))


@pytest.mark.parametrize("mode", ["freeze", "tie"])
@pytest.mark.parametrize("name", ["first", "again", "other"])
def test_a_shared_weight_is_held_once_and_stays_shared(mode, name):
    model, plan = made(7, Shared)
    (layer,) = plan.layers
    plan = Plan(plan.structures, (LayerPlan(**{**vars(layer), "name": name}),))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    hold(model, plan, mode)
    assert held_share(model) == pytest.approx(layer.changed.mean())
    train(model, OPTIMIZERS["sgd"](model.parameters()))
    verify(model)
    release(model)
    assert model.first.weight is model.other.weight
    assert list(model.state_dict()) == list(state)
    held = torch.from_numpy(layer.changed)
    same = torch.equal(model.first.weight[held], state["first.weight"][held])
    assert same == (mode == "freeze")
    assert not torch.equal(model.first.weight[~held], state["first.weight"][~held])


def test_projections_are_those_of_the_families():
    torch.manual_seed(0)
    model = Mixed()
    plan = plan_for(model, 3)
    layers = dict(zip([layer.name for layer in plan.layers], projections(model, plan), strict=True))
    for layer in plan.layers:
        weight, tied = layers[layer.name]
        before = kernels_of(model, plan, layer).clone()
        with torch.no_grad():
            weight.copy_(tied.project(weight))
        after = kernels_of(model, plan, layer)
        for index, structure in enumerate(STRUCTURES):
            rows = torch.from_numpy(layer.choice == index)
            if index == 0:
                assert torch.equal(after[rows], before[rows])
            else:
                space = find(structure, layer.grid)
                assert space.holds(after[rows]).all()
                torch.testing.assert_close(after[rows], space.project(before[rows]).float())


@pytest.mark.parametrize("mode", ["freeze", "tie", "scale"])
def test_a_plan_that_names_a_shared_weight_twice_holds_it_once(mode):
    model, plan = made(7, Shared)
    (layer,) = plan.layers
    plan = Plan(plan.structures, (layer, LayerPlan(**{**vars(layer), "name": "other"})))
    assert len(projections(model, plan)) == 1
    hold(model, plan, mode)
    assert list(witnesses(model)) == ["first"]
    assert len(model.other.parametrizations.weight) == 1


def test_held_share_counts_kernels_larger_than_one_cell():
    model, plan = made(8, lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3)))
    assert held_share(model) == 0
    hold(model, plan, "tie")
    assert held_share(model) == plan.simplified / 16
    assert held_share(nn.Linear(2, 2)) == 0


def test_a_lone_convolution_can_be_held():
    model, plan = made(9, lambda: nn.Conv2d(2, 2, 3))
    hold(model, plan, "freeze")
    promised = witnesses(model)
    release(model)
    assert_kept(promised, model.state_dict())
