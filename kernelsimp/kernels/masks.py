"""Which cells of a kernel are kept, as a structure with a name: what pruning single weights leaves.

A mask is called `cells-` and one digit a cell, row by row: 1 is kept, 0 is zero. So a plan, a hold and a
check treat a pruned kernel like any other structure.
"""

import numpy as np
from numpy.typing import NDArray

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.subspace import OrbitSubspace, Shape, from_generators, zeroing

PREFIX = "cells-"


def name_of(kept: NDArray[np.bool_]) -> str:
    """Return the name of the mask `kept` (cells,)."""
    return PREFIX + "".join("1" if cell else "0" for cell in kept)


def kind_of(name: str) -> str:
    """Return what a table counts together: `5 of 9 cells` for a mask, the name of anything else."""
    digits = name.removeprefix(PREFIX)
    return name if digits == name else f"{digits.count('1')} of {len(digits)} cells"


def find(name: str, shape: Shape) -> OrbitSubspace:
    """Return the kernels of `shape` that are zero where the mask called `name` has a 0.

    Raises `KernelsimpError` for a name that is no mask of that many cells.
    """
    digits, cells = name.removeprefix(PREFIX), int(np.prod(shape))
    if len(digits) != cells or set(digits) - {"0", "1"}:
        raise KernelsimpError(
            f"structure '{name}' is no mask of {cells} cells; expected {cells} digits 0 or 1"
        )
    return from_generators(shape, [zeroing(np.array([digit == "0" for digit in digits]))])
