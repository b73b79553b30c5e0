"""Progressive rounds: simplify the cheapest share, re-solve, train a little, measure, go on.

A schedule runs from 0 (nothing simplified) to 1 (the budget). Every round plans afresh on the network its
predecessor left behind: what is simplified already lies in its structure and costs nothing to keep.
Calibration images choose, validation images judge an accuracy budget; a round that went wrong is undone
and taken again at half the step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernelsimp.models.network import Network
from kernelsimp.records.plan import LayerPlan, Plan
from kernelsimp.records.report import Round
from kernelsimp.solver.apply import snap_layer
from kernelsimp.solver.candidates import rows_of_layer
from kernelsimp.solver.plan_builder import Prepared
from kernelsimp.solver.solve import Solution
from kernelsimp.watch import SILENT, Watcher

SURPRISE = 2.0
"""A round whose measured loss exceeds this many times kappa * predicted is taken again, smaller."""

HARMLESS = 1e-3
"""Losses below this, in nats an image, surprise nobody: kappa says little about them."""

MOST_HALVINGS = 3
"""The least step is the first one halved this often; a round at it is kept, however it went."""


@dataclass(frozen=True, eq=False)
class RoundResult:
    """One round as it was taken: its plan, the network after the short training, and what to say of it."""

    plan: Plan
    tuned: Network
    buffers_changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class RoundRunner(Protocol):
    """What a schedule needs to know of the world: how to plan, to train, and to judge."""

    def simplify(self, network: Network, place: float) -> tuple[Solution, Network]:
        """Return the solution at `place` (0..1) of the schedule, and the network that it makes."""

    def tune(self, network: Network, plan: Plan) -> Network:
        """Return the network after a short training in which nothing of the plan is lost."""

    def drop(self, network: Network) -> float | None:
        """Return what the network has lost on validation images, in pp; None where nothing judges that."""

    def recall(self) -> tuple[Sequence[RoundResult], Sequence[Round]]:
        """Return the rounds kept and all records of a schedule that was stopped; nothing for a new one."""

    def remember(self, results: Sequence[RoundResult], records: Sequence[Round]) -> None:
        """Keep what `recall` returns: all rounds so far, the last one new."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The rounds that were kept, and the record of all that were tried; `met` speaks of the accuracy."""

    results: tuple[RoundResult, ...]
    records: tuple[Round, ...]
    met: bool


@dataclass
class _ScheduleState:
    """Where a schedule is: `place` reached, the next `step`, and what the rounds kept so far say of kappa.

    `full` is the longest step; the schedule is `over` where a round of the least step was undone.
    """

    full: float
    step: float
    place: float = 0.0
    predicted: float = 0.0
    measured: float = 0.0
    over: bool = False

    @property
    def kappa(self) -> float | None:
        """Measured over predicted loss of all rounds kept so far; None before the first."""
        return self.measured / self.predicted if self.predicted > 0 else None

    @property
    def aim(self) -> float:
        """Where the next round leads."""
        ahead = self.place + self.step
        return 1.0 if ahead > 1 - 1e-9 else ahead

    @property
    def smallest(self) -> bool:
        """Whether the step cannot be halved again."""
        return self.step * 2.0**MOST_HALVINGS <= self.full

    def take(self, record: Round) -> None:
        """Go on from a round: its step doubles, up to the full one, where it was kept, else it halves."""
        if not record.kept:
            self.over, self.step = self.smallest, self.step / 2
            return
        self.place, self.step = self.aim, min(self.full, 2 * self.step)
        self.predicted += record.predicted
        self.measured += record.measured

    def is_surprising(self, predicted: float, measured: float) -> bool:
        """Say whether a round lost far more than the rounds before make one expect."""
        if not math.isfinite(measured):
            return True
        kappa = self.kappa
        return kappa is not None and measured > max(HARMLESS, SURPRISE * kappa * predicted)


def run_rounds(
    start: Network, runner: RoundRunner, count: int, most_drop: float | None = None, watcher: Watcher = SILENT
) -> Schedule:
    """Go the whole schedule in `count` steps, or more where a round has to be taken again at half its step.

    A step that was halved doubles again after each round that is kept. With `most_drop`, in the units of
    `drop`, a round beyond it is undone as well, and the schedule ends at the last round within it; `met`
    is false where there is none, and the first try is returned.
    """
    now = _ScheduleState(1 / count, 1 / count)
    known, told = runner.recall()
    results, records = list(known), list(told)
    for item in records:
        now.take(item)
    first: RoundResult | None = None
    while now.place < 1 and not now.over:
        smallest = now.smallest
        result, record = _round(results[-1].tuned if results else start, runner, now)
        first = first or result
        beyond = record.drop is not None and most_drop is not None and record.drop > most_drop
        kept = not beyond and (smallest or not record.surprising)
        records.append(replace(record, round=len(records) + 1, kept=kept))
        watcher.note(_round_words(records[-1]))
        if kept:
            results.append(result)
        now.take(records[-1])
        runner.remember(results, records)
    return Schedule(tuple(results) or ((first,) if first else ()), tuple(records), bool(results))


def _round(network: Network, runner: RoundRunner, now: _ScheduleState) -> tuple[RoundResult, Round]:
    """Take one round; a surprising one is not trained, unless it is kept whatever it lost."""
    solution, simplified = runner.simplify(network, now.aim)
    predicted, measured = sum(solution.best.predicted.values()), solution.best.distance.divergence
    surprising = now.is_surprising(predicted, measured)
    wasted = surprising and not now.smallest
    tuned = simplified if wasted else runner.tune(simplified, solution.plan)
    drop = None if wasted else runner.drop(tuned)
    share = solution.plan.dof_after / solution.plan.dof_before
    kappa = measured / predicted if predicted > 0 else None
    result = RoundResult(solution.plan, tuned, solution.best.reconstruction.buffers_changed, solution.notes)
    return result, Round(0, share, predicted, measured, kappa, drop, surprising)


def _round_words(record: Round) -> str:
    kappa = "" if record.kappa is None else f", kappa {record.kappa:.2f}"
    drop = "" if record.drop is None else f", {0.0 - record.drop:+.2f} pp on validation images"
    said = f"round {record.round}: {100 * record.dof:.1f} % of the degrees of freedom, predicted loss "
    said += f"{record.predicted:.4f}, measured {record.measured:.4f}{kappa}{drop}"
    why = " (surprising)" if record.surprising else ""
    return said if record.kept else f"{said}: undone{why}"


# ---------------------------------------------------------------- labels that belong to the first network


@dataclass(frozen=True, eq=False)
class RelabelledPrepared(Prepared):
    """What a later round chooses from; whether chance explains a kernel is asked of the first network.

    A kernel that was simplified is exactly in its structure, which says nothing of how it got there.
    """

    first: Prepared | None = None

    @cached_property
    def found(self) -> dict[str, NDArray[np.bool_]]:
        assert self.first is not None
        return dict(self.first.found)


def with_first_verdicts(prepared: Prepared, first: Prepared) -> RelabelledPrepared:
    """Return `prepared` with the verdicts of chance that `first` has."""
    return RelabelledPrepared(
        **{item.name: getattr(prepared, item.name) for item in fields(prepared)}, first=first
    )


def relabel_plan(plan: Plan, first: Prepared) -> Plan:
    """Return a later round's plan with residuals and dead kernels as they are in the first network."""
    return replace(plan, layers=tuple(_relabel_layer(layer, plan.structures, first) for layer in plan.layers))


def _relabel_layer(layer: LayerPlan, structures: Sequence[str], first: Prepared) -> LayerPlan:
    kernels = next(item for item in first.bank.layers if item.name == layer.name)
    rows = rows_of_layer(kernels)
    snapped = rows_of_layer(replace(kernels, kernels=snap_layer(kernels.kernels, layer, tuple(structures))))
    norms = rows.norm(dim=1)
    residual = ((rows - snapped).norm(dim=1) / norms.clamp_min(1e-300)).where(norms > 0, 0 * norms)
    shape = layer.choice.shape
    return replace(
        layer,
        dead=kernels.dead().numpy().reshape(shape),
        residual=residual.float().numpy().reshape(shape),
    )
