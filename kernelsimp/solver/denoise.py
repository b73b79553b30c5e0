"""Denoise kernels that fit no family: each free kernel becomes a simpler estimate of itself.

Denoised kernels are in no set, so they keep all their degrees of freedom; a re-solve goes on around them and
they are held by value. Where no strength is given, each layer takes the strongest denoising that changes its
outputs on real inputs by an aimed share, one aim for the network; without images, its weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.denoisers import parse
from kernelsimp.kernels.structures import DENOISED
from kernelsimp.records.plan import FREE, STRENGTH, LayerPlan, Plan
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.apply import denoise_kernels
from kernelsimp.solver.candidates import FREE_NAME, chosen_layers, rows_of_layer
from kernelsimp.solver.costs import input_energy, predicted_loss
from kernelsimp.solver.fisher import Sensitivity
from kernelsimp.solver.plan_builder import Prepared
from kernelsimp.solver.solve import PlanTrial, Solution, Surveyed, try_plan
from kernelsimp.watch import SILENT, Watcher

AIMS = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.45)
"""Relative changes of a layer's outputs that are tried where no strength is given."""

MORE_KL, LEAST_KL = 0.1, 0.002
"""Denoising may add this share of the plan's own KL, or so many nats, whichever is more."""

BY_WEIGHT = 0.1
"""The strength where neither a number nor images say one: a scan's tolerance."""

NOTHING = "every kernel that may change is in a structure already: nothing is left to denoise"

Accept = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Denoising:
    """What was asked for: the denoiser, its strength if given, and whether it works on `everything`."""

    name: str
    strength: float | None
    everything: bool


def denoising_of(settings: PlanSettings) -> Denoising | None:
    """Return what `--denoise` and `--denoise-all` ask for; raises `KernelsimpError` for nonsense."""
    if settings.denoise is None:
        if settings.denoise_all:
            raise KernelsimpError("--denoise-all needs a denoiser; name one, such as --denoise gaussian")
        return None
    return Denoising(*parse(settings.denoise), everything=settings.denoise_all)


def everything_free(bank: KernelBank) -> Plan:
    """Return the plan that leaves every kernel to itself."""
    return Plan(
        (FREE_NAME,), tuple(map(LayerPlan.free, bank.spatial)), {"rule": "denoise all", "cost": "none"}
    )


def denoise_by_weight(plan: Plan, bank: KernelBank, settings: PlanSettings) -> Plan:
    """Return the plan with its free kernels denoised, at the given strength or one tenth of the weights."""
    asked = denoising_of(settings)
    if asked is None:
        return plan
    strength = BY_WEIGHT if asked.strength is None else asked.strength
    layers = _layers(plan, bank, chosen_layers(bank, settings))
    return _with(plan, layers, asked.name, dict.fromkeys(layers, strength))


def denoise_rest(
    surveyed: Surveyed, solution: Solution, watcher: Watcher = SILENT, accept: Accept | None = None
) -> Solution:
    """Return the solution with its plan's free kernels denoised and everything else re-solved around them.

    Without a strength it is the greatest of `AIMS` whose network `accept` takes and whose KL on held-back
    images stays within `MORE_KL`; where none does, the solution stays as it is and says so.
    """
    prepared = surveyed.prepared
    asked = denoising_of(prepared.settings)
    if asked is None:
        return solution
    layers = _layers(solution.plan, prepared.bank, prepared.changeable)
    if not layers:
        return replace(solution, notes=(*solution.notes, NOTHING))
    if asked.strength is not None:
        tried = _try_strength(
            surveyed, solution, layers, (asked.name, dict.fromkeys(layers, asked.strength)), watcher
        )
        return _finish(solution, tried, f"strength {asked.strength:g}")
    allowed = solution.best.distance.divergence
    allowed += max(MORE_KL * allowed, LEAST_KL)
    low, high = 0, len(AIMS)
    best: tuple[float, PlanTrial] | None = None
    while low < high:
        middle = (low + high) // 2
        strengths = surveyed.calibrated.group.from_first(
            partial(_strengths, prepared, layers, asked.name, AIMS[middle])
        )
        tried = _try_strength(surveyed, solution, layers, (asked.name, strengths), watcher)
        fits = tried.distance.divergence <= allowed and (accept is None or accept(tried.reconstruction.model))
        low, high = (middle + 1, high) if fits else (low, middle)
        best = (AIMS[middle], tried) if fits else best
    if best is None:
        least = f"even denoising that changes outputs by {100 * AIMS[0]:.0f} % costs too much"
        note = f"{asked.name}: {least}; nothing is denoised, or give a strength: {asked.name}:0.1"
        return replace(solution, notes=(*solution.notes, note))
    return _finish(solution, best[1], f"{100 * best[0]:.0f} % of each layer's output")


@dataclass(frozen=True, eq=False)
class _Part:
    """The free kernels of one layer: `mask` (out, in / groups)."""

    layer: LayerKernels
    mask: NDArray[np.bool_]

    def errors(self, name: str, strength: float) -> Tensor:
        """Return what denoising takes from every kernel, (n, cells), zero for the others."""
        plan = replace(
            LayerPlan.free(self.layer),
            choice=self.mask.astype(np.int16),
            parameters={STRENGTH: np.full(self.mask.shape, strength, np.float32)},
        )
        after = denoise_kernels(self.layer.kernels, plan, (FREE_NAME, DENOISED + name))
        return rows_of_layer(self.layer) - after.detach().double().reshape(self.layer.count, -1)


def _layers(plan: Plan, bank: KernelBank, changeable: frozenset[str] | set[str]) -> dict[str, _Part]:
    """Return the free kernels of the layers that may change and have kernels of two sides."""
    parts = {
        item.name: _Part(bank.by_name[item.name], item.choice == FREE)
        for item in plan.layers
        if item.name in changeable and len(item.grid) == 2
    }
    return {name: part for name, part in parts.items() if part.mask.any()}


def _strengths(
    prepared: Prepared, layers: Mapping[str, _Part], denoiser: str, aim: float
) -> dict[str, float]:
    """Return the strength of each layer at one aim."""
    return {
        name: _strength(layer, denoiser, prepared.sensitivities.get(name), aim)
        for name, layer in layers.items()
    }


def _strength(part: _Part, name: str, seen: Sensitivity | None, aim: float) -> float:
    """Return a strength at which the layer's outputs change by about `aim` of themselves, at most.

    Output errors grow about as strengths do, so one step of the rule of three lands near.
    """
    whole = input_energy(part.layer, rows_of_layer(part.layer), seen)[part.mask.reshape(-1)].sum()
    if not whole > 0:
        return 0.0
    strength = aim
    for _ in range(2):
        change = float((input_energy(part.layer, part.errors(name, strength), seen).sum() / whole).sqrt())
        if change > 0:
            strength = min(1.0, strength * aim / change)
    return strength


def _try_strength(
    surveyed: Surveyed,
    solution: Solution,
    parts: Mapping[str, _Part],
    how: tuple[str, Mapping[str, float]],
    watcher: Watcher,
) -> PlanTrial:
    plan = _with(solution.plan, parts, *how)
    predicted = dict(solution.best.predicted)
    for name, part in parts.items():
        seen = surveyed.prepared.sensitivities.get(name)
        predicted[name] = predicted.get(name, 0.0) + predicted_loss(
            part.layer, part.errors(how[0], how[1][name]), seen
        )
    return try_plan(surveyed, (plan, predicted), watcher)


def _finish(solution: Solution, tried: PlanTrial, strength: str) -> Solution:
    before, after = solution.best.distance.divergence, tried.distance.divergence
    note = (
        f"denoised {tried.plan.denoised} kernels that fit no family ({strength}); KL on held-back images "
        f"{before:.4f} before, {after:.4f} after"
    )
    return Solution(
        tried, (*solution.tried, tried), tried.reconstruction.tensors, (*tried.reconstruction.notes, note)
    )


def _with(plan: Plan, parts: Mapping[str, _Part], name: str, strengths: Mapping[str, float]) -> Plan:
    """Return the plan in which the kernels of `parts` are denoised at the strength of their layer."""
    new = DENOISED + name not in plan.structures
    structures = (*plan.structures, DENOISED + name) if new else plan.structures
    layers = []
    for layer in plan.layers:
        dims = np.append(layer.dims, np.int16(np.prod(layer.grid))) if new else layer.dims
        part = parts.get(layer.name)
        if part is None or strengths[layer.name] == 0:
            layers.append(replace(layer, dims=dims))
            continue
        rows = rows_of_layer(part.layer).norm(dim=1)
        change = (part.errors(name, strengths[layer.name]).norm(dim=1) / rows.clamp_min(1e-300)).numpy()
        known = layer.parameters.get(STRENGTH, np.zeros(part.mask.shape, np.float32))
        strength = np.where(part.mask, strengths[layer.name], known).astype(np.float32)
        layers.append(
            replace(
                layer,
                dims=dims,
                choice=np.where(part.mask, structures.index(DENOISED + name), layer.choice).astype(np.int16),
                residual=np.where(part.mask, change.reshape(part.mask.shape), layer.residual).astype(
                    np.float32
                ),
                found=layer.found & ~part.mask,
                parameters={**layer.parameters, STRENGTH: strength},
            )
        )
    rule = {**plan.rule, "denoise": name, "strength": max(strengths.values(), default=0.0)}
    return replace(plan, structures=structures, layers=tuple(layers), rule=rule)
