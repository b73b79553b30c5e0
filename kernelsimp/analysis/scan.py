"""The scan: every kernel of a checkpoint against every family, beside what chance would give."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kernelsimp.analysis.chance import BEYOND_BY, Judgement, judge_layer
from kernelsimp.analysis.examine import NONE, Examined, examine
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.kernels.residuals import mean_removed_residuals
from kernelsimp.kernels.significance import enrichment, local_false_share
from kernelsimp.records.scan import FamilyScan, LayerScan, NullCount, Scan
from kernelsimp.settings import ScanSettings
from kernelsimp.watch import SILENT, Watcher

HISTOGRAM_BINS = 20
"""Bins of the residual histogram between 0 and 1."""

Judgements = Mapping[str, Judgement]


def scan_bank(
    bank: KernelBank, settings: ScanSettings, source: Mapping[str, Any], watcher: Watcher = SILENT
) -> Scan:
    """Return the scan of every layer larger than 1x1.

    Raises `KernelsimpError` for a tolerance outside 0..1, an unknown family or an unknown null.
    """
    if not 0 <= settings.tolerance <= 1:
        raise KernelsimpError(f"--tolerance is {settings.tolerance:g}; expected a number from 0 to 1")
    watcher.start("scanning", len(bank.spatial))
    names: dict[str, int] = {}
    layers, notes = [], []
    for layer in bank.spatial:
        examined = examine(layer, settings.families)
        for family in examined.families:
            names.setdefault(family.name, len(names))
        judged = {null: judge_layer(examined, null, settings.fdr) for null in _nulls(settings)}
        notes += [f"{layer.name}: {item.note}" for item in judged.values() if item.note]
        layers.append(_layer_scan(examined, judged, settings, names))
        watcher.step()
    return Scan(
        source=source,
        settings={"null": settings.null, "tolerance": settings.tolerance, "fdr": settings.fdr, "seed": 0},
        families=tuple(names),
        layers=tuple(layers),
        skipped=tuple((item.name, item.reason) for item in bank.skipped),
        weights=sum(layer.kernels.numel() for layer in bank.layers),
        pointwise=sum(layer.count for layer in bank.layers if layer.pointwise),
        warnings=(*bank.warnings, *notes),
    )


def _nulls(settings: ScanSettings) -> tuple[str, ...]:
    """The white null always, what was asked for, and the matched one for 'beyond its layer'."""
    return tuple(dict.fromkeys(("white", settings.null, BEYOND_BY)))


def _layer_scan(
    examined: Examined, judged: Judgements, settings: ScanSettings, names: Mapping[str, int]
) -> LayerScan:
    layer, best = examined.layer, examined.best(settings.tolerance)
    index = np.array([*(names[family.name] for family in examined.families), NONE], dtype=np.int16)
    nearest = examined.residual.min(axis=1, initial=1.0)
    matched = best != NONE
    rows = np.arange(len(best))
    residual = np.where(matched, examined.residual[rows, best], nearest) if matched.any() else nearest
    found_by = judged[settings.null]
    return LayerScan(
        layer.name,
        layer.kind,
        layer.kind_source,
        layer.weight_shape or tuple(layer.kernels.shape),
        layer.count,
        int(examined.dead.sum()),
        _family_scans(examined, judged, settings.tolerance, best),
        best=index[best],
        residual=residual.astype(np.float32),
        p=found_by.p,
        found=found_by.found,
        histogram=tuple(np.histogram(nearest[~examined.dead], HISTOGRAM_BINS, (0, 1))[0].tolist()),
        extra={"found": int(found_by.found.sum()), "beyond_its_layer": int(_beyond(judged, found_by).sum())},
    )


def _beyond(judged: Judgements, found_by: Judgement) -> NDArray[np.bool_]:
    return np.asarray(found_by.found & judged[BEYOND_BY].found)


def _family_scans(
    examined: Examined, judged: Judgements, tolerance: float, best: NDArray[np.int64]
) -> dict[str, FamilyScan]:
    live = ~examined.dead
    r = examined.residual[live]
    observed = examined.matches(tolerance).sum(axis=0)
    subspaces = [family.subspace for family in examined.families]
    kernels = examined.layer.kernels.reshape(-1, *examined.layer.grid)[torch.from_numpy(live)]
    centred = mean_removed_residuals(kernels, subspaces).numpy() if subspaces else r
    scans = {}
    for i, family in enumerate(examined.families):
        of_family = best == i
        scans[family.name] = FamilyScan(
            family.subspace.dim,
            int(observed[i]),
            {
                name: NullCount(
                    expected := float(live.sum()) * item.null.expected(tolerance, i),
                    enrichment(int(observed[i]), expected),
                    int((item.found & of_family).sum()),
                    local_false_share(item.null, i, torch.from_numpy(r[:, i]), tolerance),
                )
                for name, item in judged.items()
            },
            _median(r[:, i]),
            _median(centred[:, i]),
        )
    return scans


def _median(values: NDArray[np.float32]) -> float:
    return float(np.median(values)) if len(values) else 1.0
