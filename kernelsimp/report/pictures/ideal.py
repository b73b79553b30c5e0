"""The ideal beside a kernel: the member of its family nearest to what it was, before any re-solve."""

from functools import lru_cache

import numpy as np
import torch

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.families import ZERO
from kernelsimp.kernels.pictures import PHRASES
from kernelsimp.kernels.structures import Drawn, KernelSet, PointSet, find
from kernelsimp.kernels.subspace import OrbitSubspace
from kernelsimp.report.pictures.gallery import Grid, Picture


def ideal_of(picture: Picture) -> Grid | None:
    """Return the nearest member; None where a name does not tell it (templates, masks, denoised), or NaN."""
    if picture.family == ZERO:
        return np.zeros_like(picture.before)
    family = _family(picture.family, picture.before.shape)
    if family is None or not np.isfinite(picture.before).all():
        return None
    return np.asarray(family.snap(torch.from_numpy(picture.before)[None])[0].numpy())


def family_words(name: str) -> str:
    """Return what a structure is called in words: `even left-right` for mirror-h, `rows 0 and 2 equal`."""
    if name in PHRASES:
        return PHRASES[name]
    parts = name.split("-")
    if len(parts) == 3 and parts[0] in ("rows", "columns"):
        return f"{parts[0]} {parts[1]} and {parts[2]} equal"
    return {ZERO: "all zero"}.get(name, name.replace("-", " "))


@lru_cache(maxsize=256)
def _family(name: str, shape: tuple[int, ...]) -> OrbitSubspace | KernelSet | None:
    try:
        found = find(name, shape)
    except KernelsimpError:
        return None
    return None if isinstance(found, Drawn | PointSet) else found
