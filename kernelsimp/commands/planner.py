"""From a budget to a plan and the network it makes, and who judges an accuracy budget."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from torch import Tensor

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.commands.inputs import batches_of, layers_by_name, load_split, room_of
from kernelsimp.commands.rounds import check_rounds, simplify_in_rounds
from kernelsimp.commands.task import Task
from kernelsimp.data.holdout import holdout_split
from kernelsimp.data.in_memory import labelled
from kernelsimp.data.sources import Data
from kernelsimp.data.splits import Split
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, independent_interval
from kernelsimp.evaluation.metric import metric_of
from kernelsimp.files import key_of
from kernelsimp.kernels.structures import expand
from kernelsimp.memory import GB
from kernelsimp.models.hooks import trace
from kernelsimp.models.network import Network
from kernelsimp.records.plan import Plan
from kernelsimp.records.plan_file import read_plan
from kernelsimp.settings import PlanSettings, Settings
from kernelsimp.shelf import check_disk, count_images
from kernelsimp.solver.apply import apply_plan, check_fits
from kernelsimp.solver.batch_size import batch_that_fits
from kernelsimp.solver.chosen import Chosen
from kernelsimp.solver.controls import ControlCase
from kernelsimp.solver.costs import costs_to_try
from kernelsimp.solver.denoise import denoise_by_weight, denoise_rest, denoising_of, everything_free
from kernelsimp.solver.estimate import estimate
from kernelsimp.solver.fisher import FORMAT as SURVEY_FORMAT
from kernelsimp.solver.foresight import foresee
from kernelsimp.solver.lagrangian import check_share
from kernelsimp.solver.layerwise import CalibratedNetwork, bytes_of_files, in_float32
from kernelsimp.solver.plan_builder import chooser, data_free_plan
from kernelsimp.solver.search import BudgetJudge, check_drop, search
from kernelsimp.solver.sensitivity import layer_losses, predicted_losses
from kernelsimp.solver.solve import (
    Solution,
    Surveyed,
    calibrated_network,
    solve_at_budget,
    survey_layers,
    try_plan,
)
from kernelsimp.solver.tolerance import is_by_weight, weight_plan
from kernelsimp.watch import Watcher, duration

NETWORK = "network"
"""The key of a plan's rule that tells which checkpoint it was made for."""

SHARES = ("tolerance", "dof", "simplified")
BUDGETS = (*SHARES, "max_drop", "plan")

USUAL_TRIALS = 8
"""How many trials a search for an accuracy budget takes, about."""

UNSEEN_GAP = 3.0
"""A network this much better (pp) on validation images than on others has probably been trained on them."""

ADVICE = "name other images with --holdout"

USUAL_DROP, USUAL_TOLERANCE = 0.5, 0.1
"""The budget in pp where there are images, and the tolerance where there are none, if neither is named."""


def plan_and_solve(task: Task, watcher: Watcher) -> Chosen:
    """Plan by the rule that the settings ask for, say which where they leave it open, and carry it out.

    A budget takes the solution through the layers' real inputs where there are images; without images it is
    chosen by absolute weight error. A tolerance, and `--cost relative`, are the simple rule. Raises
    `KernelsimpError` for two budgets at once, or one that needs images and has none.
    """
    if not task.network.bank.spatial:
        where = task.network.checkpoint.path
        raise KernelsimpError(f"{where}: every convolution is 1x1, so there is no kernel to simplify")
    settings = with_budget(task, watcher)
    check_rounds(replace(task, settings=settings))
    denoising_of(settings.plan)  # refuses what it cannot do before anything is measured
    watcher.start("planning")
    if settings.plan.plan is not None:
        return carry_out_plan(task, read_plan(Path(settings.plan.plan)), watcher)
    chosen = _plan_by_settings(replace(task, settings=settings), watcher)
    rule = {**chosen.plan.rule, NETWORK: task.network.checkpoint.sha256[:16]}
    return replace(chosen, plan=replace(chosen.plan, rule=rule))


def _plan_by_settings(task: Task, watcher: Watcher) -> Chosen:
    plan, network = task.settings.plan, task.network
    if is_by_weight(plan):
        return project_plan(network, weight_plan(network.bank, plan), plan)
    if task.data is None:
        if plan.max_drop is not None:
            raise KernelsimpError("--max-drop needs a network and images: pass --arch and --data")
        watcher.note("no images were given: choosing by weight error, without re-solving")
        free = plan.denoise_all
        made = everything_free(network.bank) if free else data_free_plan(network.bank, plan)
        return project_plan(network, made, plan)
    judge = budget_judge(task, watcher) if plan.max_drop is not None else None
    if plan.holdout is not None and judge is None:
        watcher.warn("--holdout judges an accuracy budget, and there is none: pass --max-drop")
    surveyed, doubts = survey_network(task, task.data, watcher)
    chosen = add_layer_losses(_solve_budget(task, surveyed, judge, watcher), watcher)
    return replace(chosen, notes=(*doubts, *chosen.notes))


def _solve_budget(task: Task, surveyed: Surveyed, judge: BudgetJudge | None, watcher: Watcher) -> Chosen:
    plan = task.settings.plan
    if plan.rounds > 1:
        return simplify_in_rounds(task, surveyed, judge, watcher)
    if judge is not None:
        return search_budget(task, surveyed, judge, watcher)
    if plan.denoise_all:
        kept = try_plan(surveyed, (everything_free(task.network.bank), {}), watcher)
        solution = Solution(kept, (), kept.reconstruction.tensors)
    else:
        solution = solve_at_budget(surveyed, chooser(plan), plan.cost, watcher)
    chosen = chosen_from_solution(task, surveyed, denoise_rest(surveyed, solution, watcher))
    return replace(chosen, notes=(*chosen.notes, *foresee(solution.best)))


def with_budget(task: Task, watcher: Watcher) -> Settings:
    """Return the settings with the usual budget where they name none, and say which it is."""
    plan = task.settings.plan
    if check_budget(plan) or plan.denoise_all:
        return task.settings
    if task.data is None:
        words, usual = f"--tolerance {USUAL_TOLERANCE}", replace(plan, tolerance=USUAL_TOLERANCE)
    else:
        words, usual = f"--max-drop {USUAL_DROP}", replace(plan, max_drop=USUAL_DROP)
    watcher.note(f"neither a budget nor a tolerance was given: using {words}")
    return replace(task.settings, plan=usual)


def check_budget(plan: PlanSettings) -> str | None:
    """Return the name of the budget, None where none is named; before anything is read or measured.

    Raises `KernelsimpError` for two at once, for one out of range and for a family that nobody knows.
    """
    budgets = [name for name in BUDGETS if getattr(plan, name) is not None]
    words = [f"--{name}".replace("_", "-") for name in budgets]
    if len(budgets) > 1:
        raise KernelsimpError(f"choose one budget, not both {' and '.join(words)}")
    if plan.denoise_all and budgets:
        raise KernelsimpError(
            f"--denoise-all leaves nothing for {words[0]} to simplify; leave one of them out"
        )
    for name in SHARES:
        if name in budgets:
            check_share(f"--{name}", getattr(plan, name))
    if plan.max_drop is not None:
        check_drop(plan.max_drop)
    expand(plan.families or ())
    return budgets[0] if budgets else None


def budget_judge(task: Task, watcher: Watcher) -> BudgetJudge:
    """Return who judges a budget: validation images, or those of --holdout.

    The test split takes no part. Where a holdout is named, the original is measured on the validation images
    too, and a gap of more than 3 pp and chance is told; the holdout judges either way. Without one, 99 % on
    the validation images is what shows that they were trained on, and then changed answers and KL count too.
    A gap between validation and test images counts only once everything has been chosen (`judge_memorised`).
    """
    assert task.data is not None
    settings, data = task.settings, task.data
    original, metric, limit = task.network.module(), metric_of(settings), BatchLimit(watcher)
    if settings.plan.holdout is None:
        seen = load_split(data.val, settings)
        judge = BudgetJudge(original, seen, metric, group=task.group, limit=limit)
        if judge.by_accuracy and not labelled(data.val):
            raise KernelsimpError("a budget of accuracy takes labels: pass images with labels, or dof=")
        return judge
    split = holdout_split(data, settings.data, settings.plan.holdout, settings.run.seed)
    judge = BudgetJudge(original, load_split(split, settings), metric, "holdout", task.group, limit)
    if judge.top1 is not None and len(data.val):
        known = BudgetJudge(original, load_split(data.val, settings), limit=limit)
        if _is_beyond_chance((known.right, known.total), (judge.right, judge.total)):
            watcher.warn(
                f"the original network has {known.top1:.1f} % right on validation images, {judge.top1:.1f} % "
                "on those of --holdout: it was probably trained on the former; the latter judge the budget"
            )
    return judge


def _is_beyond_chance(seen: tuple[int, int], unseen: tuple[int, int]) -> bool:
    """Say whether (right, total) of images seen is `UNSEEN_GAP` above that of others, and not by chance."""
    gap = 100 * (seen[0] / seen[1] - unseen[0] / unseen[1])
    return gap > UNSEEN_GAP and independent_interval(unseen, seen)[0] > 0


def judge_memorised(
    settings: Settings, original: Outcome | None, chosen: Chosen
) -> tuple[Chosen, tuple[str, ...]]:
    """Judge a budget by changed answers and KL as well where validation images turn out to be known by heart.

    That shows where the original is more than 3 pp, and more than chance, better on them than on the test
    split. This comes after everything has been chosen: the network stays, and only whether the budget was
    met is said anew. Return what was chosen and what to say. A holdout needs none of it:
    its labels tell networks apart.
    """
    judge = chosen.judge
    if judge is None or judge.top1 is None or original is None or settings.plan.holdout is not None:
        return chosen, ()
    if not _is_beyond_chance((judge.right, judge.total), (original.right, original.total)):
        return chosen, ()
    found = (
        f"the original network has {judge.top1:.1f} % right on validation images and {original.top1:.1f} % "
        "on the test split, so it was probably trained on the former"
    )
    if judge.memorised:  # counted all along
        return chosen, (f"{found}; {ADVICE}",)
    trial = judge.measured(chosen.network.module(), 0.0, "")
    asked = settings.plan.max_drop
    within = trial.drop(memorised=True) <= (USUAL_DROP if asked is None else asked)
    verdict = "within" if within else "beyond"
    told = f"{trial.changed_answers:.2f} % of the answers changed, KL {trial.divergence:.4f}"
    note = f"{found} and the budget counts changed answers and KL too: {told}, {verdict} the budget; {ADVICE}"
    return replace(chosen, met=chosen.met and within), (note,)


def survey_network(task: Task, data: Data, watcher: Watcher) -> tuple[Surveyed, tuple[str, ...]]:
    """Survey the original network on its calibration images; return what to doubt about these, too."""
    images = data.calibration(task.settings.data.calibration, task.settings.run.seed)  # without labels
    calibrated = calibrate(task, images, watcher)
    doubts: tuple[str, ...] = ()
    if task.group.first:
        doubts = tuple(_doubts(data, task.settings.data.calibration, calibrated.alone()))
        for doubt in doubts:
            watcher.warn(doubt)
        watcher.note(_time_needed(calibrated, task.settings.plan))
    return survey_layers(calibrated, task.settings.plan, watcher, survey_file(task, images)), doubts


def _time_needed(calibrated: CalibratedNetwork, plan: PlanSettings) -> str:
    """Return how long choosing will take, in words; what is measured on the test split comes on top."""
    seconds = estimate(calibrated)
    costs = len(costs_to_try([layer.kind for layer in calibrated.bank.spatial])) if plan.cost == "auto" else 1
    solves = costs if plan.max_drop is None else costs + USUAL_TRIALS
    each = f"{solves} re-solve{'s' * (solves > 1)} of {duration(seconds.solve)}"
    whole = duration(seconds.total(solves * plan.rounds))
    return f"choosing takes about {whole}: {duration(seconds.survey)} to see the layers, {each}"


def _doubts(data: Data, count: int, calibrated: CalibratedNetwork) -> Iterator[str]:
    number, first = calibrated.count + count_images(calibrated.held_back), calibrated.images[0][:1]

    def seen() -> Iterator[Tensor]:
        return chain(calibrated.images, calibrated.held_back)

    if len(data.train) < min(count, len(data.val)):
        yield f"too few training images ({len(data.train)}): {number} validation images choose instead"
    if all(bool((part == first).all()) for part in seen()):
        yield f"all {number} calibration images are the same: what is fitted to them knows nothing else"
    elif all(bool((part == part[..., :1, :1]).all()) for part in seen()):
        yield f"all {number} calibration images are of one colour each: what is fitted knows no patterns"


def calibrate(task: Task, images: Split, watcher: Watcher) -> CalibratedNetwork:
    """Return the original network on its calibration images, and say what memory that takes.

    Raises `KernelsimpError` where the disk has no room for what does not fit.
    """
    settings, network = task.settings, task.network
    inputs = (batch.to(network.device) for batch, _ in batches_of(images, settings))
    room = room_of(settings, network.device, task.resume)
    flip = settings.data.calibration_flip
    seed = settings.run.seed
    calibrated = calibrated_network(
        network.module(), network.bank, inputs, seed, room, flip=flip, group=task.group
    )
    check_disk(room.folder, bytes_of_files(calibrated))
    watcher.note(
        f"up to {room.bytes / GB:.1f} GB of memory (--memory), {len(calibrated.images[0])} images at once"
    )
    return replace(calibrated, limit=BatchLimit(watcher))


def check_memory(network: Network, data: Data | None, settings: Settings) -> None:
    """Raise `KernelsimpError` where --memory does not do for one image, before anything is measured."""
    if data is None or is_by_weight(settings.plan):
        return
    some = data.calibration(settings.data.calibration, settings.run.seed).subset([0])
    for batch, _ in batches_of(some, settings):
        image, copy = batch.to(network.device), in_float32(network.module())
        batch_that_fits(copy, trace(copy, image), image, room_of(settings, network.device, None))


def survey_file(task: Task, images: Split) -> Path | None:
    """Return the file of the run that keeps the survey: its name tells network, images and settings apart."""
    if task.resume is None:
        return None
    data, network = task.settings.data, task.network
    shape = (data.mean, data.std, data.input_size, data.crop, data.channels, data.calibration_flip)
    seen = (*shape, task.settings.run.seed, SURVEY_FORMAT)
    key = key_of(network.checkpoint.sha256, network.arch, images.fingerprint(), seen)
    return task.resume / f"survey-{key}.safetensors"


def trials_file(task: Task) -> Path | None:
    """Return the file of the run that keeps a search's trials: its name tells them from any other's."""
    if task.resume is None:
        return None
    data, network, settings = task.data, task.network, task.settings
    known = (network.checkpoint.sha256, data.fingerprint if data else "", settings.plan, settings.run.seed)
    return task.resume / f"search-{key_of(*known, settings.data)}.json"


def add_layer_losses(chosen: Chosen, watcher: Watcher) -> Chosen:
    """Add what each layer's change alone costs the original network."""
    if chosen.case is None:
        return chosen
    return replace(chosen, losses=layer_losses(chosen.case.calibrated, chosen.case.kept, watcher))


def carry_out_plan(task: Task, plan: Plan, watcher: Watcher) -> Chosen:
    """Carry out a plan that was made before: re-solved where there are images, else by projection.

    What it leaves free is denoised where the settings say so. Raises `KernelsimpError` where the plan names
    other layers than the network has, or others of their shape.
    """
    notes = _check_plan_fits(plan, task.network, watcher)
    if task.data is None or task.settings.plan.resolve == "none":
        return replace(project_plan(task.network, plan, task.settings.plan), notes=notes)
    surveyed, doubts = survey_network(task, task.data, watcher)
    predicted = predicted_losses(plan, task.network.bank, surveyed.prepared.sensitivities)
    kept = try_plan(surveyed, (plan, predicted), watcher)
    solution = denoise_rest(
        surveyed, Solution(kept, (), kept.reconstruction.tensors, kept.reconstruction.notes), watcher
    )
    chosen = add_layer_losses(chosen_from_solution(task, surveyed, solution), watcher)
    return replace(chosen, notes=(*notes, *doubts, *chosen.notes))


def _check_plan_fits(plan: Plan, network: Network, watcher: Watcher) -> tuple[str, ...]:
    """Refuse a plan of another build; return what to say of one that was made for other weights."""
    layers = layers_by_name(network.bank)
    for layer in plan.layers:
        check_fits(layer, layers)
    if missing := {layer.name for layer in network.bank.spatial} - {layer.name for layer in plan.layers}:
        word = f"the plan does not name layer '{min(missing)}' of this network"
        raise KernelsimpError(f"{word}: it was made for another one; make a plan for this one")
    if plan.rule.get(NETWORK) in (None, network.checkpoint.sha256[:16]):
        return ()
    word = (
        "the plan was made for another checkpoint of this build: found, imposed and residuals are that one's"
    )
    watcher.warn(word)
    return (word,)


def search_budget(task: Task, surveyed: Surveyed, judge: BudgetJudge, watcher: Watcher) -> Chosen:
    """Search for the fewest degrees of freedom within the accuracy budget, judged by `judge`."""
    budget = float(task.settings.plan.max_drop or 0)
    found = search(surveyed, budget, judge, watcher, trials_file(task))
    solution = denoise_rest(surveyed, found.solution, watcher, lambda model: judge.drop(model) <= budget)
    chosen = chosen_from_solution(task, surveyed, solution)
    met = found.met and (
        solution is found.solution or judge.drop(solution.best.reconstruction.model) <= budget
    )
    return replace(chosen, met=met, notes=(*found.notes, *chosen.notes), judge=judge)


def chosen_from_solution(task: Task, surveyed: Surveyed, solution: Solution) -> Chosen:
    """Return what a solution came to."""
    return Chosen(
        solution.plan,
        task.network.with_weights(solution.tensors),
        ControlCase(surveyed, solution.best),
        solution.tried,
        buffers_changed=solution.best.reconstruction.buffers_changed,
        notes=solution.notes,
    )


def project_plan(network: Network, plan: Plan, settings: PlanSettings) -> Chosen:
    """Carry out a plan by projection alone, with what no family holds denoised where that was asked for."""
    made = denoise_by_weight(plan, network.bank, settings)
    return Chosen(made, network.with_weights(apply_plan(network.bank, made)))
