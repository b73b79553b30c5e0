"""What a coded export adds to its run: a card in the report, and digests of kernels as they are coded."""

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.gate.kernels import from_tensors, frozen_rows, held_layer
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.coded import CodedFile
from kernelsimp.models.contents import narrow_checkpoint
from kernelsimp.models.stored_order import tensor_name
from kernelsimp.records.limits import Baseline, BaselineLayer, baseline_of
from kernelsimp.records.plan import Plan
from kernelsimp.records.report import Coded, CodedLayer, CodedPoint, LayerReport, Stage
from kernelsimp.report import load_gallery, read_report
from kernelsimp.report.run_folder import RunFolder
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

    What is described is the file as it reads back. A report that cannot be written stays as it is.
    """
    try:
        folder = RunFolder(run)
        folder.prepare()
        report = read_report(run)
        gallery = load_gallery(run / "pictures.npz")
        baseline = baseline_of(report)
        names = [tensor_name(layer.name) for layer in baseline.layers]
        kernels = from_tensors(
            baseline, narrow_checkpoint(load_checkpoint(path, ModelSettings()), names).tensors
        )
        left = count_survivors(plan, kernels)
        layers = tuple(_with_digest(baseline, layer, kernels) for layer in report.layers)
        coded = _describe(path, made, (left.total, left.exact))
        folder.write_report(replace(report, layers=layers, coded=coded), gallery)
    except KernelsimpError as error:
        return f"the run's report does not tell of it: {error}"
    members = (
        f"{left.exact:,} of {left.total:,} simplified kernels decode to exact members of their structures"
    )
    return f"{members}; {run / 'report.html'} tells of it"


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


def _with_digest(baseline: Baseline, layer: LayerReport, kernels: dict[str, Tensor]) -> LayerReport:
    """Return the layer with the digest of its frozen kernels as they are coded."""
    known: BaselineLayer = {item.name: item for item in baseline.layers}[layer.name]
    if not layer.hold.frozen_crc32 or layer.name not in kernels:
        return layer
    rows = frozen_rows(held_layer(baseline, known, kernels[layer.name]), baseline.structures)
    return replace(layer, hold=replace(layer.hold, coded_sha256=sha256(rows.tobytes()).hexdigest()))
