"""The only place that knows Lightning Fabric: devices, processes and precision behind a few calls.

One device never calls `launch()`: that would start the command again. Quantities that ranks exchange are
means over ranks.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from kernelsimp.errors import KernelsimpError, did_you_mean

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Engine:
    """One device with one precision; `model` and `optimizer` are set up once, by `setup`."""

    def __init__(self, device: str, precision: str) -> None:
        """Choose the device: `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises `KernelsimpError` for a device that is not there or a precision it cannot do.
        """
        accelerator, index = _device(device)
        if precision not in PRECISIONS:
            raise KernelsimpError(f"unknown precision '{precision}'{did_you_mean(precision, PRECISIONS)}")
        if precision == "16-mixed" and accelerator == "cpu":
            raise KernelsimpError("precision 16-mixed needs a GPU; on the CPU use bf16-mixed or 32-true")
        with _quiet():
            self.fabric = Fabric(accelerator=accelerator, devices=index, precision=precision)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    def setup(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Move `model` to the device, in place, and return what to call and what to step."""
        wrapped, stepper = self.fabric.setup(model, optimizer)
        return wrapped, stepper

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which a network that was not set up runs in this precision."""
        return self.fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def clip(self, model: nn.Module, optimizer: Optimizer, norm: float) -> None:
        """Scale all gradients so that together their norm is at most `norm`."""
        # a gradient of NaN is met as a loss of NaN one step later, with the last good state at hand
        self.fabric.clip_gradients(model, optimizer, max_norm=norm, error_if_nonfinite=False)


def _device(name: str) -> tuple[str, list[int] | int]:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return "cpu", 1
    if kind != "cuda" or (index and not index.isdigit()):
        raise KernelsimpError(f"unknown device '{name}'; expected auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise KernelsimpError(f"device '{name}' is not there: {count} CUDA devices found; use --device auto")
    return "cuda", [int(index or 0)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Fabric's own announcements off stderr: only the command line talks."""
    log = logging.getLogger("lightning_fabric")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
