"""The whole story on a small network that is trained first."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kernelsimp.commands.check import Gate, check
from kernelsimp.commands.scan import scan
from kernelsimp.commands.simplify import simplify
from kernelsimp.commands.train import fit, fresh_network, save
from kernelsimp.records.report import Report
from kernelsimp.records.scan import Scan
from kernelsimp.records.verdict import Verdict
from kernelsimp.settings import Given, Settings
from kernelsimp.settings_file import settle
from kernelsimp.watch import SILENT, Watcher

DEMO_DOF = 0.6
"""The share of the degrees of freedom that the demo leaves."""
DEMO_DROP = 2.0
"""What the demo's check allows to be lost, in percentage points: its test split has 360 images."""
FROM_SCRATCH: dict[str, Any] = {"epochs": 20, "lr": 0.1, "distill": 0.0}
"""How the demo trains its network before there is anything to simplify."""


@dataclass(frozen=True, eq=False)
class Story:
    """What `demo` made."""

    run: Path
    scan: Scan
    report: Report
    verdict: Verdict


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
    chosen = replace(settings, finetune=replace(settings.finetune, **FROM_SCRATCH))
    fresh = fresh_network(chosen, watcher)
    fit(fresh, chosen, None, watcher)
    save(fresh, path)
