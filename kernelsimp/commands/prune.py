"""Iterative magnitude pruning with learning-rate rewinding: the baseline beside simplifying.

The same engine, holds, run folder and report as `simplify`; what is removed stays zero by a hold on the
structure of each kernel (Han et al. 2015; rewinding of the rate: Renda, Frankle and Carbin 2020).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kernelsimp.commands.evaluate import check_robustness, robustness_of
from kernelsimp.commands.inputs import check_training, open_data
from kernelsimp.commands.measure import StageMeasurer
from kernelsimp.commands.optional import Part, write_by_parts
from kernelsimp.commands.run import (
    check_goes_on,
    provenance,
    training_notes,
    verify_kernels,
    warn_of_exports,
    write_checkpoint,
)
from kernelsimp.commands.task import Task
from kernelsimp.commands.tune import finetune_network
from kernelsimp.errors import KernelsimpError
from kernelsimp.models.architectures import recipe_of
from kernelsimp.models.network import Network, open_network
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Epoch, Report
from kernelsimp.report.assemble import DIVERGED, RunFacts
from kernelsimp.report.command import command_with
from kernelsimp.report.run_folder import JsonLog, RunFolder
from kernelsimp.report.trackers import trackers_of
from kernelsimp.settings import Given, Settings
from kernelsimp.settings_file import recipe, settle
from kernelsimp.solver.apply import apply_plan
from kernelsimp.solver.chosen import Chosen
from kernelsimp.solver.magnitude import check_pruning, magnitude_plan, shares_left
from kernelsimp.training.ranks import processes
from kernelsimp.watch import SILENT, Watcher

ZEROED_FILTERS = (
    "filters were set to zero and their tensors kept their shapes: nothing becomes smaller or faster before "
    "they are cut out; biases and batch norms were left as they are"
)


NEARLY_EMPTY = 0.1
"""The share of a layer's cells below which the report names it."""


@dataclass(eq=False)
class _PruningState:
    """How far the pruning of a task is: the network now, what it went through, and the last plan."""

    task: Task
    network: Network
    stages: dict[str, Network]
    history: tuple[Epoch, ...] = ()
    notes: tuple[str, ...] = ()
    plan: Plan = field(default_factory=lambda: Plan((), ()))


def settle_for_pruning(given: Given, config: str | None) -> Settings:
    """Return all settings; pruning trains unless it is told not to. Raises for two budgets at once."""
    said = given.get("prune", {})
    if said.get("amount") is not None and said.get("dof") is not None:
        raise KernelsimpError("choose one budget, not both --amount and --dof")
    arch = settle(given, config).model.arch
    name = recipe_of(arch) if arch else None
    base: dict[str, Mapping[str, object]] = {"finetune": {"finetune": True}}
    return settle(given, config, base | dict(recipe(name) if name else {}))


def prune(path: Path, settings: Settings, out: Path, watcher: Watcher = SILENT) -> Report:
    """Remove the smallest, train the rest, again and again; everything lands in the directory `out`.

    Raises `HoldError` where something removed came back, and `KernelsimpError` for bad input.
    """
    settings = _check_settings(settings)
    trackers_of(settings.finetune.log)  # before anything is read
    original = open_network(path, settings, watcher)
    original.checkpoint.check_can_save()
    check_goes_on(out, original, settings)
    data = open_data(settings, watcher)
    check_robustness(settings, data)
    if data is None:
        watcher.note("no images were given: nothing is trained after pruning")
        settings = replace(settings, finetune=replace(settings.finetune, finetune=False))
    shares = shares_left(original.bank, settings.prune)
    measurer = StageMeasurer(original, data, settings)
    measurer.measure("original", original, watcher)  # before anything is written
    run = RunFolder.new(out, path)
    log = JsonLog(out / "log.jsonl", watcher, fresh=not settings.finetune.resume)
    warn_of_exports(run, log, resumed=settings.finetune.resume)
    task, stages = Task(original, data, settings), {"original": original}
    state = _PruningState(task, original, stages, notes=original.checkpoint.warnings)
    for number, share in enumerate(shares, 1):
        _iterate(state, number, share, out / "resume", log)
        measurer.measure(list(state.stages)[-1], state.network, log)
    written = write_checkpoint(state.network, run, settings)
    verify_kernels(state.plan, state.network.bank, written.bank, "tie")
    ends = {name: state.stages[name] for name in ("original", list(state.stages)[-1])}
    command = command_with("prune", (str(path),), settings, out)
    facts = RunFacts(
        Chosen(state.plan, state.network),
        original,
        written,
        settings,
        provenance(original, data, settings, command),
        hold="tie",
        outcomes=measurer.outcomes,
        training=state.history,
        metric=measurer.record(),
        notes=(*_words(settings), *_name_emptied(state.plan), *state.notes),
    )
    more = Part(
        "robustness", lambda facts: replace(facts, robustness=robustness_of(ends, data, settings, log))
    )
    return write_by_parts(run, facts, (more,) if settings.robustness.robustness else (), log)


def _iterate(state: _PruningState, number: int, share: float, folder: Path, watcher: Watcher) -> None:
    """Remove the smallest of what is left and, where that is due, train the rest by the whole schedule."""
    task, chosen = state.task, state.task.settings.prune
    watcher.start(f"pruning, iteration {number} of {chosen.iterations}")
    state.plan = magnitude_plan(state.network.bank, chosen, share, task.network.bank)
    state.network = state.network.with_weights(apply_plan(state.network.bank, state.plan))
    if task.settings.finetune.finetune and (chosen.rewind == "lr" or number == chosen.iterations):
        place = folder / f"iteration-{number}"
        state.network, trained = finetune_network(task, state.network, state.plan, place, watcher)
        done = len(state.history)
        state.history += tuple(replace(epoch, epoch=done + epoch.epoch) for epoch in trained.history)
        state.notes += tuple(
            f"iteration {number}: {note}" if note != DIVERGED else note for note in training_notes(trained)
        )
    left = state.plan.dof_after / state.plan.dof_before
    state.stages[f"{100 * left:.1f} % left"] = state.network


def _check_settings(settings: Settings) -> Settings:
    """Return settings under which what is removed stays zero; raises for those that say otherwise."""
    check_pruning(settings.prune)
    chosen = settings.finetune
    if chosen.hold not in ("auto", "tie") or chosen.free_scale or chosen.soft is not None:
        raise KernelsimpError("--hold, --free-scale and --soft are for simplify: prune keeps zeros at zero")
    if processes(chosen) != (1, 1):
        raise KernelsimpError("prune trains in one process; leave out --devices, --num-nodes and torchrun")
    if chosen.finetune:
        check_training(settings)
    return replace(settings, finetune=replace(chosen, hold="tie"))


def _name_emptied(plan: Plan) -> tuple[str, ...]:
    """Say which layers are all but gone: ranked over the whole network, small weights fall together."""
    names = [layer.name for layer in plan.layers if layer.dof_after < NEARLY_EMPTY * layer.dof_before]
    advice = "--scope layer takes as much from each"
    return (f"less than a tenth is left of {', '.join(names)}; {advice}",) if names else ()


def _words(settings: Settings) -> tuple[str, ...]:
    """Return what the report must say of how it was pruned."""
    chosen = settings.prune
    trained = {"lr": "trained by the whole schedule after each", "none": "trained after the last"}
    how = trained[chosen.rewind] if settings.finetune.finetune else "not trained"
    over = "over the whole network" if chosen.scope == "global" else "in each layer"
    told_ = f"pruned by magnitude, {chosen.granularity} ranked {over}, iterations: {chosen.iterations}, {how}"
    return (told_, ZEROED_FILTERS) if chosen.granularity == "filters" else (told_,)
