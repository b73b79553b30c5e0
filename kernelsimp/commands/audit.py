"""The audit: what every layer of a network costs, and what a cheaper one would cost."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from kernelsimp.analysis.audit import AuditedNetwork
from kernelsimp.analysis.audit import audit as audit_of
from kernelsimp.analysis.ranks import activation_ranks
from kernelsimp.commands.inputs import batches_of, open_data
from kernelsimp.data.sources import Data
from kernelsimp.models.architectures import build_model, recipe_of
from kernelsimp.models.footprint import Footprints, costed_modules, footprints
from kernelsimp.models.layers import tensor_name
from kernelsimp.models.network import Network, open_network
from kernelsimp.records.audit import ActivationRank, Audit
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT, Watcher

SIDES = {"cifar10-resnet": 32, "digits": 8}
"""The side of the images that a zoo network was made for, by the recipe that it brings along."""

UNKNOWN = "MACs, sizes of maps and receptive fields are unknown"


def audit(path: Path, settings: Settings, watcher: Watcher = SILENT) -> Audit:
    """Return what every layer costs; sizes need an architecture, ranks of outputs also images.

    Raises `KernelsimpError` for bad input and where the network refuses images of this size.
    """
    network = open_network(path, settings, watcher)
    data = open_data(settings, watcher)
    maps, note = _maps(network, data, settings)
    modules = costed_modules(network.module()) if network.arch else {}
    subject = AuditedNetwork(
        network.bank,
        network.checkpoint.tensors,
        {
            name: network.checkpoint.tensors[tensor_name(name)]
            for name, module in modules.items()
            if isinstance(module, nn.Linear)
        },
        maps,
        _activations(network, data, settings, watcher),
    )
    source = {"path": str(path), "sha256": network.checkpoint.sha256, "arch": network.arch}
    return audit_of(subject, settings.audit, source, note)


def _maps(
    network: Network, data: Data | None, settings: Settings
) -> tuple[Footprints | None, tuple[str, ...]]:
    """Return sizes and MACs, or None with a sentence on what they need."""
    arch = network.arch
    if arch is None:
        return None, (f"{UNKNOWN}: weights alone do not tell them; pass --arch",)
    shape = input_shape(network, data, settings)
    if shape is None:
        return None, (f"{UNKNOWN}: pass --input-size, or --data",)
    return footprints(lambda: build_model(arch), shape), ()


def input_shape(network: Network, data: Data | None, settings: Settings) -> tuple[int, ...] | None:
    """Return (channels, height, width) of an image: from the images, the settings or the network's recipe."""
    if data is not None:
        return tuple(data.test[0][0].shape)
    recipe = recipe_of(network.arch) if network.arch else None
    side = settings.data.crop or settings.data.input_size or SIDES.get(recipe or "")
    if side is None:
        return None
    first = network.bank.layers[0]
    return (int(settings.data.channels or first.kernels.shape[1] * first.groups), side, side)


def _activations(
    network: Network, data: Data | None, settings: Settings, watcher: Watcher
) -> Mapping[str, ActivationRank]:
    """Return the ranks of every layer's outputs on the calibration images, where there are images."""
    if data is None:
        return {}
    images = data.calibration(settings.data.calibration, settings.run.seed)
    watcher.start("ranks of outputs")
    model = network.module()
    inputs = (batch.to(network.device) for batch, _ in batches_of(images, settings))
    return activation_ranks(model, costed_modules(model), inputs, settings.run.seed)
