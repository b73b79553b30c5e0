"""How tensors stand in memory: what has no numbers is refused, what repeats few numbers is written out.

A file of a kilobyte may hold a tensor of gigabytes that is one number seen through steps of zero.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kernelsimp.errors import CheckpointError

MOST_REPEATED = 1 << 26
"""Bytes up to which repeated numbers are written out; beyond, only up to 64 times what is stored."""


def tensors_with_numbers(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors with those that repeat their numbers (steps of zero) written out.

    Raises `CheckpointError` for a tensor without numbers (device meta), and for one that would be huge.
    """
    return {name: _with_numbers(name, tensor, path) for name, tensor in tensors.items()}


def unreal(tensor: Tensor) -> str:
    """Say why a tensor's numbers cannot be read as kernels: its layout, its dtype, or that there are none."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized:
        return f"quantised ({kind}): expected real numbers; save it with .dequantize()"
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.").removesuffix("_coo").replace("_", " ")
        return f"stored {layout}: expected plain numbers; save it with .to_dense()"
    if not tensor.is_floating_point():
        return f"{tensor.ndim}-D, but of {kind}: expected real numbers"
    return "" if tensor.numel() else f"empty: {tuple(tensor.shape)}"


def _with_numbers(name: str, tensor: Tensor, path: Path) -> Tensor:
    if tensor.is_meta:
        advice = "save the network once its weights are loaded"
        raise CheckpointError(f"{path}: '{name}' is on the device meta, a shape without numbers; {advice}")
    if tensor.layout != torch.strided or tensor.is_quantized or 0 not in tensor.stride():
        return tensor
    stored = math.prod(size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
    if stored == tensor.numel():
        return tensor
    size = tensor.numel() * tensor.element_size()
    if size > max(MOST_REPEATED, 64 * stored * tensor.element_size()):
        shape = "x".join(map(str, tensor.shape))
        raise CheckpointError(
            f"{path}: '{name}' ({shape} {str(tensor.dtype).removeprefix('torch.')}) repeats {stored} numbers "
            f"to {size / 1e9:.3g} GB; save the tensor that was expanded"
        )
    return tensor.contiguous()
