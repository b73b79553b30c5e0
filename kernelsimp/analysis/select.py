"""Which layers a scan looks at, and at which it looks hard.

Globs are matched against layer names as the shell does, case and all; what selects nothing is an error.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import get_args

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels.bank import KernelBank, Kind, LayerKernels, Skipped
from kernelsimp.models.stored_order import tensor_name
from kernelsimp.settings import ScanSettings

EASY = 40_000
"""A network of at most this many kernels is looked at hard unless it is told otherwise."""

EASY_PART = 1_000
"""Of a larger network the smallest layers are, up to this many kernels together."""

DEEP_LAYERS = 256
"""And at most so many layers, the smallest: each costs a quarter of a second, however few kernels it has."""

MOST_LAYERS, MOST_SHAPES = 2_000, 50
"""Layers, and shapes of kernels, that are taken at once: each costs time however few kernels it has."""

MOST_CELLS = 64 * 64
"""Kernels of more cells are passed over: families and their chance are built for the shape as a whole."""

MOST_TOLD = 5
"""Layers passed over that are warned of; all are listed among the skipped."""

DEPTHS = ("auto", "deep", "shallow")


def select_layers(bank: KernelBank, settings: ScanSettings) -> KernelBank:
    """Return the bank with only the layers that --layers, --skip-layers and --kinds leave.

    Raises `KernelsimpError` for a glob that matches no layer, an unknown kind, or when nothing is left.
    """
    names = [layer.name for layer in bank.layers]
    wanted = match_names(names, settings.layers, "--layers") if settings.layers else set(names)
    if settings.skip_layers:
        wanted -= match_names(names, settings.skip_layers, "--skip-layers")
    kinds = _kinds(settings.kinds)
    layers = tuple(layer for layer in bank.layers if layer.name in wanted and layer.kind in kinds)
    if not layers:
        there = ", ".join(sorted({layer.kind for layer in bank.layers}))
        raise KernelsimpError(
            f"--layers, --skip-layers and --kinds leave no layer of {len(names)} (kinds: {there}); widen them"
        )
    return within_reach(replace(bank, layers=layers))


def within_reach(bank: KernelBank) -> KernelBank:
    """Return the bank without kernels that are too large; their layers are among the skipped, with a warning.

    Raises `KernelsimpError` where nothing is left, or there are too many layers or shapes for one command.
    """
    spatial = bank.spatial
    large = [layer for layer in spatial if math.prod(layer.grid) > MOST_CELLS]
    reasons = tuple(
        Skipped(
            tensor_name(layer.name), f"kernels of {_sides(layer)}: up to {MOST_CELLS:,} cells are looked at"
        )
        for layer in large
    )
    if large and len(large) == len(bank.layers):
        raise KernelsimpError(f"{large[0].name}: {reasons[0].reason}; no other layer is there")
    told = [f"{item.name}: {item.reason}; it is passed over" for item in reasons]
    left = {id(layer) for layer in large}
    layers = tuple(layer for layer in bank.layers if id(layer) not in left)
    shapes = len({layer.grid for layer in layers})
    for count, most, what in ((len(layers), MOST_LAYERS, "layers"), (shapes, MOST_SHAPES, "kernel shapes")):
        if count > most:
            raise KernelsimpError(
                f"{count:,} {what}; at most {most:,} at once: choose some with --layers GLOB"
            )
    return replace(
        bank, layers=layers, skipped=(*bank.skipped, *reasons), warnings=(*bank.warnings, *told[:MOST_TOLD])
    )


def _sides(layer: LayerKernels) -> str:
    return " x ".join(map(str, layer.grid))


def deep_layers(layers: Sequence[LayerKernels], settings: ScanSettings) -> set[str]:
    """Return the names of the layers that get templates, orbits, prototypes and codings too."""
    if settings.depth not in DEPTHS:
        raise KernelsimpError(f"--depth is '{settings.depth}'{did_you_mean(settings.depth, DEPTHS)}")
    if settings.depth == "shallow":
        return set()
    whole = sum(layer.count for layer in layers)
    limit = whole if settings.depth == "deep" or whole <= EASY else EASY_PART
    deep, total = set[str](), 0
    for layer in sorted(layers, key=lambda layer: layer.count):
        total += layer.count
        if total > limit or (settings.depth == "auto" and len(deep) >= DEEP_LAYERS):
            break
        deep.add(layer.name)
    return deep


def _kinds(asked: Sequence[str] | None) -> set[str]:
    known = get_args(Kind)
    for kind in asked or ():
        if kind not in known:
            raise KernelsimpError(f"--kinds: no kind '{kind}'{did_you_mean(kind, known)}")
    return set(asked or known)


def match_names(names: Sequence[str], globs: Sequence[str], option: str) -> set[str]:
    """Return the names that match any of the globs; raises `KernelsimpError` for one that matches none."""
    found: set[str] = set()
    for glob in globs:
        matched = {name for name in names if fnmatchcase(name, glob)}
        if not matched:
            raise KernelsimpError(f"{option}: no layer matches '{glob}'{did_you_mean(glob, names)}")
        found |= matched
    return found
