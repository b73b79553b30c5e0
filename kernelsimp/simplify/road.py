"""The road that every way of simplifying takes: survey, choose, re-solve, judge.

What is chosen depends on calibration images alone, without labels; a part of them is held back to judge
the three costs by KL(original || simplified).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.hooks import trace
from kernelsimp.records.plan import Plan
from kernelsimp.settings import PlanSettings
from kernelsimp.simplify.costs import COSTS
from kernelsimp.simplify.judge import Distance, Judge
from kernelsimp.simplify.menus import Chooser, chooser, plan_for, prepare
from kernelsimp.simplify.survey import survey
from kernelsimp.simplify.walk import Ground, Walked, in_float32, walk
from kernelsimp.watch import SILENT, Watcher

HELD_BACK = 0.125
"""The share of the calibration images that judges and is never fitted to."""

BATCH = 128


@dataclass(frozen=True, eq=False)
class Tried:
    """One plan, what it predicted, the network it made, and how far that is from the original."""

    cost: str
    plan: Plan
    predicted: float
    walked: Walked | None
    distance: Distance


@dataclass(frozen=True, eq=False)
class Road:
    """The plan that was kept and everything that was tried. `tensors` differ from the original's."""

    best: Tried
    tried: tuple[Tried, ...]
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        return self.best.plan

    @property
    def output_errors(self) -> dict[str, float]:
        """The relative output error of each layer that was re-solved."""
        fits = self.best.walked.fits if self.best.walked else {}
        return {name: fit.output_error for name, fit in fits.items() if fit.output_error is not None}

    @property
    def buffers_changed(self) -> tuple[str, ...]:
        """The biases and batch norm means that took up shifts."""
        return tuple(name for name in self.tensors if name.endswith((".running_mean", ".bias", "bias")))


def ground_of(model: nn.Module, bank: KernelBank, images: Iterable[Tensor], seed: int) -> Ground:
    """Return what a walk stands on; the last eighth of the image batches is held back to judge.

    `images` are batches of the network's input, on its device. Raises `KernelsimpError` where there are
    none or the network refuses them.
    """
    whole = torch.cat(list(images))
    if len(whole) < 2:
        raise KernelsimpError(f"{len(whole)} calibration images; expected 2 at least, see --calibration")
    held = max(1, round(HELD_BACK * len(whole)))
    fitted, judged = whole[:-held], whole[-held:]
    copy = in_float32(model)
    traced = trace(copy, fitted[:2])
    return Ground(copy, bank, traced, torch.split(fitted, BATCH), torch.split(judged, BATCH), seed)


def take_road(
    ground: Ground,
    settings: PlanSettings,
    watcher: Watcher = SILENT,
    choose: Chooser | None = None,
) -> Road:
    """Survey, choose with each cost that the settings allow, re-solve each plan, and keep the nearest.

    `choose` defaults to the settings' `dof` or `simplified`. The tensors are in the bank's dtypes.
    """
    seen = survey(ground.model, ground.traced, ground.images, ground.seed, watcher)
    prepared = prepare(ground.bank, settings, seen)
    judge = Judge(ground.model, ground.held)
    names = tuple(COSTS) if settings.cost == "auto" else (settings.cost,)
    tried = tuple(
        try_plan(ground, judge, plan_for(prepared, name, choose or chooser(settings)), watcher)
        for name in names
    )
    best = min(tried, key=lambda item: item.distance.divergence)
    notes = best.walked.notes if best.walked else ()
    return Road(best, tried, best.walked.tensors if best.walked else {}, notes)


def try_plan(ground: Ground, judge: Judge, made: tuple[Plan, float], watcher: Watcher = SILENT) -> Tried:
    """Carry out a plan and measure how far the network has moved."""
    plan, predicted = made
    fitted = plan.rule.get("resolve") != "none"
    walked = walk(ground, plan, watcher, fitted=fitted)
    return Tried(str(plan.rule.get("cost")), plan, predicted, walked, judge.distance(walked.model))
