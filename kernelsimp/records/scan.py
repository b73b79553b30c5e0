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
class Sample:
    """One kernel for the eye: its place [out, in], its cells (kh, kw), and what the scan says of it."""

    index: tuple[int, int]
    family: str
    cells: NDArray[np.float32]
    residual: float
    p: float
    name: str


@dataclass(frozen=True, eq=False)
class LayerScan:
    """One layer. `best` (kernels,) indexes `Scan.families`, -1 for none; `residual` goes with it.

    `best` is the matching family of least dimension, then least residual, then table order; where none
    matches, `residual` is that of the nearest family. `p` is the kernel's p-value over the linear families,
    `found` what the null that the scan was asked for does not explain, and `beyond` what the matched null
    does not either. `word` (kernels,) indexes `words`, the different names of the kernels.
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
    beyond: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    is_dead: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    words: tuple[str, ...] = ()
    word: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    sentence: str = ""
    samples: tuple[Sample, ...] = ()
    outputs: int = 0

    @property
    def slices(self) -> int:
        """How many kernels a filter has: kernel number k is [k // slices, k % slices]."""
        return self.kernels // max(1, self.outputs)


@dataclass(frozen=True)
class Candidate:
    """One structure that a kernel was measured against; `p` under each null that was asked."""

    name: str
    dim: int
    residual: float
    matches: bool
    p: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Everything about one kernel. `p` and `found` are over all linear families, as in the scan.

    `notes` say which null could not be estimated, and that the white one stands in for it.
    """

    layer: str
    index: tuple[int, int]
    cells: NDArray[np.float32]
    name: str
    dead: bool
    p: float
    found: bool
    beyond: bool
    null: str
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class ScanLine:
    """One checkpoint of a folder: what was in it, or the one line that says why it could not be scanned."""

    name: str
    layers: int = 0
    kernels: int = 0
    matching: int = 0
    found: int = 0
    error: str = ""
