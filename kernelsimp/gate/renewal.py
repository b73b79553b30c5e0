"""The baseline of a network as it is: what `--update-baseline` writes, and the network itself then passes."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kernelsimp.evaluation.accuracy import stage as stage_of
from kernelsimp.gate.gate import CheckedNetwork
from kernelsimp.gate.kernels import (
    Held,
    broken_kernels,
    canonical_shape,
    from_tensors,
    frozen_kernels,
    held_layer,
    zeroed_layers,
)
from kernelsimp.gate.measures import figures
from kernelsimp.gate.sound import UNSEEN
from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.kernels.structures import drawn_kernels
from kernelsimp.models.digest import describe_tensors
from kernelsimp.models.layers import tensor_name
from kernelsimp.records.held import HeldLayer, encode_assignment, encode_shapes, hold_layer
from kernelsimp.records.limits import Baseline, BaselineLayer


def baseline_from(subject: CheckedNetwork, source: Baseline | None = None) -> Baseline:
    """Return a baseline of the network as it is, so that the network passes against it.

    Structures that `source` declares stay declared where a kernel still has its own; checksums, figures and
    accuracy are made new. Without a source every kernel is free.
    """
    base = source or Baseline(("free",), (), held=False)
    base = replace(
        base,
        layers=_layers(base, subject),
        tensors=describe_tensors(subject.tensors),
        beside={place: item.words for place, item in subject.beside.items() if not item.training},
    )
    kernels = from_tensors(base, subject.tensors)
    zeroed = sum(1.0 for _ in zeroed_layers(base, kernels))
    counted = {"layers.zeroed": zeroed, **({UNSEEN: float(len(subject.unseen))} if subject.unseen else {})}
    base = replace(base, measured={**figures(base, kernels), **counted})
    if subject.outcome is None:
        return base
    stages = (stage_of("baseline", subject.outcome),)
    return replace(base, stages=stages, data_fingerprint=subject.fingerprint)


def _layers(source: Baseline, subject: CheckedNetwork) -> tuple[BaselineLayer, ...]:
    """Return the layers that are here: those of the source renewed, others with every kernel free."""
    tensors = subject.tensors
    kernels = from_tensors(source, tensors)
    known = {
        layer.name: _renew_layer(source, layer, kernels[layer.name])
        for layer in source.layers
        if layer.name in kernels and tuple(kernels[layer.name].shape) == canonical_shape(layer)
    }
    fresh = {layer.name: _free(layer, tensors) for layer in subject.spatial if layer.name not in known}
    return tuple(sorted((*known.values(), *fresh.values()), key=lambda layer: layer.name))


def _free(layer: LayerKernels, tensors: Mapping[str, Tensor]) -> BaselineLayer:
    choice = np.zeros(tuple(layer.kernels.shape[:2]), dtype=np.int16)
    shape = tuple(tensors[tensor_name(layer.name)].shape)
    return BaselineLayer(
        layer.name, layer.kind, layer.groups, shape, HeldLayer(encode_assignment(choice), (), "")
    )


def _renew_layer(source: Baseline, layer: BaselineLayer, kernels: Tensor) -> BaselineLayer:
    """Return a layer with the structures that its kernels still have, and the checksums they have now."""
    held = held_layer(source, layer, kernels)
    gone = held.bad | (broken_kernels(held, source.structures) if source.held else held.bad)
    frozen = frozen_kernels(held, source.structures) & ~gone
    now = replace(held, choice=np.where(gone, 0, held.choice).astype(np.int16))
    stored = now.kernels.contiguous().view(torch.uint8).reshape(now.choice.size, -1).numpy()
    hold = hold_layer(now.choice, stored, frozen=False, kept=frozen)
    digest = hold.sha256 if hold.frozen_crc32 else ""
    return replace(layer, hold=replace(hold, sha256=digest, shapes=_shapes(source, now)))


def _shapes(source: Baseline, held: Held) -> str:
    if held.shapes is None:
        return ""
    drawn, wide = drawn_kernels(held.choice, source.structures, held.kernels.shape[2:])
    return encode_shapes(held.shapes[drawn][:, :wide]) if drawn.any() else ""
