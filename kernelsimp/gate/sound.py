"""What a scan would refuse, and what a check cannot see: weights that cannot be real, layers that are hidden.

Layers are those of the file's graph where it has one, those that shapes show otherwise, and the baseline's.
"""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from kernelsimp.error_text import printable
from kernelsimp.errors import KernelsimpError
from kernelsimp.gate.kernels import canonical_shape
from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.models.checkpoint import Checkpoint
from kernelsimp.models.layers import bank_from_checkpoint, bank_from_tensors, layer_name, tensor_name
from kernelsimp.models.soundness import damage
from kernelsimp.records.limits import Baseline
from kernelsimp.records.verdict import Finding

UNREAL = "weights.unreal"
UNSEEN = "layers.unseen"


def graph_layers(checkpoint: Checkpoint) -> tuple[LayerKernels, ...] | None:
    """Return the layers that a file's graph shows; None where it holds weights alone."""
    if checkpoint.raw is None or checkpoint.raw.convolutions is None:
        return None
    try:
        return bank_from_checkpoint(checkpoint).layers
    except KernelsimpError:  # no convolution that can be read
        return ()


def named_as_layers(
    tensors: Mapping[str, Tensor], layers: Iterable[LayerKernels] | None
) -> Mapping[str, Tensor]:
    """Return tensors with the weights of a graph's layers under `LAYER.weight`, as every rule looks them up.

    A graph may call a weight anything.
    """
    names = {layer.name for layer in layers or ()}
    renamed = {
        name: tensor_name(layer_name(name))
        for name in tensors
        if layer_name(name) in names and tensor_name(layer_name(name)) not in tensors
    }
    return {renamed.get(name, name): tensor for name, tensor in tensors.items()}


def unreal_weights(
    baseline: Baseline,
    tensors: Mapping[str, Tensor],
    kernels: Mapping[str, Tensor],
    layers: tuple[LayerKernels, ...] | None,
    broken: set[str],
) -> Iterator[Finding]:
    """Yield a finding of `weights.unreal` for each layer that a scan refuses.

    `kernels` are the baseline's layers as they are now, canonical; `broken` names the layers and tensors of
    which another rule already says that they hold NaN or infinity.
    """
    every = {layer.name: layer for layer in _layers_of(tensors, layers)}
    for known in baseline.layers:
        here = kernels.get(known.name)
        if known.name not in every and here is not None and tuple(here.shape) == canonical_shape(known):
            every[known.name] = LayerKernels(
                known.name, "dense", here, known.groups, "weights", known.weight_shape
            )
    for name, layer in every.items():
        where = printable(name)
        if {where, printable(tensor_name(name))} & broken:
            continue
        sentence = damage(layer)
        if sentence:
            yield Finding(UNREAL, "error", where, 1, 0, f"{printable(sentence)}: it cannot be real")


def unseen_layers(unseen: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding of `layers.unseen` for each convolution whose weights no rule has seen, and why."""
    for name, reason in unseen.items():
        where = printable(name)
        yield Finding(UNSEEN, "error", where, 1, 0, f"{where}: not checked, {printable(reason)}")


def _layers_of(
    tensors: Mapping[str, Tensor], layers: tuple[LayerKernels, ...] | None
) -> tuple[LayerKernels, ...]:
    if layers is not None:
        return layers
    try:
        return bank_from_tensors(tensors).layers
    except KernelsimpError:  # the baseline may know them all the same
        return ()
