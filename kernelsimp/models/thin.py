"""Convolutions as two thinner ones in place of one. This text goes with every factorised export.

It imports torch alone, and keeps bias, stride, dilation, padding of every mode and groups: a vertical
convolution moves along columns only and a horizontal one along rows, so that padding commutes with both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Thin:
    """What one layer becomes: `rank` pairs a group; of a depthwise layer perhaps only `channels`."""

    rank: int
    channels: tuple[int, ...] = ()


class ByChannel(nn.Module):
    """A depthwise layer some of whose channels run as two thinner convolutions and the rest whole."""

    some: Tensor
    rest: Tensor
    order: Tensor

    def __init__(self, layer: nn.Conv2d, thin: Thin) -> None:
        super().__init__()
        rest = sorted(set(range(layer.in_channels)) - set(thin.channels))
        parts = (list(thin.channels), rest)
        each = layer.out_channels // layer.groups
        outputs = [each * channel + place for part in parts for channel in part for place in range(each)]
        for name, item in zip(("some", "rest", "order"), (*parts, outputs), strict=True):
            number = torch.tensor(item)
            self.register_buffer(name, torch.argsort(number) if name == "order" else number)
        self.thin = two_convolutions(_narrowed(layer, len(thin.channels)), thin.rank)
        self.whole = _narrowed(layer, len(rest))

    def forward(self, images: Tensor) -> Tensor:
        parts = [self.thin(images[:, self.some]), self.whole(images[:, self.rest])]
        return torch.cat(parts, dim=1)[:, self.order]


def two_convolutions(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    """Return a vertical and a horizontal convolution with fresh weights that take the place of `layer`."""
    between = layer.groups * rank
    made = [
        nn.Conv2d(
            layer.in_channels if axis == 0 else between,
            between if axis == 0 else layer.out_channels,
            _along(layer.kernel_size, axis),
            _along(layer.stride, axis),
            layer.padding if isinstance(layer.padding, str) else _along(layer.padding, axis, 0),
            _along(layer.dilation, axis),
            layer.groups,
            bias=axis == 1 and layer.bias is not None,
            padding_mode=layer.padding_mode,
        )
        for axis in (0, 1)
    ]
    return nn.Sequential(*made).to(layer.weight.device, layer.weight.dtype)


def thinned(layer: nn.Conv2d, thin: Thin) -> nn.Module:
    """Return what takes the place of `layer`, with fresh weights."""
    return ByChannel(layer, thin) if thin.channels else two_convolutions(layer, thin.rank)


def replace_layers(network: nn.Module, plan: Mapping[str, Thin]) -> nn.Module:
    """Put thinner convolutions with fresh weights in the places of the named layers; return the network."""
    modules = dict(network.named_modules())
    made = {modules[name]: thinned(_plain_layer(modules[name]), thin) for name, thin in plan.items()}
    for parent in list(modules.values()):
        for name, child in list(parent._modules.items()):
            if child in made:  # at every place where it stands
                setattr(parent, name, made[child])
    return made.get(network, network)


def _plain_layer(module: nn.Module) -> nn.Conv2d:
    if type(module) is not nn.Conv2d:
        raise TypeError(f"a layer is {type(module).__name__}, expected Conv2d: this is another network")
    return module


def _narrowed(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Return a depthwise layer of so many channels, otherwise like `layer`."""
    made = nn.Conv2d(
        channels,
        channels * (layer.out_channels // layer.groups),
        _along(layer.kernel_size),
        _along(layer.stride),
        layer.padding if isinstance(layer.padding, str) else _along(layer.padding),
        _along(layer.dilation),
        channels,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
    )
    return made.to(layer.weight.device, layer.weight.dtype)


def _along(pair: Sequence[int], axis: int | None = None, other: int = 1) -> tuple[int, int]:
    """Return both numbers, or the one of `axis` with `other` in place of the other axis's."""
    high, wide = pair
    return (high if axis != 1 else other, wide if axis != 0 else other)
