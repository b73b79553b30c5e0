"""The whole story on a small depthwise network that comes along: scan, simplify, freeze, fine-tune, check.

`scripts/train_demo_network` made the network from its seed, of digits it shows mirrored half of the time.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from kernelsimp.commands.check import Gate, check
from kernelsimp.commands.scan import scan
from kernelsimp.commands.simplify import simplify
from kernelsimp.files import write_bytes
from kernelsimp.records.report import Report
from kernelsimp.records.scan import Scan
from kernelsimp.records.verdict import Verdict
from kernelsimp.settings import Given
from kernelsimp.settings_file import settle
from kernelsimp.watch import SILENT, Watcher

NETWORK = "digits-depthwise.pt"
DEMO_DOF = 0.6
"""The share of the degrees of freedom that the demo leaves."""
DEMO_DROP = 2.0
"""What the demo's check allows to be lost, in percentage points: its test split has 359 images."""


@dataclass(frozen=True, eq=False)
class Story:
    """What `demo` made."""

    run: Path
    scan: Scan
    report: Report
    verdict: Verdict


def demo(folder: Path, watcher: Watcher = SILENT) -> Story:
    """Put the network into `folder`, scan it, simplify, freeze and fine-tune it, and check the result.

    Raises `KernelsimpError` where the digits are missing, and where the folder cannot be written.
    """
    given: Given = {
        "model": {"arch": "zoo:digits-depthwise"},
        "data": {"augment": "flip"},
        "plan": {"dof": DEMO_DOF},
        "finetune": {"finetune": True},
    }
    settings = settle(given, "recipe:digits")
    path, run = folder / NETWORK, folder / "run"
    weights = (files("kernelsimp.models") / "weights" / NETWORK).read_bytes()
    write_bytes(path, weights)
    scanned = scan(path, settings, watcher)
    report = simplify(path, settings, run, watcher)
    gate = Gate(run / "report.json", max_drop=DEMO_DROP, against="original")
    return Story(run, scanned, report, check(run / NETWORK, gate, settings, watcher))
