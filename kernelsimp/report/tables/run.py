"""What a run says, as tables: stages, layers, structures and control arms."""

from collections import Counter

from kernelsimp.error_text import printable
from kernelsimp.kernels.families import ZERO
from kernelsimp.kernels.structures import DENOISED
from kernelsimp.records.report import LayerReport, Report
from kernelsimp.report import fmt
from kernelsimp.report.tables.stages import accuracy_table
from kernelsimp.report.tables.table import Table, families_text, ranked_families


def stage_table(report: Report) -> Table:
    """Return accuracy at each stage; the change is against the first."""
    stages = report.accuracy.stages if report.accuracy else ()
    return accuracy_table("Accuracy", stages)


def layer_table(report: Report) -> Table:
    """Return one row a layer; the output error only where it was measured."""
    heads = ("layer", "kind", "shape", "kernels", "simplified", "found", "DOF left", "weight error")
    measured = any(layer.output_error is not None for layer in report.layers)
    last = (*(["output error"] if measured else []), "structures")
    rows = tuple(_layer_row(layer, measured=measured) for layer in report.layers)
    simplified = tuple(layer.simplified / max(layer.kernels, 1) for layer in report.layers)
    left = tuple(layer.dof / max(layer_cells(layer), 1) for layer in report.layers)
    text = frozenset({0, 1, 2, len(heads + last) - 1})
    return Table("Layers", heads + last, rows, text, {4: simplified, 6: left})


def _layer_row(layer: LayerReport, *, measured: bool) -> tuple[str, ...]:
    return (
        printable(layer.name),
        layer.kind,
        fmt.shape(layer.weight_shape),
        fmt.count(layer.kernels),
        fmt.count(layer.simplified),
        fmt.count(layer.found),
        fmt.share(layer.dof, layer_cells(layer)),
        fmt.number(layer.weight_error),
        *([fmt.number(layer.output_error)] if measured else []),
        families_text(layer.families, prototypes=layer.prototypes),
    )


def layer_cells(layer: LayerReport) -> int:
    """Return the cells in all kernels of a layer: its degrees of freedom before."""
    cells = 1
    for side in layer.weight_shape[2:]:
        cells *= side
    return layer.kernels * cells


def family_table(report: Report) -> Table:
    """Return the kernels of each structure over all layers, found and imposed, the commonest first.

    Where a training held nothing, two more columns say how many are still in it, exactly and nearly.
    """
    totals, found = _sum_layers(report, "families"), _sum_layers(report, "families_found")
    told = bool(found) or not report.kernels.found  # reports of before this count do not tell
    ranked = ranked_families(totals)
    whole, left = report.kernels.total, report.survived
    rows = []
    for name, number in ranked:
        labelled = told and name != ZERO and not name.startswith(DENOISED)  # in no family, so neither
        seen = fmt.count(found.get(name, 0) if labelled else None)
        imposed = fmt.count(number - found.get(name, 0) if labelled else None)
        still = map(fmt.count, left.families.get(name, (None, None))) if left else ()
        rows.append((printable(name), fmt.count(number), seen, imposed, fmt.share(number, whole), *still))
    shares = tuple(number / max(whole, 1) for _, number in ranked)
    heads = ("structure", "kernels", "found", "imposed", "share of all")
    more = ("still exactly", "within 0.1") if left else ()
    return Table("Structures", heads + more, tuple(rows), bars={4: shares})


def _sum_layers(report: Report, name: str) -> dict[str, int]:
    """Return one of the layers' counts by structure, summed over the layers."""
    totals: Counter[str] = Counter()
    for layer in report.layers:
        totals.update(getattr(layer, name))
    return dict(totals)


def control_table(report: Report) -> Table:
    """Return the control arms: what else the same budget buys."""
    heads = ("control", "DOF left", "top-1", "correct", "change", "McNemar p", "to the run, 95 % interval")
    rows = [
        (
            printable(arm.name),
            fmt.share(arm.dof),
            fmt.percent(arm.top1),
            fmt.count(arm.correct),
            fmt.points(arm.change_pp),
            fmt.p_value(arm.mcnemar_p),
            f"{arm.outcome}, {fmt.interval(*arm.change_ci95)}" if arm.change_ci95 else fmt.DASH,
        )
        for arm in report.controls
    ]
    return Table("Controls", heads, tuple(rows), frozenset({0, 6}), least=(3, 5, 1))
