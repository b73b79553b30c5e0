"""What each kernel of a layer may become: the structures on offer and the nearest kernel in each.

Kernels are rows (n, cells) in float64, in canonical order. `free` is always first and `zero` second, where
it is offered. A linear family has one projector for all kernels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelsimp.analysis.select import matching
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import ZERO, offered
from kernelsimp.kernels.structures import BENT, BentSet, bent_sets
from kernelsimp.settings import PlanSettings

FREE_NAME = "free"


@dataclass(frozen=True, eq=False)
class Candidate:
    """One structure: `dim` numbers are left of a kernel, and `side_bits` name its parameters.

    `projector` (cells, cells) takes a kernel to its nearest member; None leaves it as it is.
    """

    name: str
    dim: int
    projector: Tensor | None
    side_bits: float = 0.0

    def errors(self, kernels: Tensor) -> Tensor:
        """Return w - Pw for kernels (n, cells)."""
        return torch.zeros_like(kernels) if self.projector is None else kernels - kernels @ self.projector


@dataclass(frozen=True, eq=False)
class Bent(Candidate):
    """A set that is no subspace: the nearest member of each kernel is found by itself."""

    members: BentSet | None = None

    def errors(self, kernels: Tensor) -> Tensor:
        assert self.members is not None
        return kernels - self.members.snap(kernels.reshape(-1, *self.members.shape)).reshape(kernels.shape)


def candidates_for(layer: LayerKernels, names: tuple[str, ...] | None) -> tuple[Candidate, ...]:
    """Return free, zero and the structures called `names` that the layer's grid admits.

    Without names it is every linear family; bent sets are offered by name.
    """
    cells = int(torch.tensor(layer.grid).prod())
    found = [Candidate(FREE_NAME, cells, None)]
    if names is None or ZERO in names:
        found.append(Candidate(ZERO, 0, torch.zeros(cells, cells, dtype=torch.float64)))
    for item in offered(layer.grid, linear_names(names)):
        projector = torch.from_numpy(item.subspace.projector).double()
        found.append(Candidate(item.name, item.subspace.dim, projector))
    bent = (item for item in bent_sets(layer.grid) if names is not None and item.name in names)
    return (*found, *(Bent(item.name, item.dim, None, item.side_bits, item) for item in bent))


def linear_names(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the names that are linear families: neither `zero` nor a bent set."""
    return None if names is None else tuple(name for name in names if name != ZERO and name not in BENT)


def rows_of_layer(layer: LayerKernels) -> Tensor:
    """Return the kernels of a layer as rows (n, cells) in float64."""
    return layer.kernels.detach().double().reshape(layer.count, -1)


def chosen_layers(bank: KernelBank, settings: PlanSettings) -> set[str]:
    """Return the names of the layers that may change, by --layers, --skip-layers and --keep-first.

    Raises `KernelsimpError` for a glob that matches no layer.
    """
    names = [layer.name for layer in bank.spatial]
    wanted = matching(names, settings.layers, "--layers") if settings.layers else set(names)
    if settings.skip_layers:
        wanted -= matching(names, settings.skip_layers, "--skip-layers")
    if settings.keep_first and names:
        wanted.discard(names[0])
    return wanted
