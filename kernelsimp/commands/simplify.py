"""The main story: choose, snap, hold, fine-tune, measure, report."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from kernelsimp import __version__
from kernelsimp.analysis.scan import scan_bank
from kernelsimp.commands.compare import check_similarity, similarity_of
from kernelsimp.commands.controls import check_controls, controls_beside, standing
from kernelsimp.commands.evaluate import check_robustness, robustness_of
from kernelsimp.commands.export import told_of_file
from kernelsimp.commands.handover import Handover, handed_over
from kernelsimp.commands.inputs import check_training, hold_of, open_data, settle_for_model
from kernelsimp.commands.judging import judged_again
from kernelsimp.commands.measure import Gauge
from kernelsimp.commands.planner import choose
from kernelsimp.commands.task import Task
from kernelsimp.commands.tune import re_estimated, tuned
from kernelsimp.data.sources import Data
from kernelsimp.errors import HoldError, KernelsimpError
from kernelsimp.files import key_of
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.network import Network, open_network
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Epoch, Report
from kernelsimp.report import (
    gallery_of,
    with_p,
)
from kernelsimp.report.assemble import RunFacts, assemble, p_values
from kernelsimp.report.command import command_again
from kernelsimp.report.run_folder import JsonLog, RunFolder
from kernelsimp.settings import ModelSettings, Settings
from kernelsimp.training.finetune import Trained
from kernelsimp.training.survival import outside
from kernelsimp.watch import SILENT, Watcher

DIVERGED = "the training loss was no longer finite: training stopped at the last good state"

REPORTED = {"freeze": "freeze", "tie": "tie", "scale": "tie", "soft": "tie", "none": "none"}
"""How the report names what was held: values, structure or nothing."""


def simplify(path: Path, settings: Settings, out: Path, watcher: Watcher = SILENT) -> Report:
    """Choose, snap, hold, fine-tune, measure and report; everything lands in the directory `out`.

    Raises `HoldError` where a held kernel moved, and `KernelsimpError` for bad input.
    """
    mode = hold_of(settings)
    if settings.finetune.finetune:
        check_training(settings)
    original = open_network(path, settings, watcher)
    data = open_data(settings, watcher)
    if settings.finetune.finetune and data is None:
        raise KernelsimpError("--finetune needs a network and images: pass --arch and --data")
    check_controls(settings, data)
    check_robustness(settings, data)
    check_similarity(settings, data)
    gauge = Gauge(original, data, settings)
    gauge.measure("original", original, watcher)  # before anything is written
    run = RunFolder.new(out, path)
    log = JsonLog(out / "log.jsonl", watcher, fresh=not settings.finetune.resume)
    task = Task(original, data, settings, record_of(original, data, settings, out))
    handover = Handover(task, out / "resume")
    chosen = handover.made(lambda: re_estimated(task, choose(task, log), log))
    stages = {"original": original, **chosen.stages, "simplified": chosen.network}
    training: tuple[Epoch, ...] = ()
    notes = (*original.checkpoint.warnings, *chosen.notes)
    if settings.finetune.finetune and data is not None:
        stages["finetuned"], trained = tuned(task, chosen.network, chosen.plan, out / "resume", log)
        training, notes = trained.history, (*notes, *told(trained))
        handover.clear()
    for name in list(stages)[1:]:
        gauge.measure(name, stages[name], log)
    chosen, gap = judged_again(settings, gauge.outcomes.get("original"), chosen)
    last = list(stages)[-1]
    written = write_checkpoint(stages[last], run, settings)
    verify(chosen.plan, chosen.network.bank, written.bank, mode)
    controls = controls_beside(task, chosen, gauge.outcomes, log)
    facts = RunFacts(
        chosen.plan,
        original.bank,
        written.bank,
        (path, run.checkpoint),
        settings=asdict(settings),
        provenance=provenance(original, data, settings) | {"command": again(path, settings, out)},
        hold=REPORTED[mode],
        outcomes=gauge.outcomes,
        training=training,
        output_errors=chosen.output_errors,
        buffers_changed=chosen.buffers_changed,
        controls=controls,
        budget_met=chosen.met and DIVERGED not in notes,
        robustness=robustness_of({name: stages[name] for name in ("original", last)}, data, settings, log),
        similarity=similarity_of(_compared(stages), data, settings, log),
        rounds=chosen.rounds,
        metric=gauge.record(),
        losses=chosen.losses,
        notes=(*notes, *gap, *standing(controls)),
        scan=scan_bank(original.bank, replace(settings.scan, depth="shallow"), {}, log),
    )
    return write_run(run, facts, settings)


def _compared(stages: Mapping[str, Network]) -> dict[str, Network]:
    """Return the stages whose layers are compared with the original's, which comes first."""
    return {name: stages[name] for name in ("original", "simplified", "finetuned") if name in stages}


def write_run(run: RunFolder, facts: RunFacts, settings: Settings) -> Report:
    """Write everything but the checkpoint: settings, plan, events and the report; return the report."""
    report = told_of_file(assemble(facts), run, facts.plan, settings)
    run.write_settings(settings)
    run.write_plan(facts.plan)
    run.write_events(facts.training)
    gallery = gallery_of(facts.plan, facts.before, facts.after)
    run.write_report(report, with_p(gallery, p_values(facts.scan, facts.plan)) if facts.scan else gallery)
    return report


def follow(path: Path, settings: Settings, out: Path) -> None:
    """Do, in a process that is not the first, what all processes of a run do together; write nothing.

    That is to train what the first one has planned; with rounds, which train too, also to choose (the same
    everywhere, by the seed). `out` is where the first one writes.
    """
    if not settings.finetune.finetune and settings.plan.rounds == 1:
        return  # nothing is done together
    original, data = open_network(path, settings), open_data(settings)
    task = Task(original, data, settings, record_of(original, data, settings, out))
    if handed_over(settings):
        network, plan = Handover(task, out / "resume").taken()
    else:
        chosen = re_estimated(task, choose(task, SILENT), SILENT)
        network, plan = chosen.network, chosen.plan
    if settings.finetune.finetune and data is not None:
        tuned(task, network, plan, out / "resume", SILENT)


def again(path: Path, settings: Settings, out: Path) -> str:
    """Return the command that repeats this run."""
    usual = settle_for_model({"model": {"arch": settings.model.arch}}, None)
    return command_again(path, settings, replace(usual, model=ModelSettings()), out)


def record_of(network: Network, data: Data | None, settings: Settings, out: Path) -> Path:
    """Return the file of a search's trials; its name tells this network, data and plan from any other."""
    known = (network.checkpoint.sha256, data.fingerprint if data else "", settings.plan, settings.run.seed)
    return out / "resume" / f"search-{key_of(*known, settings.data)}.json"


def told(trained: Trained) -> tuple[str, ...]:
    """Return what the report must say of a training run."""
    if trained.stopped == "diverged":
        return (DIVERGED,)
    kept = f"kept epoch {trained.best_epoch} of {len(trained.history)}"
    return (f"{kept}, chosen by {trained.chosen_by}",) if trained.chosen_by else ()


def write_checkpoint(network: Network, run: RunFolder, settings: Settings) -> Network:
    """Write the checkpoint and read it back: what is verified is the file, after the cast to its dtype."""
    network.checkpoint.save(run.checkpoint)
    return open_network(run.checkpoint, replace(settings, model=replace(settings.model, sha256=None)))


def verify(plan: Plan, simplified: KernelBank, written: KernelBank, mode: str) -> None:
    """Raise `HoldError` naming the first kernel of the written file that left its structure or its value."""
    if mode == "none":
        return
    before = {layer.name: layer.kernels for layer in simplified.layers}
    after = {layer.name: layer.kernels for layer in written.layers}
    for layer in plan.layers:
        kernels = after[layer.name]
        moved = outside(kernels, layer, plan.structures)
        if mode == "freeze":
            changed = (kernels != before[layer.name]).flatten(2).any(2)
            moved |= changed & torch.from_numpy(layer.changed)
        if moved.any():
            out_channel, in_channel = moved.nonzero()[0].tolist()
            kernel = f"{layer.name}[{out_channel},{in_channel}]"
            raise HoldError(f"{kernel} moved while it was held; do not use this run, and report the bug")


def provenance(network: Network, data: Data | None, settings: Settings) -> dict[str, Any]:
    """Return where everything came from: file, data, seed, versions."""
    import torchvision

    return {
        "input": str(network.checkpoint.path),
        "input_sha256": network.checkpoint.sha256,
        "data_fingerprint": data.fingerprint if data else None,
        "seed": settings.run.seed,
        "device": str(network.device),
        "versions": {
            "kernelsimp": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }
