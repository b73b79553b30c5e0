"""The gate on checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from kernelsimp.check import Subject, baseline_from, limits_beside, read_limits, with_max
from kernelsimp.check import check as verdict_on
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.network import open_network
from kernelsimp.pipeline.opening import measured, open_data
from kernelsimp.records.verdict import Verdict
from kernelsimp.report import (
    read_baseline,
    write_baseline,
)
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher


@dataclass(frozen=True)
class Gate:
    """What a check is asked for: baseline, limits, the largest drop in pp, and against which stage."""

    baseline: Path
    limits: Path | None = None
    max_drop: float | None = None
    against: str = "last"


def check(path: Path, gate: Gate, settings: Settings, watcher: Watcher = SILENT) -> Verdict:
    """Verify holds, structures and, with images, accuracy.

    Raises `KernelsimpError` for unreadable input and for other test images than the baseline's.
    """
    expected = read_baseline(gate.baseline)
    limits = read_limits(gate.limits) if gate.limits else limits_beside(Path())
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
