"""What each kernel of a layer may become: the structures on offer and the nearest kernel in each.

Kernels are rows (n, cells) in float64, in canonical order. `free` is always first and `zero` second, where
it is offered. A linear family has one projector for all kernels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kernelsimp.analysis.select import match_names
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import ZERO, offered_families
from kernelsimp.kernels.structures import LINEAR, Drawn, KernelSet, expand, is_bent, kernel_sets
from kernelsimp.settings import PlanSettings

FREE_NAME = "free"


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure: `dim` numbers are left of a kernel, and `side_bits` name its parameters.

    `shared` numbers are kept once for all the kernels of the layer that take it. `projector` (cells, cells)
    takes a kernel to its nearest member; None leaves it as it is.
    """

    name: str
    dim: int
    projector: Tensor | None
    side_bits: float = 0.0
    shared: int = 0

    def errors(self, kernels: Tensor) -> Tensor:
        """Return w - Pw for kernels (n, cells)."""
        return torch.zeros_like(kernels) if self.projector is None else kernels - kernels @ self.projector

    def projectors(self, kernels: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return the projector of all of kernels (n, cells), or each (n, cells, cells); None where free."""
        return self.projector

    def among(self, mask: Tensor) -> "Structure":  # noqa: ARG002
        """Return the structure for the kernels in `mask` (n,) alone, where it knows them one by one."""
        return self


@dataclass(frozen=True, eq=False)
class SetStructure(Structure):
    """A set that is no subspace: the nearest member of each kernel is found by itself."""

    members: KernelSet = field(kw_only=True)

    def errors(self, kernels: Tensor) -> Tensor:
        return kernels - self.members.snap(kernels.reshape(-1, *self.members.shape)).reshape(kernels.shape)

    def projectors(self, kernels: Tensor) -> Tensor:
        return self.members.flats(kernels.reshape(-1, *self.members.shape))

    @property
    def shapes(self) -> Tensor | None:
        """The numbers by which each kernel is drawn (n, k), where this is a template or prototypes."""
        return self.members.shapes if isinstance(self.members, Drawn) else None

    def among(self, mask: Tensor) -> "Structure":
        if not isinstance(self.members, Drawn) or self.members.shapes is None:
            return self
        return replace(self, members=replace(self.members, shapes=self.members.shapes[mask]))


def candidates_for(layer: LayerKernels, names: tuple[str, ...] | None) -> tuple[Structure, ...]:
    """Return free, zero and the structures called `names` that the layer's grid admits.

    Without names it is every linear family; what is no subspace is offered by name, or by the name of its
    group. Raises `KernelsimpError` for a name that is nothing.
    """
    cells = int(torch.tensor(layer.grid).prod())
    found = [Structure(FREE_NAME, cells, None)]
    spelled = None if names is None else expand(names)
    if spelled is None or ZERO in spelled:
        found.append(Structure(ZERO, 0, torch.zeros(cells, cells, dtype=torch.float64)))
    for item in offered_families(layer.grid, linear_names(names)):
        projector = torch.from_numpy(item.subspace.projector).double()
        found.append(Structure(item.name, item.subspace.dim, projector))
    return (*found, *(_set_candidate(item, layer) for item in _bent_sets(layer, spelled or ())))


def linear_names(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the names that are linear families, neither `zero` nor a bent set; None for all there are."""
    spelled = None if names is None else expand(names)
    if spelled is None or LINEAR in spelled:
        return None
    return tuple(name for name in spelled if name != ZERO and not is_bent(name))


def _bent_sets(layer: LayerKernels, names: tuple[str, ...]) -> Iterator[KernelSet]:
    """Yield the bent sets called `names`; those that share numbers where these pay, were all to take part."""
    cells = int(torch.tensor(layer.grid).prod())
    for item in kernel_sets(layer.grid, names):
        if item.name in names and item.dim + item.shared / max(1, layer.count) < cells:
            yield item


def _set_candidate(item: KernelSet, layer: LayerKernels) -> SetStructure:
    """Return a bent set as a candidate; what is drawn is fitted to every kernel once."""
    if isinstance(item, Drawn):
        kernels = layer.kernels.detach().cpu().reshape(-1, *layer.grid)
        item = replace(item, shapes=item.shapes_of(kernels).float())
    return SetStructure(item.name, item.dim, None, item.side_bits, item.shared, members=item)


def rows_of_layer(layer: LayerKernels) -> Tensor:
    """Return the kernels of a layer as rows (n, cells) in float64."""
    return layer.kernels.detach().double().reshape(layer.count, -1)


def chosen_layers(bank: KernelBank, settings: PlanSettings) -> set[str]:
    """Return the names of the layers that may change, by --layers, --skip-layers and --keep-first.

    Raises `KernelsimpError` for a glob that matches no layer.
    """
    names = [layer.name for layer in bank.spatial]
    wanted = match_names(names, settings.layers, "--layers") if settings.layers else set(names)
    if settings.skip_layers:
        wanted -= match_names(names, settings.skip_layers, "--skip-layers")
    if settings.keep_first and names:
        wanted.discard(names[0])
    return wanted
