"""What a checkpoint means, whatever file it stands in: a digest of its tensors, and their shapes in words."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names and bytes of tensors, in order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return each tensor's shape and dtype in words by its name: `64x3x7x7 float32`, `scalar int64`."""
    return {name: _words(tensor) for name, tensor in tensors.items()}


def _words(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"
