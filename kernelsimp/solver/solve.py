"""What every way of simplifying does: survey, choose, re-solve, judge.

What is chosen depends on calibration images alone, without labels; a part of them is held back to judge
the costs by KL(original || simplified).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.memory import USUAL, Room
from kernelsimp.models.hooks import trace
from kernelsimp.records.plan import Plan
from kernelsimp.settings import PlanSettings
from kernelsimp.shelf import ImageBatches, ImageStack
from kernelsimp.solver.batch_size import batch_that_fits
from kernelsimp.solver.costs import costs_to_try
from kernelsimp.solver.distance import Distance, DistanceJudge
from kernelsimp.solver.fisher import cached_survey, survey
from kernelsimp.solver.layerwise import (
    CalibratedNetwork,
    Reconstruction,
    in_float32,
    reconstruct,
)
from kernelsimp.solver.plan_builder import Chooser, Prepared, check_prices, plan_for, prepare
from kernelsimp.solver.process_group import ALONE, ProcessGroup
from kernelsimp.solver.targets import targets_of
from kernelsimp.watch import SILENT, Watcher, Within

HELD_BACK = 0.125
"""The share of the calibration images that judges and is never fitted to."""


@dataclass(frozen=True, eq=False)
class PlanTrial:
    """One plan, the network it made, and how far that is from the original.

    `predicted` is the loss of each layer by the survey, before any re-solve, in nats an image.
    """

    cost: str
    plan: Plan
    predicted: Mapping[str, float]
    reconstruction: Reconstruction
    distance: Distance

    @property
    def kappa(self) -> float:
        """What was measured over what was predicted; NaN where nothing was."""
        total = sum(self.predicted.values())
        return self.distance.divergence / total if total > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class Solution:
    """The plan that was kept and everything that was tried. `tensors` differ from the original's."""

    best: PlanTrial
    tried: tuple[PlanTrial, ...]
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        return self.best.plan


def calibrated_network(
    model: nn.Module,
    bank: KernelBank,
    images: Iterable[Tensor],
    seed: int,
    room: Room = USUAL,
    *,
    flip: bool = False,
    group: ProcessGroup = ALONE,
) -> CalibratedNetwork:
    """Return what a reconstruction stands on; the last eighth of the images is held back to judge.

    `images` are batches of the network's input in a random order, on its device; with `flip`, those to fit
    to are joined by their left-right mirror images. Each process of a `group` is given all of them, and goes
    through its part of every batch. Raises `KernelsimpError` where there are too few, where the network
    refuses them, and where `room` does not do for one of them.
    """
    stack = ImageStack.of(images, room.kept, room.folder)
    if stack.count < 2:
        raise KernelsimpError(f"{stack.count} calibration images; expected 2 at least, see --calibration")
    held = max(1, round(HELD_BACK * stack.count))
    if held < group.size and group.first:
        few = f"{stack.count} calibration images leave {held} to judge by"
        raise KernelsimpError(f"{few} in {group.size} processes; expected one each, see --calibration")
    fitted = ImageBatches(stack, 0, stack.count - held, room.batch, flip)
    judged = ImageBatches(stack, stack.count - held, stack.count, room.batch)
    copy = in_float32(model)
    traced = trace(copy, fitted.first(2))
    size = min(group.gather(batch_that_fits(copy, traced, fitted.first(1), room)))
    part = (group.rank, group.size)
    fitted, judged = (replace(item, size=size, part=part) for item in (fitted, judged))
    return CalibratedNetwork(copy, bank, traced, fitted, judged, seed, room, group)


@dataclass(frozen=True, eq=False)
class Surveyed:
    """Ground that has been looked at once: all further plans on it start from here."""

    calibrated: CalibratedNetwork
    prepared: Prepared
    judge: DistanceJudge

    def alone(self) -> "Surveyed":
        """Return the same for what one process of a group does by itself."""
        if self.calibrated.group.size == 1:
            return self
        calibrated = self.calibrated.alone()
        judge = DistanceJudge(calibrated.model, calibrated.held_back, limit=calibrated.limit)
        return replace(self, calibrated=calibrated, judge=judge)


def survey_layers(
    calibrated: CalibratedNetwork,
    settings: PlanSettings,
    watcher: Watcher = SILENT,
    cache: Path | None = None,
) -> Surveyed:
    """Survey the network on its calibration images and list what each kernel may become.

    `cache` is a file that keeps the survey; its name must tell network, images and seed apart. The moments
    of the re-solve are never kept: they hang on the inputs that a plan has changed upstream.
    """
    check_prices(settings)
    model, group = calibrated.model, calibrated.group
    seen = cached_survey(
        cache,
        lambda: survey(model, calibrated.traced, calibrated.images, calibrated.seed, watcher, group),
        watcher,
        group,
    )
    prepared = prepare(calibrated.bank, settings, seen)
    judge = DistanceJudge(model, calibrated.held_back, group, calibrated.limit)
    return Surveyed(calibrated, prepared, judge)


def solve_at_budget(surveyed: Surveyed, choose: Chooser, cost: str, watcher: Watcher = SILENT) -> Solution:
    """Make a plan with `cost`, or with every cost where it is `auto`; re-solve each; keep the nearest."""
    kinds = [layer.kind for layer in surveyed.calibrated.bank.spatial]
    names = costs_to_try(kinds) if cost == "auto" else (cost,)
    plans = (
        surveyed.calibrated.group.from_first(partial(plan_for, surveyed.prepared, name, choose))
        for name in names
    )
    tried = tuple(
        try_plan(surveyed, made, _at_cost(watcher, place, names)) for place, made in enumerate(plans)
    )
    best = min(tried, key=lambda item: item.distance.divergence)
    return Solution(best, tried, best.reconstruction.tensors, best.reconstruction.notes)


def _at_cost(watcher: Watcher, place: int, names: Sequence[str]) -> Watcher:
    if len(names) == 1:
        return watcher
    return Within(watcher, f"cost {place + 1} of {len(names)} ({names[place]})")


def try_plan(surveyed: Surveyed, made: tuple[Plan, dict[str, float]], watcher: Watcher = SILENT) -> PlanTrial:
    """Carry out a plan and measure how far the network has moved."""
    plan, predicted = made
    fitted = surveyed.prepared.settings.resolve != "none"
    reconstruction = reconstruct(surveyed.calibrated, targets_of(plan), watcher, fitted=fitted)
    return PlanTrial(
        str(plan.rule.get("cost", "none")),
        plan,
        predicted,
        reconstruction,
        surveyed.judge.distance(reconstruction.model),
    )
