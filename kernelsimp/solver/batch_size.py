"""How many images go through a network at once: one is measured, the rest is division."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.errors import KernelsimpError
from kernelsimp.memory import BESIDE, GB, Room, is_out_of_memory, used_bytes
from kernelsimp.models.hooks import Trace
from kernelsimp.solver.fisher import output_tensors, without_weight_gradients

IN_FLIGHT = 6
"""Outputs that are there at once in a backward pass beside the saved ones, each counted as the largest."""


def batch_that_fits(model: nn.Module, traced: Trace, image: Tensor, room: Room) -> int:
    """Return how many images a forward and backward pass may take at once, from one (1, C, H, W).

    Raises `KernelsimpError` where `room` does not do for one.
    """
    (each,) = BatchLimit().in_parts(lambda one: bytes_of_a_pass(model, traced, one), image)
    left = room.working(image.device)
    if each > left:
        beside = used_bytes(image.device)
        needed = (each + beside) / (1 - BESIDE)
        raise KernelsimpError(
            f"--memory {room.bytes / GB:.2g}: a backward pass of one image takes {each / GB:.2f} GB beside "
            f"the {beside / GB:.2f} GB in use; pass --memory {needed / GB + 0.05:.1f} or more, or a smaller "
            "--input-size"
        )
    return max(1, min(room.batch, left // each))


def bytes_of_a_pass(model: nn.Module, traced: Trace, image: Tensor) -> int:
    """Return the bytes that a forward and backward pass of one image (1, C, H, W) holds at its most.

    What autograd saves is counted, tensors that share memory once; what is in flight is a bound.
    """
    kept: Callable[[Any], Hashable] = StorageWeakRef
    own = {kept(item.untyped_storage()) for item in (*model.parameters(), *model.buffers())}
    saved: dict[Hashable, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = kept(storage)
        if key not in own:
            saved[key] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        forward_and_backward(model, image)
    return int(sum(saved.values()) + IN_FLIGHT * traced.largest_output) or 1


def forward_and_backward(model: nn.Module, images: Tensor) -> None:
    """Run a network both ways, as the survey does; what is wrong with it, the survey says in full."""
    with torch.enable_grad(), without_weight_gradients(model):
        try:
            tensors = output_tensors(model(images.clone().requires_grad_().clone()))
            torch.autograd.backward(tensors, [torch.ones_like(item) for item in tensors])
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
