"""Holding a control arm while it is trained, as the simplified network is held: by value or by structure.

An arm's kernels lie in subspaces (shifted ones, where it has an offset) that no plan knows of, so the
weight is written as w = w0 + P (free - w0): the arm's own weight, moved within its subspace alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.models.layers import canonical, conv_modules, stored
from kernelsimp.simplify.projected_cg import Constraint, Piece


@dataclass(frozen=True, eq=False)
class Arm:
    """One control: its name, the share of degrees of freedom it leaves, and the network it makes.

    `constraints` say what its kernels are held to, by layer; nothing where it holds none.
    """

    name: str
    dof: float
    model: nn.Module
    constraints: Mapping[str, Constraint]


class _Within(nn.Module):
    """Keep a convolution's weight in the shifted subspaces of a constraint, each around where it is now."""

    start: Tensor

    def __init__(self, weight: Tensor, layer: LayerKernels, constraint: Constraint) -> None:
        super().__init__()
        self.register_buffer("start", weight.detach().clone(), persistent=False)
        self.layout = (layer.kind, layer.groups)
        pieces = (Piece(p.index, p.projector.to(weight.dtype)) for p in constraint.pieces)
        self.constraint = Constraint(constraint.cells, tuple(pieces)).to(weight.device)

    def forward(self, free: Tensor) -> Tensor:
        with torch.autocast(free.device.type, enabled=False):  # a weight is held in its own precision
            moved = self.constraint.project(canonical(free - self.start, *self.layout))
        return self.start + stored(moved, *self.layout, tuple(free.shape))


@contextmanager
def held_arm(arm: Arm, bank: KernelBank, *, values: bool) -> Iterator[nn.Module]:
    """Within the block, hold the arm's constrained kernels in its network: their `values`, or subspaces.

    `bank` has the layers' layout. The network is a plain one again afterwards.
    """
    layers = {layer.name: layer for layer in bank.layers}
    modules = conv_modules(arm.model)
    held: list[nn.Module] = []
    for name, constraint in arm.constraints.items():
        weight = modules[name].get_parameter("weight")
        assert isinstance(weight, Tensor)
        part = _Within(weight, layers[name], _still(constraint) if values else constraint)
        for sharer in [item for item in arm.model.modules() if item._parameters.get("weight") is weight]:
            parametrize.register_parametrization(sharer, "weight", part, unsafe=True)
            held.append(sharer)
    try:
        yield arm.model
    finally:
        for module in held:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _still(constraint: Constraint) -> Constraint:
    """Return the constraint in which nothing of a constrained kernel may move."""
    zero = torch.zeros(constraint.cells, constraint.cells, dtype=torch.float64)
    return Constraint(constraint.cells, tuple(Piece(piece.index, zero) for piece in constraint.pieces))
