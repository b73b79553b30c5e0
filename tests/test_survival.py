"""What is left of a plan in kernels that nothing held."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from held import made, simplified

from kernelsimp.models.layers import bank_from_model
from kernelsimp.training.hold import hold, survival_in_model
from kernelsimp.training.survival import left_of


def counts(model, plan):
    left = survival_in_model(model, plan)
    assert sum(exact for exact, _ in left.families.values()) == left.exact
    assert sum(near for _, near in left.families.values()) == left.near
    return left.exact, left.near, left.total


def test_what_survived_without_a_hold_is_counted():
    model, plan = made(15)
    assert counts(model, plan) == (plan.simplified, plan.simplified, plan.simplified)
    layer = plan.layer("depthwise")
    layer.choice[:, 0] = [1, 1, 5, 0]
    with torch.no_grad():
        model.depthwise.weight[:2] = 1
        simplified(model, plan)
        model.depthwise.weight[0, 0, 0, 0] += 1e-4
        model.depthwise.weight[2] += 1  # the zero kernel becomes a constant one
    near = plan.simplified - 1
    exact = near - 1
    assert counts(model, plan) == (exact, near, plan.simplified)
    hold(model, plan, "freeze")
    assert counts(model, plan) == (exact, near, plan.simplified)


def test_what_left_its_structure_counts_in_full():
    model, plan = made(15)
    kernels = {layer.name: layer.kernels.clone() for layer in bank_from_model(model).layers}
    plan = replace(plan, choice_bits=100.0)
    assert left_of(plan, kernels).dof_after == plan.dof_after
    assert left_of(plan, kernels).choice_bits == 100
    layer = next(item for item in plan.layers if (item.choice == 1).any())
    out, into = np.argwhere(layer.choice == 1)[0]
    kernels[layer.name][out, into, 0, 0] += 1e-4
    left = left_of(plan, kernels)
    assert left.simplified == plan.simplified - 1
    assert left.dof_after - plan.dof_after == layer.dims[0] - layer.dims[1] > 0
    assert left.choice_bits == pytest.approx(100 * left.simplified / plan.simplified)
    assert plan.layer(layer.name).choice[out, into] == 1  # the plan itself stays what it was
