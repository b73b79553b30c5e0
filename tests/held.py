"""Networks with a plan, simplified as it says and ready to be held: what the tests of holding share."""

import numpy as np
import torch
from networks import Mixed
from torch import nn

from kernelsimp.kernels.families import find
from kernelsimp.models.layers import bank_from_model, canonical, tensor_name
from kernelsimp.records.plan import LayerPlan, Plan
from kernelsimp.solver.apply import apply_plan

STRUCTURES = ("free", "mirror-h", "odd-half-turn", "equal-rows", "constant", "zero")


def plan_for(model, seed=0, structures=STRUCTURES, chosen=None):
    """Return a plan with a random structure, or `chosen`, for every kernel larger than 1x1."""
    rng = np.random.default_rng(seed)
    layers = []
    for layer in bank_from_model(model).spatial:
        shape = tuple(layer.kernels.shape[:2])
        choice = rng.integers(0, len(structures), shape) if chosen is None else np.full(shape, chosen)
        cells = int(np.prod(layer.grid))
        dims = [cells if name == "free" else find(name, layer.grid).dim for name in structures]
        none = np.zeros(shape, bool)
        layers.append(
            LayerPlan(
                name=layer.name,
                kind=layer.kind,
                groups=layer.groups,
                grid=layer.grid,
                choice=choice.astype(np.int16),
                found=none,
                dead=none,
                residual=np.zeros(shape, np.float32),
                dims=np.array(dims, np.int16),
            )
        )
    return Plan(structures, tuple(layers))


def simplified(model, plan):
    changed = apply_plan(bank_from_model(model), plan)
    state = model.state_dict()
    for name, value in changed.items():
        state[name.removeprefix(".")].copy_(value.reshape(state[name.removeprefix(".")].shape))
    return model


def made(seed=0, build=Mixed, **choices):
    torch.manual_seed(seed)
    model = build()
    plan = plan_for(model, seed, **choices)
    return simplified(model, plan), plan


def train(model, optimizer, steps=4, autocast=False):
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        images, labels = torch.randn(4, 3, 7, 9, generator=generator), torch.tensor([0, 1, 2, 0])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.5),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.5, amsgrad=True),
}


def kernels_of(model, plan, layer):
    weight = dict(model.named_modules())[layer.name].weight.detach()
    kind = "transposed" if "transposed" in layer.name else layer.kind
    return canonical(weight, kind, layer.groups)


def first_held(plan):
    layer = plan.layers[0]
    return layer, tuple(int(i) for i in np.argwhere(layer.changed)[0])


def assert_kept(promised, tensors):
    """Assert that tensors as written, {name: stored weight}, keep what was promised of every layer."""
    for name, witness in promised.items():
        assert not witness.broken_kernels(tensors[tensor_name(name)]).any(), name
