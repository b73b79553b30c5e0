"""From what a run did to its report: counts, degrees of freedom, errors and checksums, layer by layer."""

import io
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.evaluation.accuracy import Outcome, mcnemar, paired_interval, stage
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import ZERO
from kernelsimp.kernels.masks import kind_of
from kernelsimp.kernels.structures import drawn_kernels
from kernelsimp.models.checkpoint import Checkpoint
from kernelsimp.models.folders import files_of
from kernelsimp.models.network import Network
from kernelsimp.records.held import HeldLayer, encode_shapes, hold_layer
from kernelsimp.records.plan import FREE, LayerPlan, Plan
from kernelsimp.records.report import (
    Accuracy,
    Control,
    Dof,
    Epoch,
    KernelCounts,
    LayerReport,
    Metric,
    Report,
    Size,
)
from kernelsimp.records.scan import Scan
from kernelsimp.records.selectivity import Selectivity
from kernelsimp.report.pictures.prototypes import prototypes_of
from kernelsimp.report.store import family_totals
from kernelsimp.settings import Settings
from kernelsimp.solver.chosen import Chosen
from kernelsimp.training.survival import count_survivors, left_of

ZIP_CHUNK = 1 << 20

DIVERGED = "the training loss was no longer finite: training stopped at the last good state"
"""The note of a run that met no budget, whatever its plan did."""


@dataclass(frozen=True, eq=False)
class RunFacts:
    """What a run did: the plan, the network before and as it was written, and what was measured on the way.

    `outcomes` are test-set results by stage in order. `hold` is freeze, tie or none.
    """

    chosen: Chosen
    original: Network
    written: Network
    settings: Settings
    provenance: Mapping[str, Any]
    hold: str = "none"
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    training: tuple[Epoch, ...] = ()
    notes: tuple[str, ...] = ()
    controls: tuple[Control, ...] = ()
    robustness: Mapping[str, Any] | None = None
    similarity: Mapping[str, Any] | None = None
    selectivity: Mapping[str, Selectivity] | None = None
    metric: Metric | None = None


def assemble(facts: RunFacts) -> Report:
    """Return the report of a run.

    Degrees of freedom and bits are those of the file: where a training held nothing, what left its structure
    counts in full.
    """
    chosen, plan = facts.chosen, facts.chosen.plan
    loose = facts.hold == "none" and bool(facts.training) and plan.simplified > 0
    kernels = {layer.name: layer.kernels for layer in facts.written.bank.layers}
    left = left_of(plan, kernels) if loose else plan
    return Report(
        structures=plan.structures,
        accuracy=accuracy_of(facts.outcomes),
        kernels=_counts(plan, facts.hold),
        dof=replace(_dof(left), planned_fraction=_dof(plan).fraction if loose else None),
        bits=_bits(left),
        size=_size(facts.original.checkpoint, facts.written.checkpoint),
        layers=tuple(
            replace(_layer(layer, facts), dof=now.dof_after)
            for layer, now in zip(plan.layers, left.layers, strict=True)
        ),
        settings=asdict(facts.settings),
        provenance=facts.provenance,
        hold=facts.hold,
        training=facts.training,
        buffers_changed=chosen.buffers_changed,
        controls=facts.controls,
        robustness=facts.robustness,
        similarity=facts.similarity,
        selectivity=facts.selectivity,
        rounds=chosen.schedule.records if chosen.schedule else (),
        metric=facts.metric,
        budget_met=chosen.met and DIVERGED not in facts.notes,
        notes=facts.notes,
        pictures=_pictures(facts),
        survived=count_survivors(plan, kernels) if loose else None,
    )


def _pictures(facts: RunFacts) -> dict[str, Any]:
    scan = facts.chosen.scan
    chance = {"chance": family_totals(scan)} if scan else {}
    return {**chance, "prototypes": prototypes_of(facts.written.bank)}


def p_values(scan: Scan, plan: Plan) -> dict[str, NDArray[np.float64]]:
    """Return the p-value of each kernel, (out, in / groups), by layer name."""
    shapes = {layer.name: layer.choice.shape for layer in plan.layers}
    return {layer.name: layer.p.reshape(shapes[layer.name]) for layer in scan.layers if layer.name in shapes}


def stored_bytes(kernels: Tensor) -> NDArray[np.uint8]:
    """Return the stored bytes of kernels (out, in / groups, *grid), one row a kernel in canonical order."""
    rows = kernels.detach().cpu().contiguous().reshape(kernels.shape[0] * kernels.shape[1], -1)
    return rows.view(torch.uint8).numpy()


def held_layer(kernels: Tensor, layer: LayerPlan, plan: Plan, hold: str) -> HeldLayer:
    """Return the record by which a later check verifies this layer."""
    kept = plan.is_denoised(layer) if hold == "tie" else None
    held = hold_layer(layer.choice, stored_bytes(kernels), frozen=hold == "freeze", kept=kept)
    drawn, wide = drawn_kernels(layer.choice, plan.structures, layer.grid)
    shapes = layer.shapes(drawn)
    return held if shapes is None else replace(held, shapes=encode_shapes(shapes[:, :wide]))


def accuracy_of(outcomes: Mapping[str, Outcome]) -> Accuracy | None:
    """Return the accuracy at each stage, in order, and the change from first to last; None of none."""
    if not outcomes:
        return None
    measured = list(outcomes.values())
    first, last = measured[0], measured[-1]
    return Accuracy(
        stages=tuple(stage(name, outcome) for name, outcome in outcomes.items()),
        change_pp=last.top1 - first.top1,
        change_ci95=paired_interval(first.correct, last.correct),
        mcnemar_p=mcnemar(first.correct, last.correct),
    )


def _counts(plan: Plan, hold: str) -> KernelCounts:
    zero = plan.structures.index(ZERO) if ZERO in plan.structures else -1
    simplified = plan.simplified
    zeroed = sum(int((layer.choice == zero).sum()) for layer in plan.layers)
    found = sum(int((layer.found & layer.changed & (layer.choice != zero)).sum()) for layer in plan.layers)
    return KernelCounts(
        total=sum(layer.choice.size for layer in plan.layers),
        simplified=simplified,
        found=found,
        imposed=simplified - found - zeroed,
        zeroed=zeroed,
        dead=sum(int(layer.dead.sum()) for layer in plan.layers),
        frozen=simplified + plan.denoised if hold == "freeze" else plan.denoised if hold == "tie" else 0,
        tied=simplified if hold == "tie" else 0,
        denoised=plan.denoised,
        free=sum(int((~layer.changed).sum()) for layer in plan.layers),
    )


def _dof(plan: Plan) -> Dof:
    before, after = plan.dof_before, plan.dof_after
    return Dof(before, after, after / before, plan.equivalent_dof / before)


def _bits(plan: Plan) -> dict[str, float]:
    return {
        "coefficient": plan.coefficient_bits,
        "choices": plan.choice_bits,
        "before": plan.dof_before * plan.coefficient_bits,
        "after": plan.dof_after * plan.coefficient_bits + plan.choice_bits,
    }


def _size(before: Checkpoint, after: Checkpoint) -> Size:
    """Return the sizes of both files; what was not written is sized as `torch.save` would write it.

    So is what came with entries that are not written again: dropped optimiser states are no saving.
    """
    original, original_zip = _bytes_of(before, written=bool(files_of(before.path)) and not before.dropped)
    now, now_zip = _bytes_of(after, written=bool(files_of(after.path)) and after.path != before.path)
    return Size(file=now, zip=now_zip, original_file=original, original_zip=original_zip)


def _bytes_of(checkpoint: Checkpoint, *, written: bool) -> tuple[int, int]:
    if written:
        files = files_of(checkpoint.path)
        return sum(path.stat().st_size for path in files), sum(map(deflated_size, files))
    page = io.BytesIO()
    torch.save(dict(checkpoint.tensors), page)
    return page.tell(), len(zlib.compress(page.getbuffer(), 6))


def deflated_size(path: Path) -> int:
    """Return how many bytes the file takes when deflated as a whole."""
    packer, total = zlib.compressobj(6), 0
    with path.open("rb") as file:
        while block := file.read(ZIP_CHUNK):
            total += len(packer.compress(block))
    return total + len(packer.flush())


def _layer(layer: LayerPlan, facts: RunFacts) -> LayerReport:
    before, after = (_layer_named(item.bank, layer.name) for item in (facts.original, facts.written))
    chosen, plan = facts.chosen, facts.chosen.plan
    names = Counter(kind_of(plan.structures[index]) for index in layer.choice.reshape(-1) if index != FREE)
    output_errors = chosen.case.kept.reconstruction.output_errors if chosen.case else {}
    predicted, measured = chosen.losses.get(layer.name, (None, None))
    return LayerReport(
        layer.name,
        layer.kind,
        layer.groups,
        tuple(before.weight_shape or before.kernels.shape),
        int(layer.choice.size),
        int((layer.changed & ~plan.is_denoised(layer)).sum()),
        int((layer.found & layer.changed).sum()),
        dict(names.most_common()),
        layer.dof_after,
        weight_error=_relative(before.kernels, after.kernels),
        output_error=output_errors.get(layer.name),
        hold=held_layer(after.kernels, layer, plan, facts.hold),
        dead=int(layer.dead.sum()),
        denoised=int(plan.is_denoised(layer).sum()),
        predicted_loss=predicted,
        measured_loss=measured,
        families_found=_count_found(layer, plan.structures),
        prototypes=layer.prototypes,
    )


def _count_found(layer: LayerPlan, structures: Sequence[str]) -> dict[str, int]:
    """Return how many kernels of each structure were found; a zeroed kernel never is."""
    places = layer.choice[layer.found & layer.changed]
    counts = Counter(structures[index] for index in places.tolist())
    counts.pop(ZERO, None)
    return dict(counts.most_common())


def _layer_named(bank: KernelBank, name: str) -> LayerKernels:
    return next(layer for layer in bank.layers if layer.name == name)


def _relative(before: Tensor, after: Tensor) -> float:
    norm = float(before.double().norm())
    return float((after.double() - before.double()).norm()) / norm if norm else 0.0
