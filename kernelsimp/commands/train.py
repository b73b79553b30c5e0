"""Training a network from the first step: constrained, penalised, or plain."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kernelsimp.analysis.scan import scan_bank
from kernelsimp.commands.inputs import batches_of, check_training, layers_by_name, open_data
from kernelsimp.commands.measure import measure_module
from kernelsimp.commands.outputs import check_can_train
from kernelsimp.commands.run import provenance, training_notes, verify_kernels, warn_of_exports, write_run
from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.evaluation.accuracy import checked_logits, evaluation_mode
from kernelsimp.files import write_atomically
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.architectures import build_model, folded_in
from kernelsimp.models.network import Network, device_of, open_network
from kernelsimp.models.outputs import keep_output
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Report
from kernelsimp.report.assemble import RunFacts
from kernelsimp.report.command import command_with
from kernelsimp.report.run_folder import JsonLog, RunFolder
from kernelsimp.report.tables.course import TRAINED
from kernelsimp.report.trackers import tell, trackers_of
from kernelsimp.settings import Settings
from kernelsimp.solver.chosen import Chosen
from kernelsimp.solver.coefficient_bits import bits_of_layers
from kernelsimp.training.constraints import constrain, held_alike, plain_state, plan_of
from kernelsimp.training.curve import figures_of
from kernelsimp.training.finetune import Trained, finetune
from kernelsimp.training.job import job_of
from kernelsimp.training.penalties import Penalties, PenaltySettings, read_penalties
from kernelsimp.training.rules import read_rules
from kernelsimp.watch import SILENT, Watcher

CHECKPOINT = "model.pt"


@dataclass(frozen=True, eq=False)
class Fresh:
    """An untrained network with its images, the plan of its constraints and its penalties."""

    model: nn.Module
    data: Data
    plan: Plan | None = None
    penalties: Penalties | None = None

    @property
    def held(self) -> float | None:
        """The share of kernels larger than 1x1 that are constrained, 0..1; None without constraints."""
        if self.plan is None:
            return None
        changed = [layer.changed for layer in self.plan.layers if prod(layer.grid) > 1]
        return sum(int(part.sum()) for part in changed) / max(1, sum(part.size for part in changed))


def train(settings: Settings, out: Path, watcher: Watcher = SILENT) -> Report:
    """Train a fresh network as the settings say; checkpoint, curve and report land in the directory `out`.

    Raises `KernelsimpError` for bad input, before anything is written, and `HoldError` where a constrained
    kernel is not in its family at the end.
    """
    trackers_of(settings.finetune.log)  # before anything is trained
    fresh = fresh_network(settings, watcher)
    check_runs(fresh, settings)
    run = RunFolder(out, CHECKPOINT)
    run.prepare()
    log = JsonLog(out / "log.jsonl", watcher, fresh=not settings.finetune.resume)
    warn_of_exports(run, log, resumed=settings.finetune.resume)
    trained = fit(fresh, settings, out / "resume", log)
    save(fresh, run.checkpoint)
    network = open_network(run.checkpoint, replace(settings, model=replace(settings.model, sha256=None)))
    facts = facts_of(network, fresh, trained, settings, log)
    verify_kernels(facts.chosen.plan, network.bank, network.bank, facts.hold)
    report = write_run(run, facts)
    tell(out, report, settings.finetune.log, log)
    return report


def train_along(settings: Settings, out: Path) -> None:
    """Train, in a process that is not the first, with the others; write nothing."""
    fit(fresh_network(settings), settings, out / "resume")


def fresh_network(settings: Settings, watcher: Watcher = SILENT) -> Fresh:
    """Build and initialise the network by the seed, then constrain it; open its images.

    Raises `KernelsimpError` where an architecture or images are missing, or rules and penalties make no
    sense.
    """
    check_can_train(settings)
    chosen = settings.finetune
    if chosen.soft is not None or chosen.free_scale or chosen.hold != "auto":
        raise KernelsimpError(
            "--soft, --hold and --free-scale hold what simplify changed; train with --constrain or --penalty"
        )
    check_training(settings)
    words = settings.train
    penalties = read_penalties(words.penalty) if words.penalty is not None else None
    data = open_data(settings, watcher)
    assert data is not None
    assert settings.model.arch is not None
    _tell_of_folded(settings.model.arch, watcher)
    torch.manual_seed(settings.run.seed)
    model = keep_output(build_model(settings.model.arch), settings.model.output)
    plan = constrain(model, read_rules(words.constrain), seed=settings.run.seed) if words.constrain else None
    how = PenaltySettings(words.penalty_families, words.penalty_schedule, words.rounding)
    return Fresh(model, data, plan, Penalties(model, penalties, how) if penalties is not None else None)


def _tell_of_folded(arch: str, watcher: Watcher) -> None:
    """Warn where the network has weights in parts: they are trained as what the parts make."""
    folded = folded_in(arch)
    if folded:
        more = f" and {len(folded) - 1} more" if len(folded) > 1 else ""
        watcher.warn(
            f"--arch {arch}: {folded[0]}{more} stand in parts (weight norm, spectral norm or pruning); they "
            "are trained and written as plain weights"
        )


def fit(fresh: Fresh, settings: Settings, folder: Path | None, watcher: Watcher = SILENT) -> Trained:
    """Train the network in place by the engine of fine-tuning, without a teacher."""
    job = job_of(fresh.data, settings, None, None, folder)
    every, last = settings.train.curve, settings.finetune.epochs

    def figures(epoch: int) -> Mapping[str, Any]:
        if not every or (epoch % every and epoch != last):
            return {}
        point = figures_of(fresh.model)
        watcher.step(0, **{name: float(value) for name, value in point.items()})
        return point

    words = {key: value for key, value in asdict(settings.train).items() if key != "curve" and value}
    watched = folder is not None
    job = replace(
        job,
        penalty=fresh.penalties,
        held=fresh.held,
        figures=figures if watched else None,
        words={**job.words, **words},
    )
    return finetune(fresh.model, job, replace(settings.finetune, distill=0.0), watcher)


def save(fresh: Fresh, path: Path) -> None:
    """Write the plain state dict, which the unconstrained network loads strictly."""
    state = {name: value.cpu() for name, value in plain_state(fresh.model).items()}
    write_atomically(path, lambda partial: torch.save({"state_dict": state}, partial))


def check_runs(fresh: Fresh, settings: Settings) -> None:
    """Raise `KernelsimpError` where the network refuses the images or has too few outputs for the labels."""
    images, labels = next(iter(batches_of(fresh.data.test, settings)))
    model, device = fresh.model.to(device_of(settings)), device_of(settings)
    with evaluation_mode(model), torch.no_grad():
        checked_logits(model, images[:2].to(device), labels.to(device)[:2])


def facts_of(
    network: Network, fresh: Fresh, trained: Trained, settings: Settings, watcher: Watcher
) -> RunFacts:
    """Measure the trained network and return everything that its report tells."""
    out = network.checkpoint.path.parent
    plan, notes = reportable_plan(fresh.plan or plan_of(network.bank, "free"), network.bank)
    outcome = measure_module(network.module(), fresh.data, settings, watcher)
    scan = scan_bank(network.bank, replace(settings.scan, depth="shallow"), {}, watcher)
    return RunFacts(
        Chosen(plan, network, scan=scan),
        network,
        network,
        settings,
        provenance(network, fresh.data, settings, command_with("train", (), settings, out)),
        hold="tie" if plan.simplified else "none",
        outcomes={TRAINED: outcome},
        training=trained.history,
        notes=(*notes, *training_notes(trained)),
    )


def reportable_plan(plan: Plan, bank: KernelBank) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan as a report and a later check can know it, and what must be said beside it.

    A Gaussian basis and prototypes have no test of membership a kernel at a time: their kernels count as
    free, so degrees of freedom are never counted too low.
    """
    known = held_alike(plan)
    left = plan.simplified - known.simplified
    note = (
        f"{left} kernels are held to a Gaussian basis or prototypes and are counted as free: with them"
        f" {plan.dof_after:,} numbers are left, not {known.dof_after:,}"
    )
    layers = layers_by_name(bank)
    bits = bits_of_layers([layers[layer.name] for layer in known.layers])
    known = replace(known, choice_bits=known.entropy_bits(), coefficient_bits=bits)
    return known, ((note,) if left else ())
