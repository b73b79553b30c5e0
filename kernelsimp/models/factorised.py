"""Make layers of a network run as two thinner convolutions, with the weights that they have.

`models.thin` has the modules; here their weights come from those of the layer, by decomposition, and it is
said which layers can be taken apart at all.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelsimp.kernels.separable import halves, rank_that_pays, ranks_of
from kernelsimp.models.layers import conv_modules
from kernelsimp.models.stages import layer_modules
from kernelsimp.models.stored_order import module_name
from kernelsimp.models.thin import ByChannel, Thin, replace_layers, thinned


def separable_layers(model: nn.Module) -> tuple[dict[str, nn.Conv2d], dict[str, str]]:
    """Return the layers that may run as two thinner ones, and why others larger than 1x1 may not.

    One whose weight stands in another module too stays whole, for the other would keep it.
    """
    found: dict[str, nn.Conv2d] = {}
    whole: dict[str, str] = {}
    sharing = {name: len(items) for name, items in layer_modules(model).items()}
    for name, module in conv_modules(model).items():
        sides = tuple(module.kernel_size)  # type: ignore[arg-type]
        if max(sides) == 1:
            continue
        if type(module) is not nn.Conv2d:
            whole[name] = f"a {type(module).__name__}, not a plain Conv2d"
        elif min(sides) == 1:
            whole[name] = "its kernels have one row or column"
        elif sharing.get(name) != 1:
            whole[name] = "its weight is shared with another layer, or computed"
        else:
            found[name] = module
    return found, whole


def exact_plan(layers: Mapping[str, nn.Conv2d]) -> dict[str, tuple[Thin, ...]]:
    """Return what each layer may become without any change of its outputs; a layer may have several ways.

    Of a depthwise layer whose channels differ in rank, those of each lower rank may run apart from the rest.
    """
    plan = {}
    for name, layer in layers.items():
        ranks = ranks_of(layer.weight.detach().cpu(), layer.groups)
        most = rank_that_pays(tuple(layer.weight.shape), layer.groups)
        ways = [Thin(int(ranks.max()))] if int(ranks.max()) <= most else []
        if layer.groups == layer.in_channels > 1:
            levels = sorted(rank for rank in set(ranks.tolist()) if rank <= most and rank < int(ranks.max()))
            ways += [Thin(rank, tuple((ranks <= rank).nonzero()[:, 0].tolist())) for rank in levels]
        if ways:
            plan[name] = tuple(ways)
    return plan


@torch.no_grad()
def factorise(model: nn.Module, plan: Mapping[str, Thin]) -> nn.Module:
    """Return a copy of the network whose named layers run as two thinner convolutions each.

    Where a layer's matrix has the rank of its `Thin`, its outputs stay what they were up to rounding.
    """
    made = copy.deepcopy(model)
    layers = {name: conv_modules(made)[name] for name in plan}
    made = replace_layers(made, {module_name(name): thin for name, thin in plan.items()})
    modules = dict(made.named_modules())
    for name, layer in layers.items():
        fill(modules[module_name(name)], layer, plan[name])
    return made.train(model.training)


def factorised_layer(layer: nn.Conv2d, thin: Thin) -> nn.Module:
    """Return what runs in the place of one layer, with its weights."""
    made = thinned(layer, thin)
    fill(made, layer, thin)
    return made.train(layer.training)


@torch.no_grad()
def fill(made: nn.Module, layer: nn.Module, thin: Thin) -> None:
    """Give the modules that take the place of `layer` their weights."""
    weight, bias, groups = layer.weight, layer.bias, layer.groups
    assert isinstance(weight, Tensor)
    if not isinstance(made, ByChannel):
        _fill_pair(made, (weight, bias), int(groups), thin.rank)  # type: ignore[arg-type]
        return
    each = len(weight) // int(groups)  # type: ignore[arg-type]
    split = weight.reshape(-1, each, *weight.shape[1:])
    biases = bias.reshape(-1, each) if isinstance(bias, Tensor) else None
    parts = [
        (split[where].flatten(0, 1), biases[where].flatten() if biases is not None else None)
        for where in (made.some, made.rest)
    ]
    _fill_pair(made.thin, parts[0], len(made.some), thin.rank)
    _put(made.whole, parts[1])


def _fill_pair(pair: nn.Module, own: tuple[Tensor, Tensor | None], groups: int, rank: int) -> None:
    vertical, horizontal = halves(own[0].cpu(), groups, rank)
    first, second = pair.children()
    _put(first, (vertical, None))
    _put(second, (horizontal, own[1]))


def _put(layer: nn.Module, own: tuple[Tensor, Tensor | None]) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    weight.copy_(own[0])
    if isinstance(bias, Tensor) and own[1] is not None:
        bias.copy_(own[1])


@dataclass(frozen=True)
class LayerShape:
    """What one layer was given and put out, (channels, height, width), in each of its calls in one pass."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    calls: int
    alike: bool

    def macs(self, layer: nn.Conv2d, thin: Thin | None = None) -> int:
        """Return the multiplications of one image over all calls, whole or as two thinner layers."""
        high, wide = layer.kernel_size
        _, rows, columns = self.outputs
        down, across = layer.in_channels * high, layer.out_channels * wide
        each = rows * columns * layer.out_channels * (layer.in_channels // layer.groups) * high * wide
        if thin is None:
            return self.calls * each
        share = len(thin.channels) / layer.groups if thin.channels else 1.0
        two = thin.rank * rows * (down * self.inputs[2] + across * columns)
        return self.calls * round(share * two + (1 - share) * each)


@torch.no_grad()
def layer_shapes(model: nn.Module, images: Tensor, layers: Mapping[str, nn.Conv2d]) -> dict[str, LayerShape]:
    """Return what each layer is given in a pass of `images`; layers that are never called are left out."""
    seen: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, inputs, output: seen.setdefault(name, []).append(
            (tuple(inputs[0].shape[-3:]), tuple(output.shape[-3:]))
        )

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: LayerShape(*calls[0], len(calls), len(set(calls)) == 1) for name, calls in seen.items()}
