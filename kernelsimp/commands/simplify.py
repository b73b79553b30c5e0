"""The main story: choose, snap, hold, fine-tune, measure, report."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kernelsimp.analysis.scan import scan_bank
from kernelsimp.commands.compare import check_similarity, similarity_of
from kernelsimp.commands.controls import check_controls, controls_beside, controls_notes
from kernelsimp.commands.evaluate import check_robustness, robustness_of
from kernelsimp.commands.handover import Handover, handed_over
from kernelsimp.commands.inputs import check_training, open_data, settle_for_model
from kernelsimp.commands.measure import StageMeasurer
from kernelsimp.commands.planner import choose, judge_memorised
from kernelsimp.commands.rounds import stages_of
from kernelsimp.commands.run import (
    REPORTED,
    provenance,
    training_notes,
    verify,
    write_checkpoint,
    write_run,
)
from kernelsimp.commands.task import Task
from kernelsimp.commands.tune import finetune_network, re_estimate_network
from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import key_of
from kernelsimp.models.network import Network, open_network
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Report
from kernelsimp.report.assemble import Chosen, RunFacts
from kernelsimp.report.command import command_again
from kernelsimp.report.run_folder import JsonLog, RunFolder
from kernelsimp.settings import ModelSettings, Settings
from kernelsimp.training.options import hold_of
from kernelsimp.watch import SILENT, Watcher


def simplify(path: Path, settings: Settings, out: Path, watcher: Watcher = SILENT) -> Report:
    """Choose, snap, hold, fine-tune, measure and report; everything lands in the directory `out`.

    Raises `HoldError` where a held kernel moved, and `KernelsimpError` for bad input.
    """
    mode = hold_of(settings)
    original, data = _open_inputs(path, settings, watcher)
    measurer = StageMeasurer(original, data, settings)
    measurer.measure("original", original, watcher)  # before anything is written
    run = RunFolder.new(out, path)
    log = JsonLog(out / "log.jsonl", watcher, fresh=not settings.finetune.resume)
    task = _task_of(original, data, settings, out)
    handover = Handover(task, out / "resume")
    chosen = handover.choose_and_share(lambda: _scan_and_choose(task, log))
    stages = {"original": original, **stages_of(chosen.schedule), "simplified": chosen.network}
    trained = None
    if settings.finetune.finetune and data is not None:
        stages["finetuned"], trained = finetune_network(
            task, chosen.network, chosen.plan, out / "resume", log
        )
        handover.clear()
    for name in list(stages)[1:]:
        measurer.measure(name, stages[name], log)
    chosen, gap = judge_memorised(settings, measurer.outcomes.get("original"), chosen)
    last = list(stages)[-1]
    written = write_checkpoint(stages[last], run, settings)
    verify(chosen.plan, chosen.network.bank, written.bank, mode)
    controls = controls_beside(task, chosen, measurer.outcomes, log)
    facts = RunFacts(
        chosen,
        original,
        written,
        settings,
        provenance(original, data, settings, command_of_run(path, settings, out)),
        hold=REPORTED[mode],
        outcomes=measurer.outcomes,
        training=trained.history if trained else (),
        controls=controls,
        robustness=robustness_of({name: stages[name] for name in ("original", last)}, data, settings, log),
        similarity=similarity_of(_stages_to_compare(stages), data, settings, log),
        metric=measurer.record(),
        notes=(
            *original.checkpoint.warnings,
            *chosen.notes,
            *training_notes(trained),
            *gap,
            *controls_notes(controls),
        ),
    )
    return write_run(run, facts)


def _open_inputs(path: Path, settings: Settings, watcher: Watcher) -> tuple[Network, Data | None]:
    """Open the network and its images; what the settings ask for and cannot get is refused here."""
    if settings.finetune.finetune:
        check_training(settings)
    original = open_network(path, settings, watcher)
    data = open_data(settings, watcher)
    if settings.finetune.finetune and data is None:
        raise KernelsimpError("--finetune needs a network and images: pass --arch and --data")
    check_controls(settings, data)
    check_robustness(settings, data)
    check_similarity(settings, data)
    return original, data


def _scan_and_choose(task: Task, watcher: Watcher) -> Chosen:
    """Scan the kernels as they came, for the report, and choose what they become."""
    scan = scan_bank(task.network.bank, replace(task.settings.scan, depth="shallow"), {}, watcher)
    return replace(re_estimate_network(task, choose(task, watcher), watcher), scan=scan)


def _stages_to_compare(stages: Mapping[str, Network]) -> dict[str, Network]:
    """Return the stages whose layers are compared with the original's, which comes first."""
    return {name: stages[name] for name in ("original", "simplified", "finetuned") if name in stages}


def follow_first_process(path: Path, settings: Settings, out: Path) -> None:
    """Do, in a process that is not the first, what all processes of a run do together; write nothing.

    That is to train what the first one has planned; with rounds, which train too, also to choose (the same
    everywhere, by the seed). `out` is where the first one writes.
    """
    if not settings.finetune.finetune and settings.plan.rounds == 1:
        return  # nothing is done together
    original, data = open_network(path, settings), open_data(settings)
    task = _task_of(original, data, settings, out)
    if handed_over(settings):
        network, plan = Handover(task, out / "resume").wait_for_plan()
    else:
        chosen = re_estimate_network(task, choose(task, SILENT), SILENT)
        network, plan = chosen.network, chosen.plan
    if settings.finetune.finetune and data is not None:
        finetune_network(task, network, plan, out / "resume", SILENT)


def command_of_run(path: Path, settings: Settings, out: Path) -> str:
    """Return the command that repeats this run."""
    usual = settle_for_model({"model": {"arch": settings.model.arch}}, None)
    return command_again(path, settings, replace(usual, model=ModelSettings()), out)


def _task_of(network: Network, data: Data | None, settings: Settings, out: Path) -> Task:
    """Return the task of a run in `out`; its record's name tells network, data and plan from any other."""
    known = (network.checkpoint.sha256, data.fingerprint if data else "", settings.plan, settings.run.seed)
    record = out / "resume" / f"search-{key_of(*known, settings.data)}.json"
    return Task(network, data, settings, record)


def plan_only(path: Path, settings: Settings, watcher: Watcher = SILENT) -> Plan:
    """Return the plan that `simplify` would carry out."""
    task = Task(open_network(path, settings, watcher), open_data(settings, watcher), settings)
    return choose(task, watcher).plan
