"""Constraints from the first step: kernels lie in their family, signals keep their size, plain exports."""

import copy
import re

import pytest
import torch
from networks import Mixed
from torch import nn

from kernelsimp import nn as public
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.families import find
from kernelsimp.kernels.gaussian_basis import gaussian_derivatives
from kernelsimp.kernels.rank import residual as rank_residual
from kernelsimp.models.layers import bank_from_model, canonical
from kernelsimp.training.constraints import (
    bank_as_computed,
    constrain,
    constrained_modules,
    plain_state,
)
from kernelsimp.training.hold import release
from kernelsimp.training.rules import CONSTRAINTS, dealt, mixes_of, numbers_left, read_rules

SQUARES = [name for name in CONSTRAINTS if numbers_left(name, (3, 3)) is not None and name != "free"]


def convolution(side=3, seed=0):
    torch.manual_seed(seed)
    return nn.Conv2d(6, 10, side, padding=side // 2)


def trained(model, images, steps=3):
    """Train with momentum, decay and clipping, which must not lead out of a family."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(steps):
        loss = (model(images) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@pytest.mark.parametrize("name", [name for name in SQUARES if not name.startswith(("gaussian", "proto"))])
def test_kernels_stay_exactly_in_their_family_while_they_train(name):
    layer = convolution()
    before = layer.weight.detach().clone()
    constrain(layer, name)
    trained(layer, torch.randn(4, 6, 5, 5))
    release(layer)
    kernels = layer.weight.detach().flatten(0, 1)
    if name == "rank-one":
        assert float(rank_residual(kernels).max()) < 1e-6
    else:
        assert bool(find(name, (3, 3)).holds(kernels).all())
    assert not torch.equal(before, layer.weight)


def test_a_gaussian_basis_holds_through_training():
    layer = convolution(5)
    constrain(layer, "gaussian-2")
    trained(layer, torch.randn(4, 6, 7, 7))
    span = gaussian_derivatives((5, 5), 2)
    assert span.dim == 6
    assert float(span.residual(layer.weight.detach().flatten(0, 1)).max()) < 1e-6


@pytest.mark.parametrize("name", ["gaussian-2", "rank-one", "prototypes-4"])
def test_a_constrained_weight_has_its_own_precision_under_autocast(name):
    layer = convolution(5)
    constrain(layer, {"*": {name: 0.5}})
    expected = layer.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, expected)


def test_a_gaussian_basis_holds_the_slopes_and_bumps_it_is_named_for():
    y, x = torch.meshgrid(torch.arange(-3.0, 4).double(), torch.arange(-3.0, 4).double(), indexing="ij")
    bell = torch.exp(-(x**2 + y**2) / (2 * (7 / 4) ** 2))
    for kernel, order in ((x * bell, 1), (x * y * bell, 2), (x**2 * bell, 2), (y**3 * bell, 3)):
        assert float(gaussian_derivatives((7, 7), order).residual(kernel)) < 1e-12
        assert float(gaussian_derivatives((7, 7), order - 1 or 1).residual(kernel)) > 0.1 or order == 1
    assert gaussian_derivatives((3, 3), 4) is None
    assert gaussian_derivatives((1, 5), 2).dim == 3


def test_prototypes_are_few_and_cover_every_kernel_by_a_x_b():
    layer = convolution()
    plan = constrain(layer, "prototypes-4")
    trained(layer, torch.randn(4, 6, 5, 5))
    kernels = layer.weight.detach().flatten(2).flatten(0, 1).double()
    centred = kernels - kernels.mean(1, keepdim=True)
    part = layer.parametrizations.weight[0].parts[0]
    turned = part.centres.detach().double()[part.index].gather(1, part.move)
    turned = turned - turned.mean(1, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(centred, turned)
    assert float(cosine.abs().min()) > 1 - 1e-6
    assert part.centres.shape == (4, 9)
    assert plan.dof_after == 60 * (2 + 1)  # 36 numbers of the prototypes are shared by 60 kernels, rounded up


@pytest.mark.parametrize("name", SQUARES)
def test_the_initialisation_keeps_the_mean_square_of_the_unconstrained_layer(name):
    layer = convolution(seed=3)
    before = float(layer.weight.detach().square().mean())
    constrain(layer, name)
    assert float(layer.weight.detach().square().mean()) == pytest.approx(before, rel=1e-4)


def test_signals_keep_their_variance_through_constrained_layers():
    torch.manual_seed(0)
    plain = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(3)))
    held = copy.deepcopy(plain)
    constrain(held, {"*": {"full-square": 0.5, "odd-h": 0.25, "free": 0.25}})
    images = torch.randn(8, 64, 8, 8)
    with torch.no_grad():
        ratio = float(held(images).var() / plain(images).var())
    assert 0.8 < ratio < 1.25


def test_trained_weights_go_to_their_nearest_members():
    layer = convolution()
    nearest = find("mirror-h", (3, 3)).snap(layer.weight.detach())
    constrain(layer, "mirror-h", fresh=False)
    assert torch.equal(layer.weight, nearest)


def test_a_mix_gives_each_family_its_share_and_leaves_the_rest_free():
    layer = convolution()
    before = layer.weight.detach().clone()
    plan = constrain(layer, {"*": {"full-square": 0.5, "odd-h": 0.25}}, seed=5)
    choice = plan.layers[0].choice
    assert [int((choice == index).sum()) for index in range(3)] == [15, 30, 15]
    free = torch.from_numpy(choice == 0)
    assert torch.equal(layer.weight[free], before[free])
    assert plan.dof_after == 30 * 3 + 15 * 3 + 15 * 9
    assert (constrain(convolution(), {"*": {"full-square": 0.5}}, seed=6).layers[0].choice != choice).any()


@pytest.mark.parametrize("count", [1, 3, 7, 10])
def test_shares_are_dealt_by_largest_remainder(count):
    hands = dict(dealt({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, count, 0))
    assert sum(len(own) for own in hands.values()) == count
    assert max(map(len, hands.values())) - min(map(len, hands.values())) <= 1
    assert [len(own) for _, own in dealt({"a": 1.0}, count, 0)] == [count]


def test_every_kind_of_convolution_is_constrained_in_canonical_order():
    torch.manual_seed(0)
    model = Mixed()
    plan = constrain(model, {"*": {"mirror-h": 0.4, "odd-half-turn": 0.3}})
    trained(model, torch.randn(2, 3, 6, 6))
    for layer, bank in zip(plan.layers, bank_as_computed(model).spatial, strict=True):
        assert layer.name == bank.name
        for index, name in enumerate(plan.structures[1:], start=1):
            assert bool(
                find(name, layer.grid).holds(bank.kernels[torch.from_numpy(layer.choice == index)]).all()
            )
    assert set(constrained_modules(model)) == {layer.name for layer in plan.layers}


def test_grouped_transposed_kernels_take_bent_families_where_the_plan_says():
    torch.manual_seed(0)
    model = nn.ConvTranspose2d(4, 6, 3, groups=2)
    plan = constrain(model, {"*": {"rank-one": 0.5}})
    kernels = canonical(model.weight.detach(), "transposed", 2)
    lines = rank_residual(kernels.flatten(0, 1)).reshape(kernels.shape[:2]) < 1e-6
    assert torch.equal(lines, torch.from_numpy(plan.layers[0].changed))


def test_the_plain_state_loads_strictly_and_is_what_release_leaves():
    torch.manual_seed(1)
    model, plain = Mixed().eval(), Mixed().eval()
    names = list(plain.state_dict())
    constrain(model, {"line": "mirror-h", "volume": "mirror-v", "*": {"rank-one": 0.5, "prototypes-3": 0.3}})
    state = plain_state(model)
    assert list(state) == names
    plain.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 6, 6)
    assert torch.equal(model(images), plain(images))
    public.release(model)
    assert list(model.state_dict()) == names
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert type(model.dense) is nn.Conv2d


def test_parameters_keep_their_identity_and_a_shared_weight_is_constrained_once():
    first, second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
    second.weight = first.weight
    model, weight = nn.Sequential(first, second), first.weight
    constrain(model, "odd-h")
    assert first.parametrizations.weight.original is weight is second.parametrizations.weight.original
    release(model)
    assert first.weight is weight is second.weight


def test_releasing_a_copy_leaves_the_original_constrained():
    model = nn.Sequential(convolution())
    constrain(model, "odd-h")
    twin = copy.deepcopy(model)
    release(twin)
    assert torch.equal(model[0].weight, twin[0].weight)
    assert list(constrained_modules(model)) == ["0"]
    assert not constrained_modules(twin)


class Turning(nn.Module):
    """Stride 1, symmetric padding, batch norm, global pooling: nothing but kernels can tell orientations."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        return self.head(self.layers(images).relu().mean((2, 3)))


def test_full_square_kernels_make_a_network_blind_to_turns_and_mirrors():
    torch.manual_seed(0)
    model = Turning().double().eval()
    constrain(model, "full-square")
    images = torch.randn(3, 2, 9, 9, dtype=torch.float64)
    sheets = [torch.rot90(sheet, turns, (2, 3)) for sheet in (images, images.flip(3)) for turns in range(4)]
    with torch.no_grad():
        outputs = torch.stack([model(sheet) for sheet in sheets])
        assert float((outputs - outputs[0]).abs().max()) < 1e-10
        release(model)
        model.layers[0].weight[0, 0] = torch.randn(5, 5, dtype=torch.float64)
        freed = torch.stack([model(sheet) for sheet in sheets])
    assert float((freed - freed[0]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (lambda: public.ConstrainedConv1d(2, 3, 5, family="mirror-h"), (1, 2, 9)),
        (
            lambda: public.ConstrainedConv2d(2, 3, 3, stride=2, family={"odd-v": 0.5, "gaussian-1": 0.5}),
            (1, 2, 9, 9),
        ),
        (lambda: public.ConstrainedConv3d(2, 3, 3, bias=False, family="radial"), (1, 2, 5, 5, 5)),
    ],
)
def test_drop_in_convolutions_train_and_release(made, shape):
    torch.manual_seed(0)
    layer = made()
    trained(layer, torch.randn(shape))
    before = layer.weight.detach().clone()
    public.release(layer)
    assert torch.equal(layer.weight, before)
    assert isinstance(layer, type(made()).__mro__[1])


def test_a_line_kernel_is_mirrored_in_time():
    layer = public.ConstrainedConv1d(2, 3, 5, family="odd-h")
    assert torch.equal(layer.weight, -layer.weight.flip(2))


def test_holds_and_constraints_do_not_mix(tmp_path):
    model = nn.Sequential(convolution())
    constrain(model, "odd-h")
    with pytest.raises(KernelsimpError, match=re.escape("held or constrained already; call release first")):
        constrain(model, "mirror-h")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("miror-h", "unknown constraint 'miror-h'; did you mean 'mirror-h'?"),
        ("zero", "unknown constraint 'zero'"),
        (
            "gaussian-9",
            "dense: 'gaussian-9' is not offered for kernels of shape 3x5; offered there: mirror-h",
        ),
        ("quarter-turn", "dense: 'quarter-turn' is not offered for kernels of shape 3x5"),
        (
            {"line": "rank-one"},
            "line: 'rank-one' is not offered for kernels of shape 1x3; offered there: mirror-h",
        ),
        ({"volume": "prototypes-2"}, "volume: 'prototypes-2' is not offered for kernels of shape 3x3x3"),
        ({"dens": "mirror-h"}, "constrain: no layer matches 'dens'; did you mean 'dense'?"),
        ({"point": "mirror-h"}, "constrain: 'point' names only layers with 1x1 kernels; leave it out"),
        ({}, "no rule was given; expected a family, or layer globs with families"),
        ({"dense": {}}, "dense: an empty mix"),
        ({"dense": {"mirror-h": 0.7, "odd-h": 0.4}}, "dense: the shares add up to 1.1; expected 1 at most"),
        ({"dense": {"mirror-h": -0.1}}, "dense: the share of 'mirror-h' is -0.1; expected 0..1"),
    ],
)
def test_rules_that_do_not_fit_are_refused_with_the_reason(rules, words):
    model = Mixed()
    model.point = nn.Conv2d(3, 3, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KernelsimpError, match=re.escape(words)):
        constrain(model, rules)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_constant_kernels_have_no_prototypes():
    layer = convolution()
    nn.init.zeros_(layer.weight)
    with pytest.raises(KernelsimpError, match="every kernel is constant; initialise the layer first"):
        constrain(layer, "prototypes-2")


def test_the_first_glob_that_fits_decides():
    grids = {"a.x": (3, 3), "a.y": (3, 3), "b": (5, 5), "c": (1, 1)}
    mixes = mixes_of({"a.x": "free", "a.*": "odd-h", "*": {"radial": 0.5}}, grids)
    assert mixes == {"a.y": {"odd-h": 1.0}, "b": {"radial": 0.5}}


def test_rules_can_be_spelled_as_words():
    assert read_rules(["odd-h"]) == {"*": "odd-h"}
    mix = read_rules(["stem.*=full-square", "*=odd-h:0.5 + radial:0.25"])
    assert mix == {"stem.*": "full-square", "*": {"odd-h": 0.5, "radial": 0.25}}
    with pytest.raises(KernelsimpError, match=re.escape("expected NAME, GLOB=NAME or GLOB=NAME:SHARE+...")):
        read_rules(["stem="])
    with pytest.raises(KernelsimpError, match=re.escape("'radial' is no share; expected NAME:SHARE")):
        read_rules(["odd-h:0.5+radial"])


def test_a_network_without_kernels_larger_than_one_cell_is_refused():
    with pytest.raises(KernelsimpError, match="names only layers with 1x1 kernels"):
        constrain(nn.Conv2d(3, 3, 1), "mirror-h")
    assert len(bank_from_model(nn.Conv2d(3, 3, 1)).layers) == 1


def test_the_three_numbers_of_a_full_square_are_all_that_training_needs():
    """A known answer: a blur is learned exactly, and half of the least squares error of a slope is left."""
    torch.manual_seed(0)
    images = torch.randn(32, 1, 8, 8)
    blur = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    slope = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 0, 0]])
    layer = public.ConstrainedConv2d(1, 1, 3, bias=False, family="mirror-h")
    for kernel, expected in ((blur, blur), (slope, (slope + slope.flip(1)) / 2)):
        target = torch.nn.functional.conv2d(images, kernel[None, None])
        optimizer = torch.optim.SGD(layer.parameters(), 0.3)
        for _ in range(200):
            optimizer.zero_grad()
            (layer(images) - target).square().mean().backward()
            optimizer.step()
        assert torch.allclose(layer.weight[0, 0], expected, atol=0.05)
