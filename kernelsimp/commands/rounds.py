"""Progressive rounds on a real network: what `simplify.rounds` asks of images, training and a judge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from kernelsimp.commands.round_files import RoundFiles, round_files
from kernelsimp.commands.task import Chosen, Task
from kernelsimp.commands.tune import tuned_a_little
from kernelsimp.errors import KernelsimpError
from kernelsimp.models.network import Network
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Round
from kernelsimp.settings import PlanSettings
from kernelsimp.simplify.controls import Case
from kernelsimp.simplify.denoise import denoised_road, denoising_of
from kernelsimp.simplify.lagrangian import choose_for_count, choose_for_dof
from kernelsimp.simplify.layerwise import in_float32
from kernelsimp.simplify.plan_builder import Chooser
from kernelsimp.simplify.rounds import Leg, Way, following, go, relabelled
from kernelsimp.simplify.search import Referee
from kernelsimp.simplify.sensitivity import predicted_losses
from kernelsimp.simplify.solve import Road, Surveyed, look, travel, try_plan
from kernelsimp.training.ranks import first_process
from kernelsimp.watch import Watcher

LEAST_SHARE = 0.1
"""Where the way of an accuracy budget leads: this share of the degrees of freedom left."""


ALONE = (
    "output errors, and predicted and measured losses by layer, are those of the final plan re-solved once "
    "on the original network, without rounds"
)


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
    if plan.denoise_all or plan.plan is not None or plan.tolerance is not None or plan.cost == "relative":
        raise KernelsimpError("--rounds goes to a budget: pass --dof, --simplified or --max-drop")


@dataclass(eq=False)
class RoundGuide:
    """Plans by calibration images, trains on the training split, and asks `referee`, if there is one.

    The first round settles the cost where it is `auto`. `first` is the original network, surveyed.
    """

    task: Task
    referee: Referee | None
    first: Surveyed
    watcher: Watcher
    cost: str
    kept: RoundFiles | None = None

    def simplify(self, network: Network, place: float) -> tuple[Road, Network]:
        """Plan afresh on `network`, and carry it out."""
        surveyed = self.first if network is self.task.network else self.look(network)
        road = travel(surveyed, _chooser_at(self.task.settings.plan, place), self.cost, self.watcher)
        self.cost = road.best.cost
        return road, network.with_weights(road.tensors)

    def tune(self, network: Network, plan: Plan) -> Network:
        """Train for the epochs of a round."""
        return tuned_a_little(self.task, network, plan, self.watcher)

    def drop(self, network: Network) -> float | None:
        """Return what the budget is held against, if an accuracy budget is."""
        return None if self.referee is None else self.referee.drop(network.module())

    def recall(self) -> tuple[Sequence[Leg], Sequence[Round]]:
        """Return the rounds of this way that an earlier run wrote down; with `--resume` alone."""
        if self.kept is None or not self.task.settings.finetune.resume:
            return (), ()
        legs, records = self.kept.read(self.task.network)
        if legs:
            self.watcher.note(f"going on after round {len(records)}")
            self.cost = str(legs[-1].plan.rule["cost"])
        return legs, records

    def remember(self, legs: Sequence[Leg], records: Sequence[Round]) -> None:
        """Write the rounds down, so that a way that is stopped can go on."""
        if self.kept is not None and first_process():
            self.kept.write(legs, records)

    def look(self, network: Network) -> Surveyed:
        """Survey a later network; what chance explains is asked of the first one."""
        ground = replace(self.first.ground, model=in_float32(network.module()), bank=network.bank)
        surveyed = look(ground, self.task.settings.plan, self.watcher)
        return replace(surveyed, prepared=following(surveyed.prepared, self.first.prepared))


def in_rounds(task: Task, first: Surveyed, referee: Referee | None, watcher: Watcher) -> Chosen:
    """Go to the budget in rounds; the network that comes back is the last one kept, trained and in structure.

    What no family holds is denoised after the last round. Control arms, and the errors and losses of each
    layer, are those of the final plan re-solved once on the original network: they go no rounds.
    """
    plan = task.settings.plan
    kept = round_files(task)
    guide = RoundGuide(task, referee, first, watcher, plan.cost, kept)
    way = go(task.network, guide, plan.rounds, plan.max_drop if referee else None, watcher)
    end = denoised_leg(guide, way.legs[-1])
    labelled = relabelled(end.plan, first.prepared)
    predicted = predicted_losses(labelled, task.network.bank, first.prepared.seen)
    alone = try_plan(first, (labelled, predicted), watcher)
    return replace(chosen_of(way, end, Case(first, alone)), referee=referee)


def denoised_leg(guide: RoundGuide, last: Leg) -> Leg:
    """Return the last leg with its free kernels denoised, and trained once more, where that is asked for.

    An accuracy budget that the leg met and denoising would break undoes it.
    """
    settings = guide.task.settings.plan
    if denoising_of(settings) is None:
        return last
    surveyed = guide.look(last.tuned)
    start = try_plan(surveyed, (last.plan, {}), guide.watcher)  # everything is in place: nothing moves
    road = denoised_road(surveyed, Road(start, (), start.walked.tensors), guide.watcher)
    if not road.plan.denoised:
        return replace(last, notes=(*last.notes, *road.notes))
    tuned = guide.tune(last.tuned.with_weights(road.tensors), road.plan)
    drop, before = guide.drop(tuned), guide.drop(last.tuned)
    budget = settings.max_drop
    if drop is not None and before is not None and budget is not None and before <= budget < drop:
        note = f"denoising after the rounds is undone: with it {0.0 - drop:+.2f} pp on validation images"
        return replace(last, notes=(*last.notes, note))
    changed = (*last.buffers_changed, *road.best.walked.buffers_changed)
    return Leg(road.plan, tuned, changed, (*last.notes, *road.notes))


def chosen_of(way: Way, end: Leg, case: Case) -> Chosen:
    """Return what a way came to: its end, and the networks after each leg."""
    walked, numbers = case.kept.walked, [record.round for record in way.records if record.kept]
    names = (name for leg in (*way.legs, end) for name in leg.buffers_changed)
    return Chosen(
        case.kept.plan,
        end.tuned,
        walked.output_errors,
        tuple(dict.fromkeys(names)),
        (*end.notes, ALONE),
        met=way.met,
        case=case,
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
