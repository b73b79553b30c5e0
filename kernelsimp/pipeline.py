"""Each command's story on one screen: load, scan, plan, apply, hold, fine-tune, evaluate, report.

Nothing here computes; it says in which order the rooms below do their work.
"""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from kernelsimp import __version__
from kernelsimp.analysis.explain import explain
from kernelsimp.analysis.scan import scan_bank
from kernelsimp.check import USUAL, Subject, baseline_from, read_limits, with_max
from kernelsimp.check import check as verdict_on
from kernelsimp.data.sources import Data, load_data
from kernelsimp.data.transforms import batches, preprocess_of
from kernelsimp.errors import HoldError, KernelsimpError
from kernelsimp.evaluation.accuracy import Outcome, measure
from kernelsimp.files import write_atomically, write_text
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.architectures import build_model, recipe_of
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.network import Network, open_network
from kernelsimp.models.scannable import open_to_scan
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Epoch, Report
from kernelsimp.records.scan import Explanation, Scan, ScanLine
from kernelsimp.records.verdict import Verdict
from kernelsimp.report import (
    gallery_of,
    load_gallery,
    pair_html,
    pair_markdown,
    read_baseline,
    read_report,
    with_p,
    write_baseline,
)
from kernelsimp.report.assemble import RunFacts, assemble, p_values
from kernelsimp.report.folder_scan import FolderJob, folder_scan
from kernelsimp.report.pair import pair_tables
from kernelsimp.report.run_folder import JsonLog, RunFolder
from kernelsimp.report.tables import Table
from kernelsimp.settings import Given, Settings, recipe, settle
from kernelsimp.simplify.apply import apply_plan, broken
from kernelsimp.simplify.menus import data_free_plan
from kernelsimp.simplify.plan import weight_plan
from kernelsimp.simplify.road import ground_of, take_road
from kernelsimp.training.finetune import finetune
from kernelsimp.training.hold import Mode, hold, release
from kernelsimp.training.job import job_of
from kernelsimp.watch import SILENT, Watcher

BUDGETS = ("tolerance", "dof", "simplified", "max_drop")

DEMO_DOF = 0.6
"""The share of the degrees of freedom that the demo leaves."""
DEMO_DROP = 2.0
"""What the demo's check allows to be lost, in percentage points: its test split has 360 images."""
FROM_SCRATCH: dict[str, Any] = {"epochs": 20, "lr": 0.1, "distill": 0.0}
"""How the demo trains its network before there is anything to simplify."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """A plan and the network it made; relative output error by layer, and buffers that took up shifts."""

    plan: Plan
    network: Network
    output_errors: Mapping[str, float] = field(default_factory=dict)
    buffers_changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gate:
    """What a check is asked for: baseline, limits, the largest drop in pp, and against which stage."""

    baseline: Path
    limits: Path | None = None
    max_drop: float | None = None
    against: str = "last"


@dataclass(frozen=True, eq=False)
class Story:
    """What `demo` made."""

    run: Path
    scan: Scan
    report: Report
    verdict: Verdict


def settle_for_model(given: Given, config: str | None) -> Settings:
    """Return all settings, with the recipe that the architecture brings along below everything else."""
    arch = settle(given, config).model.arch
    name = recipe_of(arch) if arch else None
    return settle(given, config, recipe(name) if name else None)


def settle_for_check(given: Given, config: str | None, baseline: Path) -> Settings:
    """Return all settings, those of the baseline's run below everything else; data only where asked for.

    A baseline that is no report brings no settings; then an architecture brings its recipe.
    """
    try:
        ran = read_report(baseline).settings
    except KernelsimpError:
        return settle_for_model(given, config)
    base = {name: dict(ran.get(name, {})) for name in ("model", "data")}
    base["model"].pop("sha256", None)
    base["data"].pop("data", None)
    return settle(given, config, base)


def open_data(settings: Settings, watcher: Watcher = SILENT) -> Data | None:
    """Load the images that the settings name, if any."""
    if settings.data.data is None:
        return None
    if settings.model.arch is None:
        raise KernelsimpError("--data needs a network to run the images: pass --arch")
    data = load_data(settings.data, settings.run.seed)
    for warning in data.warnings:
        watcher.warn(warning)
    return data


def scan(path: Path, settings: Settings, watcher: Watcher = SILENT) -> Scan:
    """Scan one checkpoint: weights only, or with exact layer kinds where a graph or architecture tells."""
    opened = open_to_scan(path, settings.model)
    for warning in opened.warnings:
        watcher.warn(warning)
    return scan_bank(opened.bank, settings.scan, opened.source, watcher, opened.strides)


def scan_explained(path: Path, place: str, settings: Settings, watcher: Watcher = SILENT) -> Explanation:
    """Explain the kernel at `place`, 'LAYER[OUT,IN]', of one checkpoint."""
    opened = open_to_scan(path, settings.model)
    for warning in opened.warnings:
        watcher.warn(warning)
    return explain(opened.bank, place, settings.scan)


def scan_folder(
    folder: Path, settings: Settings, to: tuple[Path | None, int], watcher: Watcher = SILENT
) -> tuple[ScanLine, ...]:
    """Scan every checkpoint under `folder`; `to` is where their JSONs go, and how many run at once."""
    return folder_scan(FolderJob(folder, settings, *to), watcher)


def plan_only(path: Path, settings: Settings, watcher: Watcher = SILENT) -> Plan:
    """Return the plan that `simplify` would carry out."""
    return choose(open_network(path, settings, watcher), open_data(settings, watcher), settings, watcher).plan


def choose(network: Network, data: Data | None, settings: Settings, watcher: Watcher) -> Chosen:
    """Plan by the rule that the settings ask for, say which where they leave it open, and carry it out.

    A budget takes the road through the layers' real inputs where there are images; without images it is
    chosen by absolute weight error. A tolerance, and `--cost relative`, are the simple rule.
    """
    plan = settings.plan
    budgets = [name for name in BUDGETS if getattr(plan, name) is not None]
    if len(budgets) > 1:
        raise KernelsimpError("choose one budget, not both --" + " and --".join(budgets).replace("_", "-"))
    watcher.start("planning")
    if not budgets:
        watcher.note("neither a budget nor a tolerance was given: using --tolerance 0.1")
    if not budgets or plan.tolerance is not None or plan.cost == "relative":
        return snapped(network, weight_plan(network.bank, plan))
    if data is None:
        watcher.note("no images were given: choosing by weight error, without re-solving")
        return snapped(network, data_free_plan(network.bank, plan))
    images = data.calibration(settings.data.calibration, settings.run.seed)
    loader = batches(images, preprocess_of(settings.data), settings.data.batch_size)
    inputs = (batch.to(network.device) for batch, _ in loader)
    road = take_road(ground_of(network.module(), network.bank, inputs, settings.run.seed), plan, watcher)
    after = network.with_weights(road.tensors)
    return Chosen(road.plan, after, road.output_errors, road.buffers_changed, road.notes)


def snapped(network: Network, plan: Plan) -> Chosen:
    """Carry out a plan by projection alone."""
    return Chosen(plan, network.with_weights(apply_plan(network.bank, plan)))


def simplify(path: Path, settings: Settings, out: Path, watcher: Watcher = SILENT) -> Report:
    """Choose, snap, hold, fine-tune, measure and report; everything lands in the directory `out`.

    Raises `HoldError` where a held kernel moved, and `KernelsimpError` for bad input.
    """
    original = open_network(path, settings, watcher)
    data = open_data(settings, watcher)
    if settings.finetune.finetune and data is None:
        raise KernelsimpError("--finetune needs a network and images: pass --arch and --data")
    outcomes = {"original": measured(original, data, settings, watcher)}  # before anything is written
    run = RunFolder.new(out, path)
    log = JsonLog(out / "log.jsonl", watcher)
    chosen = choose(original, data, settings, log)
    stages = {"original": original, "simplified": chosen.network}
    training: tuple[Epoch, ...] = ()
    if settings.finetune.finetune and data is not None:
        stages["finetuned"], training = tune(stages, chosen.plan, data, settings, log)
    outcomes |= {name: measured(stages[name], data, settings, log) for name in list(stages)[1:]}
    written = write_checkpoint(list(stages.values())[-1], run, settings)
    verify(chosen.plan, chosen.network.bank, written.bank, hold_of(settings))
    facts = RunFacts(
        chosen.plan,
        original.bank,
        written.bank,
        (path, run.checkpoint),
        settings=asdict(settings),
        provenance=provenance(original, data, settings),
        hold=hold_of(settings),
        outcomes={name: outcome for name, outcome in outcomes.items() if outcome is not None},
        training=training,
        output_errors=chosen.output_errors,
        buffers_changed=chosen.buffers_changed,
        notes=(*original.checkpoint.warnings, *chosen.notes),
        scan=scan_bank(original.bank, settings.scan, {}, log),
    )
    report = assemble(facts)
    run.write_settings(settings)
    run.write_plan(chosen.plan)
    run.write_events(training)
    gallery = gallery_of(chosen.plan, original.bank, written.bank)
    run.write_report(report, with_p(gallery, p_values(facts.scan, chosen.plan)) if facts.scan else gallery)
    return report


def tune(
    stages: Mapping[str, Network], plan: Plan, data: Data, settings: Settings, watcher: Watcher
) -> tuple[Network, tuple[Epoch, ...]]:
    """Train what is not held, taught by the original; return the trained network and its history."""
    student = stages["simplified"].module()
    teacher = stages["original"].module() if settings.finetune.distill else None
    mode = hold_of(settings)
    if mode != "none":
        hold(student, plan, mode)
    trained = finetune(student, job_of(data, settings, teacher), settings.finetune, watcher)
    release(student)
    return stages["simplified"].with_weights(student.state_dict()), trained.history


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


def measured(network: Network, data: Data | None, settings: Settings, watcher: Watcher) -> Outcome | None:
    """Return the outcome of one network on the test split, or None where there are no images."""
    if data is None:
        return None
    preprocess = preprocess_of(settings.data)
    loader = batches(data.test, preprocess, settings.data.batch_size, workers=settings.data.workers)
    watcher.start("measuring on the test split", len(loader))
    return measure(network.module(), loader, network.device, watcher)


def check(path: Path, gate: Gate, settings: Settings, watcher: Watcher = SILENT) -> Verdict:
    """Verify holds, structures and, with images, accuracy.

    Raises `KernelsimpError` for unreadable input and for other test images than the baseline's.
    """
    expected = read_baseline(gate.baseline)
    limits = read_limits(gate.limits) if gate.limits else USUAL
    if gate.max_drop is not None:
        limits = with_max(limits, "accuracy.drop_pp", gate.max_drop)
    return verdict_on(expected, subject_of(path, gate, settings, watcher), limits)


def update_baseline(path: Path, gate: Gate, settings: Settings, watcher: Watcher = SILENT) -> None:
    """Write the baseline of a network as it is, keeping the structures that the old baseline declares."""
    source = read_baseline(gate.baseline) if gate.baseline.exists() else None
    write_baseline(baseline_from(subject_of(path, gate, settings, watcher), source), gate.baseline)


def subject_of(path: Path, gate: Gate, settings: Settings, watcher: Watcher) -> Subject:
    """Return the network under check: its tensors and, where there are images, its outcome on them.

    Damaged weights are for the rules to find, so they are not refused here.
    """
    tensors = load_checkpoint(path, settings.model).tensors
    data = open_data(settings, watcher)
    if data is None:
        return Subject(tensors, against=gate.against)
    outcome = measured(open_network(path, settings, watcher), data, settings, watcher)
    return Subject(tensors, outcome, data.fingerprint, gate.against)


def render_again(folder: Path) -> Report:
    """Write report.md and report.html of a run again from its report.json."""
    report = read_report(folder)
    RunFolder(folder).write_pages(report, load_gallery(folder / "pictures.npz"))
    return report


def render_pair(folders: tuple[Path, Path], out: Path) -> tuple[Table, ...]:
    """Write pair.md and pair.html of two runs into `out`, and return their tables."""
    reports = (read_report(folders[0]), read_report(folders[1]))
    names = (str(folders[0]), str(folders[1]))
    write_text(out / "pair.md", pair_markdown(reports, names))
    write_text(out / "pair.html", pair_html(reports, names))
    return pair_tables(reports, names)


def demo(folder: Path, watcher: Watcher = SILENT) -> Story:
    """Train a small network on digits, scan it, simplify, freeze and fine-tune it, and check the result."""
    given: Given = {
        "model": {"arch": "zoo:digits-cnn"},
        "plan": {"dof": DEMO_DOF},
        "finetune": {"finetune": True},
    }
    settings = settle(given, "recipe:digits")
    path = folder / "digits-cnn.pt"
    train_from_scratch(path, settings, watcher)
    scanned = scan(path, settings, watcher)
    report = simplify(path, settings, folder / "run", watcher)
    run = folder / "run"
    gate = Gate(run / "report.json", max_drop=DEMO_DROP, against="original")
    return Story(run, scanned, report, check(run / path.name, gate, settings, watcher))


def train_from_scratch(path: Path, settings: Settings, watcher: Watcher) -> None:
    """Train a fresh network of the settings' architecture and data, and write its checkpoint to `path`."""
    data = open_data(settings, watcher)
    assert data is not None
    assert settings.model.arch is not None
    torch.manual_seed(settings.run.seed)
    model = build_model(settings.model.arch)
    job = job_of(data, settings, teacher=None)
    finetune(model, job, replace(settings.finetune, **FROM_SCRATCH), watcher)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    write_atomically(path, lambda partial: torch.save({"state_dict": state}, partial))


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


def hold_of(settings: Settings) -> Mode | Literal["none"]:
    """Return what is held: values unless the settings say otherwise."""
    mode = settings.finetune.hold
    match mode:
        case "auto":
            return "freeze"
        case "freeze" | "tie" | "none":
            return mode
    raise KernelsimpError(f"--hold is '{mode}'; expected freeze, tie or none")
