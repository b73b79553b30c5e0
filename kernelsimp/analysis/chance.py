"""What chance gives a layer: the nulls its residuals are judged by, and the kernels they do not explain.

`found` is the verdict of the ring null (how smooth the layer's kernels are, and nothing else) in a plan, and
in a scan that of the null it was asked for, which usually is the same. A kernel that the matched null (the
layer's own covariance) rejects as well is *beyond its layer*.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.analysis.examine import Examined
from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels.covariance import permuted_kernels
from kernelsimp.kernels.nulls import NODES, Null, matched_null, ring_null, sampled_null, white_null
from kernelsimp.kernels.residuals import residuals
from kernelsimp.kernels.significance import judge
from kernelsimp.kernels.subspace import Floats, Subspace

PERMUTED = 2000
"""Kernels with shuffled cells that the permuted null is made of."""


def permuted_null(kernels: Tensor, subspaces: Sequence[Subspace]) -> Null:
    """Return the null of a layer's own kernels (n, *shape) with their cells in a random order.

    Inside the sample it is counted, below its fiftieth member it follows the power law of each subspace.
    """
    random = residuals(permuted_kernels(kernels, PERMUTED, 0), subspaces)
    nodes = torch.from_numpy(NODES)
    rows = [
        sampled_null("permuted", random[:, place], space.cells - space.dim).log_p(nodes)
        for place, space in enumerate(subspaces)
    ]
    return Null("permuted", torch.stack(rows).float())


NULLS: dict[str, Callable[[Tensor, Sequence[Subspace]], Null]] = {
    "white": lambda _, subspaces: white_null(subspaces),
    "ring": ring_null,
    "matched": matched_null,
    "permuted": permuted_null,
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
    null = NULLS[name](kernels, subspaces) if judgeable(examined) else _white_instead(name, examined)
    p, found = np.ones(len(live)), np.zeros(len(live), dtype=bool)
    if subspaces and live.any():
        judged = judge(null, torch.from_numpy(examined.live_residual), fdr)
        p[live], found[live] = judged.p, judged.found
    return Judgement(null, p, found)


def judgeable(examined: Examined) -> bool:
    """Say whether the layer has live kernels, small enough for nulls of their own."""
    return bool(examined.families) and examined.cells <= MOST_CELLS and not examined.dead.all()


def found_in(examined: Examined, fdr: float) -> NDArray[np.bool_]:
    """Say for each kernel whether chance, by the ring null, does not explain its nearest family."""
    return judge_layer(examined, FOUND_BY, fdr).found


def _white_instead(name: str, examined: Examined) -> Null:
    """Return the white null, saying why: spectra of larger covariances take too long."""
    white = white_null([family.subspace for family in examined.families])
    if name == "white" or not examined.families:
        return white
    why = "no live kernel" if examined.dead.all() else f"kernels of more than {MOST_CELLS} cells"
    return Null(name, white.table, f"{name} null not estimated: {why}; white used instead")


def _live_kernels(examined: Examined, live: NDArray[np.bool_]) -> Tensor:
    layer = examined.layer
    wide = layer.kernels.dtype if layer.kernels.dtype == torch.float64 else torch.float32
    return layer.kernels.reshape(-1, *layer.grid)[torch.from_numpy(live)].to(wide)
