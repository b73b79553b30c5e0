"""Conv1d and Conv3d in a file of weights alone: what the tensors beside a 3-D or 5-D weight say of it.

Linear maps of experts, bilinear forms and tables are 3-D or 5-D, too; a convolution has a bias, or a
normalisation next to it, of its own width.
"""

from collections.abc import Mapping

from torch import Tensor

from kernelsimp.models.stored_order import layer_name

RANKS = (3, 5)
"""Axes of the weights of Conv1d and Conv3d."""


def is_convolution(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Say whether the bias or the normalisation beside a 3-D or 5-D weight has the width of its outputs.

    A normalisation in front, of the width of its inputs, counts as well. A bias alone decides where there
    is one: a transposed convolution's has `groups` times the length of axis 1.
    """
    weight = tensors[name]
    layer = layer_name(name)
    bias = tensors.get(f"{layer}.bias" if layer else "bias")
    if bias is not None:
        width = int(bias.shape[0]) if bias.ndim == 1 else 0
        outer, inner = int(weight.shape[0]), int(weight.shape[1])
        return width == outer or (width > 0 and width % inner == 0 and outer % (width // inner) == 0)
    widths = _norm_widths(tensors)
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in tensors))
    at = modules.index(layer)
    after = widths.get(modules[at + 1]) if at + 1 < len(modules) else None
    before = widths.get(modules[at - 1]) if at else None
    return after == int(weight.shape[0]) or before == int(weight.shape[1])


def _norm_widths(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the widths of the normalisations, by module: a vector of weights, and one of biases or means."""
    widths = {}
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        others = (f"{module}.bias", f"{module}.running_mean")
        if name.endswith("weight") and tensor.ndim == 1 and any(other in tensors for other in others):
            widths[module] = int(tensor.shape[0])
    return widths
