"""The main story: choose, snap, hold, fine-tune, measure, report."""

import hashlib
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from kernelsimp import __version__
from kernelsimp.analysis.scan import scan_bank
from kernelsimp.data.sources import Data
from kernelsimp.errors import HoldError, KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.network import Network, open_network
from kernelsimp.pipeline.choosing import Chosen, Task, choose
from kernelsimp.pipeline.controlling import check_controls, controls_beside
from kernelsimp.pipeline.opening import hold_of, measured, open_data
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Epoch, Report
from kernelsimp.report import (
    gallery_of,
    with_p,
)
from kernelsimp.report.assemble import RunFacts, assemble, p_values
from kernelsimp.report.run_folder import JsonLog, RunFolder
from kernelsimp.settings import Settings
from kernelsimp.simplify.apply import broken
from kernelsimp.training.finetune import Trained, finetune
from kernelsimp.training.hold import Mode, hold, release
from kernelsimp.training.job import job_of
from kernelsimp.watch import SILENT, Watcher

DIVERGED = "the training loss was no longer finite: training stopped at the last good state"

REPORTED = {"freeze": "freeze", "tie": "tie", "scale": "tie", "soft": "tie", "none": "none"}
"""How the report names what was held: values, structure or nothing."""


def simplify(path: Path, settings: Settings, out: Path, watcher: Watcher = SILENT) -> Report:
    """Choose, snap, hold, fine-tune, measure and report; everything lands in the directory `out`.

    Raises `HoldError` where a held kernel moved, and `KernelsimpError` for bad input.
    """
    original = open_network(path, settings, watcher)
    data = open_data(settings, watcher)
    if settings.finetune.finetune and data is None:
        raise KernelsimpError("--finetune needs a network and images: pass --arch and --data")
    check_controls(settings, data)
    mode = hold_of(settings)
    outcomes = {"original": measured(original, data, settings, watcher)}  # before anything is written
    run = RunFolder.new(out, path)
    log = JsonLog(out / "log.jsonl", watcher)
    task = Task(original, data, settings, record_of(original, data, settings, out))
    chosen = choose(task, log)
    stages = {"original": original, "simplified": chosen.network}
    training: tuple[Epoch, ...] = ()
    notes = (*original.checkpoint.warnings, *chosen.notes)
    if settings.finetune.finetune and data is not None:
        stages["finetuned"], trained = tune(task, chosen, out / "resume", log)
        training, notes = trained.history, (*notes, *told(trained))
    outcomes |= {name: measured(stages[name], data, settings, log) for name in list(stages)[1:]}
    written = write_checkpoint(list(stages.values())[-1], run, settings)
    verify(chosen.plan, chosen.network.bank, written.bank, mode)
    facts = RunFacts(
        chosen.plan,
        original.bank,
        written.bank,
        (path, run.checkpoint),
        settings=asdict(settings),
        provenance=provenance(original, data, settings),
        hold=REPORTED[mode],
        outcomes={name: outcome for name, outcome in outcomes.items() if outcome is not None},
        training=training,
        output_errors=chosen.output_errors,
        buffers_changed=chosen.buffers_changed,
        controls=controls_beside(task, chosen, outcomes["simplified"], log),
        budget_met=chosen.met and DIVERGED not in notes,
        notes=notes,
        scan=scan_bank(original.bank, replace(settings.scan, depth="shallow"), {}, log),
    )
    report = assemble(facts)
    run.write_settings(settings)
    run.write_plan(chosen.plan)
    run.write_events(training)
    gallery = gallery_of(chosen.plan, original.bank, written.bank)
    run.write_report(report, with_p(gallery, p_values(facts.scan, chosen.plan)) if facts.scan else gallery)
    return report


def record_of(network: Network, data: Data | None, settings: Settings, out: Path) -> Path:
    """Return the file of a search's trials; its name tells this network, data and plan from any other."""
    known = (network.checkpoint.sha256, data.fingerprint if data else "", settings.plan, settings.run.seed)
    digest = hashlib.sha256(repr((*known, settings.data)).encode()).hexdigest()
    return out / "resume" / f"search-{digest[:16]}.json"


def tune(task: Task, chosen: Chosen, folder: Path, watcher: Watcher) -> tuple[Network, Trained]:
    """Train what is not held, taught by the original; return the trained network and how it went."""
    assert task.data is not None
    settings, student = task.settings, chosen.network.module()
    teacher = task.network.module() if settings.finetune.distill else None
    mode = hold_of(settings)
    if mode in get_args(Mode):
        hold(student, chosen.plan, cast(Mode, mode))
    job = job_of(task.data, settings, teacher, chosen.plan, folder)
    trained = finetune(student, job, settings.finetune, watcher)
    release(student)
    return chosen.network.with_weights(student.state_dict()), trained


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
        moved = broken(kernels, layer, plan.structures)
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
