"""Holding what was simplified while the rest of the network trains.

`hold` re-parametrises convolutions, `release` makes their parameters plain again with the exact values,
`verify` proves that nothing held has moved. What was promised is kept in a `Witness` apart from every
buffer of the network, so the proof does not rest on the mechanism it checks. Kernel coordinates are
canonical, (out, in / groups).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kernelsimp.errors import HoldError, KernelsimpError
from kernelsimp.kernels import partitions
from kernelsimp.kernels.structures import DENOISED, Drawn, LowRank, PointSet, find
from kernelsimp.kernels.subspace import OrbitSubspace
from kernelsimp.models.layers import CONVOLUTIONS, TRANSPOSED, canonical, stored_order
from kernelsimp.models.stored_order import module_name
from kernelsimp.records.plan import FREE, LayerPlan, Plan
from kernelsimp.records.report import Survived
from kernelsimp.training import survival
from kernelsimp.training.kernel_sets import AtRank, HeldSet, InFlats, Still
from kernelsimp.training.parametrisations import (
    Frozen,
    LayerConstraint,
    Scaled,
    Tied,
    own_class,
    parametrisation_of,
    parametrise,
    stored_places,
)

Mode = Literal["freeze", "tie", "scale"]
"""Values held bit for bit; structure held, coefficients free; shape held, one scale a kernel free."""

Part = Frozen | Scaled | Tied

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Witness:
    """What a hold promised of one layer.

    `values` (held kernels, cells) are their bits at the time, on the CPU; `trained` says whether the
    weight took gradients, which release restores.
    """

    layer: LayerPlan
    structures: tuple[str, ...]
    mode: Mode
    kind: str
    values: Tensor
    trained: bool

    def broken_kernels(self, weight: Tensor) -> Tensor:
        """Say for each kernel (out, in / groups) whether the stored `weight` broke the promise.

        Frozen kernels, and denoised ones unless they are scaled, must have the same bits after a cast to the
        weight's dtype, all others must lie in their structure exactly.
        """
        kernels = canonical(weight.detach().cpu(), self.kind, self.layer.groups)
        if self.mode == "freeze":
            return self._altered_kernels(kernels)
        moved = survival.outside(kernels, self.layer, self.structures)
        if self.mode == "tie":
            marks = torch.tensor([name.startswith(DENOISED) for name in self.structures])
            moved |= self._altered_kernels(kernels) & marks[torch.from_numpy(self.layer.choice).long()]
        return moved

    def _altered_kernels(self, kernels: Tensor) -> Tensor:
        """Say for each kernel (out, in / groups) whether it is held and has other bits than at the time."""
        held = torch.from_numpy(self.layer.changed)
        result = torch.zeros(held.shape, dtype=torch.bool)
        now, then = kernels[held].flatten(1), self.values.to(kernels.dtype)
        integer = _BITS[kernels.element_size()]
        result[held] = (now.contiguous().view(integer) != then.contiguous().view(integer)).any(dim=1)
        return result


def hold(model: nn.Module, plan: Plan, mode: Mode) -> None:
    """Hold every simplified kernel of `model`, whose weights already are what the plan made of them.

    `freeze` keeps the values bit for bit (w = where(mask, frozen, free)); `tie` keeps the structure and
    leaves its coefficients free (w = U z); `scale` keeps each kernel up to one trained factor. Parameters
    keep their identity, so an optimiser made before still works (but knows nothing of the factors). Raises
    `KernelsimpError` where the plan does not fit the model or, unless it freezes, where a kernel is not in
    its structure yet.
    """
    if any(True for _ in _held_modules(model)):
        raise KernelsimpError("the network is held already; call release first")
    made = [
        (module.get_parameter("weight"), _promise(module, layer, plan.structures, mode))
        for module, layer in _held_layers(model, plan)
    ]
    for weight, part in made:
        parametrise(model, weight, part)
        if part.whole:
            weight.requires_grad_(False)


def release(model: nn.Module) -> None:
    """Make every held or constrained weight a plain parameter again: same name, same object, same value."""
    for module in list(model.modules()):
        part = parametrisation_of(module)
        if not isinstance(part, Part | LayerConstraint):
            continue
        witness = getattr(part, "witness", None)
        free = module.get_parameter("parametrizations.weight.original")
        trained = witness.trained if isinstance(witness, Witness) else free.requires_grad
        own_class(module)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for name in [other for other in module._parameters if other != "weight"]:
            module._parameters[name] = module._parameters.pop(name)  # the weight comes first again
        module.get_parameter("weight").requires_grad_(trained)


def witnesses(model: nn.Module) -> dict[str, Witness]:
    """Return what was promised, {layer name: Witness}: of use after `release`, too."""
    return {witness.layer.name: witness for _, _, witness in _held_modules(model)}


def verify(model: nn.Module) -> None:
    """Raise `HoldError` with the kernel's name if a single held bit of `model` has moved."""
    for module, _, witness in _held_modules(model):
        _check(witness, _weight(module))


def held_share(model: nn.Module) -> float:
    """Return the share of kernels larger than 1x1 that are held, 0..1."""
    seen: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            weight = _weight(module)
            cells = weight[0, 0].numel()
            seen[_identity(module)] = weight.numel() // cells if cells > 1 else 0
    held = sum(int(witness.layer.changed.sum()) for witness in witnesses(model).values())
    return held / sum(seen.values()) if any(seen.values()) else 0.0


def projections(model: nn.Module, plan: Plan) -> list[tuple[nn.Parameter, Tied]]:
    """Return for each weight that the plan changes the parameter and its projector, holding nothing.

    Raises `KernelsimpError` where the plan does not fit the model.
    """
    return [
        (module.get_parameter("weight"), _projector(module, layer, plan.structures))
        for module, layer in _held_layers(model, plan)
    ]


def survival_in_model(model: nn.Module, plan: Plan) -> Survived:
    """Count how many of the plan's kernels are still in their structure, exactly and nearly."""
    kernels = {
        layer.name: canonical(_weight(module).detach().cpu(), _kind(module, layer), layer.groups)
        for module, layer in _held_layers(model, plan)
    }
    return survival.count_survivors(plan, kernels)


def _held_layers(model: nn.Module, plan: Plan) -> list[tuple[nn.Module, LayerPlan]]:
    """Return (module, layer) for each layer that the plan changes, a shared weight once."""
    found: dict[int, tuple[nn.Module, LayerPlan]] = {}
    for layer in plan.layers:
        if layer.changed.any():
            module = _module(model, layer)
            found.setdefault(_identity(module), (module, layer))
    return list(found.values())


def _held_modules(model: nn.Module) -> Iterator[tuple[nn.Module, Part, Witness]]:
    """Yield (module, parametrisation, witness) for each module whose weight is held here."""
    for module in model.modules():
        part = _part(module)
        if part is not None:
            assert isinstance(part.witness, Witness)
            yield module, part, part.witness


def _part(module: nn.Module) -> Part | None:
    """Return the parametrisation by which a module is held, if it is."""
    part = parametrisation_of(module)
    return part if isinstance(part, Part) else None


def _weight(module: nn.Module) -> Tensor:
    with torch.no_grad():
        weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _identity(module: nn.Module) -> int:
    """Return what tells weights apart: the same for two convolutions that share one, held or plain."""
    if parametrize.is_parametrized(module, "weight"):
        return id(next(module.get_submodule("parametrizations.weight").parameters()))
    return id(module._parameters.get("weight", module))


def _check(witness: Witness, weight: Tensor) -> None:
    moved = witness.broken_kernels(weight)
    if moved.any():
        out, into = (int(i) for i in moved.nonzero()[0])
        what = "changed its value" if witness.mode == "freeze" else "left its structure"
        name = witness.structures[witness.layer.choice[out, into]]
        raise HoldError(
            f"{witness.layer.name}: kernel ({out}, {into}), held as '{name}', {what}"
            f" ({int(moved.sum())} of {int(witness.layer.changed.sum())} did); nothing may move it:"
            " this is a bug in kernelsimp, please report it"
        )


def _module(model: nn.Module, layer: LayerPlan) -> nn.Module:
    """Return the convolution that `layer` speaks of, by any name of a shared module."""
    module = dict(model.named_modules(remove_duplicate=False)).get(module_name(layer.name))
    if not isinstance(module, CONVOLUTIONS):
        raise KernelsimpError(f"the plan names layer '{layer.name}', which this network does not have")
    weight = module._parameters.get("weight")
    if weight is None and _part(module) is None:
        raise KernelsimpError(
            f"{layer.name}: its weight is computed from others; remove that parametrisation before holding it"
        )
    kernels = canonical(_weight(module), _kind(module, layer), layer.groups)
    expected = (*layer.choice.shape, *layer.grid)
    if tuple(kernels.shape) != expected:
        found = tuple(kernels.shape)
        raise KernelsimpError(f"{layer.name}: the plan is for kernels {expected}, this network has {found}")
    return module


def _kind(module: nn.Module, layer: LayerPlan) -> str:
    """Take the layout from the module: a plan made from weights alone only guessed it."""
    if isinstance(module, TRANSPOSED):
        return "transposed"
    return "dense" if layer.kind == "transposed" else layer.kind


def _promise(module: nn.Module, layer: LayerPlan, structures: tuple[str, ...], mode: Mode) -> Part:
    """Return the parametrisation of one layer with its witness; changes nothing in the network yet."""
    weight, kind = module.get_parameter("weight"), _kind(module, layer)
    held = torch.from_numpy(layer.changed)
    values = canonical(weight.detach(), kind, layer.groups).cpu()[held].flatten(1).clone()
    witness = Witness(layer, structures, mode, kind, values, weight.requires_grad)
    part: Part
    if mode == "freeze":
        part = Frozen(_kernel_numbers(module, layer) >= 0, weight)
    else:
        _refuse_outside(witness, weight)
        tied = mode == "tie"
        part = (
            _projector(module, layer, structures) if tied else Scaled(_kernel_numbers(module, layer), weight)
        )
    part.witness = witness  # a plain attribute: no cast and no device move of the network reaches it
    return part


def _kernel_numbers(module: nn.Module, layer: LayerPlan) -> Tensor:
    """Return, in the stored layout, which held kernel each cell belongs to, from 0; -1 where it is free."""
    weight = module.get_parameter("weight")
    held = torch.from_numpy(layer.changed)
    number = torch.full(held.shape, -1)
    number[held] = torch.arange(int(held.sum()))
    cells = number.reshape(held.shape + (1,) * len(layer.grid)).expand(*held.shape, *layer.grid)
    shape = tuple(weight.shape)
    return stored_order(cells, _kind(module, layer), layer.groups, shape).contiguous().to(weight.device)


def _projector(module: nn.Module, layer: LayerPlan, structures: tuple[str, ...]) -> Tied:
    weight, kind = module.get_parameter("weight"), _kind(module, layer)
    kernels = canonical(weight.detach().cpu(), kind, layer.groups)
    cells = torch.arange(weight.numel()).reshape(weight.shape)
    source, sign = orbits(canonical(cells, kind, layer.groups), kernels, layer, structures)
    shape = tuple(weight.shape)
    source, sign = (stored_order(part, kind, layer.groups, shape).contiguous() for part in (source, sign))
    sets = _sets(weight, kernels, (layer, structures), stored_places(weight, kind, layer.groups))
    return Tied(source.to(weight.device), sign.to(weight.device, weight.dtype), sets)


def _sets(
    weight: Tensor, kernels: Tensor, plan: tuple[LayerPlan, tuple[str, ...]], number: Tensor
) -> Iterator[HeldSet]:
    """Yield what ties kernels without orbits; `number` (out, in / groups) is where each stands as stored.

    All that is drawn (templates, prototypes) is one set: a step takes its time by the set, hardly by the
    kernel.
    """
    layer, structures = plan
    drawn: list[tuple[Tensor, Tensor]] = []
    still: list[Tensor] = []
    for index in np.unique(layer.choice[layer.changed]):
        mask = layer.choice == index
        where = torch.from_numpy(mask)
        item = find(structures[index], layer.grid, layer.shapes(mask))
        if isinstance(item, LowRank):
            yield AtRank(number[where], weight, (layer.grid[0], layer.grid[1]), item.order)
        elif isinstance(item, Drawn):
            drawn.append((number[where], item.basis(kernels[where])))
        elif isinstance(item, PointSet):
            still.append(number[where])
    if drawn:
        rows, bases = zip(*drawn, strict=True)
        yield InFlats(torch.cat(rows), weight, torch.cat(bases))
    if still:
        yield Still(torch.cat(still), weight)


def orbits(
    cells: Tensor, kernels: Tensor, layer: LayerPlan, structures: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Return for each cell its representative's number and its sign, both shaped like `cells`.

    `cells` (out, in / groups, *grid) numbers the cells of `kernels`; a cell of a free kernel represents
    itself, and so does a cell that is zero, with sign 0, and one of a set without orbits. Which cells of a
    kernel of few values are equal is read from the kernel.
    """
    source = cells.flatten(2).clone()
    sign = torch.ones(source.shape, dtype=torch.float64)
    for index in np.unique(layer.choice):
        if index == FREE:
            continue
        subspace = find(structures[index], layer.grid)
        rows = torch.from_numpy(layer.choice == index)
        if not isinstance(subspace, OrbitSubspace):
            labels = subspace.partition(kernels[rows])
            if labels is not None:
                source[rows] = source[rows].gather(1, partitions.first_of_class(labels))
            continue
        first, inside = np.arange(subspace.cells), subspace.orbit >= 0
        first[inside] = subspace.representatives[subspace.orbit[inside]]
        source[rows] = source[rows][:, torch.from_numpy(first)]
        sign[rows] = torch.from_numpy(np.where(inside, subspace.sign, 0.0))
    return source.reshape(cells.shape), sign.reshape(cells.shape)


def _refuse_outside(witness: Witness, weight: Tensor) -> None:
    moved = witness.broken_kernels(weight)
    if moved.any():
        out, into = (int(i) for i in moved.nonzero()[0])
        name = witness.structures[witness.layer.choice[out, into]]
        raise KernelsimpError(
            f"{witness.layer.name}: kernel ({out}, {into}) is not in its structure '{name}';"
            " apply the plan to the weights before tying them"
        )
