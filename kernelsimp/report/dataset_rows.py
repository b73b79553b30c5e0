"""A scan as rows of a data set: one a network, one a layer and a family, and one a kernel.

Rows are columns by name, without the library that writes them, so a worker can hand them over. Counts are
kernels; residuals are relative, 0 to 1; `depth` is a layer's place among the layers scanned, 0 to 1.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import numpy as np

from kernelsimp.records.scan import FamilyScan, LayerScan, Scan, ScanLine
from kernelsimp.records.serialise import json_text, to_plain
from kernelsimp.version import __version__

NULLS = ("white", "ring", "matched", "permuted")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

ARCHITECTURES = (
    ("densenet", r"denseblock\d"),
    ("inception", r"(Mixed_|inception)\w+"),
    ("convnext", r"(?:.*\.)?dwconv|stages\.\d+\.blocks\.\d+\.conv_dw$"),
    ("efficientnet", r"(?:.*\.)?(blocks|_blocks)\.\d.*(conv_pwl|_depthwise_conv|conv_dw)"),
    ("resnet", r"(?:.*\.)?layer\d\.\d+\.conv\d"),
    ("vgg", r"features\.\d+$"),
    ("yolo", r"model\.\d+\.(conv|cv\d|m\.)"),
)
"""What the names of layers most often mean; the first pattern that fits any layer gives the guess."""


def architecture_guess(scan: Scan) -> str | None:
    """Return the sort of network that the names of its layers suggest; None where they suggest none."""
    names = [layer.name for layer in scan.layers]
    return next(
        (guess for guess, shape in ARCHITECTURES if any(re.match(shape, name) for name in names)), None
    )


def network_row(scan: Scan, line: ScanLine, task: str | None) -> dict[str, Any]:
    """Return the row of a network; `kinds` counts its layers larger than 1x1 by their kind."""
    kinds = Counter(layer.kind for layer in scan.layers)
    return {
        "source": line.name,
        "sha256": scan.source["sha256"],
        "format": scan.source["format"],
        "architecture": architecture_guess(scan),
        "task": task,
        "weights": int(scan.weights),
        "layers": line.layers,
        "kernels": line.kernels,
        "pointwise": int(scan.pointwise),
        "dead": sum(layer.dead for layer in scan.layers),
        "matching": line.matching,
        "found": line.found,
        "beyond": sum(int(layer.beyond.sum()) for layer in scan.layers),
        **near_of([layer.extra for layer in scan.layers]),
        "kinds": json_text(dict(sorted(kinds.items()))).strip(),
        "warnings": list(scan.warnings),
        "error": None,
        "version": __version__,
    }


def near_of(extras: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many live kernels lie near a family or rank one, how many by chance, and of how many."""
    told = [extra["near_any"] for extra in extras if extra.get("near_any")]
    return {
        "near": sum(int(item["observed"]) for item in told),
        "near_by_chance": float(sum(item["permuted"] for item in told)),
        "near_of": sum(int(item["live"]) for item in told),
    }


def failed_row(name: str, task: str | None, error: str) -> dict[str, Any]:
    """Return the row of a source that could not be had, with its reason."""
    return {"source": name, "task": task, "error": error, "version": __version__}


def family_rows(scan: Scan) -> Iterator[dict[str, Any]]:
    """Yield a row for each layer and family that was measured in it; what is the layer's own is repeated."""
    for place, layer in enumerate(scan.layers):
        shared = {"sha256": scan.source["sha256"], **_of_layer(layer, place, len(scan.layers))}
        nearest = {sample.family: sample for sample in reversed(layer.samples)}
        for name, family in layer.families.items():
            own = layer.best == scan.families.index(name)
            sample = nearest.get(name)
            yield {
                **shared,
                **_of_family(name, family, str(scan.settings["null"])),
                "best": int(own.sum()),
                "beyond": int((own & layer.beyond).sum()),
                "nearest": None if sample is None else sample.cells.ravel().tolist(),
                "nearest_shape": None if sample is None else list(sample.cells.shape),
            }


def _of_layer(layer: LayerScan, place: int, count: int) -> dict[str, Any]:
    live = layer.residual[~layer.is_dead]
    quantiles = np.quantile(live, QUANTILES).tolist() if len(live) else [None] * len(QUANTILES)
    bits: Mapping[str, float] = layer.extra.get("bits_per_kernel") or {}
    return {
        "layer": layer.name,
        "place": place,
        "depth": place / max(1, count - 1),
        "kind": layer.kind,
        "kind_source": layer.kind_source,
        "shape": list(layer.weight_shape),
        "kernels": layer.kernels,
        "dead": layer.dead,
        "layer_found": int(layer.found.sum()),
        "layer_beyond": int(layer.beyond.sum()),
        **near_of([layer.extra]),
        **{f"residual_q{round(100 * q):02}": r for q, r in zip(QUANTILES, quantiles, strict=True)},
        "bits_structure": bits.get("structure"),
        "bits_uniform": bits.get("uniform"),
        "bits_codebook": bits.get("codebook"),
    }


def _of_family(name: str, family: FamilyScan, null: str) -> dict[str, Any]:
    """Return one family's columns; a structure that is no subspace has the one null it was counted beside."""
    told = family.null.get(null) or next(iter(family.null.values()), None)
    told_by = {key: family.null[key].expected for key in NULLS if key in family.null}
    expected = {f"expected_{key}": value for key, value in told_by.items() if isfinite(value)}
    return {
        "family": name,
        "dim": family.dim,
        "observed": family.observed,
        "found": told.found if told else None,
        "median_residual": family.median_residual,
        "median_residual_mean_removed": family.median_residual_mean_removed,
        **expected,
    }


def kernel_columns(scan: Scan) -> dict[str, Any]:
    """Return a column an array, with an entry for each kernel, layer after layer."""
    layers = scan.layers
    names = np.array([*scan.families, None], dtype=object)
    columns: dict[str, list[Any]] = {
        "layer": [np.full(layer.kernels, layer.name, dtype=object) for layer in layers],
        "out": [np.arange(layer.kernels) // layer.slices for layer in layers],
        "in": [np.arange(layer.kernels) % layer.slices for layer in layers],
        "family": [names[layer.best] for layer in layers],
        "residual": [layer.residual for layer in layers],
        "p": [layer.p for layer in layers],
        "found": [layer.found for layer in layers],
        "beyond": [layer.beyond for layer in layers],
        "dead": [layer.is_dead for layer in layers],
    }
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return {"sha256": np.full(len(joined["p"]), scan.source["sha256"], dtype=object), **joined}


def settings_text(scan_settings: Any, *, kernels: bool) -> str:
    """Return what every network of a data set was scanned with, as one line of JSON."""
    return json_text({**to_plain(scan_settings), "kernels": kernels}).strip()
