"""Constraints from the first step: layers whose kernels lie in a family because nothing else can be reached.

`constrain` re-parametrises convolutions by the same ways as the holds, and `hold.release` makes their
parameters plain again; `plain_state` writes what the unconstrained network loads.
Kernel coordinates are canonical, (out, in / groups).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.gaussian_basis import gaussian_derivatives
from kernelsimp.kernels.subspace import Shape
from kernelsimp.models.layers import (
    TRANSPOSED,
    bank_from_model,
    canonical,
    conv_modules,
    kind_of,
    stored_order,
)
from kernelsimp.records.plan import FREE, LayerPlan, Plan
from kernelsimp.training.hold import projections
from kernelsimp.training.kernel_sets import InFlats, Layout, OnRows, Outer, Shared
from kernelsimp.training.parametrisations import LayerConstraint, parametrisation_of, parametrise
from kernelsimp.training.rules import (
    RANK_ONE,
    Rules,
    dealt,
    gaussian_order,
    mixes_of,
    numbers_left,
    orbit_space,
    prototype_count,
)

WEIGHT = "parametrizations.weight"


def constrain(model: nn.Module, rules: Rules, *, seed: int = 0, fresh: bool = True) -> Plan:
    """Hold the kernels of `model` in the families that `rules` give them, from now on.

    `seed` deals the kernels of a mix out. With `fresh` each group of kernels keeps its mean square, as an
    initialisation must; without, trained weights go to their nearest members. Returns which kernel has which
    family. Raises `KernelsimpError` for rules that do not fit the network, and where it is held already.
    """
    if any(parametrisation_of(module) is not None for module in conv_modules(model).values()):
        raise KernelsimpError("the network is held or constrained already; call release first")
    plan = plan_of(bank_from_model(model), rules, seed)
    tied = {id(weight): part for weight, part in projections(model, orbits_only(plan))}
    modules = conv_modules(model)
    for layer in plan.layers:
        if layer.changed.any():
            weight = modules[layer.name].get_parameter("weight")
            rows = rows_of_layer(layer, plan.structures)
            first = [tied[id(weight)]] if id(weight) in tied else []
            constraint = LayerConstraint([*first, *set_parts(weight, layer, rows, seed)])
            settle(weight, constraint, list(rows.values()), fresh=fresh)
            parametrise(model, weight, constraint)
    return plan


def constrained_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that a constraint holds, by name, shared ones under each name."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(parametrisation_of(module), LayerConstraint)
    }


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the network without constraints loads with strict=True; copies, no views."""
    held = constrained_modules(model)
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        owner = next((own for own in held if name.startswith(f"{own}." if own else "")), None)
        inner = name if owner is None else name.removeprefix(f"{owner}.")
        if owner is not None and f"{owner}.weight".removeprefix(".") not in state:
            state[f"{owner}.weight".removeprefix(".")] = weight_of(held[owner]).clone()
        if owner is None or not inner.startswith(WEIGHT):
            state[name] = value.detach().clone()
    return state


def bank_as_computed(model: nn.Module) -> KernelBank:
    """Return the kernels of a network, those of held and constrained layers with the weights they compute."""
    layers = []
    for name, module in conv_modules(model).items():
        groups, inputs = int(getattr(module, "groups", 1)), int(getattr(module, "in_channels", 0))
        kind = kind_of(inputs, groups, transposed=isinstance(module, TRANSPOSED))
        kernels = canonical(weight_of(module).cpu(), kind, groups)
        layers.append(LayerKernels(name, kind, kernels, groups, "architecture"))
    return KernelBank(tuple(layers))


def plan_of(bank: KernelBank, rules: Rules, seed: int = 0) -> Plan:
    """Return which kernel of `bank` gets which family; a family's index in the plan is by first use."""
    mixes = mixes_of(rules, {layer.name: layer.grid for layer in bank.layers})
    names = dict.fromkeys(name for mix in mixes.values() for name, share in mix.items() if share > 0)
    structures = ("free", *(name for name in names if name != "free"))
    layers = tuple(
        _layer_plan(layer, structures, dealt(mixes.get(layer.name, {}), layer.count, seed + place))
        for place, layer in enumerate(bank.spatial)
    )
    return Plan(structures, layers, {"rule": "constrained from the first step", "seed": seed})


def orbits_only(plan: Plan) -> Plan:
    """Return the plan with every family that is no set of signed orbits left free."""
    return _plan_keeping(
        plan, lambda name, grid: not _is_kernel_set(name) and orbit_space(name, grid) is not None
    )


def held_alike(plan: Plan) -> Plan:
    """Return the plan with every family left free that `kernels.structures` cannot find by its name."""
    return _plan_keeping(plan, lambda name, _: name == RANK_ONE or not _is_kernel_set(name))


def rows_of_layer(layer: LayerPlan, structures: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the kernels of each family in use, numbered in the stored layout."""
    choice = torch.from_numpy(layer.choice.astype(np.int64))[:, :, None, None]
    flat = stored_order(choice, layer.kind, layer.groups).reshape(-1)
    used = [index for index in np.unique(layer.choice).tolist() if index != FREE]
    return {structures[index]: torch.nonzero(flat == index)[:, 0] for index in used}


def set_parts(
    weight: Tensor, layer: LayerPlan, rows: dict[str, Tensor], seed: int
) -> Iterator[OnRows | InFlats]:
    """Yield a part for each family in use that is no set of signed orbits."""
    for name, own in rows.items():
        order, count = gaussian_order(name), prototype_count(name)
        grid = (layer.grid[0], layer.grid[-1])
        if name == RANK_ONE:
            yield Outer(own, weight, grid)
        elif order is not None:
            span = gaussian_derivatives(layer.grid, order)
            assert span is not None  # the rules were checked
            yield InFlats(own, weight, torch.from_numpy(span.basis))
        elif count is not None:
            yield Shared(own, weight, Layout(grid, count, seed))


@torch.no_grad()
def settle(weight: Tensor, constraint: LayerConstraint, groups: list[Tensor], *, fresh: bool) -> None:
    """Write the free part of the nearest members into `weight`; with `fresh` groups keep their mean square.

    A projection onto q of d dimensions leaves q / d of the energy of random kernels, which would make the
    signal fade from layer to layer (He, Zhang, Ren and Sun, Delving deep into rectifiers, 2015).
    """
    member = constraint(constraint.pack(weight))
    if fresh:
        cells = weight[0, 0].numel()
        old, new = weight.reshape(-1, cells), member.reshape(-1, cells).clone()
        for rows in groups:
            lost = new[rows].norm()
            new[rows] *= old[rows].norm() / lost if lost > 0 else 1.0
        member = new.reshape(weight.shape)
    weight.copy_(constraint.pack(member))


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of a convolution, computed or plain, without a gradient."""
    with torch.no_grad():
        weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _layer_plan(
    layer: LayerKernels, structures: tuple[str, ...], hands: list[tuple[str, np.ndarray]]
) -> LayerPlan:
    cells = int(np.prod(layer.grid))
    choice = np.zeros(layer.count, dtype=np.int16)
    dims = {}
    for name, own in hands:
        choice[own] = structures.index(name)
        dims[name] = (numbers_left(name, layer.grid) or cells) + _share(name, cells, len(own))
    free = LayerPlan.free(layer, structures, dims)
    return replace(free, choice=choice.reshape(free.choice.shape))


def _share(name: str, cells: int, kernels: int) -> int:
    """Return each kernel's share of the prototypes' own numbers, rounded up."""
    count = prototype_count(name)
    return -(-min(count, kernels) * cells // max(1, kernels)) if count else 0


def _plan_keeping(plan: Plan, keep: Callable[[str, Shape], bool]) -> Plan:
    """Return the plan with every kernel left free whose family is not kept at its layer's grid."""
    return replace(plan, layers=tuple(_layer_keeping(layer, plan.structures, keep) for layer in plan.layers))


def _layer_keeping(
    layer: LayerPlan, structures: tuple[str, ...], keep: Callable[[str, Shape], bool]
) -> LayerPlan:
    used = [index for index in np.unique(layer.choice).tolist() if index != FREE]
    left = [index for index in used if not keep(structures[index], layer.grid)]
    return replace(layer, choice=np.where(np.isin(layer.choice, left), FREE, layer.choice).astype(np.int16))


def _is_kernel_set(name: str) -> bool:
    return name == RANK_ONE or gaussian_order(name) is not None or prototype_count(name) is not None
