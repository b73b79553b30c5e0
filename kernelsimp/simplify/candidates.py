"""What each kernel of a layer may become: the structures on offer and the nearest kernel in each.

Kernels are rows (n, cells) in float64, in canonical order. `free` is always first and `zero` second, where
it is offered. A linear family has one projector for all kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.families import ZERO, offered
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


def candidates_for(layer: LayerKernels, names: tuple[str, ...] | None) -> tuple[Candidate, ...]:
    """Return free, zero and the families called `names` (or all of them) that the layer's grid admits."""
    cells = int(torch.tensor(layer.grid).prod())
    found = [Candidate(FREE_NAME, cells, None)]
    if names is None or ZERO in names:
        found.append(Candidate(ZERO, 0, torch.zeros(cells, cells, dtype=torch.float64)))
    for item in offered(layer.grid, without_zero(names)):
        projector = torch.from_numpy(item.subspace.projector).double()
        found.append(Candidate(item.name, item.subspace.dim, projector))
    return tuple(found)


def without_zero(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the names that are families; `zero` is a choice, not a family."""
    return None if names is None else tuple(name for name in names if name != ZERO)


def rows_of_layer(layer: LayerKernels) -> Tensor:
    """Return the kernels of a layer as rows (n, cells) in float64."""
    return layer.kernels.detach().double().reshape(layer.count, -1)


def chosen_layers(bank: KernelBank, settings: PlanSettings) -> set[str]:
    """Return the names of the layers that may change, by --layers, --skip-layers and --keep-first.

    Raises `KernelsimpError` for a glob that matches no layer.
    """
    names = [layer.name for layer in bank.spatial]
    wanted = _matching(names, settings.layers, "--layers") if settings.layers else set(names)
    if settings.skip_layers:
        wanted -= _matching(names, settings.skip_layers, "--skip-layers")
    if settings.keep_first and names:
        wanted.discard(names[0])
    return wanted


def _matching(names: Sequence[str], globs: Sequence[str], option: str) -> set[str]:
    found: set[str] = set()
    for glob in globs:
        matched = {name for name in names if fnmatchcase(name, glob)}
        if not matched:
            raise KernelsimpError(f"{option}: no layer matches '{glob}'{did_you_mean(glob, names)}")
        found |= matched
    return found
