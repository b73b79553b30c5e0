"""What one coefficient takes, in bits, at the step that gives 1 % relative squared error on its layer.

Every rule that makes a plan prices coefficients so, and a network has one figure of bits before whatever rule
simplified it.
"""

from collections.abc import Sequence
from math import prod

from kernelsimp.kernels.bank import LayerKernels
from kernelsimp.kernels.coding import coefficient_bits


def bits_of_layer(layer: LayerKernels) -> float:
    """Return the bits of a coefficient; a layer of zeros needs none, and is priced at one bit."""
    kernels = layer.kernels.detach().float().reshape(layer.count, *layer.grid)
    return coefficient_bits(kernels) if bool(kernels.any()) else 1.0


def bits_of_layers(layers: Sequence[LayerKernels]) -> float:
    """Return the bits of a coefficient, averaged over all cells of one layer or more."""
    cells = [layer.count * prod(layer.grid) for layer in layers]
    return sum(n * bits_of_layer(layer) for n, layer in zip(cells, layers, strict=True)) / sum(cells)
