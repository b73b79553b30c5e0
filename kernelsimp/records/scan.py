"""What a scan found: counts by layer and family beside chance; per kernel its best family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA = "kernelsimp.scan/1"


@dataclass(frozen=True)
class NullCount:
    """Expected matches under one null, observed / expected, and how many kernels it calls found."""

    expected: float
    enrichment: float | None
    found: int | None = None
    lfdr: float | None = None


@dataclass(frozen=True)
class FamilyScan:
    """One family in one layer: its dimension, the matches at the tolerance, and chance beside them."""

    dim: int
    observed: int
    null: Mapping[str, NullCount]
    median_residual: float
    median_residual_mean_removed: float | None = None


@dataclass(frozen=True, eq=False)
class LayerScan:
    """One layer. `best` (kernels,) indexes `Scan.families`, -1 for none; `residual` goes with it.

    `best` is the matching family of least dimension, then least residual, then table order; where none
    matches, `residual` is that of the nearest family. `p` is the kernel's p-value over all families and
    `found` what the null that the scan was asked for does not explain.
    """

    name: str
    kind: str
    kind_source: str
    weight_shape: tuple[int, ...]
    kernels: int
    dead: int
    families: Mapping[str, FamilyScan]
    best: NDArray[np.int16]
    residual: NDArray[np.float32]
    p: NDArray[np.float64] = field(default_factory=lambda: np.ones(0))
    found: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    histogram: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scan:
    """A whole checkpoint. `kernels` counts grids larger than 1x1; `pointwise` stands apart."""

    source: Mapping[str, Any]
    settings: Mapping[str, Any]
    families: tuple[str, ...]
    layers: tuple[LayerScan, ...]
    skipped: tuple[tuple[str, str], ...]
    weights: int
    pointwise: int
    schema: str = SCHEMA
    warnings: tuple[str, ...] = ()
