"""A checkpoint together with its kernels and the module that runs it: what every command opens first."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    unwrap,
)
from kernelsimp.models.checkpoint import Checkpoint, checkpoint_in_memory, load_checkpoint
from kernelsimp.models.layers import bank_from_checkpoint, bank_from_model, check_weights, tied_names
from kernelsimp.models.outputs import keep_output
from kernelsimp.models.reparametrised import plain_copy
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher


@dataclass(frozen=True, eq=False)
class Network:
    """A checkpoint, its kernels, and the module that runs it: `prototype`, or what `arch` builds.

    With neither, there are weights alone and nothing runs. `output` names the only output that counts.
    """

    checkpoint: Checkpoint
    bank: KernelBank
    arch: str | None
    device: torch.device
    prototype: nn.Module | None = field(default=None, repr=False)
    output: str | None = None

    @property
    def runs(self) -> bool:
        """Whether there is a module that runs these weights."""
        return self.arch is not None or self.prototype is not None

    def empty_module(self) -> nn.Module:
        """Build the network on the CPU with whatever weights it comes with."""
        if self.prototype is not None:
            return copy.deepcopy(self.prototype)
        if self.arch is None:
            raise KernelsimpError(f"{self.checkpoint.path}: running it needs the network: pass --arch")
        return keep_output(build_model(self.arch), self.output)

    def module(self) -> nn.Module:
        """Build the network with these weights, in evaluation mode."""
        model = self.empty_module()
        load_weights(model, self.checkpoint)
        return model.eval().to(self.device)

    def with_weights(self, changed: Mapping[str, Tensor]) -> "Network":
        """Return the network with some tensors replaced, cast to the checkpoint's dtypes.

        Tensors that the checkpoint does not have (counters that old files lack) are left out.
        """
        known = {name: value for name, value in changed.items() if name in self.checkpoint.tensors}
        checkpoint = self.checkpoint.with_tensors(known)
        return replace(self, checkpoint=checkpoint, bank=_bank(checkpoint, self))


def open_network(path: Path, settings: Settings, watcher: Watcher = SILENT) -> Network:
    """Load the checkpoint and find its kernels; with an architecture, make sure that they belong together.

    `path` may be the name of a published network, `torchvision:resnet18`. Raises `KernelsimpError` for
    anything that cannot be read, does not fit, or holds NaN.
    """
    checkpoint, arch = load_any(path, settings)
    bare = Network(checkpoint, KernelBank(()), arch, device_of(settings), output=settings.model.output)
    return _checked(bare, watcher)


def network_in_memory(
    source: nn.Module | Mapping[str, Tensor], device: torch.device, watcher: Watcher = SILENT
) -> Network:
    """Return a module, or the weights of one, as a network; neither is changed, whatever becomes of it.

    Raises `KernelsimpError` for NaN, and where there is no convolution.
    """
    if not isinstance(source, nn.Module):
        checkpoint = checkpoint_in_memory(source, "the state dict")
        return _checked(Network(checkpoint, KernelBank(()), None, device), watcher)
    model = unwrap(source)
    name = type(model).__name__
    prototype = plain_copy(model)
    checkpoint = replace(checkpoint_in_memory(model.state_dict(), name), ties=tied_names(prototype))
    return _checked(Network(checkpoint, KernelBank(()), None, device, prototype), watcher)


def _checked(network: Network, watcher: Watcher) -> Network:
    """Return the network with its kernels, of which none is NaN; what is doubtful is warned of."""
    bank = _bank(network.checkpoint, network)
    check_weights(bank)
    for warning in (*network.checkpoint.warnings, *bank.warnings):
        watcher.warn(warning)
    return replace(network, bank=bank)


def load_any(path: Path, settings: Settings) -> tuple[Checkpoint, str | None]:
    """Return the checkpoint, narrowed to the network where there is one, and its architecture."""
    if is_pretrained_name(str(path)) and not path.exists():
        return load_pretrained(str(path))[1], str(path)
    checkpoint, arch = load_checkpoint(path, settings.model), settings.model.arch
    return (fit(build_model(arch), checkpoint) if arch else checkpoint), arch


def _bank(checkpoint: Checkpoint, network: Network) -> KernelBank:
    """Return the kernels of a checkpoint, with exact layer kinds where there is a module."""
    if not network.runs:
        return bank_from_checkpoint(checkpoint)
    model = network.empty_module()
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
