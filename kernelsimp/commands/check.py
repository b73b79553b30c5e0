"""The gate on checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kernelsimp.commands.inputs import open_data
from kernelsimp.commands.measure import measure_module
from kernelsimp.data.sources import Data
from kernelsimp.errors import KernelsimpError
from kernelsimp.gate import CheckedNetwork, baseline_from, limits_beside, read_limits, with_max
from kernelsimp.gate import check as verdict_on
from kernelsimp.gate.sound import graph_layers, named_as_layers
from kernelsimp.models.checkpoint import Checkpoint, checkpoint_in_memory, load_checkpoint
from kernelsimp.models.contents import narrow_checkpoint, tensors_beside
from kernelsimp.models.folders import written_places
from kernelsimp.models.layers import tensor_name
from kernelsimp.models.network import open_network
from kernelsimp.models.storage import unreal
from kernelsimp.records.limits import Baseline
from kernelsimp.records.verdict import Verdict
from kernelsimp.report import read_baseline, read_report, write_baseline
from kernelsimp.report.baselines import is_report
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher


@dataclass(frozen=True)
class Gate:
    """What a check is asked for: baseline, limits, the largest drop in pp, and against which stage.

    `make` is the command that makes the baseline, for the error that says there is none. With `allow_extra`
    tensors that the baseline does not have are no fault, only named. With `accept_edited` a baseline file
    that was changed by hand is taken as it is.
    """

    baseline: Path | Baseline
    limits: Path | None = None
    max_drop: float | None = None
    against: str = "last"
    make: str = ""
    allow_extra: bool = False
    accept_edited: bool = False


Model = Path | nn.Module | Mapping[str, Any]
"""What is checked: a file, or a network or state dict in memory."""


def check(path: Model, gate: Gate, settings: Settings, watcher: Watcher = SILENT) -> Verdict:
    """Verify holds, structures and, with images, accuracy.

    A network too damaged to run is judged by its weights. Raises `KernelsimpError` for unreadable input, for
    other test images than the baseline's, and where weights that look right do not run.
    """
    known = gate.baseline
    expected = (
        known
        if isinstance(known, Baseline)
        else read_baseline(known, gate.make, accept_edited=gate.accept_edited)
    )
    limits = read_limits(gate.limits) if gate.limits else limits_beside(Path())
    if gate.max_drop is not None:
        limits = with_max(limits, "accuracy.drop_pp", gate.max_drop)
    subject, pinned = open_subject(path, gate, settings, expected, watcher)
    data = open_data(settings, watcher)
    if data is None or not isinstance(path, Path):
        return verdict_on(expected, subject, limits)
    try:
        return verdict_on(expected, with_outcome(subject, path, pinned, data, watcher), limits)
    except KernelsimpError as error:
        why = f"it does not run: {error}"[:120]
        verdict = verdict_on(expected, replace(subject, unmeasured=why), limits)
        if not verdict.errors:
            raise
        return verdict


def update_baseline(
    path: Path, gate: Gate, settings: Settings, watcher: Watcher = SILENT
) -> tuple[Path | None, Baseline]:
    """Write the baseline of a network as it is; return where its structures came from, and the baseline.

    They come from the old baseline, or where there is none from the run whose checkpoint this is. Raises
    `KernelsimpError` rather than write over a run's report.
    """
    place = gate.baseline
    assert isinstance(place, Path)
    if place.is_dir() or is_report(place):
        raise KernelsimpError(
            f"{place}: is a run's report, not a baseline file; name another with --baseline"
        )
    known = place if place.exists() else _run_of(path)
    source = read_baseline(known, accept_edited=gate.accept_edited) if known else None
    subject, pinned = open_subject(path, gate, settings, source, watcher)
    data = open_data(settings, watcher)
    made = baseline_from(with_outcome(subject, path, pinned, data, watcher) if data else subject, source)
    write_baseline(made, place)
    return known, made


def _run_of(path: Path) -> Path | None:
    """Return the report of the run that wrote this checkpoint, where it lies beside one."""
    for folder in (path.parent, path.parent.parent):  # an index stands in a folder of its own
        report = folder / "report.json"
        if report.is_file() and is_report(report):
            source = Path(str(read_report(report).provenance.get("input", "")))
            return report if path in written_places(folder, source) else None
    return None


def open_subject(
    path: Model, gate: Gate, settings: Settings, baseline: Baseline | None, watcher: Watcher
) -> tuple[CheckedNetwork, Settings]:
    """Return the network under check by its tensors, with what else its file holds.

    Beside it come the settings that open this very file again, by its SHA-256. Damaged weights are for the
    rules to find.
    """
    names = [tensor_name(layer.name) for layer in baseline.layers] if baseline else []
    if isinstance(path, Path):
        loaded = load_checkpoint(path, settings.model)
    else:
        state = path.state_dict() if isinstance(path, nn.Module) else path
        loaded = checkpoint_in_memory(state, "the network")
    checkpoint = narrow_checkpoint(loaded, names)
    _check_real(checkpoint, names)
    for warning in checkpoint.warnings:
        watcher.warn(warning)
    layers = graph_layers(checkpoint)
    subject = CheckedNetwork(
        named_as_layers(checkpoint.tensors, layers),
        against=gate.against,
        beside=tensors_beside(checkpoint),
        allow_extra=gate.allow_extra,
        layers=layers,
        unseen=checkpoint.raw.unseen if checkpoint.raw else {},
        coded_bytes=loaded.path.stat().st_size if loaded.format == "coded" else None,
    )
    return subject, replace(settings, model=replace(settings.model, sha256=checkpoint.sha256))


def _check_real(checkpoint: Checkpoint, names: Sequence[str]) -> None:
    """Raise `KernelsimpError` for a layer of the baseline that is sparse, quantised or complex now."""
    for name in names:
        tensor = checkpoint.tensors.get(name)
        if tensor is None or (
            tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_complex()
        ):
            continue
        raise KernelsimpError(
            f"{checkpoint.path}: '{name}' is {unreal(tensor)}; it cannot be checked as it is"
        )


def with_outcome(
    subject: CheckedNetwork, path: Path, pinned: Settings, data: Data, watcher: Watcher
) -> CheckedNetwork:
    """Return the network under check with its outcome on the test images.

    Raises `CheckpointError` where the file is another one by now than the `pinned` settings name.
    """
    outcome = measure_module(open_network(path, pinned).module(), data, pinned, watcher)
    return replace(subject, outcome=outcome, fingerprint=data.fingerprint)
