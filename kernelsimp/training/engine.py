"""The only place that knows Lightning Fabric: devices, processes and precision behind a few calls.

One device never calls `launch()`: that would start the command again. What ranks exchange are means:
batch-norm statistics are averaged once an epoch, gradients at every step.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from kernelsimp.errors import KernelsimpError
from kernelsimp.float32 import tf32
from kernelsimp.settings import FinetuneSettings
from kernelsimp.training.options import PRECISIONS, check_precision
from kernelsimp.training.ranks import processes


class Engine:
    """One process of a run, on its device, with one precision."""

    def __init__(self, device: str, settings: FinetuneSettings) -> None:
        """Choose the device (`auto`, `cpu`, `cuda` or `cuda:N`) and start or join the other processes.

        Raises `KernelsimpError` for a device that is not there or a precision it cannot do.
        """
        devices, nodes = processes(settings)
        accelerator, index = _device(device, devices)
        check_precision(settings.precision, accelerator)
        several = devices * nodes > 1
        strategy: str | Strategy = DDPStrategy(**_own_buffers()) if several else "auto"
        self._products = tf32 if settings.precision == "tf32" else nullcontext
        with _quiet():
            self.fabric = Fabric(
                accelerator=accelerator,
                devices=devices if several or index is None else [index],
                num_nodes=nodes,
                strategy=strategy,
                precision=PRECISIONS[settings.precision],  # type: ignore[arg-type]
            )
            if several:
                self.fabric.launch()

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def shard(self) -> tuple[int, int]:
        """This process's (rank, number of processes)."""
        return self.fabric.global_rank, self.fabric.world_size

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.fabric.is_global_zero

    def setup(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Move `model` to the device, in place, and return what to call and what to step."""
        wrapped, stepper = self.fabric.setup(model, optimizer)
        return wrapped, stepper

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which a network that was not set up runs in this precision."""
        return self.fabric.autocast()

    @contextmanager
    def passing(self, model: nn.Module, *, waiting: bool) -> Iterator[None]:
        """Have a batch pass in this precision; gradients stay with this rank while its step is `waiting`."""
        with self._products(), self.fabric.no_backward_sync(model, enabled=waiting):  # type: ignore[arg-type]
            yield

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def clip(self, model: nn.Module, optimizer: Optimizer, norm: float) -> None:
        """Scale all gradients so that together their norm is at most `norm`."""
        # a gradient of NaN is met as a loss of NaN one step later, with the last good state at hand
        self.fabric.clip_gradients(model, optimizer, max_norm=norm, error_if_nonfinite=False)

    def mean(self, value: float) -> float:
        """Return the mean of a number over ranks."""
        if self.shard[1] == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        reduced = self.fabric.all_reduce(tensor, reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return float(reduced)

    def even_out(self, model: nn.Module) -> None:
        """Make batch-norm statistics the mean over ranks, so that every rank has the same network."""
        if self.shard[1] == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for value in (module.running_mean, module.running_var):
                    if value is not None:
                        mean = self.fabric.all_reduce(value, reduce_op="mean")
                        assert isinstance(mean, Tensor)
                        value.copy_(mean)

    def state(self) -> dict[str, Any]:
        """Return what precision carries from step to step: the loss scale of 16-mixed."""
        return dict(self.fabric._precision.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        self.fabric._precision.load_state_dict(state)


def _device(name: str, wanted: int) -> tuple[str, int | None]:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return "cpu", None
    if kind != "cuda" or (index and not index.isdigit()):
        raise KernelsimpError(f"unknown device '{name}'; expected auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise KernelsimpError(f"device '{name}' is not there: {count} CUDA devices found; use --device auto")
    if wanted > count:
        raise KernelsimpError(
            f"--devices {wanted}: {count} CUDA devices found; ask for fewer, or --device cpu"
        )
    if wanted > 1 and index:
        raise KernelsimpError(
            f"--device {name} is one device, --devices {wanted} are several; pass --device cuda"
        )
    return "cuda", int(index or 0)


def _own_buffers() -> dict[str, Any]:
    """Return the option under which buffers stay each rank's own: `even_out` averages, holds never differ."""
    known = signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its old name
    return {name: False}


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
