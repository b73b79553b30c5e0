"""What a coded export adds to its run: a card in the report, and digests of kernels as they are coded."""

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from kernelsimp.commands.run_report import add_export
from kernelsimp.gate.kernels import Held, from_tensors, frozen_rows, held_layer
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.coded import CodedFile
from kernelsimp.models.contents import narrow_checkpoint
from kernelsimp.models.stored_order import tensor_name
from kernelsimp.records.limits import Baseline, baseline_of
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Coded, CodedLayer, CodedPoint, LayerReport, Report, Stage
from kernelsimp.settings import ModelSettings
from kernelsimp.solver.coding_search import CodingFound
from kernelsimp.training.survival import count_survivors


@dataclass(frozen=True, eq=False)
class CodedMade:
    """What the search made: trials, file, points of bytes against KL, and accuracies on test images.

    `stages` are those of the original and the decoded network, none where nothing was measured.
    """

    found: CodingFound
    file: CodedFile
    budget: str
    points: tuple[CodedPoint, ...] = ()
    stages: tuple[Stage, ...] = ()
    notes: tuple[str, ...] = ()


def record_coded(run: Path, path: Path, plan: Plan, made: CodedMade) -> str:
    """Write into the run's report what its coded file at `path` came to; return what is worth saying.

    What is described is the file as it reads back.
    """
    said: list[str] = []

    def change(report: Report) -> dict[str, Any]:
        baseline = baseline_of(report)
        known = {layer.name: layer for layer in baseline.layers}
        names = [tensor_name(name) for name in known]
        read = narrow_checkpoint(load_checkpoint(path, ModelSettings()), names)
        kernels = from_tensors(baseline, read.tensors)
        left = count_survivors(plan, kernels)
        said.append(f"{left.exact:,} of {left.total:,} simplified kernels decode to exact members")
        layers = tuple(
            _with_digest(layer, held_layer(baseline, known[layer.name], kernels[layer.name]), baseline)
            if layer.hold.frozen_crc32 and layer.name in kernels
            else layer
            for layer in report.layers
        )
        return {"layers": layers, "coded": _describe(path, made, (left.total, left.exact))}

    told = add_export(run, change)
    return "; ".join([*said, told])


def _describe(path: Path, made: CodedMade, members: tuple[int, int]) -> Coded:
    sizes = made.file.streams
    layers = tuple(CodedLayer(name, made.file.weights[name], sizes[name]) for name in sizes)
    stages = dict(zip(("original", "decoded"), made.stages, strict=False))
    return Coded(
        path.name,
        made.file.size,
        made.budget,
        made.found.met,
        layers,
        tuple(sorted(made.points, key=lambda point: point.bytes)),
        **stages,
        structured=members[0],
        exact=members[1],
    )


def _with_digest(layer: LayerReport, held: Held, baseline: Baseline) -> LayerReport:
    """Return the layer with the digest of its frozen kernels as they are coded."""
    rows = frozen_rows(held, baseline.structures)
    return replace(layer, hold=replace(layer.hold, coded_sha256=sha256(rows.tobytes()).hexdigest()))
