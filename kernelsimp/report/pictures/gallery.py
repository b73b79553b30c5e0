"""Pictures of kernels before and after, chosen by how much they changed.

A picture holds one kernel's two grids as numbers; `sprites.py` turns many of them into one image. Grids
are (kh, kw); `index` is (out, in / groups) in canonical order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.kernels.bank import KernelBank
from kernelsimp.kernels.masks import kind_of
from kernelsimp.records.plan import LayerPlan, Plan

Grid = NDArray[np.float32]
Label = Literal["found", "imposed", "zeroed", "denoised"]


@dataclass(frozen=True, eq=False)
class Picture:
    """One kernel before and after. `residual` is relative to the kernel, `p` where a null was asked."""

    layer: str
    index: tuple[int, int]
    family: str
    label: Label
    before: Grid
    after: Grid
    residual: float | None = None
    p: float | None = None

    @property
    def change(self) -> float:
        """||after - before||, in the layer's own units."""
        return float(np.linalg.norm(self.after.astype(np.float64) - self.before))

    @property
    def name(self) -> str:
        return f"{self.layer}[{self.index[0]},{self.index[1]}]"


@dataclass(frozen=True)
class Gallery:
    """The pictures layer by layer, largest changes first, and how many simplified kernels have none."""

    pictures: tuple[Picture, ...]
    left_out: int = 0


def choose(plan: Plan, before: Mapping[str, Tensor], after: Mapping[str, Tensor], most: int = 256) -> Gallery:
    """Return for each layer the pictures of at most `most` simplified kernels, largest changes first.

    `before` and `after` hold canonical kernels (out, in / groups, kh, kw) by layer name.
    """
    pictures: list[Picture] = []
    left_out = 0
    for layer in plan.layers:
        if layer.name in before and layer.name in after and layer.changed.any():
            drawn = _of_layer(layer, plan.structures, (before[layer.name], after[layer.name]), most)
            pictures += drawn
            left_out += int(layer.changed.sum()) - len(drawn)
    return Gallery(tuple(pictures), left_out)


def gallery_of(plan: Plan, before: KernelBank, after: KernelBank, most: int = 256) -> Gallery:
    """Return the gallery of a run from its kernels before and after."""
    old, new = ({layer.name: layer.kernels for layer in bank.layers} for bank in (before, after))
    return choose(plan, old, new, most)


def with_p(gallery: Gallery, values: Mapping[str, NDArray[np.float64]]) -> Gallery:
    """Return the gallery with each kernel's p-value from (out, in / groups) arrays by layer name."""
    known = (
        replace(picture, p=float(values[picture.layer][picture.index]))
        if picture.layer in values
        else picture
        for picture in gallery.pictures
    )
    return replace(gallery, pictures=tuple(known))


def _of_layer(
    layer: LayerPlan, structures: tuple[str, ...], pair: tuple[Tensor, Tensor], most: int
) -> list[Picture]:
    places = np.flatnonzero(layer.changed.reshape(-1))
    old, new = (_rows(kernels, places) for kernels in pair)
    change = (new - old).double().flatten(1).norm(dim=1).numpy()
    order = np.argsort(-change, kind="stable")[:most]
    return [
        _picture(layer, structures, int(places[i]), (old[i].numpy(), new[i].numpy())) for i in order.tolist()
    ]


def _rows(kernels: Tensor, places: NDArray[np.int64]) -> Tensor:
    flat = kernels.detach().reshape(-1, *kernels.shape[2:])
    return flat[torch.from_numpy(places)].float().cpu()


def _picture(layer: LayerPlan, structures: tuple[str, ...], place: int, grids: tuple[Grid, Grid]) -> Picture:
    out, into = divmod(place, layer.choice.shape[1])
    family = structures[int(layer.choice[out, into])]
    label: Label = "zeroed" if family == "zero" else "found" if layer.found[out, into] else "imposed"
    label = "denoised" if family.startswith("denoised-") else label
    residual = float(layer.residual[out, into])
    return Picture(layer.name, (out, into), kind_of(family), label, grids[0], grids[1], residual)
