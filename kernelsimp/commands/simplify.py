"""The main story: choose, snap (re-solved where there are images), hold, fine-tune, measure, report."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kernelsimp.analysis.scan import scan_bank
from kernelsimp.commands.compare import check_similarity, similarity_of
from kernelsimp.commands.controls import check_controls, controls_beside, controls_notes
from kernelsimp.commands.evaluate import (
    check_explained,
    check_robustness,
    explain_channels,
    robustness_of,
)
from kernelsimp.commands.inputs import check_training, open_data, settle_for_model
from kernelsimp.commands.measure import MEASURING, StageMeasurer
from kernelsimp.commands.optional import Part, add_all, write_by_parts
from kernelsimp.commands.planner import check_budget, check_memory, judge_memorised, plan_and_solve
from kernelsimp.commands.recipes import with_recipe
from kernelsimp.commands.rounds import stages_of
from kernelsimp.commands.run import (
    REPORTED,
    check_goes_on,
    provenance,
    training_notes,
    verify_kernels,
    warn_of_exports,
    write_checkpoint,
)
from kernelsimp.commands.task import Task
from kernelsimp.commands.together import join_processes, settle_together, works_together
from kernelsimp.commands.tune import finetune_network, re_estimate_network
from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.models.network import Network, open_network
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Epoch, Report
from kernelsimp.report.assemble import RunFacts, assemble
from kernelsimp.report.command import command_again
from kernelsimp.report.run_folder import JsonLog, RunFolder
from kernelsimp.report.trackers import trackers_of
from kernelsimp.settings import ModelSettings, Settings
from kernelsimp.solver.candidates import chosen_layers
from kernelsimp.solver.chosen import Chosen
from kernelsimp.solver.process_group import OtherProcessError
from kernelsimp.solver.tolerance import is_by_weight
from kernelsimp.training.options import hold_of
from kernelsimp.watch import SILENT, Watcher


@dataclass(eq=False)
class Simplified:
    """What simplifying came to: what was chosen, and the networks of every stage, the original first."""

    task: Task
    chosen: Chosen
    measurer: StageMeasurer
    stages: dict[str, Network]
    training: tuple[Epoch, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def last(self) -> Network:
        """The network of the last stage."""
        return list(self.stages.values())[-1]


def simplify(path: Path, settings: Settings, out: Path, watcher: Watcher = SILENT) -> Report:
    """Choose, snap, hold, fine-tune, measure and report; everything lands in the directory `out`.

    Raises `HoldError` where a held kernel moved, and `KernelsimpError` for bad input.
    """
    return simplify_to(path, settings, out, watcher)[1]


def simplify_to(
    path: Path, settings: Settings, out: Path, watcher: Watcher = SILENT
) -> tuple[Simplified, Report]:
    """Do the same, and return the networks of every stage beside the report."""
    check_hold(settings)
    trackers_of(settings.finetune.log)  # before anything is read
    given = settings
    original, data, settings = _open_inputs(path, settings, watcher)
    watcher.expect(phases_of(settings, data))
    check_asked(original, data, settings)
    original.checkpoint.check_can_save()
    check_goes_on(out, original, settings)
    group = join_processes(given)  # what is refused, no other process has to be told
    measurer = _measured(original, data, settings, watcher)  # before anything is written
    run = RunFolder.new(out, path)
    log = JsonLog(out / "log.jsonl", watcher, fresh=not settings.finetune.resume)
    warn_of_exports(run, log, resumed=settings.finetune.resume)
    done = scan_and_solve(Task(original, data, settings, out / "resume", group), measurer, log)
    if settings.finetune.finetune:
        finetune_last(done, out / "resume", log)
    measure_stages(done, log)
    written = write_checkpoint(done.last, run, settings)
    verify_held(done, written)
    facts = facts_of(done, written, command_of_run(path, settings, out))
    return done, write_by_parts(run, facts, parts_of(done, log), log)


def phases_of(settings: Settings, data: Data | None) -> tuple[str, ...]:
    """Return what simplifying goes through that takes time, in order, by how the stages' names begin."""
    solved = data is not None and not is_by_weight(settings.plan)
    test = data is not None and len(data.test) > 0
    phases = {
        f"{MEASURING}, original": test,
        "scanning": True,
        "measuring what each layer sees": solved,
        "re-solving layer by layer": solved,
        "measuring each layer's change alone": solved,
        "fine-tuning": settings.finetune.finetune,
        MEASURING: test,
    }
    return tuple(name for name, comes in phases.items() if comes)


def simplify_in_memory(
    original: Network, data: Data | None, settings: Settings, watcher: Watcher = SILENT
) -> tuple[Simplified, Report]:
    """Do the same and write nothing. Raises as `simplify` does."""
    check_hold(settings)
    settings = with_recipe(original, settings, watcher)
    measurer = measure_original(original, data, settings, watcher)
    done = scan_and_solve(Task(original, data, settings), measurer, watcher)
    if settings.finetune.finetune:
        finetune_last(done, None, watcher)
    return done, report_in_memory(done, watcher)


def report_in_memory(done: Simplified, watcher: Watcher = SILENT) -> Report:
    """Measure what was not measured yet, verify what is held, and return the report."""
    measure_stages(done, watcher)
    verify_held(done, done.last)
    return assemble(add_all(facts_of(done, done.last, ""), parts_of(done, watcher)))


def check_hold(settings: Settings) -> None:
    """Raise `KernelsimpError` for holds and training that make no sense, before anything is read."""
    hold_of(settings)
    if settings.finetune.finetune:
        check_training(settings)


def measure_original(
    original: Network, data: Data | None, settings: Settings, watcher: Watcher
) -> StageMeasurer:
    """Refuse what these images cannot serve, then measure the original network on the test split."""
    check_asked(original, data, settings)
    return _measured(original, data, settings, watcher)


def _measured(original: Network, data: Data | None, settings: Settings, watcher: Watcher) -> StageMeasurer:
    measurer = StageMeasurer(original, data, settings)
    measurer.measure("original", original, watcher)
    return measurer


def check_asked(original: Network, data: Data | None, settings: Settings) -> None:
    """Raise `KernelsimpError` for what is asked for and these images cannot serve."""
    if settings.finetune.finetune and data is None:
        raise KernelsimpError("--finetune needs a network and images: pass --arch and --data")
    check_controls(settings, data)
    check_robustness(settings, data)
    check_similarity(settings, data)
    check_explained(settings, data)
    check_memory(original, data, settings)


def scan_and_solve(task: Task, measurer: StageMeasurer, watcher: Watcher) -> Simplified:
    """Scan the kernels as they came, choose what they become, and make the network that has them."""
    scan = scan_bank(task.network.bank, replace(task.settings.scan, depth="shallow"), {}, watcher)
    chosen = replace(_choose(task, watcher), scan=scan)
    stages = {"original": task.network, **stages_of(chosen.schedule), "simplified": chosen.network}
    notes = (*task.network.checkpoint.warnings, *chosen.notes)
    return Simplified(task, chosen, measurer, stages, notes=notes)


def finetune_last(done: Simplified, folder: Path | None, watcher: Watcher) -> None:
    """Train what is not held of the last stage, which becomes a stage of its own."""
    network, trained = finetune_network(done.task, done.last, done.chosen.plan, folder, watcher)
    done.stages["finetuned"] = network
    done.training = (*done.training, *trained.history)
    done.notes = (*done.notes, *training_notes(trained))


def measure_stages(done: Simplified, watcher: Watcher) -> None:
    """Measure every later stage on the test split, and judge an accuracy budget once more by it."""
    for name in list(done.stages)[1:]:
        done.measurer.measure(name, done.stages[name], watcher)
    original = done.measurer.outcomes.get("original")
    done.chosen, gap = judge_memorised(done.task.settings, original, done.chosen)
    done.notes = (*done.notes, *gap)


def verify_held(done: Simplified, written: Network) -> None:
    """Raise `HoldError` where a held kernel of `written` moved: what is promised is checked in the file."""
    chosen = done.chosen
    verify_kernels(chosen.plan, chosen.network.bank, written.bank, hold_of(done.task.settings))


def facts_of(done: Simplified, written: Network, command: str) -> RunFacts:
    """Return what a report tells before anything optional is measured."""
    settings, original, data = done.task.settings, done.task.network, done.task.data
    return RunFacts(
        done.chosen,
        original,
        written,
        settings,
        provenance(original, data, settings, command),
        hold=REPORTED[hold_of(settings)],
        outcomes=done.measurer.outcomes,
        training=done.training,
        metric=done.measurer.record(),
        notes=done.notes,
    )


def parts_of(done: Simplified, log: Watcher) -> tuple[Part, ...]:
    """Return the optional measurements that the settings ask for, in order."""
    settings, data, stages = done.task.settings, done.task.data, done.stages
    ends = {"original": done.task.network, list(stages)[-1]: done.last}

    def controls(facts: RunFacts) -> RunFacts:
        arms = controls_beside(done.task, done.chosen, done.measurer.outcomes, log)
        return replace(facts, controls=arms, notes=(*facts.notes, *controls_notes(arms)))

    def robustness(facts: RunFacts) -> RunFacts:
        return replace(facts, robustness=robustness_of(ends, data, settings, log))

    def similarity(facts: RunFacts) -> RunFacts:
        return replace(facts, similarity=similarity_of(_stages_to_compare(stages), data, settings, log))

    def selectivity(facts: RunFacts) -> RunFacts:
        assert data is not None
        explained = {name: explain_channels(network, data, settings, log) for name, network in ends.items()}
        return replace(facts, selectivity=explained)

    asked = (
        (settings.plan.controls, Part("controls", controls)),
        (settings.robustness.robustness, Part("robustness", robustness)),
        (settings.plan.similarity, Part("similarity", similarity)),
        (settings.plan.explain, Part("selectivity", selectivity)),
    )
    return tuple(part for wanted, part in asked if wanted)


def _choose(task: Task, watcher: Watcher) -> Chosen:
    """Choose what kernels become, together with the other processes; all go on with what the first has."""
    chosen = plan_and_solve(task, watcher)
    if task.group.first:
        chosen = re_estimate_network(task, chosen, watcher)
    return settle_together(task, chosen)


def _stages_to_compare(stages: Mapping[str, Network]) -> dict[str, Network]:
    """Return the stages whose layers are compared with the original's, which comes first."""
    return {name: stages[name] for name in ("original", "simplified", "finetuned") if name in stages}


def follow_first_process(path: Path, settings: Settings, out: Path) -> None:
    """Do, in a process that is not the first, what all processes of a run do together; write nothing.

    That is to go through a part of the images while kernels are chosen and fitted, and to train. `out` is
    where the first one writes. Where another process cannot go on this one ends too: that one says why. It
    ends in peace when it is interrupted: Fabric kills the first one, which may be saving, where it does not.
    """
    if works_together(settings):
        with suppress(OtherProcessError, KeyboardInterrupt):
            _follow(path, settings, out)


def _follow(path: Path, settings: Settings, out: Path) -> None:
    group = join_processes(settings)  # first: what cannot be read, the first process alone says
    original, data, settings = _open_inputs(path, settings, SILENT)
    task = Task(original, data, settings, out / "resume", group)
    chosen = _choose(task, SILENT)
    if settings.finetune.finetune and data is not None:
        finetune_network(task, chosen.network, chosen.plan, out / "resume", SILENT)


def command_of_run(path: Path, settings: Settings, out: Path) -> str:
    """Return the command that repeats this run."""
    usual = settle_for_model({"model": {"arch": settings.model.arch}}, None)
    return command_again(path, settings, replace(usual, model=ModelSettings()), out)


def plan_only(path: Path, settings: Settings, watcher: Watcher = SILENT) -> Plan:
    """Return the plan that `simplify` would carry out; with images this takes all that choosing takes.

    Raises `KernelsimpError` for what `simplify` would refuse.
    """
    check_hold(settings)
    trackers_of(settings.finetune.log)
    inputs = _open_inputs(path, settings, watcher)
    check_asked(*inputs)
    chosen = plan_and_solve(Task(*inputs), watcher)
    for note in chosen.notes:  # there is no report to hold them
        watcher.note(note)
    return chosen.plan


def _open_inputs(path: Path, settings: Settings, watcher: Watcher) -> tuple[Network, Data | None, Settings]:
    """Return the network, its images, and the settings with what the recipe of its kind adds."""
    check_budget(settings.plan)
    network = open_network(path, settings, watcher)
    settings = with_recipe(network, settings, watcher)
    chosen_layers(network.bank, settings.plan)  # refuses globs that match no layer
    return network, open_data(settings, watcher), settings
