"""From a budget to a plan and the network it makes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kernelsimp.commands.measure import referee_of
from kernelsimp.commands.rounds import check_rounds, in_rounds
from kernelsimp.commands.task import Chosen, Task
from kernelsimp.data.sources import Data
from kernelsimp.data.splits import Split
from kernelsimp.data.transforms import batches, preprocess_of
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import key_of
from kernelsimp.models.network import Network
from kernelsimp.records.plan import Plan
from kernelsimp.records.plan_file import read_plan
from kernelsimp.settings import PlanSettings, Settings
from kernelsimp.simplify.apply import apply_plan, check_fits
from kernelsimp.simplify.controls import Case
from kernelsimp.simplify.denoise import denoised_by_weight, denoised_road, denoising_of, everything_free
from kernelsimp.simplify.layerwise import Ground
from kernelsimp.simplify.plan_builder import chooser, data_free_plan
from kernelsimp.simplify.search import Referee, search
from kernelsimp.simplify.sensitivity import layer_losses, predicted_losses
from kernelsimp.simplify.solve import Road, Surveyed, ground_of, look, travel, try_plan
from kernelsimp.simplify.tolerance import weight_plan
from kernelsimp.watch import Watcher

NETWORK = "network"
"""The key of a plan's rule that tells which checkpoint it was made for."""

BUDGETS = ("tolerance", "dof", "simplified", "max_drop", "plan")


def choose(task: Task, watcher: Watcher) -> Chosen:
    """Plan by the rule that the settings ask for, say which where they leave it open, and carry it out.

    A budget takes the road through the layers' real inputs where there are images; without images it is
    chosen by absolute weight error. A tolerance, and `--cost relative`, are the simple rule. Raises
    `KernelsimpError` for two budgets at once, or one that needs images and has none.
    """
    settings = with_budget(task, watcher)
    check_rounds(replace(task, settings=settings))
    denoising_of(settings.plan)  # refuses what it cannot do before anything is measured
    watcher.start("planning")
    if settings.plan.plan is not None:
        return carried_out(task, read_plan(Path(settings.plan.plan)), watcher)
    chosen = _chosen(replace(task, settings=settings), watcher)
    rule = {**chosen.plan.rule, NETWORK: task.network.checkpoint.sha256[:16]}
    return replace(chosen, plan=replace(chosen.plan, rule=rule))


def _chosen(task: Task, watcher: Watcher) -> Chosen:
    plan, network = task.settings.plan, task.network
    if plan.tolerance is not None or plan.cost == "relative":
        return by_weight(network, weight_plan(network.bank, plan), plan)
    if task.data is None:
        if plan.max_drop is not None:
            raise KernelsimpError("--max-drop needs a network and images: pass --arch and --data")
        watcher.note("no images were given: choosing by weight error, without re-solving")
        free = plan.denoise_all
        made = everything_free(network.bank) if free else data_free_plan(network.bank, plan)
        return by_weight(network, made, plan)
    referee = referee_of(task, watcher) if plan.max_drop is not None else None
    if plan.holdout is not None and referee is None:
        watcher.warn("--holdout judges an accuracy budget, and there is none: pass --max-drop")
    surveyed, doubts = looked(task, task.data, watcher)
    chosen = measured_by_layer(_on_the_road(task, surveyed, referee, watcher), watcher)
    return replace(chosen, notes=(*doubts, *chosen.notes))


def _on_the_road(task: Task, surveyed: Surveyed, referee: Referee | None, watcher: Watcher) -> Chosen:
    plan = task.settings.plan
    if plan.rounds > 1:
        return in_rounds(task, surveyed, referee, watcher)
    if referee is not None:
        return searched(task, surveyed, referee, watcher)
    if plan.denoise_all:
        kept = try_plan(surveyed, (everything_free(task.network.bank), {}), watcher)
        road = Road(kept, (), kept.walked.tensors)
    else:
        road = travel(surveyed, chooser(plan), plan.cost, watcher)
    return taken(task, surveyed, denoised_road(surveyed, road, watcher))


def with_budget(task: Task, watcher: Watcher) -> Settings:
    """Return the settings with the usual budget where they name none, and say which it is."""
    plan = task.settings.plan
    budgets = [name for name in BUDGETS if getattr(plan, name) is not None]
    if len(budgets) > 1:
        words = " and ".join(f"--{name}" for name in budgets).replace("_", "-")
        raise KernelsimpError(f"choose one budget, not both {words}")
    if plan.denoise_all and budgets:
        word = f"--{budgets[0]}".replace("_", "-")
        raise KernelsimpError(f"--denoise-all leaves nothing for {word} to simplify; leave one of them out")
    if budgets or plan.denoise_all:
        return task.settings
    if task.data is None:
        words, usual = "--tolerance 0.1", replace(plan, tolerance=0.1)
    else:
        words, usual = "--max-drop 0.5", replace(plan, max_drop=0.5)
    watcher.note(f"neither a budget nor a tolerance was given: using {words}")
    return replace(task.settings, plan=usual)


def calibration_images(task: Task, data: Data) -> Split:
    """Return the images that choose, without their labels."""
    return data.calibration(task.settings.data.calibration, task.settings.run.seed)


def looked(task: Task, data: Data, watcher: Watcher) -> tuple[Surveyed, tuple[str, ...]]:
    """Survey the original network on its calibration images; return what to doubt about these, too."""
    images = calibration_images(task, data)
    ground = ground_for(task, images)
    doubts = tuple(_doubts(data, task.settings.data.calibration, ground))
    for doubt in doubts:
        watcher.warn(doubt)
    return look(ground, task.settings.plan, watcher, survey_file(task, images)), doubts


def _doubts(data: Data, count: int, ground: Ground) -> Iterator[str]:
    seen = (*ground.images, *ground.held)
    number, first = sum(len(part) for part in seen), seen[0][:1]
    if len(data.train) < min(count, len(data.val)):
        yield f"too few training images ({len(data.train)}): {number} validation images choose instead"
    if all(bool((part == first).all()) for part in seen):
        yield f"all {number} calibration images are the same: what is fitted to them knows nothing else"
    elif all(bool((part == part[..., :1, :1]).all()) for part in seen):
        yield f"all {number} calibration images are of one colour each: what is fitted knows no patterns"


def ground_for(task: Task, images: Split) -> Ground:
    """Return the original network on its calibration images."""
    settings, network = task.settings, task.network
    loader = batches(images, preprocess_of(settings.data), settings.data.batch_size)
    inputs = (batch.to(network.device) for batch, _ in loader)
    flip = settings.data.calibration_flip
    return ground_of(network.module(), network.bank, inputs, settings.run.seed, flip=flip)


def survey_file(task: Task, images: Split) -> Path | None:
    """Return the file of the run that keeps the survey: its name tells network, images and settings apart."""
    if task.record is None:
        return None
    data, network = task.settings.data, task.network
    shape = (data.mean, data.std, data.input_size, data.crop, data.channels, data.calibration_flip)
    seen = (*shape, task.settings.run.seed)
    key = key_of(network.checkpoint.sha256, network.arch, images.fingerprint(), seen)
    return task.record.parent / f"survey-{key}.safetensors"


def measured_by_layer(chosen: Chosen, watcher: Watcher) -> Chosen:
    """Add what each layer's change alone costs the original network."""
    if chosen.case is None:
        return chosen
    return replace(chosen, losses=layer_losses(chosen.case.ground, chosen.case.kept, watcher))


def carried_out(task: Task, plan: Plan, watcher: Watcher) -> Chosen:
    """Carry out a plan that was made before: re-solved where there are images, else by projection.

    What it leaves free is denoised where the settings say so. Raises `KernelsimpError` where the plan names
    other layers than the network has, or others of their shape.
    """
    notes = _fitting(plan, task.network, watcher)
    if task.data is None or task.settings.plan.resolve == "none":
        return replace(by_weight(task.network, plan, task.settings.plan), notes=notes)
    surveyed, doubts = looked(task, task.data, watcher)
    predicted = predicted_losses(plan, task.network.bank, surveyed.prepared.seen)
    kept = try_plan(surveyed, (plan, predicted), watcher)
    road = denoised_road(surveyed, Road(kept, (), kept.walked.tensors, kept.walked.notes), watcher)
    chosen = measured_by_layer(taken(task, surveyed, road), watcher)
    return replace(chosen, notes=(*notes, *doubts, *chosen.notes))


def _fitting(plan: Plan, network: Network, watcher: Watcher) -> tuple[str, ...]:
    """Refuse a plan of another build; return what to say of one that was made for other weights."""
    for layer in plan.layers:
        check_fits(layer, {item.name: item for item in network.bank.layers})
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


def searched(task: Task, surveyed: Surveyed, referee: Referee, watcher: Watcher) -> Chosen:
    """Search for the fewest degrees of freedom within the accuracy budget, judged by `referee`."""
    budget = float(task.settings.plan.max_drop or 0)
    found = search(surveyed, budget, referee, watcher, task.record)
    road = denoised_road(surveyed, found.road, watcher, lambda model: referee.drop(model) <= budget)
    chosen = taken(task, surveyed, road)
    met = found.met and (road is found.road or referee.drop(road.best.walked.model) <= budget)
    return replace(chosen, met=met, notes=(*found.notes, *chosen.notes), referee=referee)


def taken(task: Task, surveyed: Surveyed, road: Road) -> Chosen:
    """Return what a road came to."""
    return Chosen(
        road.plan,
        task.network.with_weights(road.tensors),
        road.best.walked.output_errors,
        road.best.walked.buffers_changed,
        road.notes,
        case=Case(surveyed, road.best),
        tried=road.tried,
    )


def by_weight(network: Network, plan: Plan, settings: PlanSettings) -> Chosen:
    """Carry out a plan by projection alone, with what no family holds denoised where that was asked for."""
    return snapped(network, denoised_by_weight(plan, network.bank, settings))


def snapped(network: Network, plan: Plan) -> Chosen:
    """Carry out a plan by projection alone."""
    return Chosen(plan, network.with_weights(apply_plan(network.bank, plan)))
