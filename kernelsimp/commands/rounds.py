"""Progressive rounds on a real network: what `solver.rounds` asks of images, training and a judge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from kernelsimp.commands.round_files import RoundFiles, round_files
from kernelsimp.commands.task import Task
from kernelsimp.commands.together import with_first_weights
from kernelsimp.commands.tune import finetune_briefly
from kernelsimp.errors import KernelsimpError
from kernelsimp.models.network import Network
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Round
from kernelsimp.settings import PlanSettings
from kernelsimp.solver.chosen import Chosen
from kernelsimp.solver.controls import ControlCase
from kernelsimp.solver.denoise import denoise_rest, denoising_of
from kernelsimp.solver.lagrangian import choose_for_count, choose_for_dof
from kernelsimp.solver.layerwise import in_float32
from kernelsimp.solver.plan_builder import Chooser
from kernelsimp.solver.rounds import RoundResult, Schedule, relabel_plan, run_rounds, with_first_verdicts
from kernelsimp.solver.search import BudgetJudge
from kernelsimp.solver.sensitivity import predicted_losses
from kernelsimp.solver.solve import Solution, Surveyed, solve_at_budget, survey_layers, try_plan
from kernelsimp.solver.tolerance import is_by_weight
from kernelsimp.training.ranks import first_process
from kernelsimp.watch import Watcher

LEAST_SHARE = 0.1
"""Where the schedule of an accuracy budget leads: this share of the degrees of freedom left."""


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
    if plan.denoise_all or plan.plan is not None or is_by_weight(plan):
        raise KernelsimpError("--rounds goes to a budget: pass --dof, --simplified or --max-drop")


@dataclass(eq=False)
class NetworkRoundRunner:
    """Plans by calibration images, trains on the training split, and asks `judge`, if there is one.

    The first round settles the cost where it is `auto`. `first` is the original network, surveyed.
    """

    task: Task
    judge: BudgetJudge | None
    first: Surveyed
    watcher: Watcher
    cost: str
    kept: RoundFiles | None = None

    def simplify(self, network: Network, place: float) -> tuple[Solution, Network]:
        """Plan afresh on `network`, and carry it out."""
        surveyed = self.first if network is self.task.network else self.look(network)
        solution = solve_at_budget(
            surveyed, _chooser_at(self.task.settings.plan, place), self.cost, self.watcher
        )
        self.cost = solution.best.cost
        return solution, network.with_weights(solution.tensors)

    def tune(self, network: Network, plan: Plan) -> Network:
        """Train for the epochs of a round; all processes go on with what the first one has."""
        tuned = finetune_briefly(self.task, network, plan, self.watcher)
        return with_first_weights(self.task, tuned)

    def drop(self, network: Network) -> float | None:
        """Return what the budget is held against, if an accuracy budget is."""
        return None if self.judge is None else self.judge.drop(network.module())

    def recall(self) -> tuple[Sequence[RoundResult], Sequence[Round]]:
        """Return the rounds of this schedule that an earlier run wrote down; with `--resume` alone."""
        if self.kept is None or not self.task.settings.finetune.resume:
            return (), ()
        results, records = self.kept.read(self.task.network)
        if results:
            self.watcher.note(f"going on after round {len(records)}")
            self.cost = str(results[-1].plan.rule["cost"])
        return results, records

    def remember(self, results: Sequence[RoundResult], records: Sequence[Round]) -> None:
        """Write the rounds down, so that a schedule that is stopped can go on."""
        if self.kept is not None and first_process():
            self.kept.write(results, records)

    def look(self, network: Network) -> Surveyed:
        """Survey a later network; what chance explains is asked of the first one."""
        calibrated = replace(self.first.calibrated, model=in_float32(network.module()), bank=network.bank)
        surveyed = survey_layers(calibrated, self.task.settings.plan, self.watcher)
        return replace(surveyed, prepared=with_first_verdicts(surveyed.prepared, self.first.prepared))


def simplify_in_rounds(task: Task, first: Surveyed, judge: BudgetJudge | None, watcher: Watcher) -> Chosen:
    """Go to the budget in rounds; the network that comes back is the last one kept, trained and in structure.

    What no family holds is denoised after the last round. Control arms, and the errors and losses of each
    layer, are those of the final plan re-solved once on the original network: they go no rounds.
    """
    plan = task.settings.plan
    kept = round_files(task)
    runner = NetworkRoundRunner(task, judge, first, watcher, plan.cost, kept)
    schedule = run_rounds(task.network, runner, plan.rounds, plan.max_drop if judge else None, watcher)
    end = denoise_last_round(runner, schedule.results[-1])
    labelled = relabel_plan(end.plan, first.prepared)
    predicted = predicted_losses(labelled, task.network.bank, first.prepared.sensitivities)
    alone = try_plan(first, (labelled, predicted), watcher)
    return replace(chosen_from_rounds(schedule, end, ControlCase(first, alone)), judge=judge)


def denoise_last_round(runner: NetworkRoundRunner, last: RoundResult) -> RoundResult:
    """Return the last result with its free kernels denoised, and trained once more, where that is asked for.

    An accuracy budget that the result met and denoising would break undoes it.
    """
    settings = runner.task.settings.plan
    if denoising_of(settings) is None:
        return last
    surveyed = runner.look(last.tuned)
    start = try_plan(surveyed, (last.plan, {}), runner.watcher)  # everything is in place: nothing moves
    solution = denoise_rest(surveyed, Solution(start, (), start.reconstruction.tensors), runner.watcher)
    if not solution.plan.denoised:
        return replace(last, notes=(*last.notes, *solution.notes))
    tuned = runner.tune(last.tuned.with_weights(solution.tensors), solution.plan)
    drop, before = runner.drop(tuned), runner.drop(last.tuned)
    budget = settings.max_drop
    if drop is not None and before is not None and budget is not None and before <= budget < drop:
        note = f"denoising after the rounds is undone: with it {0.0 - drop:+.2f} pp on validation images"
        return replace(last, notes=(*last.notes, note))
    changed = (*last.buffers_changed, *solution.best.reconstruction.buffers_changed)
    return RoundResult(solution.plan, tuned, changed, (*last.notes, *solution.notes))


def chosen_from_rounds(schedule: Schedule, end: RoundResult, case: ControlCase) -> Chosen:
    """Return what a schedule came to: its end, beside the plan without rounds."""
    names = (name for result in (*schedule.results, end) for name in result.buffers_changed)
    return Chosen(
        case.kept.plan,
        end.tuned,
        case,
        schedule=schedule,
        buffers_changed=tuple(dict.fromkeys(names)),
        notes=(*end.notes, ALONE),
        met=schedule.met,
    )


def stages_of(schedule: Schedule | None) -> dict[str, Network]:
    """Return the network after each round that was kept; nothing where the budget was not met."""
    if schedule is None or not schedule.met:
        return {}
    kept = (record for record in schedule.records if record.kept)
    return {
        f"round {record.round}": result.tuned for record, result in zip(kept, schedule.results, strict=True)
    }


def _chooser_at(plan: PlanSettings, place: float) -> Chooser:
    """Return how to choose at `place` (0..1) of the schedule to the settings' budget."""
    if plan.simplified is not None:
        return partial(choose_for_count, share=place * plan.simplified)
    target = LEAST_SHARE if plan.dof is None else plan.dof
    return partial(choose_for_dof, share=target if place >= 1 else 1 - place * (1 - target))
