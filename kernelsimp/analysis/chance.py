"""What chance gives a layer: the nulls its residuals are judged by, and the kernels they do not explain.

`found` is the verdict of the ring null (how smooth the layer's kernels are, and nothing else); a kernel
that the matched null (the layer's own covariance) rejects as well is *beyond its layer*.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.analysis.examine import Examined
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels.nulls import Null, matched_null, ring_null, white_null
from kernelsimp.kernels.significance import judge
from kernelsimp.kernels.subspace import Floats, Subspace

NULLS: dict[str, Callable[[Tensor, Sequence[Subspace]], Null]] = {
    "white": lambda _, subspaces: white_null(subspaces),
    "ring": ring_null,
    "matched": matched_null,
}
"""How each null is made from a layer's live kernels (n, *grid) and the families' subspaces."""

MOST_CELLS = 169
"""Kernels of more cells (beyond 13 x 13) are judged by the white null only."""

FOUND_BY = "ring"
BEYOND_BY = "matched"


@dataclass(frozen=True, eq=False)
class Judgement:
    """One layer under one null: `p` and `found` (kernels,) in canonical order, p = 1 for dead kernels.

    `note` says why the white null stands in, if it does.
    """

    null: Null
    p: Floats
    found: NDArray[np.bool_]

    @property
    def note(self) -> str | None:
        return self.null.note


def judge_layer(examined: Examined, name: str, fdr: float) -> Judgement:
    """Return the p-value of every kernel of a layer under one null, and which are found at `fdr`.

    p = min(1, m * least p over the families), m the effective number of tests; Benjamini-Hochberg over
    the layer's live kernels. Raises `KernelsimpError` for an unknown null or a rate out of range.
    """
    if name not in NULLS:
        raise KernelsimpError(f"--null is '{name}'{did_you_mean(name, NULLS)}")
    if not 0 < fdr < 1:
        raise KernelsimpError(f"--fdr is {fdr:g}; expected a rate between 0 and 1, such as 0.05")
    live = ~examined.dead
    subspaces = [family.subspace for family in examined.families]
    kernels = _live_kernels(examined, live)
    null = NULLS[name](kernels, subspaces) if examined.cells <= MOST_CELLS else _too_large(name, subspaces)
    p, found = np.ones(len(live)), np.zeros(len(live), dtype=bool)
    if subspaces and live.any():
        judged = judge(null, torch.from_numpy(examined.residual[live]), fdr)
        p[live], found[live] = judged.p, judged.found
    return Judgement(null, p, found)


def found_in(examined: Examined, fdr: float) -> NDArray[np.bool_]:
    """Say for each kernel whether chance, by the ring null, does not explain its nearest family."""
    return judge_layer(examined, FOUND_BY, fdr).found


def _too_large(name: str, subspaces: Sequence[Subspace]) -> Null:
    """Return the white null, saying so: spectra of larger covariances take too long."""
    white = white_null(subspaces)
    if name == "white":
        return white
    note = f"{name} null not estimated: kernels of more than {MOST_CELLS} cells; white used instead"
    return Null(name, white.table, note)


def _live_kernels(examined: Examined, live: NDArray[np.bool_]) -> Tensor:
    layer = examined.layer
    wide = layer.kernels.dtype if layer.kernels.dtype == torch.float64 else torch.float32
    return layer.kernels.reshape(-1, *layer.grid)[torch.from_numpy(live)].to(wide)
