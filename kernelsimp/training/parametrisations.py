"""The ways a convolution's weight is held: as values, as structure, or as shape with a free scale.

All keep the module's own parameter (same object, shape and dtype) as the free part and compute the weight
from it at every forward pass, so no optimiser, decay, momentum or clipping can move what is held. Index
and mask tensors are in the module's stored layout. Source: torch.nn.utils.parametrize.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kernelsimp.models.stored_order import canonical
from kernelsimp.training.kernel_sets import HeldSet, InFlats, OnRows


class Frozen(nn.Module):
    """Hold values: weight = where(mask, frozen, free), with `mask` over the stored weight's cells.

    A layer that is held as a whole returns its constant, so no gradient is computed for it.
    """

    mask: Tensor
    frozen: Tensor
    witness: object

    def __init__(self, mask: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.whole = bool(mask.all())
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("frozen", weight.detach().clone(), persistent=False)

    def forward(self, free: Tensor) -> Tensor:
        return self.frozen if self.whole else torch.where(self.mask, self.frozen, free)


class Scaled(nn.Module):
    """Hold shape: a held kernel is scale * its value at the time, with one trained scale a kernel.

    `kernel` numbers each cell's held kernel from 0, and is -1 where the cell is free. The gradient of a
    scale is divided by its kernel's squared norm: a step of plain SGD then moves the weight by the
    projected gradient P g, with P the projector on the line through the kernel. `frozen` is 0 where a cell
    is free; of all kernels as they are stored, `rows` are the held ones and `loose` the free ones.
    """

    frozen: Tensor
    loose: Tensor
    kernel: Tensor
    rows: Tensor
    size: Tensor
    witness: object
    whole = False

    def __init__(self, kernel: Tensor, weight: Tensor) -> None:
        super().__init__()
        flat, cells = kernel.reshape(-1), weight[0, 0].numel()
        free, first = flat < 0, flat[::cells]
        held = torch.nonzero(first >= 0)[:, 0]
        frozen = torch.where(free, 0.0, weight.detach().reshape(-1))
        rows = torch.empty_like(held)
        rows[first[held]] = held
        size = frozen.reshape(-1, cells).square().sum(1)[rows]
        self.cells = cells
        self.register_buffer("frozen", frozen, persistent=False)
        self.register_buffer("loose", torch.nonzero(first < 0)[:, 0], persistent=False)
        self.register_buffer("kernel", first.clamp_min(0).int(), persistent=False)
        self.register_buffer("rows", rows.int(), persistent=False)
        self.register_buffer("size", size.clamp_min(torch.finfo(frozen.dtype).tiny), persistent=False)
        self.scale = nn.Parameter(torch.ones(len(rows), dtype=frozen.dtype, device=frozen.device))

    def forward(self, free: Tensor) -> Tensor:
        fixed = (self.frozen, self.loose, self.kernel, self.rows, self.size)
        return _Stretch.apply(self.scale, free, self.cells, *fixed)  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Hold structure: weight[i] = sign[i] * free[source[i]], over the flat cells of the stored weight.

    `source` names the representative of each cell's orbit; a cell of sign 0 is zero and its own source.
    The gradient that reaches a representative is the mean, not the sum, of sign * gradient over its orbit:
    a step of plain SGD then moves the weight by the projected gradient P g, as if U in w = U z were
    orthonormal, while the copy stays exact bit for bit. Kernels of `sets` have no orbits: they stand for
    themselves in `source`, and their set computes them.
    """

    source: Tensor
    sign: Tensor
    own: Tensor
    others: Tensor
    goals: Tensor
    share: Tensor
    witness: object
    whole = False

    def __init__(self, source: Tensor, sign: Tensor, sets: Iterable[HeldSet] = ()) -> None:
        super().__init__()
        self.sets: Iterable[HeldSet] = nn.ModuleList(sets)  # type: ignore[assignment]
        flat, signs = source.reshape(-1), sign.reshape(-1)
        size = torch.bincount(flat, minlength=flat.numel()).clamp_min(1).to(sign.dtype)
        share = signs / size[flat]
        first = flat == torch.arange(flat.numel(), device=flat.device)
        others = torch.nonzero(~first & (signs != 0))[:, 0]
        parts = {
            "source": flat.int(),  # an index of 32 bits is read six times as fast as one of 64
            "sign": signs,
            "own": torch.where(first, share, 0.0),
            "others": others.int(),
            "goals": flat[others].int(),
            "share": share[others],
        }
        for name, part in parts.items():
            self.register_buffer(name, part, persistent=False)

    def forward(self, free: Tensor) -> Tensor:
        pull = (self.own, self.others, self.goals, self.share)
        return _Spread.apply(free, tuple(self.sets), self.source, self.sign, *pull)  # type: ignore[no-any-return]

    def project(self, weight: Tensor) -> Tensor:
        """Return P w, exactly in the structure; of a set that is no subspace the nearest member."""
        flat = weight.reshape(-1)
        nearest = _spread_orbits(
            _pull(flat, self.own, self.others, self.goals, self.share), self.source, self.sign
        )
        for held in self.sets:
            held.put(nearest, held.nearest(held.of(flat)))
        return nearest.reshape(weight.shape)

    def pack(self, weight: Tensor) -> Tensor:
        """Return the free part whose weight is nearest to `weight`: the projection itself."""
        return self.project(weight)


class LayerConstraint(nn.Module):
    """What a constrained weight is computed by: each part works on its own kernels and passes the others."""

    def __init__(self, parts: list[Tied | OnRows | InFlats]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, free: Tensor) -> Tensor:
        for part in self.parts:
            free = part(free)
        return free

    def pack(self, weight: Tensor) -> Tensor:
        """Return the free part whose weight is the member nearest to `weight`."""
        for part in self.parts:
            weight = part.pack(weight)  # type: ignore[operator]
        return weight


def stored_places(weight: Tensor, kind: str, groups: int) -> Tensor:
    """Return (out, in / groups) where each kernel stands among those of a stored weight (a, b, *grid)."""
    a, b = weight.shape[:2]
    return canonical(torch.arange(a * b).reshape(a, b, 1, 1), kind, groups)[:, :, 0, 0]


def parametrise(model: nn.Module, weight: nn.Parameter, part: nn.Module) -> None:
    """Have `part` compute a weight from its parameter, in every module of `model` that shares it."""
    for sharer in [other for other in model.modules() if other._parameters.get("weight") is weight]:
        parametrize.register_parametrization(sharer, "weight", part, unsafe=True)


def parametrisation_of(module: nn.Module) -> nn.Module | None:
    """Return what a module's weight is computed by, ours or not; None where it is a plain parameter."""
    computed = parametrize.is_parametrized(module, "weight")
    return module.get_submodule("parametrizations.weight.0") if computed else None


def own_class(module: nn.Module) -> None:
    """Give a parametrised module a class of its own.

    Copies of it share the class that torch made, and torch takes the weight out of that class.
    """
    old = type(module)
    kept = {name: value for name, value in vars(old).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(old.__name__, old.__bases__, kept)


def _spread_orbits(flat: Tensor, source: Tensor, sign: Tensor) -> Tensor:
    """Copy each representative to its orbit, with the sign of the cell."""
    return flat.index_select(0, source).mul_(sign)


def _pull(flat: Tensor, own: Tensor, others: Tensor, goals: Tensor, share: Tensor) -> Tensor:
    """Average sign * value over each orbit, into the place of its representative; zero in all others.

    `own` is a representative's sign over the size of its orbit, `share` the same for the `others`, whose
    representatives are the `goals`.
    """
    return (flat * own).index_add_(0, goals, flat.index_select(0, others).mul_(share))


class _Spread(torch.autograd.Function):
    """Copy representatives to their orbits and compute the sets that have none; take gradients back."""

    @staticmethod
    def forward(
        context: Any, free: Tensor, sets: tuple[HeldSet, ...], source: Tensor, sign: Tensor, *pull: Tensor
    ) -> Tensor:
        flat, kept = free.reshape(-1), []
        weight = _spread_orbits(flat, source, sign)
        for held in sets:
            kernels, more = held.members(held.of(flat))
            held.put(weight, kernels)
            kept.append(more)
        context.sets, context.counts = sets, [len(more) for more in kept]
        context.save_for_backward(*pull, *(part for more in kept for part in more))
        return weight.reshape(free.shape)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, others, goals, share, *kept = context.saved_tensors
        gradient = gradients[0].reshape(-1)
        pulled = _pull(gradient, own, others, goals, share)
        for held, count in zip(context.sets, context.counts, strict=True):
            held.put(pulled, held.project_gradient(held.of(gradient), tuple(kept[:count])))
            del kept[:count]
        return (pulled.reshape(gradients[0].shape), *(None,) * 7)


class _Stretch(torch.autograd.Function):
    """Scale each held kernel; its scale's gradient is <g, w0> / ||w0||^2."""

    @staticmethod
    def forward(context: Any, scale: Tensor, free: Tensor, cells: int, *fixed: Tensor) -> Tensor:
        frozen, loose, kernel, *_ = fixed
        context.cells = cells
        context.save_for_backward(frozen, loose, *fixed[3:])
        scales = scale.index_select(0, kernel).repeat_interleave(cells)  # a third of the time of broadcasting
        kernels = scales.mul_(frozen).reshape(-1, cells)
        kernels.index_copy_(0, loose, free.reshape(-1, cells).index_select(0, loose))
        return kernels.reshape(free.shape)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        frozen, loose, rows, size = context.saved_tensors
        gradient = gradients[0].reshape(-1)
        with torch.autocast(gradient.device.type, enabled=False):  # it would round a product with ones, too
            products = (gradient * frozen).reshape(-1, context.cells)
            along = products.mv(products.new_ones(context.cells))  # four times as fast as sum(1)
        kernels = gradient.reshape(-1, context.cells)
        passed = torch.zeros_like(kernels).index_copy_(0, loose, kernels.index_select(0, loose))
        return along.index_select(0, rows) / size, passed.reshape(gradients[0].shape), *(None,) * 6
