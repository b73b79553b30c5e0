"""What it costs to replace a kernel: costs of its error e = w - Pw, one row of the table each.

Errors are (groups, filters, in, cells): filter o of group g sees the input channels of its group. The
costs differ in unit, and each gets its own multiplier; only `filter` predicts a loss, as half of it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.solver.candidates import Structure, rows_of_layer
from kernelsimp.solver.fisher import Sensitivity

Cost = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(errors, blocks (groups, in, cells, cells), fisher (groups, filters)) -> (groups, filters, in)."""


def _absolute(errors: Tensor, _: Tensor, __: Tensor) -> Tensor:
    return errors.square().sum(-1)


def _layer(errors: Tensor, blocks: Tensor, fisher: Tensor) -> Tensor:
    return fisher.mean() * _energy(errors, blocks)


def _filter(errors: Tensor, blocks: Tensor, fisher: Tensor) -> Tensor:
    return fisher[:, :, None] * _energy(errors, blocks)


def _mixed_cost(errors: Tensor, blocks: Tensor, fisher: Tensor) -> Tensor:
    weighted = fisher.mean() * _energy(errors, blocks).clamp_min(0)
    return (errors.square().sum(-1) * weighted).sqrt()


def _energy(errors: Tensor, blocks: Tensor) -> Tensor:
    """Return e'H_jj e."""
    return (torch.einsum("goid,gide->goie", errors, blocks) * errors).sum(-1)


COSTS: Mapping[str, Cost] = {"absolute": _absolute, "layer": _layer, "filter": _filter, "mixed": _mixed_cost}
"""`absolute`: ||e||^2, the same unit in every layer: measured on a ResNet, scaling it by the mean of diag H
spares the layers with strong inputs and empties the others, and loses most of the accuracy. `layer`:
g e'H_jj e, g the layer's mean Fisher; `filter`: g_o e'H_jj e. `mixed` is the geometric mean of the first
two: by KL on unseen images the best of the four on that ResNet, at 24, 29 and 39 % of its DOF."""

DEPTHWISE = "depthwise"

BY_KIND = "kind"
"""The cost that suits each kind of layer: `kernel` for depthwise ones, `absolute` for the others."""

BY_KERNEL = "kernel"
"""The least u'F u over what is left of w - u, u in the structure, F the Fisher information of this kernel:
what the loss minds once the rest of the kernel has been fitted again. In EfficientNet-Lite0 it halves the KL
that `filter` leaves at 40 % of the DOF."""

DAMPING = 0.01
"""What is added to F, in units of the mean of diag F over the layer."""

NEEDS_IMAGES = ("layer", "filter", "mixed", BY_KIND)


def check_cost(name: str) -> None:
    """Raise `KernelsimpError` unless `name` is a cost or 'auto'."""
    known = [*COSTS, BY_KIND, "auto"]
    if name not in known:
        raise KernelsimpError(f"--cost is '{name}'{did_you_mean(name, known)}")


def costs_to_try(kinds: Collection[str]) -> tuple[str, ...]:
    """Return what `auto` tries on layers of these kinds; depthwise ones get a cost of their own."""
    return (BY_KIND, "filter", "mixed") if DEPTHWISE in kinds and len(set(kinds)) > 1 else tuple(COSTS)


def cost_of(layer: LayerKernels, name: str) -> str:
    """Return the name of the cost that stands for `name` at this layer."""
    if name != BY_KIND:
        return name
    return BY_KERNEL if layer.kind == DEPTHWISE else "absolute"


def exchange_rate(layers: Iterable[LayerKernels], seen: Mapping[str, Sensitivity]) -> float:
    """Return what an absolute error of one costs in the unit of `filter`, over layers that are not depthwise.

    It is the cost of taking out all their kernels the one way over that the other way.
    """
    absolute = informed = 0.0
    for layer in layers:
        if layer.kind != DEPTHWISE and layer.name in seen:
            kernels = rows_of_layer(layer)
            absolute += float(kernels.square().sum())
            informed += 2 * predicted_loss(layer, kernels, seen[layer.name])
    return informed / absolute if absolute > 0 and informed > 0 else 1.0


def cost_table(
    layer: LayerKernels, offer: Sequence[Structure], seen: Sensitivity | None, name: str
) -> Tensor:
    """Return what each structure costs each kernel, (kernels, structures), float32.

    Without a sensitivity (no images, or a layer they never reach) inputs count as white and outputs alike.
    """
    if name == BY_KERNEL and seen is not None and seen.kernels is not None:
        return _kernel_table(layer, offer, seen.kernels)
    kernels = rows_of_layer(layer)
    blocks, fisher = _metric(layer, seen)
    formula = COSTS["filter" if name == BY_KERNEL else name]
    table = torch.empty(layer.count, len(offer))
    for place, candidate in enumerate(offer):
        errors = _by_filter(candidate.errors(kernels), layer)
        table[:, place] = formula(errors, blocks, fisher).reshape(-1)
    return table


def _kernel_table(layer: LayerKernels, offer: Sequence[Structure], information: Tensor) -> Tensor:
    """Return the cost of each structure at the member of it that the loss minds least."""
    kernels = rows_of_layer(layer)
    metric = information + DAMPING * information.diagonal(dim1=1, dim2=2).mean() * torch.eye(kernels.shape[1])
    slopes = (metric @ kernels[:, :, None])[:, :, 0]
    whole = (slopes * kernels).sum(1)
    table = torch.zeros(layer.count, len(offer))
    for place, candidate in enumerate(offer):
        flats = candidate.projectors(kernels)
        if flats is not None:
            gained = _within if flats.ndim == 2 else _within_own
            table[:, place] = (whole - gained(metric, slopes, flats)).clamp_min(0)
    return table


def _within(metric: Tensor, slopes: Tensor, flat: Tensor) -> Tensor:
    """Return what one flat (cells, cells) takes up of w'Fw: s'U(U'FU)^-1 U's, s = Fw, U its basis."""
    values, vectors = torch.linalg.eigh(flat)
    basis: Tensor = vectors[:, values > 0.5]
    seen: Tensor = slopes @ basis
    solved: Tensor = torch.linalg.solve(basis.mT @ metric @ basis, seen)
    return (seen * solved).sum(1)


def _within_own(metric: Tensor, slopes: Tensor, flats: Tensor) -> Tensor:
    """Return the same where every kernel has its own flat (n, cells, cells), of any dimension."""
    beside = torch.eye(flats.shape[-1], dtype=flats.dtype) - flats
    level = metric.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp_min(1e-300)
    seen = (flats @ slopes[:, :, None])[:, :, 0]
    solved: Tensor = torch.linalg.solve(flats @ metric @ flats + level * beside, seen)
    return (seen * solved).sum(1)


def predicted_loss(layer: LayerKernels, errors: Tensor, seen: Sensitivity | None) -> float:
    """Return half the sum of e'F e, or of g_o e'H_jj e, over kernels with these errors (n, cells): nats."""
    if seen is None:
        return 0.0
    if seen.kernels is not None:
        return 0.5 * float(((errors[:, None] @ seen.kernels)[:, 0] * errors).sum())
    blocks, fisher = _metric(layer, seen)
    return 0.5 * float(_filter(_by_filter(errors, layer), blocks, fisher).sum())


def input_energy(layer: LayerKernels, kernels: Tensor, seen: Sensitivity | None) -> Tensor:
    """Return w'H_jj w of kernels (n, cells), (n,): the mean square of what each adds to its output."""
    blocks, _ = _metric(layer, seen)
    return _energy(_by_filter(kernels, layer), blocks).reshape(-1).clamp_min(0)


def _metric(layer: LayerKernels, seen: Sensitivity | None) -> tuple[Tensor, Tensor]:
    """Return blocks (groups, in, cells, cells) and fisher (groups, filters)."""
    inputs, cells = layer.kernels.shape[1], layer.kernels[0, 0].numel()
    if seen is None:
        one = torch.eye(cells, dtype=torch.float64).expand(layer.groups, inputs, cells, cells)
        return one, torch.ones(layer.groups, len(layer.kernels) // layer.groups, dtype=torch.float64)
    blocks = seen.blocks.reshape(layer.groups, inputs, cells, cells)
    return blocks, seen.fisher.reshape(layer.groups, -1)


def _by_filter(errors: Tensor, layer: LayerKernels) -> Tensor:
    """Return errors (kernels, cells) as (groups, filters, in, cells)."""
    return errors.reshape(layer.groups, -1, layer.kernels.shape[1], errors.shape[-1])
