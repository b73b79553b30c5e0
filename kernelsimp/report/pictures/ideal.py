"""The ideal beside a kernel: the member of its family nearest to what it was, before any re-solve."""

from functools import lru_cache

import numpy as np
import torch

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.families import ZERO
from kernelsimp.kernels.pictures import PHRASES, line_words
from kernelsimp.kernels.structures import PROTOTYPES, VALUES, Drawn, KernelSet, PointSet, find
from kernelsimp.kernels.subspace import OrbitSubspace
from kernelsimp.report.pictures.gallery import Grid, Picture

SPELLED = {2: "two", 3: "three", 4: "four", 5: "five"}


def ideal_of(picture: Picture) -> Grid | None:
    """Return the nearest member; None where a name does not tell it (drawn, masks, denoised), or NaN."""
    return nearest_member(picture.family, picture.before)


def nearest_member(name: str, grid: Grid) -> Grid | None:
    """Return the member of the structure `name` nearest to `grid`, (kh, kw), where the name tells it."""
    if name == ZERO:
        return np.zeros_like(grid)
    family = _family(name, grid.shape)
    if family is None or not np.isfinite(grid).all():
        return None
    return np.asarray(family.snap(torch.from_numpy(grid)[None])[0].numpy())


def family_words(name: str) -> str:
    """Return what a structure is called in words: `even left-right` for mirror-h, `rows 0 and 2 equal`."""
    if name.startswith(PROTOTYPES):
        return f"one of {name.removeprefix(PROTOTYPES)} prototypes of its layer, moved, scaled and shifted"
    if name in VALUES:
        return f"{SPELLED.get(VALUES[name], VALUES[name])} values"
    return PHRASES.get(name) or line_words(name) or {ZERO: "all zero"}.get(name, name.replace("-", " "))


@lru_cache(maxsize=256)
def _family(name: str, shape: tuple[int, ...]) -> OrbitSubspace | KernelSet | None:
    try:
        found = find(name, shape)
    except KernelsimpError:
        return None
    return None if isinstance(found, Drawn | PointSet) else found
