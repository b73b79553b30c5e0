"""The prototypes of a network's layers, as numbers for report.json and as pictures.

A prototype is a kernel of zero mean that stands for all its turned, mirrored, scaled and shifted copies; how
much of a layer's energy a few of them cover says how many different kernels the layer really has.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from kernelsimp.error_text import printable
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.prototypes import PrototypeSettings, find, leading_prototypes
from kernelsimp.report import fmt
from kernelsimp.report.pictures.scan import img, sheet, tile

FEW = 8
"""Prototypes sought in a layer of a run."""

FEWEST_KERNELS, MOST_CELLS, SAMPLE, MOST_LAYERS = 32, 49, 2048, 60

SAYS = (
    "A few kernels that, turned, mirrored, scaled and shifted by a constant, stand for most of a layer: each "
    "row shows those of one layer, the one that covers most first."
)


def prototypes_of(bank: KernelBank) -> list[dict[str, Any]]:
    """Return for each layer its leading prototypes and how much of its energy they cover.

    Small layers and large kernels have none; of a large layer an even sample of kernels is looked at.
    """
    fit = [layer for layer in bank.layers if layer.count >= FEWEST_KERNELS and _drawable(layer)]
    return [_of_layer(layer) for layer in fit[:MOST_LAYERS]]


def prototype_figures(entries: Sequence[Mapping[str, Any]]) -> tuple[Markup, ...]:
    """Return one figure a layer, from what `prototypes_of` or a scan gave; none without cells."""
    return tuple(_figures(entries))


def _drawable(layer: LayerKernels) -> bool:
    grid = layer.kernels.shape[2:]
    return len(grid) == 2 and min(grid) > 1 and int(np.prod(grid)) <= MOST_CELLS


def _of_layer(layer: LayerKernels) -> dict[str, Any]:
    flat = layer.kernels.detach().float().cpu().flatten(0, 1)
    places = torch.linspace(0, len(flat) - 1, min(len(flat), SAMPLE)).long()
    found = find(flat[places], PrototypeSettings(coverage=0.999, limit=FEW))
    centres, shares = leading_prototypes(found, FEW)
    return {
        "layer": layer.name,
        "count": found.count,
        "coverage": found.coverage,
        "by_means_alone": found.offsets,
        "centres": _round_values(centres),
        "shares": _round_values(shares),
    }


def _round_values(values: torch.Tensor) -> list[Any]:
    return list((values.double() * 1e4).round().div(1e4).tolist())


def _figures(entries: Sequence[Mapping[str, Any]]) -> Iterator[Markup]:
    for entry in entries:
        centres, shares = entry.get("centres"), entry.get("shares")
        if not centres or not shares:
            continue
        layer = printable(str(entry.get("layer", "")))
        each = ", ".join(fmt.share(share, digits=0) for share in shares[:4])
        drawn = f"; {len(centres)} are drawn" if len(centres) < entry["count"] else ""
        several = "prototype" if entry["count"] == 1 else "prototypes"
        caption = (
            f"{layer}: {entry['count']} {several} and the kernels' means, {fmt.share(entry['coverage'])} "
            f"of the energy; the means alone {fmt.share(entry['by_means_alone'])}{drawn}. The first ones' "
            f"shares: {each}"
        )
        tiles = [tile(np.asarray(centre, dtype=np.float64)) for centre in centres]
        yield img(sheet(tiles), f"prototypes of {layer}", caption)
