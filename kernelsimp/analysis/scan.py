"""The scan: every kernel of a checkpoint against every family, beside what chance would give."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kernelsimp.analysis.chance import white_expectation
from kernelsimp.analysis.examine import NONE, Examined, examine
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.records.scan import FamilyScan, LayerScan, NullCount, Scan
from kernelsimp.settings import ScanSettings
from kernelsimp.watch import SILENT, Watcher

HISTOGRAM_BINS = 20
"""Bins of the residual histogram between 0 and 1."""


def scan_bank(
    bank: KernelBank, settings: ScanSettings, source: Mapping[str, Any], watcher: Watcher = SILENT
) -> Scan:
    """Return the scan of every layer larger than 1x1.

    Raises `KernelsimpError` for a tolerance outside 0..1 or an unknown family.
    """
    if not 0 <= settings.tolerance <= 1:
        raise KernelsimpError(f"--tolerance is {settings.tolerance:g}; expected a number from 0 to 1")
    watcher.start("scanning", len(bank.spatial))
    names: dict[str, int] = {}
    layers = []
    for layer in bank.spatial:
        examined = examine(layer, settings.families)
        for family in examined.families:
            names.setdefault(family.name, len(names))
        layers.append(_layer_scan(examined, settings, names))
        watcher.step()
    return Scan(
        source=source,
        settings={"null": "white", "tolerance": settings.tolerance, "fdr": settings.fdr, "seed": 0},
        families=tuple(names),
        layers=tuple(layers),
        skipped=tuple((item.name, item.reason) for item in bank.skipped),
        weights=sum(layer.kernels.numel() for layer in bank.layers),
        pointwise=sum(layer.count for layer in bank.layers if layer.pointwise),
        warnings=bank.warnings,
    )


def _layer_scan(examined: Examined, settings: ScanSettings, names: Mapping[str, int]) -> LayerScan:
    layer, best = examined.layer, examined.best(settings.tolerance)
    index = np.array([*(names[family.name] for family in examined.families), NONE], dtype=np.int16)
    nearest = examined.residual.min(axis=1, initial=1.0)
    rows = np.arange(len(best))
    residual = (
        np.where(best != NONE, examined.residual[rows, best], nearest) if examined.families else nearest
    )
    live = nearest[~examined.dead]
    return LayerScan(
        layer.name,
        layer.kind,
        layer.kind_source,
        layer.weight_shape or tuple(layer.kernels.shape),
        layer.count,
        int(examined.dead.sum()),
        _family_scans(examined, settings.tolerance),
        best=index[best],
        residual=residual.astype(np.float32),
        histogram=tuple(np.histogram(live, HISTOGRAM_BINS, (0, 1))[0].tolist()),
    )


def _family_scans(examined: Examined, tolerance: float) -> dict[str, FamilyScan]:
    live = ~examined.dead
    observed = examined.matches(tolerance).sum(axis=0)
    medians = np.median(examined.residual[live], axis=0) if live.any() else np.ones(len(examined.families))
    cells = _cells(examined.layer)
    scans = {}
    for i, family in enumerate(examined.families):
        expected = float(live.sum()) * white_expectation(family.subspace.dim, cells, tolerance)
        enrichment = float(observed[i]) / expected if expected > 0 else None
        null = {"white": NullCount(expected, enrichment)}
        scans[family.name] = FamilyScan(family.subspace.dim, int(observed[i]), null, float(medians[i]))
    return scans


def _cells(layer: LayerKernels) -> int:
    return int(np.prod(layer.grid))
