"""What to do about failures of a training step that are no fault of this program: go on, or one line."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from kernelsimp.batch_limit import BatchLimit
from kernelsimp.errors import KernelsimpError
from kernelsimp.memory import is_out_of_memory

PART_AT_LEAST = 8
"""Images that a batch is not parted below: batch norm takes its statistics over those of a part."""

Batch = tuple[Tensor, Tensor]

_PEERS = ("closed by peer", "reset by peer", "broken pipe", "remote process exited")
"""As gloo and NCCL put it. Their other failures are not taken for a lost process."""


@contextmanager
def advice() -> Iterator[None]:
    """Raise `KernelsimpError` with the remedy where memory runs out or another process is gone."""
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        if is_out_of_memory(error):
            remedy = "lower --batch-size, and raise --accumulate by as much to keep the step the same"
            raise KernelsimpError(f"a training batch does not fit into memory; {remedy}") from error
        if any(word in words for word in _PEERS):
            remedy = "its own messages say why; the same command with --resume goes on from the last state"
            raise KernelsimpError(f"another process of this run is gone; {remedy}") from error
        raise


def in_parts(
    add: Callable[[Batch, float], Tensor],
    batches: Sequence[Batch],
    limit: BatchLimit,
    forget: Callable[[], object],
) -> Tensor:
    """Return the loss of the last batch of a step so far; `add(part, its share of the batch)` adds gradients.

    In as many parts as memory needs: where it does not do, `forget` takes back all gradients, and all batches
    of the step so far begin again in smaller parts.
    """
    *others, batch = batches

    def work(images: Tensor, labels: Tensor) -> Tensor:
        return add((images, labels), len(labels) / len(batch[1]))

    def restart() -> None:
        forget()
        for count in range(len(others)):
            in_parts(add, others[: count + 1], limit, forget)

    return torch.stack(limit.in_parts(work, *batch, restart=restart)).sum()
