"""What to do about failures of a training step that are no fault of this program, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernelsimp.errors import KernelsimpError

_MEMORY = ("can't allocate memory",)
_PEERS = ("closed by peer", "reset by peer", "broken pipe", "remote process exited")
"""As gloo and NCCL put it. Their other failures are not taken for a lost process."""


@contextmanager
def advice() -> Iterator[None]:
    """Raise `KernelsimpError` with the remedy where memory runs out or another process is gone."""
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or any(word in words for word in _MEMORY):
            remedy = "lower --batch-size, and raise --accumulate by as much to keep the step the same"
            raise KernelsimpError(f"a training batch does not fit into memory; {remedy}") from error
        if any(word in words for word in _PEERS):
            remedy = "its own messages say why; the same command with --resume goes on from the last state"
            raise KernelsimpError(f"another process of this run is gone; {remedy}") from error
        raise
