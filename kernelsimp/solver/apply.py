"""Writing a plan into weights. Pure: kernels in, new stored tensors out, nothing is loaded or saved."""

import numpy as np
import torch
from torch import Tensor

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.kernels.denoisers import denoise
from kernelsimp.kernels.structures import DENOISED, find
from kernelsimp.models.layers import stored_order, tensor_name
from kernelsimp.records.plan import FREE, STRENGTH, LayerPlan, Plan


def apply_plan(bank: KernelBank, plan: Plan) -> dict[str, Tensor]:
    """Return {tensor name: new weight in its stored layout and dtype} for the layers the plan changes.

    Every chosen kernel is exactly in its family afterwards; every other kernel keeps its bits. Raises
    `KernelsimpError` where the plan was made for another network.
    """
    changed: dict[str, Tensor] = {}
    for choice in plan.layers:
        check_fits(choice, bank.by_name)
        if choice.changed.any():
            layer = bank.by_name[choice.name]
            kernels = snap_layer(layer.kernels, choice, plan.structures)
            changed[tensor_name(choice.name)] = stored_order(
                kernels, layer.kind, layer.groups, layer.weight_shape or None
            )
    return changed


def snap_layer(kernels: Tensor, layer: LayerPlan, structures: tuple[str, ...]) -> Tensor:
    """Return the original kernels (out, in / groups, *grid) as the plan makes them, without any re-solve."""
    return write_layer(denoise_kernels(kernels, layer, structures), layer, structures)


def write_layer(kernels: Tensor, layer: LayerPlan, structures: tuple[str, ...]) -> Tensor:
    """Return kernels (out, in / groups, *grid) with each chosen one written exactly into its structure.

    Denoised kernels are left as they are: they have no structure.
    """
    result = kernels.clone(memory_format=torch.contiguous_format)
    for index in np.unique(layer.choice):
        if index != FREE:
            mask = layer.choice == index
            structure = find(structures[index], layer.grid, layer.shapes(mask))
            result[torch.from_numpy(mask)] = structure.snap(kernels[torch.from_numpy(mask)])
    return result


def denoise_kernels(kernels: Tensor, layer: LayerPlan, structures: tuple[str, ...]) -> Tensor:
    """Return the original kernels (out, in / groups, *grid) with those that the plan denoises replaced.

    Each denoiser works on all its kernels of the layer at once, with the second moment of the whole layer.
    """
    names = [name for name in structures if name.startswith(DENOISED)]
    if not names:
        return kernels
    result = kernels.clone(memory_format=torch.contiguous_format)
    rows = kernels.detach().double().flatten(2).flatten(0, 1)
    moment = rows.mT @ rows / max(len(rows), 1)
    for name in names:
        mask = layer.choice == structures.index(name)
        if mask.any():
            strength = float(layer.parameters[STRENGTH].max())  # one a layer
            here = kernels[torch.from_numpy(mask)]
            made = denoise(here, name.removeprefix(DENOISED), strength, moment)
            result[torch.from_numpy(mask)] = made
    return result


def check_fits(choice: LayerPlan, layers: dict[str, LayerKernels]) -> None:
    """Raise `KernelsimpError` unless the layer that `choice` speaks of is there and has its shape."""
    layer = layers.get(choice.name)
    expected = (*choice.choice.shape, *choice.grid)
    if layer is None:
        raise KernelsimpError(f"the plan names layer '{choice.name}', which this network does not have")
    if tuple(layer.kernels.shape) != expected:
        found = tuple(layer.kernels.shape)
        raise KernelsimpError(f"{choice.name}: the plan is for kernels {expected}, this network has {found}")
