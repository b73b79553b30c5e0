"""Residuals of one layer's kernels against every family: what both a scan and a plan start from."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.kernels.families import Offered, offered_families
from kernelsimp.kernels.residuals import residuals

NONE = -1
"""The index that means 'no family'."""


@dataclass(frozen=True, eq=False)
class Examined:
    """One layer against the families offered at its grid; arrays run over kernels in canonical order.

    `residual` is (kernels, families); `dead` (kernels,) marks kernels that never count as a match.
    """

    layer: LayerKernels
    families: tuple[Offered, ...]
    residual: NDArray[np.float32]
    dead: NDArray[np.bool_]

    @property
    def cells(self) -> int:
        """The cells of one kernel."""
        return int(np.prod(self.layer.grid))

    @property
    def dims(self) -> NDArray[np.int64]:
        """The dimension of each family, (families,)."""
        return np.array([family.subspace.dim for family in self.families], dtype=np.int64)

    @cached_property
    def live_residual(self) -> NDArray[np.float32]:
        """The residuals of the live kernels, (live, families), each family's in one piece of memory."""
        return self.residual.T[:, ~self.dead].T if self.dead.any() else self.residual

    def matches(self, tolerance: float) -> NDArray[np.bool_]:
        """Say for each (kernel, family) whether a live kernel lies within the tolerance."""
        return np.asarray((self.residual <= tolerance) & ~self.dead[:, None])

    def best(self, tolerance: float) -> NDArray[np.int64]:
        """Return each kernel's family: least dimension, then least residual, then table order; or NONE."""
        best = np.full(len(self.dead), NONE)
        least = np.full(len(self.dead), np.iinfo(np.int64).max)
        nearest = np.full(len(self.dead), np.inf, dtype=self.residual.dtype)
        for place, dim in enumerate(self.dims):  # one at a time: a layer may have millions of kernels
            r = self.residual[:, place]
            wins = (r <= tolerance) & ~self.dead & ((dim < least) | ((dim == least) & (r < nearest)))
            best[wins], least[wins], nearest[wins] = place, dim, r[wins]
        return best


def examine(layer: LayerKernels, names: tuple[str, ...] | None = None) -> Examined:
    """Measure every kernel of `layer` against the families called `names`, or all of them."""
    families = offered_families(layer.grid, names)
    subspaces = [family.subspace for family in families]
    flat = layer.kernels.reshape(-1, *layer.grid)
    measured = residuals(flat, subspaces) if subspaces else torch.zeros(flat.shape[0], 0)
    return Examined(layer, families, measured.numpy(), layer.dead().reshape(-1).numpy())
