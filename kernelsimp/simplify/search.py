"""Simplify as much as an accuracy budget allows: a search over the share of degrees of freedom left.

Only the validation split judges. The step halves whenever the direction flips; trials are written down as
they come, so that a search that was stopped goes on where it was. Drops are in percentage points, positive
where the simplified network is worse.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, measure
from kernelsimp.files import write_text
from kernelsimp.simplify.choose import choose_for_dof
from kernelsimp.simplify.judge import Judge
from kernelsimp.simplify.road import Road, Surveyed, travel
from kernelsimp.watch import SILENT, Watcher

FIRST_SHARE, FIRST_STEP, LAST_STEP = 0.5, 0.16, 0.01
"""Where the search starts, its first step, and the step below which it stops, in shares of the DOF."""

MOST_TRIALS = 24

MEMORISED = 99.0
"""A network at or above this accuracy, in percent, has probably been trained on these images."""


@dataclass(frozen=True)
class Trial:
    """One share that was tried: the loss in accuracy, changed answers (both pp), and KL in nats."""

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


class Referee:
    """Measures drops against the original network on the batches of a validation split."""

    def __init__(self, original: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not batches:
            raise KernelsimpError("--max-drop needs validation images; give some with --split, or use --dof")
        self.batches = batches
        self.judge = Judge(original, [images for images, _ in batches])
        self.before: Outcome = measure(original, batches, batches[0][0].device)

    @property
    def memorised(self) -> bool:
        return self.before.top1 >= MEMORISED

    def trial(self, model: nn.Module, share: float, cost: str) -> Trial:
        """Return how much worse `model` is than the original."""
        after = measure(model, self.batches, self.batches[0][0].device)
        distance = self.judge.distance(model)
        changed = 100 * (1 - distance.agreement) if distance.agreement is not None else 0.0
        return Trial(share, self.before.top1 - after.top1, changed, distance.divergence, cost)


@dataclass(frozen=True, eq=False)
class Searched:
    """The road of the best trial; `met` says whether it is within the budget."""

    road: Road
    trials: tuple[Trial, ...]
    met: bool
    notes: tuple[str, ...] = ()


def search(
    surveyed: Surveyed,
    budget: float,
    referee: Referee,
    watcher: Watcher = SILENT,
    record: Path | None = None,
) -> Searched:
    """Return the road with the fewest degrees of freedom whose drop stays within `budget` pp.

    Where none does, the trial that drops least. `record` is a file of trials: those in it are not run
    again. With cost `auto`, the first trial settles which cost is used. Raises `KernelsimpError` for a
    budget out of range and a damaged record.
    """
    if not 0 <= budget <= 100:
        raise KernelsimpError(f"--max-drop is {budget:g}; expected percentage points from 0 to 100")
    notes = _warn(referee, watcher)
    trials, roads = _recorded(record), dict[float, Road]()
    memorised = referee.memorised
    while (share := next_share(trials, budget, memorised=memorised)) is not None:
        cost = trials[0].cost if trials else surveyed.prepared.settings.cost
        road = _road_at(surveyed, share, cost, watcher)
        roads[share] = road
        trials.append(referee.trial(road.best.walked.model, share, road.best.cost))
        _write(record, trials)
        watcher.note(f"at {share:.0%} of the degrees of freedom: {_told(trials[-1])}")
    best = best_trial(trials, budget, memorised=memorised)
    road = roads.get(best.share) or _road_at(surveyed, best.share, best.cost, watcher)
    return Searched(road, tuple(trials), best.drop(memorised=memorised) <= budget, notes)


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


def _road_at(surveyed: Surveyed, share: float, cost: str, watcher: Watcher) -> Road:
    return travel(surveyed, partial(choose_for_dof, share=share), cost, watcher)


def _warn(referee: Referee, watcher: Watcher) -> tuple[str, ...]:
    if not referee.memorised:
        return ()
    text = (
        f"the original network has {referee.before.top1:.1f} % right on validation images, as if trained on "
        "them: the budget also counts changed answers and KL; name other images with --holdout"
    )
    watcher.warn(text)
    return (text,)


def _told(trial: Trial) -> str:
    drop = f"{-trial.accuracy_drop:+.2f} pp, {trial.changed_answers:.2f} % of the answers changed"
    return f"{drop}, KL {trial.divergence:.4f}"


def _recorded(record: Path | None) -> list[Trial]:
    if record is None or not record.exists():
        return []
    try:
        return [Trial(**item) for item in json.loads(record.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise KernelsimpError(
            f"{record}: no record of a search ({error}); delete it to start again"
        ) from error


def _write(record: Path | None, trials: Sequence[Trial]) -> None:
    if record is not None:
        write_text(record, json.dumps([asdict(trial) for trial in trials], indent=1))
