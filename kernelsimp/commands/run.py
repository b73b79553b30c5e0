"""What the commands that make a run share: its checkpoint, its verification, its files and its report."""

import glob
import platform
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kernelsimp.commands.inputs import layers_by_name
from kernelsimp.data.sources import Data
from kernelsimp.errors import HoldError, KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.checkpoint import Checkpoint, load_checkpoint
from kernelsimp.models.contents import narrow_checkpoint, plan_in_file, tensors_beside
from kernelsimp.models.digest import describe_tensors
from kernelsimp.models.framed import FramedFile
from kernelsimp.models.layers import tensor_name
from kernelsimp.models.network import Network, open_network
from kernelsimp.models.packed import pack
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Report
from kernelsimp.records.serialise import to_plain
from kernelsimp.report import gallery_of, read_report, with_p
from kernelsimp.report.assemble import DIVERGED, RunFacts, assemble, p_values
from kernelsimp.report.run_folder import RunFolder
from kernelsimp.settings import Settings
from kernelsimp.training.finetune import Trained
from kernelsimp.training.survival import outside
from kernelsimp.version import __version__
from kernelsimp.watch import Watcher


@dataclass(frozen=True, eq=False)
class ExportSource:
    """What is exported: the file, what it holds, and where it is of a run its plan and folder."""

    path: Path
    checkpoint: Checkpoint
    settings: Settings
    plan: Plan | None = None
    run: Path | None = None


MEASURED = ("controls", "similarity", "explain", "workers", "batch_size", "trust_pickle", "sha256")
"""Settings of a plan, images and network that change no kernel: a finished run may be measured further."""


def check_goes_on(out: Path, original: Network, settings: Settings) -> None:
    """Raise `KernelsimpError` where `--resume` would put another run in the place of the one in `out`."""
    if not settings.finetune.resume or not (out / "report.json").is_file():
        return
    done, told = read_report(out), to_plain(asdict(settings))
    other = [
        f"with --{key.replace('_', '-')} {value}" if value else f"without --{key.replace('_', '-')}"
        for stage in ("model", "data", "plan", "prune")
        for key, value in done.settings.get(stage, {}).items()
        if key not in MEASURED and told[stage].get(key, value) != value
    ]
    if done.provenance.get("input_sha256") not in (None, original.checkpoint.sha256):
        other.insert(0, "of another checkpoint")
    if done.settings.get("finetune", {}).get("finetune") and not settings.finetune.finetune:
        other.append("with --finetune")
    if other:
        raise KernelsimpError(
            f"{out} has a finished run {other[0]}, which --resume does not replace; name another --out, or "
            "pass --overwrite without --resume"
        )


def warn_of_exports(run: RunFolder, watcher: Watcher, *, resumed: bool) -> None:
    """Name what was exported from the run that this one replaces: it stays, and is not of this one."""
    if resumed or not (run.path / "report.json").is_file():
        return
    names = run.path.glob(f"{glob.escape(run.checkpoint.stem)}.*")
    if left := sorted(path.name for path in names if path != run.checkpoint and path.is_file()):
        watcher.warn(f"{', '.join(left)} in {run.path}: of the run before, not of this one; export again")


def describe_checkpoint(report: Report, run: RunFolder, plan: Plan, settings: Settings) -> Report:
    """Return the report of a run with what its checkpoint tells: every tensor, and the packed form's size.

    The size is that of the file which `export` writes.
    """
    own = replace(settings.model, sha256=None, trust_pickle=False)
    source = ExportSource(run.checkpoint, load_checkpoint(run.checkpoint, own), settings, plan)
    size = replace(report.size, packed=pack_source(source).size)
    network = narrow_checkpoint(source.checkpoint, [tensor_name(layer.name) for layer in report.layers])
    others = {place: item.words for place, item in tensors_beside(network).items() if not item.training}
    return replace(report, size=size, tensors=describe_tensors(network.tensors), beside=others)


def pack_source(source: ExportSource) -> FramedFile:
    """Return the packed form of what is exported."""
    found = source.checkpoint.found
    plan = plan_in_file(source.plan, source.checkpoint) if source.plan else None
    return pack(source.checkpoint.stored_state, plan, found.keys)


REPORTED = {"freeze": "freeze", "tie": "tie", "scale": "tie", "soft": "tie", "none": "none"}
"""How the report names what was held: values, structure or nothing."""


def write_run(run: RunFolder, facts: RunFacts) -> Report:
    """Write everything but the checkpoint: settings, plan and the report; return the report."""
    plan, scan = facts.chosen.plan, facts.chosen.scan
    report = describe_checkpoint(assemble(facts), run, plan, facts.settings)
    run.write_settings(facts.settings)
    run.write_plan(plan)
    gallery = gallery_of(plan, facts.original.bank, facts.written.bank)
    run.write_report(report, with_p(gallery, p_values(scan, plan)) if scan else gallery)
    return report


def training_notes(trained: Trained | None) -> tuple[str, ...]:
    """Return what the report must say of a training run, where there was one."""
    if trained is None:
        return ()
    if trained.stopped == "diverged":
        return (DIVERGED,)
    kept = f"kept epoch {trained.best_epoch} of {len(trained.history)}"
    return (f"{kept}, chosen by {trained.chosen_by}",) if trained.chosen_by else ()


def write_checkpoint(network: Network, run: RunFolder, settings: Settings) -> Network:
    """Write the checkpoint and read it back: what is verified is the file, after the cast to its dtype."""
    network.checkpoint.save(run.checkpoint)
    return open_network(run.checkpoint, replace(settings, model=replace(settings.model, sha256=None)))


def verify_kernels(plan: Plan, simplified: KernelBank, written: KernelBank, mode: str) -> None:
    """Raise `HoldError` naming the first kernel of the written file that left its structure or its value."""
    if mode == "none":
        return
    before, after = layers_by_name(simplified), layers_by_name(written)
    for layer in plan.layers:
        kernels = after[layer.name].kernels
        moved = outside(kernels, layer, plan.structures)
        if mode == "freeze":
            changed = (kernels != before[layer.name].kernels).flatten(2).any(2)
            moved |= changed & torch.from_numpy(layer.changed)
        if moved.any():
            out_channel, in_channel = moved.nonzero()[0].tolist()
            kernel = f"{layer.name}[{out_channel},{in_channel}]"
            raise HoldError(f"{kernel} moved while it was held; do not use this run, and report the bug")


def provenance(network: Network, data: Data | None, settings: Settings, command: str) -> dict[str, Any]:
    """Return where everything came from: file, data, seed, versions, and the command that repeats the run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "input": str(network.checkpoint.path),
        "input_sha256": network.checkpoint.sha256,
        "data_fingerprint": data.fingerprint if data else None,
        "seed": settings.run.seed,
        "device": str(network.device),
        "versions": {
            "kernelsimp": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": metadata.version("torchvision"),
        },
        "command": command,
    }
