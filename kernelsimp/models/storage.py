"""How tensors stand in memory: what has no numbers is refused, what repeats few numbers is written out.

A file of a kilobyte may hold a tensor of gigabytes that is a few numbers seen through steps of zero or one,
or a thousand names of one storage: what counts is what they become, and how much is stored.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kernelsimp.errors import CheckpointError

MOST_REPEATED, MOST_TIMES = 1 << 26, 64
"""Bytes up to which repeated numbers are written out; beyond, only up to so many times what is stored."""


def tensors_with_numbers(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors with those that repeat their numbers (steps of zero) written out.

    Raises `CheckpointError` for a tensor without numbers (device meta), where one, or all together, would
    be huge beside what is stored, and for a name that no file could be written with.
    """
    for name in tensors:
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):
            raise CheckpointError(f"{path}: the name '{name}' is no Unicode text; rename that tensor")
    fresh = {name: _with_numbers(name, tensor, path) for name, tensor in tensors.items()}
    plain = [tensor for tensor in tensors.values() if _is_plain(tensor)]
    places = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in plain}
    whole, stored = sum(tensor.nbytes for tensor in plain), sum(places.values())
    if whole > max(MOST_REPEATED, MOST_TIMES * stored):
        raise CheckpointError(
            f"{path}: {len(plain):,} tensors see {stored:,} bytes as {whole / 1e9:.3g} GB; save them apart"
        )
    return fresh


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
    if not _is_plain(tensor) or not tensor.numel():
        return tensor
    held = (tensor.untyped_storage().nbytes() // tensor.element_size()) - tensor.storage_offset()
    reached = 1 + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.stride(), strict=True))
    moving = math.prod(side for side, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
    stored = min(moving, reached, held)
    if stored == tensor.numel():
        return tensor
    if tensor.nbytes > max(MOST_REPEATED, MOST_TIMES * stored * tensor.element_size()):
        what = f"{'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"
        raise CheckpointError(
            f"{path}: '{name}' ({what}) repeats {stored:,} numbers "
            f"to {tensor.nbytes / 1e9:.3g} GB; save the tensor that was expanded"
        )
    return tensor.contiguous()


def _is_plain(tensor: Tensor) -> bool:
    """Say whether a tensor is numbers in a storage, that steps lead through."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
