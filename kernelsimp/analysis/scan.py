"""The scan: every kernel of a checkpoint against every family, beside what chance would give.

Verdicts (`p`, `found`, beyond its layer) are those of the linear families, whose chance is known exactly;
structures that are no subspace are counted beside random kernels and can be a kernel's best family.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kernelsimp.analysis import beyond
from kernelsimp.analysis.chance import BEYOND_BY, Judgement, judge_layer
from kernelsimp.analysis.examine import NONE, Examined, examine
from kernelsimp.analysis.naming import Names, names_of
from kernelsimp.analysis.nonlinear import (
    NonlinearStructure,
    NonlinearStructures,
    SearchDepth,
    count_near_any,
    nonlinear_structures,
    worth,
)
from kernelsimp.analysis.quality import quality_of
from kernelsimp.analysis.scan_parts import WHOLE, Part, ScannedPart, join_parts
from kernelsimp.analysis.select import deep_layers, select_layers
from kernelsimp.analysis.threads import one_thread
from kernelsimp.errors import KernelsimpError
from kernelsimp.files import spill
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.kernels.families import SEVENTEEN, check_name
from kernelsimp.kernels.residuals import mean_removed_residuals
from kernelsimp.kernels.significance import discoveries, enrichment, local_false_share, near_tolerance
from kernelsimp.models.soundness import check_weights
from kernelsimp.records.scan import FamilyScan, LayerScan, NullCount, Sample, Scan
from kernelsimp.settings import ScanSettings
from kernelsimp.watch import SILENT, Watcher

HISTOGRAM_BINS = 20
"""Bins of the residual histogram between 0 and 1."""

SAMPLES = 6
"""Kernels of each family and layer that are kept for pictures, the nearest first."""

PROTOTYPES_UP_TO = 1024
MEDIAN_OF = 1 << 16
"""Medians of larger layers are those of as many kernels, evenly spaced."""

Judgements = Mapping[str, Judgement]
Strides = Mapping[str, int]


@dataclass(frozen=True, eq=False)
class JudgedLayer:
    """One layer after all measuring: residuals, verdicts, and structures that are no subspace."""

    examined: Examined
    verdicts: Judgements
    nonlinear: NonlinearStructures
    settings: ScanSettings

    @property
    def names(self) -> tuple[str, ...]:
        """The linear families, then the other structures."""
        linear = (family.name for family in self.examined.families)
        return (*linear, *(item.name for item in self.nonlinear.structures))

    @property
    def asked_verdict(self) -> Judgement:
        return self.verdicts[self.settings.null]

    @property
    def beyond(self) -> NDArray[np.bool_]:
        """Which kernels neither the null that was asked for nor the layer's covariance explains."""
        return np.asarray(self.asked_verdict.found & self.verdicts[BEYOND_BY].found)


def scan_bank(
    bank: KernelBank,
    settings: ScanSettings,
    source: Mapping[str, Any],
    watcher: Watcher = SILENT,
    strides: Strides | None = None,
) -> Scan:
    """Return the scan of every layer larger than 1x1; `strides` by layer name where they are known.

    Raises `KernelsimpError` for a tolerance outside 0..1, an unknown family, null, kind or depth, or globs
    that match nothing, or a layer that holds NaN.
    """
    return join_parts((scan_part(bank, settings, source, watcher, strides),))


@one_thread()
def scan_part(
    bank: KernelBank,
    settings: ScanSettings,
    source: Mapping[str, Any],
    watcher: Watcher = SILENT,
    strides: Strides | None = None,
    *,
    part: Part = WHOLE,
) -> ScannedPart:
    """Do the same for a part of the layers; what stands beside them is that of the whole network."""
    check(settings)
    bank = select_layers(bank, settings)
    check_weights(bank)
    deep = deep_layers(bank.spatial, settings)
    mine = part.of(bank.spatial)
    watcher.start("scanning", len(mine))
    names: dict[str, int] = {}
    layers: list[LayerScan] = []
    notes: dict[str, list[str]] = {}
    for place in mine:
        layer = bank.spatial[place]
        judged = judge_structures(examine(layer, settings.families), settings, deep=layer.name in deep)
        for name in judged.names:
            names.setdefault(name, len(names))
        for note in (item.note for item in judged.verdicts.values() if item.note):
            notes.setdefault(note, []).append(layer.name)
        extra = _extra(judged, (strides or {}).get(layer.name), first=place == 0, deep=layer.name in deep)
        layers.append(_layer_scan(judged, names, extra))
        watcher.step()
    scan = Scan(
        source=source,
        settings=_recorded_settings(settings),
        families=tuple(names),
        layers=tuple(layers),
        skipped=tuple((item.name, item.reason) for item in bank.skipped),
        weights=sum(layer.kernels.numel() for layer in bank.layers),
        pointwise=sum(layer.count for layer in bank.layers if layer.pointwise),
        warnings=(*bank.warnings, *_depth_note(len(bank.spatial), len(deep), settings)),
    )
    return ScannedPart(scan, notes)


def check(settings: ScanSettings) -> None:
    """Raise `KernelsimpError` for settings that no scan can follow."""
    if not 0 <= settings.tolerance <= 1:
        raise KernelsimpError(f"--tolerance is {settings.tolerance:g}; expected a number from 0 to 1")
    for name in settings.families or ():
        check_name(name)


def judge_structures(examined: Examined, settings: ScanSettings, *, deep: bool) -> JudgedLayer:
    """Judge one layer by every null, and measure what is no subspace unless families were named."""
    nulls = dict.fromkeys(("white", settings.null, BEYOND_BY))  # white always; matched for 'beyond'
    verdicts = {null: judge_layer(examined, null, settings.fdr) for null in nulls}
    nonlinear = (
        NonlinearStructures()
        if settings.families
        else nonlinear_structures(examined, search_depth(settings, deep=deep))
    )
    return JudgedLayer(examined, verdicts, nonlinear, settings)


def search_depth(settings: ScanSettings, *, deep: bool) -> SearchDepth:
    """Return how hard to look for structures that are no subspace."""
    return SearchDepth(settings.tolerance, deep, settings.seed)


def best_of_all(
    judged: JudgedLayer, linear: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each kernel's best structure, an index into `JudgedLayer.names` or NONE, and its residual.

    `linear` is the best among the linear families. The structure that leaves least numbers wins, choices
    counted; then the linear families come before the others, then the least residual.
    """
    examined, tolerance = judged.examined, judged.settings.tolerance
    best, matched = linear, linear != NONE
    nearest = examined.residual.min(axis=1, initial=1.0).astype(np.float64)
    residual = nearest.copy()
    residual[matched] = examined.residual[np.flatnonzero(matched), best[matched]]
    numbers = np.append(examined.dims.astype(np.float64), np.inf)[best]
    for place, item in enumerate(judged.nonlinear.structures, start=len(examined.families)):
        own = item.measured
        near = (own.residual <= tolerance) & ~examined.dead & worth(own, examined.cells)
        tie = (own.numbers == numbers) & (best >= len(examined.families)) & (own.residual < residual)
        wins = near & ((own.numbers < numbers) | tie)
        best, numbers = np.where(wins, place, best), np.where(wins, own.numbers, numbers)
        residual = np.where(wins, own.residual, residual)
    return best, residual


def _recorded_settings(settings: ScanSettings) -> dict[str, Any]:
    keys = ("null", "tolerance", "fdr", "seed", "depth", "families", "layers", "skip_layers", "kinds")
    return {key: value for key, value in asdict(settings).items() if key in keys}


def _depth_note(layers: int, deep: int, settings: ScanSettings) -> Iterator[str]:
    if settings.depth == "auto" and deep < layers:
        yield (
            f"{layers - deep} of {layers} layers were scanned without templates, orbits, prototypes and "
            "codings: the network is large; --deep scans them too"
        )


def _layer_scan(judged: JudgedLayer, names: Mapping[str, int], extra: Mapping[str, Any]) -> LayerScan:
    examined = judged.examined
    layer, linear = examined.layer, examined.best(judged.settings.tolerance)
    best, residual = best_of_all(judged, linear)
    index = np.array([*(names[name] for name in judged.names), NONE], dtype=np.int16)
    spoken = names_of(examined, judged.nonlinear, best != NONE, linear)
    nearest = examined.residual.min(axis=1, initial=1.0)[~examined.dead]
    return LayerScan(
        layer.name,
        layer.kind,
        layer.kind_source,
        layer.weight_shape or tuple(layer.kernels.shape),
        layer.count,
        int(examined.dead.sum()),
        {**_family_scans(judged, linear), **_structure_scans(judged, best)},
        best=spill(index[best]),
        residual=spill(residual.astype(np.float32)),
        p=spill(judged.asked_verdict.p),
        found=spill(judged.asked_verdict.found),
        histogram=tuple(np.histogram(nearest, HISTOGRAM_BINS, (0, 1))[0].tolist()),
        extra=extra,
        beyond=spill(judged.beyond),
        is_dead=spill(examined.dead),
        words=spoken.words,
        word=spill(spoken.word),
        sentence=spoken.sentence,
        samples=tuple(_samples(judged, (best, residual), spoken)),
        outputs=int(layer.kernels.shape[0]),
    )


def _extra(judged: JudgedLayer, stride: int | None, *, first: bool, deep: bool) -> dict[str, Any]:
    """Return what stands beside the families in the JSON of a layer."""
    examined, settings = judged.examined, judged.settings
    usual = settings.families is None or set(settings.families) >= set(SEVENTEEN)
    cheap = {
        "white_instead": [name for name, verdict in judged.verdicts.items() if verdict.null.note],
        "found": int(judged.asked_verdict.found.sum()),
        "beyond_its_layer": int(judged.beyond.sum()),
        "near_any": count_near_any(examined, judged.nonlinear, search_depth(settings, deep=deep))
        if usual
        else None,
        "filters": beyond.filters(examined, settings.tolerance),
        "mean_kernel": beyond.mean_kernel(examined, stride),
        "quality": asdict(quality_of(examined.layer)),
        "colour": beyond.colours(examined, settings.tolerance) if first else None,
        "equal_lines": beyond.groupings(judged.nonlinear),
        "deep": deep,
    }
    if not deep:
        return cheap
    return {
        **cheap,
        "orbits": beyond.relatives(examined, judged.nonlinear, settings.tolerance, settings.seed),
        "prototypes": beyond.prototype_coverage(examined, settings.seed)
        if _few_enough(examined, settings)
        else None,
        "bits_per_kernel": beyond.bits_per_kernel(examined),
    }


def _few_enough(examined: Examined, settings: ScanSettings) -> bool:
    """Prototypes cost the most of all: larger layers get them only where a deep scan was asked for."""
    return settings.depth == "deep" or examined.layer.count <= PROTOTYPES_UP_TO


def _samples(
    judged: JudgedLayer, best: tuple[NDArray[np.int64], NDArray[np.float64]], spoken: Names
) -> Iterator[Sample]:
    """Yield the nearest kernels of each family for pictures."""
    layer, (family, residual) = judged.examined.layer, best
    flat, slices = layer.kernels.detach().reshape(-1, *layer.grid), int(layer.kernels.shape[1])
    for place in np.unique(family[family != NONE]).tolist():
        rows = np.flatnonzero(family == place)
        for row in rows[np.argsort(residual[rows], kind="stable")[:SAMPLES]].tolist():
            yield Sample(
                divmod(row, slices),
                judged.names[place],
                flat[row].float().numpy(),
                float(residual[row]),
                float(judged.asked_verdict.p[row]),
                spoken.words[spoken.word[row]],
            )


def _family_scans(judged: JudgedLayer, best: NDArray[np.int64]) -> dict[str, FamilyScan]:
    """Return the linear families of a layer beside every null; `best` is each kernel's linear family."""
    examined, tolerance = judged.examined, judged.settings.tolerance
    live = ~examined.dead
    r = examined.live_residual
    observed = [int(np.count_nonzero(column <= tolerance)) for column in r.T]
    subspaces = [family.subspace for family in examined.families]
    step = -(-len(r) // MEDIAN_OF) or 1
    spaced = torch.from_numpy(np.flatnonzero(live)[::step])
    kernels = examined.layer.kernels.reshape(-1, *examined.layer.grid)[spaced]
    centred = mean_removed_residuals(kernels, subspaces).numpy() if subspaces else r
    raw = r[::step]
    near, count = near_tolerance(r, tolerance), int(live.sum())
    chance = {
        name: (
            count * item.null.expected_shares(tolerance),
            np.bincount(best[item.found & (best != NONE)], minlength=len(subspaces)),
            local_false_share(item.null, near, count, tolerance),
        )
        for name, item in judged.verdicts.items()
    }
    scans = {}
    for i, family in enumerate(examined.families):
        scans[family.name] = FamilyScan(
            family.subspace.dim,
            observed[i],
            {
                name: NullCount(
                    float(expected[i]), enrichment(observed[i], expected[i]), int(found[i]), share[i]
                )
                for name, (expected, found, share) in chance.items()
            },
            _median(raw[:, i]),
            _median(centred[:, i]),
        )
    return scans


def _structure_scans(judged: JudgedLayer, best: NDArray[np.int64]) -> dict[str, FamilyScan]:
    """Return the structures that are no subspace, each beside its own random kernels."""
    first = len(judged.examined.families)
    return {
        item.name: _structure_scan(judged, item, best == first + place)
        for place, item in enumerate(judged.nonlinear.structures)
    }


def _structure_scan(judged: JudgedLayer, item: NonlinearStructure, own: NDArray[np.bool_]) -> FamilyScan:
    """`found` are the kernels whose best structure it is and whose p-value stands up over the layer."""
    live, tolerance = ~judged.examined.dead, judged.settings.tolerance
    r = item.measured.residual[live]
    observed = int((r <= tolerance).sum())
    expected = len(r) * item.chance.expected_share(tolerance)
    p = np.exp(item.chance.log_p(torch.from_numpy(r)).numpy())
    tests = len(judged.nonlinear.structures)
    found = discoveries(np.minimum(1.0, tests * p), judged.settings.fdr) & own[live]
    of_its_own = r[r < 1]
    count = NullCount(expected, enrichment(observed, expected), int(found.sum()))
    return FamilyScan(item.measured.dim, observed, {item.null: count}, _median(of_its_own))


def _median(values: NDArray[np.float32]) -> float:
    return float(np.median(values)) if len(values) else 1.0
