"""What a scan opens: a checkpoint of any format, an exported network, or the name of a published one.

Kinds and strides are exact where there is a network or a graph; a file of weights alone tells neither, and
then strides are simply not known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kernelsimp.errors import CheckpointError, KernelsimpError
from kernelsimp.kernels.bank import KernelBank
from kernelsimp.models.architectures import (
    build_model,
    is_pretrained_name,
    load_pretrained,
    load_weights,
    unwrap,
)
from kernelsimp.models.checkpoint import Checkpoint, checkpoint_in_memory, load_checkpoint
from kernelsimp.models.digest import tensors_sha256
from kernelsimp.models.layers import bank_from_checkpoint, bank_from_model, conv_modules, layer_name
from kernelsimp.models.remote import fetched
from kernelsimp.models.reparametrised import plain_copy
from kernelsimp.settings import ModelSettings


@dataclass(frozen=True, eq=False)
class Scannable:
    """A bank of kernels, not looked at yet, its source, the strides where known, and remarks."""

    bank: KernelBank
    source: Mapping[str, Any]
    strides: Mapping[str, int]
    warnings: tuple[str, ...] = ()


def open_to_scan(model: Path | nn.Module | Mapping[str, Any], settings: ModelSettings) -> Scannable:
    """Open MODEL for reading its kernels: a file, a published name, a module or a state dict.

    Raises `KernelsimpError` for what cannot be read, fetched or matched to --arch or holds no convolution.
    """
    if not isinstance(model, Path):
        return _in_memory(model, settings)
    return _of_word(str(model), settings)


def open_address(address: str, settings: ModelSettings) -> Scannable:
    """Open the network at an address, `https://`, `s3://`, `hf://`..., as `open_to_scan` does a file.

    Of a safetensors file only what holds kernels is fetched, and the SHA-256 is that of the file with zeros
    for its matrices.
    """
    with fetched(address) as local:
        try:
            opened = _of_word(str(local.path), settings)
        except KernelsimpError as error:
            raise CheckpointError(str(error).replace(str(local.path), address)) from error
    warnings = tuple(words.replace(str(local.path), address) for words in opened.warnings)
    return replace(opened, source={**opened.source, "path": address}, warnings=warnings)


def _of_word(word: str, settings: ModelSettings) -> Scannable:
    path = Path(word)
    if is_pretrained_name(word):
        module, checkpoint = load_pretrained(word)
        _check_digest(checkpoint, settings.sha256)
        bank, strides = bank_from_model(module), strides_of(module)
    else:
        checkpoint = load_checkpoint(path, settings)
        bank, strides = _of_file(checkpoint, settings.arch)
    source = {"path": word, "sha256": checkpoint.sha256, "format": checkpoint.format}
    warnings = tuple(dict.fromkeys((*checkpoint.warnings, *bank.warnings)))
    return Scannable(bank, source, strides, warnings)


def _in_memory(model: nn.Module | Mapping[str, Any], settings: ModelSettings) -> Scannable:
    if isinstance(model, nn.Module):
        module = unwrap(model)
        plain, name = plain_copy(module), type(module).__name__
        bank, strides = bank_from_model(plain), strides_of(plain)
        digest = tensors_sha256({key: t for key, t in module.state_dict().items() if isinstance(t, Tensor)})
        source = {"path": name, "sha256": digest, "format": "module"}
        return Scannable(bank, source, strides, bank.warnings)
    checkpoint = checkpoint_in_memory(model, "the state dict")
    bank, strides = _of_file(checkpoint, settings.arch)
    source = {"path": str(checkpoint.path), "sha256": checkpoint.sha256, "format": "state dict"}
    return Scannable(bank, source, strides, (*checkpoint.warnings, *bank.warnings))


def strides_of(model: nn.Module) -> dict[str, int]:
    """Return the largest stride of each convolution by layer name."""
    return {name: max(getattr(module, "stride", (1,))) for name, module in conv_modules(model).items()}


def _of_file(checkpoint: Checkpoint, arch: str | None) -> tuple[KernelBank, dict[str, int]]:
    if arch is None:
        return bank_from_checkpoint(checkpoint), _strides_in(checkpoint)
    model = build_model(arch)
    load_weights(model, checkpoint)
    return bank_from_model(model), strides_of(model)


def _strides_in(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the strides that an exported graph shows, by layer name; none for a file of weights alone."""
    uses = (checkpoint.raw.convolutions if checkpoint.raw else None) or {}
    return {layer_name(name): use.stride for name, use in uses.items() if use.stride is not None}


def _check_digest(checkpoint: Checkpoint, expected: str | None) -> None:
    if expected is not None and expected.strip().lower() != checkpoint.sha256:
        raise CheckpointError(
            f"{checkpoint.path}: SHA-256 of its tensors is {checkpoint.sha256}, expected {expected}"
        )
