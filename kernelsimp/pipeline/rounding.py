"""Progressive rounds on a real network: what `simplify.rounds` asks of images, training and a judge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.models.network import Network
from kernelsimp.pipeline.task import Chosen, Task
from kernelsimp.pipeline.tuning import tuned_a_little
from kernelsimp.records.plan import Plan
from kernelsimp.settings import PlanSettings
from kernelsimp.simplify.choose import choose_for_count, choose_for_dof
from kernelsimp.simplify.controls import Case
from kernelsimp.simplify.menus import Chooser
from kernelsimp.simplify.road import Road, Surveyed, ground_of, look, travel
from kernelsimp.simplify.rounds import Way, following, go, relabelled
from kernelsimp.simplify.search import Referee
from kernelsimp.watch import Watcher

LEAST_SHARE = 0.1
"""Where the way of an accuracy budget leads: this share of the degrees of freedom left."""


def check_rounds(task: Task) -> None:
    """Raise `KernelsimpError` where rounds are asked for and cannot be gone."""
    plan = task.settings.plan
    if plan.rounds < 1 or plan.round_epochs < 1:
        name, value = ("rounds", plan.rounds) if plan.rounds < 1 else ("round-epochs", plan.round_epochs)
        raise KernelsimpError(f"--{name} is {value}; expected 1 or more")
    if plan.rounds == 1:
        return
    if task.data is None:
        raise KernelsimpError("--rounds needs a network and images: pass --arch and --data")
    if not len(task.data.train):
        raise KernelsimpError(
            "--rounds trains after each round, but the training split is empty; see --split"
        )
    if plan.plan is not None or plan.tolerance is not None or plan.cost == "relative":
        raise KernelsimpError("--rounds goes to a budget: pass --dof, --simplified or --max-drop")


@dataclass(eq=False)
class RoundGuide:
    """Plans by calibration images, trains on the training split, and asks `referee`, if there is one.

    The first round settles the cost where it is `auto`. `first` is the original network, surveyed.
    """

    task: Task
    images: Sequence[Tensor]
    referee: Referee | None
    first: Surveyed
    watcher: Watcher
    cost: str

    def simplify(self, network: Network, place: float) -> tuple[Road, Network]:
        """Plan afresh on `network`, and carry it out."""
        surveyed = self.first if network is self.task.network else self._look(network)
        road = travel(surveyed, _chooser_at(self.task.settings.plan, place), self.cost, self.watcher)
        self.cost = road.best.cost
        return road, network.with_weights(road.tensors)

    def tune(self, network: Network, plan: Plan) -> Network:
        """Train for the epochs of a round."""
        return tuned_a_little(self.task, network, plan, self.watcher)

    def drop(self, network: Network) -> float | None:
        """Return what the budget is held against, if an accuracy budget is."""
        return None if self.referee is None else self.referee.drop(network.module())

    def _look(self, network: Network) -> Surveyed:
        seed = self.task.settings.run.seed
        ground = ground_of(network.module(), network.bank, self.images, seed)
        surveyed = look(ground, self.task.settings.plan, self.watcher)
        return replace(surveyed, prepared=following(surveyed.prepared, self.first.prepared))


def in_rounds(task: Task, first: Surveyed, referee: Referee | None, watcher: Watcher) -> Chosen:
    """Go to the budget in rounds; the network that comes back is the last one kept, trained and in structure.

    Control arms stand beside its plan as it would be on the original network; they go no rounds.
    """
    plan = task.settings.plan
    images = (*first.ground.images, *first.ground.held)
    guide = RoundGuide(task, images, referee, first, watcher, plan.cost)
    way = go(task.network, guide, plan.rounds, plan.max_drop if referee else None, watcher)
    return replace(chosen_of(way, first), known_top1=referee.top1 if referee else None)


def chosen_of(way: Way, first: Surveyed) -> Chosen:
    """Return what a way came to: its last leg, and the networks after each leg."""
    last = way.legs[-1]
    best = replace(last.road.best, plan=relabelled(last.road.plan, first.prepared))
    walked = best.walked
    numbers = [record.round for record in way.records if record.kept]
    return Chosen(
        best.plan,
        last.tuned,
        walked.output_errors,
        tuple(dict.fromkeys(name for leg in way.legs for name in leg.road.best.walked.buffers_changed)),
        last.road.notes,
        met=way.met,
        case=Case(first, best),
        rounds=way.records,
        stages={
            f"round {number}": leg.tuned for number, leg in zip(numbers, way.legs, strict=False) if way.met
        },
    )


def _chooser_at(plan: PlanSettings, place: float) -> Chooser:
    """Return how to choose at `place` (0..1) of the way to the settings' budget."""
    if plan.simplified is not None:
        return partial(choose_for_count, share=place * plan.simplified)
    target = LEAST_SHARE if plan.dof is None else plan.dof
    return partial(choose_for_dof, share=target if place >= 1 else 1 - place * (1 - target))
