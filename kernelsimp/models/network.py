"""A checkpoint together with its kernels and the module that runs it: what every command opens first."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.architectures import (
    build_model,
    fit,
    is_pretrained_name,
    load_pretrained,
    load_weights,
)
from kernelsimp.models.checkpoint import Checkpoint, load_checkpoint
from kernelsimp.models.layers import bank_from_checkpoint, bank_from_model, check_weights
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher


@dataclass(frozen=True, eq=False)
class Network:
    """A checkpoint, its kernels, and how to build the module that runs it, where `arch` says."""

    checkpoint: Checkpoint
    bank: KernelBank
    arch: str | None
    device: torch.device

    def module(self) -> nn.Module:
        """Build the network with these weights, in evaluation mode."""
        if self.arch is None:
            raise KernelsimpError(f"{self.checkpoint.path}: running it needs the network: pass --arch")
        model = build_model(self.arch)
        load_weights(model, self.checkpoint)
        return model.eval().to(self.device)

    def with_weights(self, changed: Mapping[str, Tensor]) -> "Network":
        """Return the network with some tensors replaced, cast to the checkpoint's dtypes.

        Tensors that the checkpoint does not have (counters that old files lack) are left out.
        """
        known = {name: value for name, value in changed.items() if name in self.checkpoint.tensors}
        checkpoint = self.checkpoint.with_tensors(known)
        return replace(self, checkpoint=checkpoint, bank=bank_of(checkpoint, self.arch))


def open_network(path: Path, settings: Settings, watcher: Watcher = SILENT) -> Network:
    """Load the checkpoint and find its kernels; with an architecture, make sure that they belong together.

    `path` may be the name of a published network, `torchvision:resnet18`. Raises `KernelsimpError` for
    anything that cannot be read, does not fit, or holds NaN.
    """
    checkpoint, arch = load_any(path, settings)
    bank = bank_of(checkpoint, arch)
    check_weights(bank)
    for warning in (*checkpoint.warnings, *bank.warnings):
        watcher.warn(warning)
    return Network(checkpoint, bank, arch, device_of(settings))


def load_any(path: Path, settings: Settings) -> tuple[Checkpoint, str | None]:
    """Return the checkpoint, narrowed to the network where there is one, and its architecture."""
    if is_pretrained_name(str(path)) and not path.exists():
        return load_pretrained(str(path))[1], str(path)
    checkpoint, arch = load_checkpoint(path, settings.model), settings.model.arch
    return (fit(build_model(arch), checkpoint) if arch else checkpoint), arch


def bank_of(checkpoint: Checkpoint, arch: str | None) -> KernelBank:
    """Return the kernels of a checkpoint, with exact layer kinds where there is an architecture."""
    if arch is None:
        return bank_from_checkpoint(checkpoint)
    model = build_model(arch)
    load_weights(model, checkpoint)
    return bank_from_model(model, checkpoint.tensors)


def device_of(settings: Settings) -> torch.device:
    """Return the device to run on; 'auto' is a GPU where there is one."""
    name = settings.run.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise KernelsimpError(f"--device is '{name}'; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise KernelsimpError(f"--device {name}: no CUDA device is available here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise KernelsimpError(
            f"--device {name}: {torch.cuda.device_count()} CUDA devices are here, from cuda:0"
        )
    return device
