"""What every layer of a network costs, how wide it is, and what a cheaper one would cost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kernelsimp.analysis.alternatives import Layer, alternatives
from kernelsimp.analysis.ranks import weight_rank
from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.models.footprint import Footprint, Footprints
from kernelsimp.records.audit import ActivationRank, Audit, LayerAudit, Totals
from kernelsimp.settings import AuditSettings

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class AuditedNetwork:
    """A network under audit: its kernels, and every tensor of its checkpoint by name.

    `linear` are the weights (out, in) of linear layers, where the architecture tells them from other
    matrices; `maps` and `activations` are there where the network could be run.
    """

    bank: KernelBank
    tensors: Mapping[str, Tensor]
    linear: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Footprints | None = None
    activations: Mapping[str, ActivationRank] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """How many numbers are trained: everything but running statistics, a shared tensor once."""
        seen = {
            tensor.data_ptr(): tensor.numel()
            for name, tensor in self.tensors.items()
            if tensor.is_floating_point() and not name.endswith(STATISTICS)
        }
        return sum(seen.values())


def audit(
    subject: AuditedNetwork, settings: AuditSettings, source: Mapping[str, Any], notes: tuple[str, ...] = ()
) -> Audit:
    """Return one row a layer; raises `KernelsimpError` for a bottleneck or groups below 1."""
    for name in ("bottleneck", "groups"):
        if getattr(settings, name) < 1:
            raise KernelsimpError(f"--{name} is {getattr(settings, name)}; expected 1 or more")
    layers = tuple(_rows(subject, settings))
    maps = subject.maps
    totals = Totals(len(layers), subject.parameters, maps.macs if maps else None)
    return Audit(source, maps.shape if maps else None, totals, layers, notes)


def _rows(subject: AuditedNetwork, settings: AuditSettings) -> Iterator[LayerAudit]:
    """Yield convolutions and linear layers, in the order of the network's pass where it is known."""
    found = {layer.name: _convolution(subject, layer, settings) for layer in subject.bank.layers}
    found |= {name: _linear(subject, name, settings) for name in subject.linear}
    order = list(subject.maps.layers) if subject.maps else []
    yield from (found[name] for name in dict.fromkeys([*order, *found]) if name in found)


def _convolution(subject: AuditedNetwork, layer: LayerKernels, settings: AuditSettings) -> LayerAudit:
    maps = _maps(subject, layer.name)
    outputs, inputs = len(layer.kernels), layer.kernels.shape[1] * layer.groups
    shape = Layer(layer.grid, inputs, outputs, layer.groups, maps, layer.kind == "transposed")
    return _row(subject, (layer.name, layer.kind, layer.kernels), shape, settings)


def _linear(subject: AuditedNetwork, name: str, settings: AuditSettings) -> LayerAudit:
    weight = subject.linear[name]
    shape = Layer((1, 1), weight.shape[1], weight.shape[0], maps=_maps(subject, name))
    return _row(subject, (name, "linear", weight), shape, settings)


def _row(
    subject: AuditedNetwork, what: tuple[str, str, Tensor], shape: Layer, settings: AuditSettings
) -> LayerAudit:
    name, kind, weight = what
    bias = subject.tensors.get(f"{name}.bias" if name else "bias")
    parameters = weight.numel() + (bias.numel() if bias is not None else 0)
    maps, patch = shape.maps, shape.cells * shape.inputs // shape.groups
    total = subject.maps.macs if subject.maps else 0
    return LayerAudit(
        name=name,
        kind=kind,
        weight_shape=tuple(weight.shape),
        kernel=shape.kernel,
        groups=shape.groups,
        parameters=parameters,
        parameter_share=parameters / max(subject.parameters, 1),
        macs=maps.macs if maps else None,
        mac_share=maps.macs / total if maps and total else None,
        size_in=maps.sides_in if maps else None,
        size_out=maps.sides_out if maps else None,
        patch=patch,
        expansion=shape.outputs / shape.groups / patch,
        weight_rank=weight_rank(weight),
        activations=subject.activations.get(name),
        receptive_field=maps.receptive_field if maps and kind != "linear" else None,
        alternatives=() if kind == "linear" else alternatives(shape, settings),
    )


def _maps(subject: AuditedNetwork, name: str) -> Footprint | None:
    return subject.maps.layers.get(name) if subject.maps else None
