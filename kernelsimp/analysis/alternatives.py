"""What cheaper layers would cost in a convolution's place: one row of a table an alternative.

Costs are weights without biases. An alternative is taken at the positions of the layer's output, with the
stride in its first part, so its MACs are to the layer's as its weights are; transforms and the fully
connected equivalent have formulas of their own. Ratios are layer / alternative.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from kernelsimp.models.footprint import Footprint
from kernelsimp.records.audit import Alternative
from kernelsimp.settings import AuditSettings


@dataclass(frozen=True)
class Layer:
    """A convolution's shape; `maps` has the sizes of its maps and its MACs, where they are known."""

    kernel: tuple[int, ...]
    inputs: int
    outputs: int
    groups: int = 1
    maps: Footprint | None = None
    transposed: bool = False

    @property
    def cells(self) -> int:
        return math.prod(self.kernel)

    @property
    def weights(self) -> int:
        """k k c_in c_out / g."""
        return self.cells * self.inputs * self.outputs // self.groups


@dataclass(frozen=True)
class Cost:
    """Weights, and MACs an image where they do not follow from the weights."""

    weights: int
    macs: int | None = None


Formula = Callable[[Layer, AuditSettings], Cost | None]


def stack_of_3x3(layer: Layer, _: AuditSettings) -> Cost | None:
    """Return 3x3 layers that see as much: two for 5x5, three for 7x7, (k - 1) / 2 for odd k.

    The first goes from in to out channels, the others from out to out (Simonyan and Zisserman 2015).
    """
    side = layer.kernel[0]
    if len(set(layer.kernel)) != 1 or len(layer.kernel) != 2 or side < 5 or side % 2 == 0:
        return None
    first, more = 9 * layer.inputs * layer.outputs, (side - 3) // 2 * 9 * layer.outputs**2
    return Cost((first + more) // layer.groups)


def bottleneck(layer: Layer, settings: AuditSettings) -> Cost | None:
    """Return 1x1 to r channels, the kernel from r to r, 1x1 back: c_in r + k k r r + r c_out (He 2016)."""
    narrow = layer.outputs // settings.bottleneck
    if layer.groups > 1 or layer.cells == 1 or narrow < 1:
        return None
    return Cost(narrow * (layer.inputs + layer.cells * narrow + layer.outputs))


def grouped_layer(layer: Layer, settings: AuditSettings) -> Cost | None:
    """Return the same layer in g groups: 1 / g of the weights."""
    groups = settings.groups
    if layer.groups > 1 or layer.inputs % groups or layer.outputs % groups:
        return None
    return Cost(layer.weights // groups)


def depthwise_separable(layer: Layer, _: AuditSettings) -> Cost | None:
    """Return one kernel a channel, then 1x1: k k c_in + c_in c_out (Howard 2017)."""
    if layer.groups > 1 or layer.cells == 1:
        return None
    return Cost(layer.cells * layer.inputs + layer.inputs * layer.outputs)


def separable(layer: Layer, _: AuditSettings) -> Cost | None:
    """Return k x 1 from in to out channels, then 1 x k from out to out (Szegedy 2016)."""
    if len(layer.kernel) != 2 or min(layer.kernel) == 1:
        return None
    high, wide = layer.kernel
    return Cost((high * layer.inputs * layer.outputs + wide * layer.outputs**2) // layer.groups)


def fourier(layer: Layer, _: AuditSettings) -> Cost | None:
    """Return the layer through Fourier transforms of its padded maps, kernels transformed beforehand.

    2 n n log2 n (c_in + c_out) for the transforms and 4 n n c_in c_out / g for the products (Mathieu,
    Henaff and LeCun 2014, with constant 1 and n the side of the padded map). A stride saves nothing.
    """
    maps = layer.maps
    if maps is None or layer.cells == 1 or layer.transposed or not maps.sides_out:
        return None
    axes = zip(maps.sides_out, maps.stride, maps.dilation, layer.kernel[-len(maps.stride) :], strict=True)
    places = math.prod((side - 1) * step + wide * (cells - 1) + 1 for side, step, wide, cells in axes)
    transforms = places * math.log2(places) * (layer.inputs + layer.outputs)
    products = 4 * places * layer.inputs * layer.outputs // layer.groups
    return Cost(layer.weights, round(transforms) + products)


def fully_connected(layer: Layer, _: AuditSettings) -> Cost | None:
    """Return a weight from every cell of the maps in to every cell of the maps out."""
    maps = layer.maps
    if maps is None or not maps.sides_out:
        return None
    weights = math.prod(maps.sides_in) * layer.inputs * math.prod(maps.sides_out) * layer.outputs
    return Cost(weights, weights)


ALTERNATIVES: dict[str, Formula] = {
    "stacked 3x3": stack_of_3x3,
    "bottleneck": bottleneck,
    "grouped": grouped_layer,
    "depthwise-separable": depthwise_separable,
    "k x 1 + 1 x k": separable,
    "FFT": fourier,
    "fully connected": fully_connected,
}
"""To add an alternative, add a row; it answers None where it has no meaning."""


def alternatives(layer: Layer, settings: AuditSettings) -> tuple[Alternative, ...]:
    """Return every alternative that has a meaning for this layer."""
    found = []
    for name, formula in ALTERNATIVES.items():
        cost = formula(layer, settings)
        if cost is not None and cost.weights:
            found.append(_beside(layer, name, cost))
    return tuple(found)


def _beside(layer: Layer, name: str, cost: Cost) -> Alternative:
    ratio = layer.weights / cost.weights
    if layer.maps is None:
        return Alternative(name, cost.weights, None, ratio, None)
    macs = cost.macs if cost.macs is not None else round(layer.maps.macs / ratio)
    return Alternative(name, cost.weights, macs, ratio, layer.maps.macs / macs if macs else None)
