"""A hold that was broken, that cannot be made or that was made already is refused by name."""

import copy

import numpy as np
import pytest
import torch
from held import OPTIMIZERS, STRUCTURES, assert_kept, first_held, made, plan_for, train
from networks import Mixed
from torch import nn

from kernelsimp.errors import HoldError, KernelsimpError
from kernelsimp.records.plan import LayerPlan, Plan
from kernelsimp.training.hold import (
    held_share,
    hold,
    release,
    verify,
    witnesses,
)


def test_verify_names_the_kernel_that_moved():
    model, plan = made(10)
    hold(model, plan, "freeze")
    layer, (out, into) = first_held(plan)
    model.dense.parametrizations.weight[0].frozen[out, into, 0, 0] += 1e-7
    with pytest.raises(HoldError) as caught:
        verify(model)
    structure = STRUCTURES[layer.choice[out, into]]
    assert str(caught.value) == (
        f"dense: kernel ({out}, {into}), held as '{structure}', changed its value"
        f" (1 of {int(layer.changed.sum())} did); nothing may move it:"
        " this is a bug in kernelsimp, please report it"
    )


@pytest.mark.parametrize(("mode", "words"), [("freeze", "changed its value"), ("tie", "left its structure")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_written_file_is_verified_after_the_cast_to_its_dtype(mode, words, dtype):
    model, plan = made(11)
    hold(model, plan, mode)
    promised = witnesses(model)
    train(model, OPTIMIZERS["sgd"](model.parameters()))
    moved = copy.deepcopy(model).to(dtype)
    verify(moved)
    release(model)
    written = {name: value.to(dtype) for name, value in model.state_dict().items()}
    assert_kept(promised, written)
    choice = plan.layers[0].choice
    out, into = np.argwhere((choice == 1) | (choice == 3))[0]
    cell = written["dense.weight"][out, into, 0]
    cell[0] = torch.nextafter(cell[0], torch.tensor(9.0, dtype=dtype))
    broken = promised["dense"].broken_kernels(written["dense.weight"])
    assert broken.nonzero().tolist() == [[out, into]]
    part = moved.dense.parametrizations.weight[0]
    values = part.frozen if mode == "freeze" else part.sign.view(written["dense.weight"].shape)
    values[out, into, 0, 0] *= 1.5
    with pytest.raises(HoldError, match=f"{words} \\(1 of"):
        verify(moved)


def renamed(plan, **changes):
    return Plan(plan.structures, (LayerPlan(**{**vars(plan.layers[0]), **changes}),))


def test_a_plan_for_another_network_is_refused_and_leaves_the_network_plain():
    model, plan = made(12)
    names = list(model.state_dict())
    wrong = Plan(plan.structures, (*plan.layers, *renamed(plan, name="nowhere").layers))
    with pytest.raises(KernelsimpError) as caught:
        hold(model, wrong, "freeze")
    assert str(caught.value) == "the plan names layer 'nowhere', which this network does not have"
    with pytest.raises(KernelsimpError) as caught:
        hold(model, renamed(plan, name="grouped"), "freeze")
    expected = "grouped: the plan is for kernels (4, 3, 3, 5), this network has (6, 2, 3, 3)"
    assert str(caught.value) == expected
    assert list(model.state_dict()) == names


def test_a_kernel_outside_its_structure_is_not_tied():
    torch.manual_seed(0)
    model = Mixed()
    plan = plan_for(model, chosen=1)
    with pytest.raises(KernelsimpError) as caught:
        hold(model, plan, "tie")
    assert str(caught.value) == (
        "dense: kernel (0, 0) is not in its structure 'mirror-h';"
        " apply the plan to the weights before tying them"
    )


def test_a_network_is_not_held_twice():
    model, plan = made(13)
    hold(model, plan, "tie")
    with pytest.raises(KernelsimpError) as caught:
        hold(model, plan, "freeze")
    assert str(caught.value) == "the network is held already; call release first"
    release(model)
    release(model)
    hold(model, plan, "freeze")


def test_a_weight_that_is_computed_already_is_refused():
    model, plan = made(14)
    nn.utils.parametrizations.weight_norm(model.dense)
    with pytest.raises(KernelsimpError) as caught:
        hold(model, plan, "freeze")
    assert str(caught.value) == (
        "dense: its weight is computed from others; remove that parametrisation before holding it"
    )
    assert held_share(model) == 0
