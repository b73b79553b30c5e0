"""From a budget to a plan and the network it makes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kernelsimp.data.sources import Data
from kernelsimp.data.transforms import batches, preprocess_of
from kernelsimp.errors import KernelsimpError
from kernelsimp.models.network import Network, open_network
from kernelsimp.pipeline.opening import open_data
from kernelsimp.records.plan import Plan
from kernelsimp.records.plan_file import read_plan
from kernelsimp.settings import Settings
from kernelsimp.simplify.apply import apply_plan, check_fits
from kernelsimp.simplify.controls import Case
from kernelsimp.simplify.menus import chooser, data_free_plan
from kernelsimp.simplify.plan import weight_plan
from kernelsimp.simplify.road import Road, Surveyed, Tried, ground_of, look, travel
from kernelsimp.simplify.search import Referee, search
from kernelsimp.simplify.walk import Ground, targets_of, walk
from kernelsimp.watch import SILENT, Watcher

BUDGETS = ("tolerance", "dof", "simplified", "max_drop", "plan")


@dataclass(frozen=True, eq=False)
class Chosen:
    """A plan and the network it made.

    `output_errors` are relative, by layer; `buffers_changed` took up shifts; `met` is false where an
    accuracy budget was not; `case` is what controls stand beside and `tried` one plan a cost, where the
    road was taken.
    """

    plan: Plan
    network: Network
    output_errors: Mapping[str, float] = field(default_factory=dict)
    buffers_changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    met: bool = True
    case: Case | None = None
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be simplified, with what images, under which settings; `record` keeps a search's trials."""

    network: Network
    data: Data | None
    settings: Settings
    record: Path | None = None


def plan_only(path: Path, settings: Settings, watcher: Watcher = SILENT) -> Plan:
    """Return the plan that `simplify` would carry out."""
    task = Task(open_network(path, settings, watcher), open_data(settings, watcher), settings)
    return choose(task, watcher).plan


def choose(task: Task, watcher: Watcher) -> Chosen:
    """Plan by the rule that the settings ask for, say which where they leave it open, and carry it out.

    A budget takes the road through the layers' real inputs where there are images; without images it is
    chosen by absolute weight error. A tolerance, and `--cost relative`, are the simple rule. Raises
    `KernelsimpError` for two budgets at once, or one that needs images and has none.
    """
    settings = with_budget(task, watcher)
    plan, network = settings.plan, task.network
    watcher.start("planning")
    if plan.plan is not None:
        return carried_out(task, read_plan(Path(plan.plan)), watcher)
    if plan.tolerance is not None or plan.cost == "relative":
        return snapped(network, weight_plan(network.bank, plan))
    if task.data is None:
        if plan.max_drop is not None:
            raise KernelsimpError("--max-drop needs a network and images: pass --arch and --data")
        watcher.note("no images were given: choosing by weight error, without re-solving")
        return snapped(network, data_free_plan(network.bank, plan))
    surveyed = look(ground_for(task, task.data), plan, watcher)
    if plan.max_drop is None:
        return taken(task, surveyed, travel(surveyed, chooser(plan), plan.cost, watcher))
    return searched(task, surveyed, watcher)


def with_budget(task: Task, watcher: Watcher) -> Settings:
    """Return the settings with the usual budget where they name none, and say which it is."""
    plan = task.settings.plan
    budgets = [name for name in BUDGETS if getattr(plan, name) is not None]
    if len(budgets) > 1:
        words = " and ".join(f"--{name}" for name in budgets).replace("_", "-")
        raise KernelsimpError(f"choose one budget, not both {words}")
    if budgets:
        return task.settings
    if task.data is None:
        words, usual = "--tolerance 0.1", replace(plan, tolerance=0.1)
    else:
        words, usual = "--max-drop 0.5", replace(plan, max_drop=0.5)
    watcher.note(f"neither a budget nor a tolerance was given: using {words}")
    return replace(task.settings, plan=usual)


def ground_for(task: Task, data: Data) -> Ground:
    """Return the original network on its calibration images."""
    settings, network = task.settings, task.network
    images = data.calibration(settings.data.calibration, settings.run.seed)
    loader = batches(images, preprocess_of(settings.data), settings.data.batch_size)
    inputs = (batch.to(network.device) for batch, _ in loader)
    return ground_of(network.module(), network.bank, inputs, settings.run.seed)


def carried_out(task: Task, plan: Plan, watcher: Watcher) -> Chosen:
    """Carry out a plan that was made before: re-solved where there are images, else by projection."""
    if task.data is None or task.settings.plan.resolve == "none":
        return snapped(task.network, plan)
    for layer in plan.layers:
        check_fits(layer, {item.name: item for item in task.network.bank.layers})
    walked = walk(ground_for(task, task.data), targets_of(plan), watcher)
    return Chosen(plan, task.network.with_weights(walked.tensors), notes=walked.notes)


def searched(task: Task, surveyed: Surveyed, watcher: Watcher) -> Chosen:
    """Search for the fewest degrees of freedom within the accuracy budget, judged by validation images."""
    assert task.data is not None
    settings, device = with_budget(task, SILENT), task.network.device
    loader = batches(task.data.val, preprocess_of(settings.data), settings.data.batch_size)
    judged = [(images.to(device), labels.to(device)) for images, labels in loader]
    referee = Referee(task.network.module(), judged)
    found = search(surveyed, float(settings.plan.max_drop or 0), referee, watcher, task.record)
    chosen = taken(task, surveyed, found.road)
    return replace(chosen, met=found.met, notes=(*found.notes, *chosen.notes))


def taken(task: Task, surveyed: Surveyed, road: Road) -> Chosen:
    """Return what a road came to."""
    return Chosen(
        road.plan,
        task.network.with_weights(road.tensors),
        road.output_errors,
        road.buffers_changed,
        road.notes,
        case=Case(surveyed, road.best),
        tried=road.tried,
    )


def snapped(network: Network, plan: Plan) -> Chosen:
    """Carry out a plan by projection alone."""
    return Chosen(plan, network.with_weights(apply_plan(network.bank, plan)))
