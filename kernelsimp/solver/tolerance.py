"""The weight-space plan: every kernel within one relative residual of a family takes that family.

The simple rule. It needs no data and no architecture; where both are there, the solution through the layer's
real inputs keeps far more accuracy at the same degrees of freedom.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kernelsimp.analysis.chance import found_in
from kernelsimp.analysis.examine import NONE, Examined, examine
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.kernels.families import SEVENTEEN, ZERO
from kernelsimp.kernels.structures import LINEAR, expand, is_bent
from kernelsimp.records.plan import FREE, LayerPlan, Plan
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.candidates import chosen_layers
from kernelsimp.solver.coefficient_bits import bits_of_layers
from kernelsimp.solver.lagrangian import check_share

BISECTIONS = 40
NOBODY = np.zeros(1, dtype=np.bool_)


def is_by_weight(settings: PlanSettings) -> bool:
    """Return whether the settings ask for the simple rule.

    >>> is_by_weight(PlanSettings(tolerance=0.1)), is_by_weight(PlanSettings(dof=0.5))
    (True, False)
    """
    return settings.tolerance is not None or settings.cost == "relative"


def weight_plan(bank: KernelBank, settings: PlanSettings) -> Plan:
    """Return the plan of `settings.tolerance`, or of the least tolerance that leaves `settings.dof`.

    Raises `KernelsimpError` for a share or tolerance out of range, one out of reach, an unknown family, or a
    glob that matches no layer.
    """
    names, wanted = _linear_only(settings.families), chosen_layers(bank, settings)
    examined = [examine(layer, names) for layer in bank.spatial]
    found = [found_in(layer, settings.fdr) for layer in examined]
    if settings.only_found:
        examined = [_keep(layer, item) for layer, item in zip(examined, found, strict=True)]
    examined = [layer if layer.layer.name in wanted else _keep(layer, NOBODY) for layer in examined]
    if settings.dof is not None:
        check_share("--dof", settings.dof)
        tolerance = tolerance_for(examined, settings.dof)
    else:
        tolerance = 0.1 if settings.tolerance is None else settings.tolerance
        check_share("--tolerance", tolerance)
    rule = {
        "rule": "relative tolerance",
        "tolerance": tolerance,
        "dof": settings.dof,
        "families": list(names),
    }
    return plan_at(examined, tolerance, found, rule)


def _keep(layer: Examined, kernels: NDArray[np.bool_]) -> Examined:
    """Return what was examined with only these kernels near any family."""
    residual = np.where(kernels[:, None], layer.residual, np.inf)
    return replace(layer, residual=residual.astype(layer.residual.dtype))


def _linear_only(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the families that the simple rule measures; it knows neither bent sets nor `zero`."""
    beyond = [name for name in expand(names or ()) if name == LINEAR or is_bent(name)]
    if beyond:
        advice = (
            f"leave '{beyond[0]}' out of --families, or give a budget with --dof, --simplified or --max-drop"
        )
        raise KernelsimpError(
            f"--tolerance and --cost relative measure named linear families alone; {advice}"
        )
    return tuple(name for name in expand(names) if name != ZERO) if names else SEVENTEEN


def tolerance_for(examined: Sequence[Examined], share: float) -> float:
    """Return, by bisection, the least relative tolerance that leaves at most `share` of the DOF."""
    before = sum(layer.layer.count * int(np.prod(layer.layer.grid)) for layer in examined)
    low, high = 0.0, 1.0
    if dof_at(examined, high) > share * before:
        least = dof_at(examined, high) / before
        raise KernelsimpError(f"--dof {share:g} is out of reach: these families leave {least:.3f} at least")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if dof_at(examined, middle) <= share * before else (middle, high)
    return high


def dof_at(examined: Sequence[Examined], tolerance: float) -> int:
    """Return the degrees of freedom left when every match at `tolerance` is taken."""
    return sum(int(_dims(layer)[_choice(layer, tolerance)].sum()) for layer in examined)


def plan_at(
    examined: Sequence[Examined],
    tolerance: float,
    found: Sequence[NDArray[np.bool_]],
    rule: dict[str, object],
) -> Plan:
    """Return the plan that takes every match at `tolerance`; `found` labels each kernel."""
    seen = dict.fromkeys(family.name for layer in examined for family in layer.families)
    structures = ("free", *seen)
    layers = tuple(
        _layer_plan(layer, structures, tolerance, item) for layer, item in zip(examined, found, strict=True)
    )
    plan = Plan(structures, layers, rule)
    bits = bits_of_layers([layer.layer for layer in examined])
    return replace(plan, choice_bits=plan.entropy_bits(), coefficient_bits=bits)


def _layer_plan(
    layer: Examined, structures: tuple[str, ...], tolerance: float, found: NDArray[np.bool_]
) -> LayerPlan:
    best = layer.best(tolerance)
    names = [family.name for family in layer.families]
    index = np.array([FREE, *map(structures.index, names)], dtype=np.int16)
    rows = np.arange(len(best))
    taken = best != NONE
    residual = np.where(taken, layer.residual[rows, best], 0) if layer.families else np.zeros(len(best))
    free = LayerPlan.free(layer.layer, structures, dict(zip(names, layer.dims.tolist(), strict=True)))
    return replace(
        free,
        choice=index[best + 1].reshape(free.choice.shape),
        found=(found & taken).reshape(free.choice.shape),
        residual=residual.astype(np.float32).reshape(free.choice.shape),
    )


def _dims(layer: Examined) -> NDArray[np.int64]:
    """The dimension of 'free' and of each family, (1 + families,)."""
    return np.array([np.prod(layer.layer.grid), *layer.dims], dtype=np.int64)


def _choice(layer: Examined, tolerance: float) -> NDArray[np.int64]:
    return layer.best(tolerance) + 1
