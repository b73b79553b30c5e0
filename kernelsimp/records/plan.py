"""Which kernel becomes what: the plan. It holds decisions as arrays and never touches a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

FREE = 0
"""The index of the structure 'free' in every plan: the kernel is left to itself."""


SHAPES, STRENGTH = "template", "strength"
"""Keys of a layer's parameters: by what templates and prototypes are drawn, and a denoiser's strength."""


class PlannedLayer(Protocol):
    """What a plan asks of the layer it is made for; `dead` marks kernels, (out, in / groups)."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def groups(self) -> int: ...
    @property
    def grid(self) -> tuple[int, ...]: ...
    def dead(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """The choices of one layer, arrays of shape (out, in / groups).

    `choice` indexes `Plan.structures`; `found` marks choices that chance does not explain; `residual` is
    the relative residual ||w - Pw|| / ||w|| of the choice; `dims` gives the degrees of freedom of each
    structure at this layer's `grid`. `parameters` holds what a structure needs beside its name (the
    shape parameters of a template, the cells of a prototype, the strength of a denoiser), each array led by
    (out, in / groups). `shared` are the numbers of the prototypes that kernels of the layer share.
    """

    name: str
    kind: str
    groups: int
    grid: tuple[int, ...]
    choice: NDArray[np.int16]
    found: NDArray[np.bool_]
    dead: NDArray[np.bool_]
    residual: NDArray[np.float32]
    dims: NDArray[np.int16]
    parameters: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    shared: int = 0

    @classmethod
    def free(
        cls, layer: PlannedLayer, structures: Sequence[str] = ("free",), dims: Mapping[str, int] | None = None
    ) -> Self:
        """Return the plan that leaves every kernel to itself; a structure not in `dims` keeps all cells."""
        cells, known = math.prod(layer.grid), dims or {}
        dead = np.asarray(layer.dead().cpu())
        return cls(
            layer.name,
            layer.kind,
            layer.groups,
            layer.grid,
            choice=np.zeros(dead.shape, np.int16),
            found=np.zeros(dead.shape, np.bool_),
            dead=dead,
            residual=np.zeros(dead.shape, np.float32),
            dims=np.array([known.get(name, cells) for name in structures], np.int16),
        )

    @property
    def changed(self) -> NDArray[np.bool_]:
        """The kernels that get a structure, (out, in / groups)."""
        return np.asarray(self.choice != FREE)

    def shapes(self, mask: NDArray[np.bool_]) -> NDArray[np.float32] | None:
        """Return by what the kernels in `mask` are drawn, a row each; None where the plan does not say."""
        kept = self.parameters.get(SHAPES)
        return None if kept is None else kept[mask]

    @property
    def dof_before(self) -> int:
        return int(self.choice.size * np.prod(self.grid))

    @property
    def dof_after(self) -> int:
        return int(self.dims[self.choice].sum()) + self.shared

    @property
    def prototypes(self) -> int:
        """How many prototypes carry the kernels that share them."""
        return self.shared // math.prod(self.grid)


@dataclass(frozen=True)
class Plan:
    """The choices for a whole network. `structures[0]` is 'free'; `rule` says how they were made.

    `rule` holds plain JSON values. `choice_bits` is what naming the choices costs in all, in bits, and
    `coefficient_bits` the bits of one coefficient.
    """

    structures: tuple[str, ...]
    layers: tuple[LayerPlan, ...]
    rule: Mapping[str, object] = field(default_factory=dict)
    choice_bits: float = 0.0
    coefficient_bits: float = 32.0

    @property
    def dof_before(self) -> int:
        return sum(layer.dof_before for layer in self.layers)

    @property
    def dof_after(self) -> int:
        return sum(layer.dof_after for layer in self.layers)

    @property
    def simplified(self) -> int:
        """How many kernels get a structure; denoised ones have none."""
        return sum(int(layer.changed.sum()) for layer in self.layers) - self.denoised

    @property
    def denoised(self) -> int:
        return sum(int(self.is_denoised(layer).sum()) for layer in self.layers)

    @property
    def equivalent_dof(self) -> float:
        """The degrees of freedom left, and those that naming the choices is worth."""
        return (self.dof_after * self.coefficient_bits + self.choice_bits) / self.coefficient_bits

    def entropy_bits(self) -> float:
        """Return the bits that name every structure chosen: n times the entropy of the choices, by layer."""
        total = 0.0
        for layer in self.layers:
            counts = np.bincount(layer.choice.reshape(-1))
            shares = counts[counts > 0] / layer.choice.size
            total -= layer.choice.size * float((shares * np.log2(shares)).sum())
        return total

    def is_denoised(self, layer: LayerPlan) -> NDArray[np.bool_]:
        """Say which kernels of a layer, (out, in / groups), are replaced by what a denoiser makes of them."""
        marks = np.array([name.startswith("denoised-") for name in self.structures], dtype=np.bool_)
        return np.asarray(marks[layer.choice])

    def layer(self, name: str) -> LayerPlan:
        """Return the layer called `name`; raises KeyError."""
        return {layer.name: layer for layer in self.layers}[name]
