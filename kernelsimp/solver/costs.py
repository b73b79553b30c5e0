"""What it costs to replace a kernel: costs of its error e = w - Pw, one row of the table each.

Errors are (groups, filters, in, cells): filter o of group g sees the input channels of its group. The
costs differ in unit, and each gets its own multiplier; only `filter` predicts a loss, as half of it.
"""

from collections.abc import Callable, Mapping, Sequence

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

NEEDS_IMAGES = ("layer", "filter", "mixed")


def check_cost(name: str) -> None:
    """Raise `KernelsimpError` unless `name` is a cost or 'auto'."""
    if name != "auto" and name not in COSTS:
        raise KernelsimpError(f"--cost is '{name}'{did_you_mean(name, [*COSTS, 'auto'])}")


def cost_table(
    layer: LayerKernels, offer: Sequence[Structure], seen: Sensitivity | None, name: str
) -> Tensor:
    """Return what each structure costs each kernel, (kernels, structures), float32.

    Without a sensitivity (no images, or a layer they never reach) inputs count as white and outputs alike.
    """
    kernels = rows_of_layer(layer)
    blocks, fisher = _metric(layer, seen)
    table = torch.empty(layer.count, len(offer))
    for place, candidate in enumerate(offer):
        errors = _by_filter(candidate.errors(kernels), layer)
        table[:, place] = COSTS[name](errors, blocks, fisher).reshape(-1)
    return table


def predicted_loss(layer: LayerKernels, errors: Tensor, seen: Sensitivity | None) -> float:
    """Return half the sum of g_o e'H_jj e over kernels with these errors (n, cells): nats an image."""
    if seen is None:
        return 0.0
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
