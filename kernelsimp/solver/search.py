"""Simplify as much as an accuracy budget allows: a search over the share of degrees of freedom left.

Validation images judge, or others that the user names; never the test split. The step halves whenever the
direction flips; trials are written down as they come, so that a search that was stopped goes on where it
was. Drops are in percentage points, positive where the simplified network is worse.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.errors import DamagedError, KernelsimpError
from kernelsimp.evaluation.accuracy import measure
from kernelsimp.evaluation.divergence import is_memorised
from kernelsimp.evaluation.metric import UserMetric
from kernelsimp.files import read_sealed, write_sealed_text
from kernelsimp.records.plan import LayerPlan
from kernelsimp.shelf import images_of
from kernelsimp.solver.distance import Distance, DistanceJudge, is_classifier
from kernelsimp.solver.lagrangian import choose_near_dof
from kernelsimp.solver.process_group import ALONE, ProcessGroup
from kernelsimp.solver.sensitivity import layer_losses
from kernelsimp.solver.solve import PlanTrial, Solution, Surveyed, solve_at_budget, try_plan
from kernelsimp.watch import SILENT, Watcher, Within

FIRST_SHARE, FIRST_STEP, LAST_STEP = 0.5, 0.16, 0.01
"""Where the search starts, its first step, and the step below which it stops, in shares of the DOF."""

MOST_TRIALS = 24


@dataclass(frozen=True)
class Trial:
    """One share that was tried: the loss in accuracy, changed answers (both pp), and KL in nats.

    Where the judge goes by something else than accuracy, `accuracy_drop` is the loss in that, and
    `divergence` what its judge measures.
    """

    share: float
    accuracy_drop: float
    changed_answers: float
    divergence: float
    cost: str

    def drop(self, *, memorised: bool) -> float:
        """Return the drop that the budget is held against, in pp.

        On images that the network knows by heart accuracy hardly falls; there the largest of lost
        accuracy, changed answers and KL in hundredths of a nat counts.
        """
        known = (self.accuracy_drop, self.changed_answers, 100 * self.divergence)
        return max(known) if memorised else self.accuracy_drop


class BudgetJudge:
    """Measures drops against the original network on labelled batches that nothing was fitted to.

    A classifier is judged by accuracy, in percentage points, any network by a `metric` (higher is better)
    in that metric's own units, where there is one; another network by the relative error of its output, in
    percent. `name` is what the images are called. Of a `group` the first process measures, for all.
    """

    def __init__(
        self,
        original: nn.Module,
        batches: Sequence[tuple[Tensor, Tensor]],
        metric: UserMetric | None = None,
        name: str = "validation",
        group: ProcessGroup = ALONE,
        limit: BatchLimit | None = None,
    ) -> None:
        if not len(batches):
            advice = "give some with --split, or choose another budget"
            raise KernelsimpError(f"--max-drop needs {name} images; {advice}")
        self.batches, self.metric, self.name, self.group = batches, metric, name, group
        self.limit = limit or BatchLimit()
        self.judge = DistanceJudge(original, images_of(batches), limit=self.limit)
        self.by_accuracy = metric is None and is_classifier(self.judge.answers[0])
        self.top1 = group.from_first(lambda: self._accuracy(original)) if self.by_accuracy else None
        self.total = sum(len(answers[0]) for answers in self.judge.answers)
        self.before = self.top1 if metric is None else group.from_first(lambda: metric(original, batches))

    @property
    def memorised(self) -> bool:
        """Whether labels no longer tell networks apart: the original knows these images by heart."""
        return self.top1 is not None and is_memorised(self.top1)

    @property
    def right(self) -> int:
        """How many images the original has right; none where it is no classifier."""
        return round((self.top1 or 0.0) * self.total / 100)

    def trial(self, model: nn.Module, share: float, cost: str) -> Trial:
        """Return how much worse `model` is than the original; all processes ask, and are told the same."""
        return self.group.from_first(lambda: self.measured(model, share, cost))

    def measured(self, model: nn.Module, share: float, cost: str) -> Trial:
        """Return the same as this process alone measures it."""
        distance = self.judge.distance(model)
        changed = 100 * (1 - distance.agreement) if distance.agreement is not None else 0.0
        return Trial(share, self._drop(model, distance), changed, distance.divergence, cost)

    def drop(self, model: nn.Module) -> float:
        """Return what the budget is held against for `model`."""
        return self.trial(model, 0.0, "").drop(memorised=self.memorised)

    def _drop(self, model: nn.Module, distance: Distance) -> float:
        if self.before is None:
            return 100 * distance.divergence
        if self.metric is not None:
            return self.before - self.metric(model, self.batches)
        return self.before - self._accuracy(model)

    def _accuracy(self, model: nn.Module) -> float:
        return measure(model, self.batches, self.batches[0][0].device, limit=self.limit).top1


@dataclass(frozen=True, eq=False)
class Searched:
    """The solution of the best trial; `met` says whether it is within the budget."""

    solution: Solution
    trials: tuple[Trial, ...]
    met: bool
    notes: tuple[str, ...] = ()


def check_drop(budget: float) -> None:
    """Raise `KernelsimpError` unless `budget` is a drop in pp."""
    if not 0 <= budget <= 100:
        raise KernelsimpError(f"--max-drop is {budget:g}; expected percentage points from 0 to 100")


def search(
    surveyed: Surveyed,
    budget: float,
    judge: BudgetJudge,
    watcher: Watcher = SILENT,
    record: Path | None = None,
) -> Searched:
    """Return the solution with the fewest degrees of freedom whose drop stays within `budget` pp.

    Where none does, the trial that drops least. `record` is a file of trials: those in it are not run
    again. With cost `auto`, the first trial settles which cost is used. Raises `KernelsimpError` for a
    budget out of range and a damaged record.
    """
    check_drop(budget)
    notes, group = _warn(judge, watcher), surveyed.calibrated.group
    trials, solutions = group.from_first(lambda: _read_trials(record)), dict[float, Solution]()
    memorised = judge.memorised
    while (share := next_share(trials, budget, memorised=memorised)) is not None:
        known = next((trial for trial in trials if trial.share == share), None)
        if known is not None:  # the steps may lead back to where one has been
            trials.append(known)
            continue
        cost = trials[0].cost if trials else surveyed.prepared.settings.cost
        trial = Within(watcher, f"trial {len(trials) + 1} at {100 * share:.0f} % of the DOF")
        solution = solutions[share] = _solution_at(surveyed, share, cost, trial)
        trials.append(judge.trial(solution.best.reconstruction.model, share, solution.best.cost))
        if group.first:
            _write(record, trials)
        left = solution.plan.dof_after / solution.plan.dof_before
        told = _trial_words(trials[-1], judge)
        watcher.note(f"at {100 * max(share, left):.0f} % of the degrees of freedom: {told}")
        if left > share and trials[-1].drop(memorised=memorised) <= budget:
            break  # no structure leaves less
    best = best_trial(trials, budget, memorised=memorised)
    solution = solutions.get(best.share) or _solution_at(surveyed, best.share, best.cost, watcher)
    met = best.drop(memorised=memorised) <= budget
    if not met:
        saved = revert_worst(surveyed, solution.best, lambda model: judge.drop(model) <= budget, watcher)
        solution, met = (
            (Solution(saved, (saved,), saved.reconstruction.tensors, saved.reconstruction.notes), True)
            if saved
            else (solution, met)
        )
    return Searched(solution, tuple(trials), met, notes)


def revert_worst(
    surveyed: Surveyed, tried: PlanTrial, within: Callable[[nn.Module], bool], watcher: Watcher = SILENT
) -> PlanTrial | None:
    """Return a plan with the worst layers set free again, as few as bring it `within` the budget.

    Layers go by the loss that each causes alone, the worst first, 1, 2, 4... of them at a time. None where
    not even one layer may stay simplified.
    """
    losses = layer_losses(surveyed.calibrated, tried, watcher)
    worst = sorted(losses, key=lambda name: losses[name][1], reverse=True)
    count = 1
    while count < len(worst):
        free = frozenset(worst[:count])
        plan = replace(tried.plan, layers=tuple(_free_structures(layer, free) for layer in tried.plan.layers))
        predicted = {name: 0.0 if name in free else loss for name, loss in tried.predicted.items()}
        again = try_plan(surveyed, (plan, predicted), watcher)
        ok = within(again.reconstruction.model)
        then = "within the budget" if ok else "still beyond it"
        watcher.note(f"{count} of {len(worst)} layers set free again, {worst[0]} first: {then}")
        if ok:
            return again
        count *= 2
    return None


def _free_structures(layer: LayerPlan, names: frozenset[str]) -> LayerPlan:
    if layer.name not in names:
        return layer
    none = np.zeros_like(layer.found)
    return replace(
        layer, choice=np.zeros_like(layer.choice), found=none, residual=np.zeros_like(layer.residual)
    )


def next_share(trials: Sequence[Trial], budget: float, *, memorised: bool) -> float | None:
    """Return the share to try next, or None where the search is over.

    A trial within the budget moves the share down, one beyond it up; the step halves at each flip.
    """
    share, step, last = FIRST_SHARE, FIRST_STEP, 0
    for trial in trials:
        direction = -1 if trial.drop(memorised=memorised) <= budget else 1
        step = step / 2 if last and direction != last else step
        share, last = trial.share + direction * step, direction
    if len(trials) >= MOST_TRIALS or step < LAST_STEP or not 0 < share < 1:
        return None
    return round(share, 6)


def best_trial(trials: Sequence[Trial], budget: float, *, memorised: bool) -> Trial:
    """Return the trial of least share within the budget, else the one that drops least."""
    met = [trial for trial in trials if trial.drop(memorised=memorised) <= budget]
    if met:
        return min(met, key=lambda trial: trial.share)
    return min(trials, key=lambda trial: trial.drop(memorised=memorised))


def _solution_at(surveyed: Surveyed, share: float, cost: str, watcher: Watcher) -> Solution:
    return solve_at_budget(surveyed, partial(choose_near_dof, share=share), cost, watcher)


def _warn(judge: BudgetJudge, watcher: Watcher) -> tuple[str, ...]:
    if not judge.memorised:
        return ()
    text = (
        f"the original network has {judge.top1:.1f} % right on {judge.name} images, as if trained on "
        "them: the budget also counts changed answers and KL; name other images with --holdout"
    )
    watcher.warn(text)
    return (text,)


def _trial_words(trial: Trial, judge: BudgetJudge) -> str:
    if judge.metric is not None:
        return f"{0.0 - trial.accuracy_drop:+.4g} in {judge.metric.name}"
    if not judge.by_accuracy:
        return f"relative output error {trial.divergence:.4f}"
    drop = f"{0.0 - trial.accuracy_drop:+.2f} pp, {trial.changed_answers:.2f} % of the answers changed"
    return f"{drop}, KL {trial.divergence:.4f}"


def _read_trials(record: Path | None) -> list[Trial]:
    if record is None or not record.exists():
        return []
    try:
        return [Trial(**item) for item in json.loads(read_sealed(record))]
    except (OSError, ValueError, TypeError, DamagedError) as error:
        raise KernelsimpError(
            f"{record}: no record of a search ({error}); delete it to start again"
        ) from error


def _write(record: Path | None, trials: Sequence[Trial]) -> None:
    if record is not None:
        write_sealed_text(record, json.dumps([asdict(trial) for trial in trials], indent=1))
