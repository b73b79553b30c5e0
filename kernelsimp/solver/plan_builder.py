"""From kernels and what is known of them to a plan: menus for the chooser, choices back into a plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.analysis.chance import found_in
from kernelsimp.analysis.examine import examine
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.prototypes import distinct
from kernelsimp.kernels.structures import PROTOTYPES, numbers_kept
from kernelsimp.records.plan import SHAPES, LayerPlan, Plan
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.candidates import (
    SetStructure,
    Structure,
    candidates_for,
    chosen_layers,
    linear_names,
    rows_of_layer,
)
from kernelsimp.solver.coefficient_bits import bits_of_layer
from kernelsimp.solver.costs import (
    BY_KIND,
    NEEDS_IMAGES,
    check_cost,
    cost_of,
    cost_table,
    exchange_rate,
    predicted_loss,
)
from kernelsimp.solver.fisher import Sensitivity
from kernelsimp.solver.lagrangian import (
    Choices,
    CostTable,
    check_share,
    choice_bits,
    choose_for_count,
    choose_for_dof,
    coefficient_bits,
)

Chooser = Callable[[Sequence[CostTable]], Choices]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What choosing starts from: layers with the structures on offer, chance's verdict, and the survey."""

    bank: KernelBank
    offers: Mapping[str, tuple[Structure, ...]]
    bits: Mapping[str, float]
    changeable: frozenset[str]
    sensitivities: Mapping[str, Sensitivity]
    settings: PlanSettings

    @cached_property
    def found(self) -> Mapping[str, NDArray[np.bool_]]:
        """The kernels of each layer, flat, that chance does not explain."""
        return {layer.name: _found_kernels(layer, self.settings) for layer in self.bank.spatial}


def prepare(
    bank: KernelBank, settings: PlanSettings, seen: Mapping[str, Sensitivity] | None = None
) -> Prepared:
    """Return the structures on offer and chance's verdict for every kernel larger than 1x1."""
    check_prices(settings)
    offers = {layer.name: candidates_for(layer, settings.families) for layer in bank.spatial}
    bits = {layer.name: bits_of_layer(layer) for layer in bank.spatial}
    return Prepared(bank, offers, bits, frozenset(chosen_layers(bank, settings)), seen or {}, settings)


def check_prices(settings: PlanSettings) -> None:
    """Raise `KernelsimpError` unless the cost is known and the weight of a choice is from 0 to 1."""
    check_cost(settings.cost)
    check_share("--choice-weight", settings.choice_weight)


def chooser(settings: PlanSettings) -> Chooser:
    """Return how the settings' budget picks the multiplier.

    Raises `KernelsimpError` where there is no budget, or one that is no share.
    """
    for option, choose in (("dof", choose_for_dof), ("simplified", choose_for_count)):
        share = getattr(settings, option)
        if share is not None:
            check_share(f"--{option}", share)
            return partial(choose, share=share)
    raise KernelsimpError("no budget was given; pass --dof, --simplified or --max-drop")


def data_free_plan(bank: KernelBank, settings: PlanSettings) -> Plan:
    """Return the plan by absolute cost, which needs neither images nor the network."""
    if settings.cost in NEEDS_IMAGES:
        raise KernelsimpError(f"--cost {settings.cost} needs images and the network: pass --data and --arch")
    choose = chooser(settings)
    return plan_for(prepare(bank, settings), "absolute", choose)[0]


def cost_tables(prepared: Prepared, cost: str) -> tuple[CostTable, ...]:
    """Return one menu a layer, with costs by the name of `cost`."""
    layers = prepared.bank.spatial
    rate = exchange_rate(layers, prepared.sensitivities) if cost == BY_KIND else 1.0
    return tuple(_cost_table(prepared, layer, cost, rate) for layer in layers)


def plan_for(prepared: Prepared, cost: str, choose: Chooser) -> tuple[Plan, dict[str, float]]:
    """Return the plan of one cost, and the loss it predicts of each layer, in nats an image."""
    tables = cost_tables(prepared, cost)
    choices = choose(tables)
    return plan_of(prepared, tables, choices, cost)


def plan_of(
    prepared: Prepared, tables: Sequence[CostTable], choices: Choices, cost: str
) -> tuple[Plan, dict[str, float]]:
    """Return choices as a plan, and the loss it predicts of each layer, in nats an image."""
    names = dict.fromkeys(item.name for offer in prepared.offers.values() for item in offer)
    structures = tuple(names)
    # how near chance brings a kernel to a prototype is not known: whoever takes one is imposed
    known = np.array([not name.startswith(PROTOTYPES) for name in structures])
    layers, predicted = [], {}
    for layer, chosen in zip(prepared.bank.spatial, choices.structures, strict=True):
        errors = _errors(layer, prepared.offers[layer.name], chosen)
        predicted[layer.name] = predicted_loss(layer, errors, prepared.sensitivities.get(layer.name))
        made = _layer_plan(layer, structures, prepared.offers[layer.name], chosen)
        found = prepared.found[layer.name].reshape(made.choice.shape) & made.changed & known[made.choice]
        layers.append(replace(made, found=found, residual=_residual(layer, errors)))
    settings = prepared.settings
    rule: dict[str, Any] = {
        "rule": "one multiplier",
        "cost": cost,
        "multiplier": choices.multiplier,
        "choice_weight": settings.choice_weight,
        "dof": settings.dof,
        "simplified": settings.simplified,
        "resolve": settings.resolve,
    }
    bits = choice_bits(tables, choices)
    return Plan(structures, tuple(layers), rule, bits, coefficient_bits(tables)), predicted


def _cost_table(prepared: Prepared, layer: LayerKernels, cost: str, rate: float) -> CostTable:
    """Return the table of one layer; `rate` is what an absolute error costs where costs go by kind."""
    offer = prepared.offers[layer.name]
    own = cost_of(layer, cost)
    costs = cost_table(layer, offer, prepared.sensitivities.get(layer.name), own)
    allowed = torch.full((layer.count,), layer.name in prepared.changeable)
    if prepared.settings.only_found:
        allowed &= torch.from_numpy(prepared.found[layer.name])
    return CostTable(
        layer.name,
        costs if own != "absolute" or cost == own else costs.mul_(rate),
        dims=torch.tensor([item.dim for item in offer]),
        side_bits=torch.tensor([item.side_bits for item in offer]),
        shared=torch.tensor([item.shared for item in offer]),
        bits=prepared.bits[layer.name],
        cells=int(np.prod(layer.grid)),
        allowed=allowed,
        choice_weight=prepared.settings.choice_weight,
    )


def _errors(layer: LayerKernels, offer: Sequence[Structure], chosen: Tensor) -> Tensor:
    """Return w - Pw of each kernel's choice, (n, cells)."""
    kernels = rows_of_layer(layer)
    errors = torch.zeros_like(kernels)
    for place in torch.unique(chosen).tolist():
        mask = chosen == place
        errors[mask] = offer[place].among(mask).errors(kernels[mask])
    return errors


def _shapes(
    offer: Sequence[Structure], chosen: Tensor, shape: tuple[int, ...], grid: tuple[int, ...]
) -> dict[str, Any]:
    """Return the numbers by which kernels are drawn that became templates or prototypes, for the plan."""
    places = torch.unique(chosen).tolist()
    drawn = {place: offer[place].shapes for place in places if isinstance(offer[place], SetStructure)}
    wide = numbers_kept((offer[place].name for place in places), grid)
    kept = torch.zeros(len(chosen), wide)
    for place, shapes in drawn.items():
        if shapes is not None:
            mask = chosen == place
            kept[mask, : shapes.shape[1]] = shapes[mask].float()
    return {SHAPES: kept.numpy().reshape(*shape, wide)} if wide else {}


def _layer_plan(
    layer: LayerKernels, structures: tuple[str, ...], offer: Sequence[Structure], chosen: Tensor
) -> LayerPlan:
    """Return the plan of one layer, before it says what was found and how far kernels move."""
    free = LayerPlan.free(layer, structures, {item.name: item.dim for item in offer})
    index = np.array([structures.index(item.name) for item in offer], dtype=np.int16)
    choice = index[chosen.numpy()].reshape(free.choice.shape)
    parameters = _shapes(offer, chosen, choice.shape, layer.grid)
    return replace(free, choice=choice, parameters=parameters, shared=_shared(offer, chosen))


def _shared(offer: Sequence[Structure], chosen: Tensor) -> int:
    """Return the numbers of the prototypes that the chosen kernels share: of those that any of them takes."""
    total = 0
    for place in torch.unique(chosen).tolist():
        item = offer[place]
        if item.shared and isinstance(item, SetStructure) and item.shapes is not None:
            grid = (item.members.shape[0], item.members.shape[1])
            total += distinct(item.shapes[chosen == place], grid) * item.shapes.shape[1]
    return total


def _residual(layer: LayerKernels, errors: Tensor) -> NDArray[np.float32]:
    """Return ||error|| / ||w|| of each kernel, (out, in / groups), from its error w - Pw, (n, cells)."""
    norms = rows_of_layer(layer).norm(dim=1)
    residual = torch.where(norms > 0, errors.norm(dim=1) / norms.clamp_min(1e-300), 0.0)
    return np.asarray(residual.float().numpy().reshape(layer.kernels.shape[:2]))


def _found_kernels(layer: LayerKernels, settings: PlanSettings) -> NDArray[np.bool_]:
    return found_in(examine(layer, linear_names(settings.families)), settings.fdr)
