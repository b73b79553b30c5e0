"""The doors of the tool: for each kind of file a sound one, and what reads it as far as a command would."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crafted
import gates
import reports
from builders import npz, tiny_state, write_legacy, write_safetensors, write_zip

from kernelsimp.commands.report import drawing
from kernelsimp.data.sources import load_data
from kernelsimp.gate import CheckedNetwork, check, read_limits
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.coded import code_state
from kernelsimp.models.layers import bank_from_checkpoint
from kernelsimp.models.packed import pack
from kernelsimp.models.soundness import check_weights
from kernelsimp.models.stored_order import tensor_name
from kernelsimp.records.plan_file import read_plan, save_plan
from kernelsimp.records.serialise import json_text
from kernelsimp.report import read_report
from kernelsimp.report.baselines import read_baseline, write_baseline
from kernelsimp.report.html import report_html
from kernelsimp.report.markdown import report_markdown
from kernelsimp.report.store import report_json
from kernelsimp.settings import DataSettings, Settings
from kernelsimp.settings_file import as_toml, settle

LIMITS = """[kernels.dead_share]
max = 0.1
[kernels.frozen_changed]
max_delta = 0
level = "error"
["weights.nan"]
max = 0
"""


@dataclass(frozen=True)
class Door:
    """One kind of file: the ending of its name, what a mutant knows of it, a sound one, and its reader."""

    ending: str
    kind: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def _scan(path: Path) -> None:
    check_weights(bank_from_checkpoint(load_checkpoint(path)))


def _data(path: Path) -> None:
    data = load_data(DataSettings(data=f"npz:{path}"), 0)
    data.test.fetch([0])


def _report(path: Path) -> None:
    report = read_report(path)
    with drawing(path):
        report_markdown(report)
        report_html(report)


def _check(path: Path) -> None:
    check(read_baseline(path, accept_edited=True), CheckedNetwork(gates.tensors()))


def _plan(path: Path) -> None:
    plan = read_plan(path)
    before, _, _ = reports.before_and_after()
    pack({tensor_name(name): kernels for name, kernels in before.items()}, plan)


def _copy(write: Callable[[Path], Path]) -> Callable[[Path], None]:
    """Return a writer to a path of a crafted file that comes by itself into a folder."""

    def to(path: Path) -> None:
        path.write_bytes(write(path.parent).read_bytes())

    return to


DOORS: dict[str, Door] = {
    "zip": Door("pt", "zip", lambda path: write_zip({"state_dict": tiny_state()}, path), _scan),
    "legacy": Door("pth", "bytes", lambda path: write_legacy(tiny_state(), path), _scan),
    "safetensors": Door("safetensors", "tensors", lambda path: write_safetensors(tiny_state(), path), _scan),
    "packed": Door("kspack", "framed", lambda path: pack(tiny_state()).save(path), _scan),
    "coded": Door("kscode", "framed", lambda path: code_state(tiny_state(), {}).save(path), _scan),
    "pt2": Door("pt2", "zip", _copy(crafted.exported), _scan),
    "torchscript": Door("pt", "zip", _copy(crafted.scripted), _scan),
    "npz": Door("npz", "zip", lambda path: npz(path, (8, 8, 3)), _data),
    "plan": Door(
        "safetensors", "tensors", lambda path: save_plan(reports.before_and_after()[2], path), _plan
    ),
    "report": Door(
        "json", "json", lambda path: path.write_text(json_text(report_json(reports.report()))), _report
    ),
    "baseline": Door("json", "json", lambda path: write_baseline(gates.baseline(), path), _check),
    "limits": Door("toml", "toml", lambda path: path.write_text(LIMITS), read_limits),
    "settings": Door(
        "toml", "toml", lambda path: path.write_text(as_toml(Settings())), lambda path: settle({}, str(path))
    ),
}
