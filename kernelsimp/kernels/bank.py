"""The kernels of a network as arrays, whatever modules they came from.

Canonical order is (out, in / groups, kh, kw) for every layer; a transposed convolution is turned round
before it comes here. Kernels stay in the checkpoint's dtype, memory-mapped where the file is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from kernelsimp.kernels.subspace import Shape

Kind = Literal["dense", "depthwise", "single-input", "grouped", "transposed"]

DEAD_SHARE = 0.01
"""A kernel is dead when its energy is under this share of its layer's mean."""


@dataclass(frozen=True, eq=False)
class LayerKernels:
    """One layer: `kernels` (out, in / groups, kh, kw); `name` is the tensor's name less `.weight`."""

    name: str
    kind: Kind
    kernels: Tensor
    groups: int = 1
    kind_source: Literal["weights", "architecture", "guessed"] = "weights"
    weight_shape: tuple[int, ...] = ()

    @property
    def grid(self) -> Shape:
        """The shape (kh, kw) of each kernel."""
        return tuple(self.kernels.shape[2:])

    @property
    def count(self) -> int:
        return int(self.kernels.shape[0] * self.kernels.shape[1])

    @property
    def pointwise(self) -> bool:
        """Whether kernels are 1x1: they are counted apart and never simplified."""
        return all(side == 1 for side in self.grid)

    def chunks(self, size: int = 8192) -> Iterator[Tensor]:
        """Yield the kernels in order as (at most `size`, kh, kw), float32 or, if stored so, float64."""
        flat = self.kernels.reshape(-1, *self.grid)
        wide = flat.dtype == torch.float64
        for start in range(0, flat.shape[0], size):
            yield flat[start : start + size].to(torch.float64 if wide else torch.float32)

    def energy(self) -> Tensor:
        """Return the sum of squares of each kernel, (out, in / groups), in float64."""
        parts = [chunk.double().square().flatten(1).sum(1) for chunk in self.chunks()]
        return torch.cat(parts).reshape(self.kernels.shape[:2])

    def dead(self) -> Tensor:
        """Say for each kernel (out, in / groups) whether its energy is under 1 % of the layer's mean."""
        energy = self.energy()
        return energy <= DEAD_SHARE * energy.mean()


@dataclass(frozen=True)
class Skipped:
    """A tensor that is no kernel, and why it was passed over."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class KernelBank:
    """Every convolution of a checkpoint, in file order, and what was passed over."""

    layers: tuple[LayerKernels, ...]
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def spatial(self) -> tuple[LayerKernels, ...]:
        """The layers whose kernels are larger than 1x1: what the tool is about."""
        return tuple(layer for layer in self.layers if not layer.pointwise)

    @cached_property
    def by_name(self) -> dict[str, LayerKernels]:
        return {layer.name: layer for layer in self.layers}
