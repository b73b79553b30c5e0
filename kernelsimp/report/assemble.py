"""From what a run did to its report: counts, degrees of freedom, errors and checksums, layer by layer."""

import io
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from kernelsimp.kernels.structures import TEMPLATE
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
    Round,
    Size,
)
from kernelsimp.records.scan import Scan
from kernelsimp.report.pictures.prototypes import prototypes_of
from kernelsimp.report.store import family_totals
from kernelsimp.training.survival import count_survivors, left_of

ZIP_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class RunFacts:
    """What a run did: the plan, the kernels `before` and `after`, and everything measured on the way.

    `outcomes` are test-set results by stage in order; `output_errors` by layer name; `files` are the
    checkpoint before and after, or their sizes. `hold` is freeze, tie or none.
    """

    plan: Plan
    before: KernelBank
    after: KernelBank
    files: tuple[Path, Path] | Size
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    hold: str = "none"
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    training: tuple[Epoch, ...] = ()
    output_errors: Mapping[str, float] = field(default_factory=dict)
    buffers_changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scan: Scan | None = None
    controls: tuple[Control, ...] = ()
    budget_met: bool = True
    robustness: Mapping[str, Any] | None = None
    similarity: Mapping[str, Any] | None = None
    rounds: tuple[Round, ...] = ()
    metric: Metric | None = None
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def assemble(facts: RunFacts) -> Report:
    """Return the report of a run.

    Degrees of freedom and bits are those of the file: where a training held nothing, what left its structure
    counts in full.
    """
    plan = facts.plan
    loose = facts.hold == "none" and bool(facts.training) and plan.simplified > 0
    kernels = {layer.name: layer.kernels for layer in facts.after.layers}
    left = left_of(plan, kernels) if loose else plan
    return Report(
        structures=plan.structures,
        accuracy=_accuracy(facts.outcomes),
        kernels=_counts(plan, facts.hold),
        dof=replace(_dof(left), planned_fraction=_dof(plan).fraction if loose else None),
        bits=_bits(left),
        size=facts.files if isinstance(facts.files, Size) else _size(*facts.files),
        layers=tuple(
            replace(_layer(layer, facts), dof=now.dof_after)
            for layer, now in zip(plan.layers, left.layers, strict=True)
        ),
        settings=facts.settings,
        provenance=facts.provenance,
        hold=facts.hold,
        training=facts.training,
        buffers_changed=facts.buffers_changed,
        controls=facts.controls,
        robustness=facts.robustness,
        similarity=facts.similarity,
        rounds=facts.rounds,
        metric=facts.metric,
        budget_met=facts.budget_met,
        notes=facts.notes,
        pictures=_pictures(facts),
        survived=count_survivors(plan, kernels) if loose else None,
    )


def _pictures(facts: RunFacts) -> dict[str, Any]:
    chance = {"chance": family_totals(facts.scan)} if facts.scan else {}
    return {**chance, "prototypes": prototypes_of(facts.after)}


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
    marks = np.array([name.startswith(TEMPLATE) for name in plan.structures], dtype=np.bool_)
    shapes = layer.shapes(marks[layer.choice])
    return held if shapes is None else replace(held, shapes=encode_shapes(shapes))


def _accuracy(outcomes: Mapping[str, Outcome]) -> Accuracy | None:
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


def _size(before: Path, after: Path) -> Size:
    return Size(
        file=after.stat().st_size,
        zip=deflated_size(after),
        original_file=before.stat().st_size,
        original_zip=deflated_size(before),
    )


def size_in_memory(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Size:
    """Return the sizes of two networks as `torch.save` would write them."""
    sizes = []
    for tensors in (before, after):
        page = io.BytesIO()
        torch.save(dict(tensors), page)
        sizes.append((page.tell(), len(zlib.compress(page.getbuffer(), 6))))
    (original, original_zip), (now, now_zip) = sizes
    return Size(file=now, zip=now_zip, original_file=original, original_zip=original_zip)


def deflated_size(path: Path) -> int:
    """Return how many bytes the file takes when deflated as a whole."""
    packer, total = zlib.compressobj(6), 0
    with path.open("rb") as file:
        while block := file.read(ZIP_CHUNK):
            total += len(packer.compress(block))
    return total + len(packer.flush())


def _layer(layer: LayerPlan, facts: RunFacts) -> LayerReport:
    before, after = _layer_named(facts.before, layer.name), _layer_named(facts.after, layer.name)
    names = Counter(
        kind_of(facts.plan.structures[index]) for index in layer.choice.reshape(-1) if index != FREE
    )
    return LayerReport(
        layer.name,
        layer.kind,
        layer.groups,
        tuple(before.weight_shape or before.kernels.shape),
        int(layer.choice.size),
        int((layer.changed & ~facts.plan.is_denoised(layer)).sum()),
        int((layer.found & layer.changed).sum()),
        dict(names.most_common()),
        layer.dof_after,
        weight_error=_relative(before.kernels, after.kernels),
        output_error=facts.output_errors.get(layer.name),
        hold=held_layer(after.kernels, layer, facts.plan, facts.hold),
        dead=int(layer.dead.sum()),
        denoised=int(facts.plan.is_denoised(layer).sum()),
        predicted_loss=facts.losses[layer.name][0] if layer.name in facts.losses else None,
        measured_loss=facts.losses[layer.name][1] if layer.name in facts.losses else None,
        families_found=_count_found(layer, facts.plan.structures),
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
