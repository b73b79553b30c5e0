"""What one image costs in each layer and how far each layer sees, from one pass over shapes.

The pass runs on the meta device, where tensors have shapes and no numbers; a network that cannot is run on
the CPU. A MAC is one multiplication with its addition. The receptive field is the theoretical one, in pixels
of the input: what could reach an output, whatever the weights.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError
from kernelsimp.models.layers import conv_modules
from kernelsimp.models.stored_order import LONE

aten = torch.ops.aten


@dataclass(frozen=True)
class Footprint:
    """One layer: MACs an image over all its calls, sides of its maps in and out, and what it sees.

    `stride` and `dilation` are those of the module, 1 where it has none; sides are () for a linear layer.
    """

    macs: int
    sides_in: tuple[int, ...]
    sides_out: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    receptive_field: tuple[int, ...]


@dataclass(frozen=True)
class Footprints:
    """All convolutions and linear layers by name, and the MACs of everything, for one image of `shape`."""

    shape: tuple[int, ...]
    macs: int
    layers: Mapping[str, Footprint]


def footprints(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Footprints:
    """Run the network that `build` makes once on an image of `shape` (channels, height, width).

    Raises `KernelsimpError` with the network's own words where it refuses that shape.
    """
    try:
        return _run(build().to("meta"), shape, "meta")
    except Exception:  # tensors made in forward, data-dependent steps: the CPU can
        try:
            return _run(build().cpu(), shape, "cpu")
        except Exception as error:
            size = " x ".join(map(str, shape))
            advice = "see --input-size and --channels"
            raise KernelsimpError(
                f"the network cannot take images {size}: {short(error)}; {advice}"
            ) from error


def costed_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers by name, in the network's order."""
    convolutions = set(conv_modules(model).values())
    return {
        name or LONE: module
        for name, module in model.named_modules()
        if module in convolutions or isinstance(module, nn.Linear)
    }


def _run(model: nn.Module, shape: tuple[int, ...], device: str) -> Footprints:
    names = {module.weight: name for name, module in costed_modules(model).items()}
    counter, sight = FlopCounterMode(display=False), _Sight()
    recorder = _FootprintRecorder(names, counter, sight)
    images = torch.zeros(1, *shape, device=device)
    sight.begin(images)
    with torch.no_grad(), recorder.listen(model), sight, counter:
        model.eval()(images)
    return Footprints(shape, counter.get_total_flops() // 2, recorder.result(shape[1:]))


@dataclass
class _Call:
    """What one call of a layer showed."""

    flops: int
    sides_in: tuple[int, ...]
    sides_out: tuple[int, ...]
    seen: tuple[float, ...]
    module: nn.Module


@dataclass
class _FootprintRecorder:
    """Hooks on layers that read the counter before and after each call; layers are known by their weight."""

    names: Mapping[Any, str]
    counter: FlopCounterMode
    sight: "_Sight"
    open: list[int] = field(default_factory=list)
    calls: dict[str, list[_Call]] = field(default_factory=dict)

    @contextmanager
    def listen(self, model: nn.Module) -> Iterator[None]:
        layers = [m for m in model.modules() if getattr(m, "weight", None) in self.names]
        with ExitStack() as stack:
            for layer in layers:
                for handle in (
                    layer.register_forward_pre_hook(self._begin),
                    layer.register_forward_hook(self._end),
                ):
                    stack.callback(handle.remove)
            yield

    def _begin(self, _: nn.Module, __: Any) -> None:
        self.open.append(self.counter.get_total_flops())

    def _end(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        flops = self.counter.get_total_flops() - self.open.pop()
        linear = isinstance(module, nn.Linear)
        sides = [() if linear else tuple(item.shape[2:]) for item in (inputs[0], output)]
        call = _Call(flops, sides[0], sides[1], self.sight.of(output), module)
        self.calls.setdefault(self.names[module.weight], []).append(call)

    def result(self, whole: tuple[int, ...]) -> dict[str, Footprint]:
        return {name: _join_calls(calls, whole) for name, calls in self.calls.items()}


def _join_calls(calls: Sequence[_Call], whole: tuple[int, ...]) -> Footprint:
    """Add up the calls of one layer; sizes are those of the first, the field is the widest."""
    first = calls[0]
    seen = [max(call.seen[axis] for call in calls) for axis in range(len(first.seen))]
    sides = [int(side) if math.isfinite(side) else full for side, full in zip(seen, whole, strict=False)]
    axes = len(first.sides_out)
    stride, dilation = (
        tuple(getattr(first.module, name, (1,) * axes))[:axes] for name in ("stride", "dilation")
    )
    macs = sum(call.flops for call in calls) // 2
    return Footprint(macs, first.sides_in, first.sides_out, stride, dilation, tuple(sides))


# ---------------------------------------------------------------- how far a layer sees


@dataclass(frozen=True)
class _Field:
    """Along each axis: how many input pixels reach one place, and how far neighbouring places lie apart."""

    size: tuple[float, ...]
    jump: tuple[float, ...]

    def behind_window(
        self, length: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
    ) -> "_Field":
        """Return the field behind a window of `length` cells: r + (k - 1) d j, and j s."""
        axes = range(len(self.size))
        size = tuple(self.size[i] + (length[i] - 1) * dilation[i] * self.jump[i] for i in axes)
        return _Field(size, tuple(self.jump[i] * stride[i] for i in axes))

    def behind_resize(self, scale: Sequence[float], length: Sequence[int]) -> "_Field":
        """Return the field where maps grow by `scale`, and each new place joins up to `length` new places."""
        axes = range(len(self.size))
        jump = tuple(self.jump[i] / scale[i] for i in axes)
        return _Field(
            tuple(self.size[i] + math.ceil((length[i] - 1) / scale[i]) * self.jump[i] for i in axes), jump
        )

    def whole(self) -> "_Field":
        return _Field((math.inf,) * len(self.size), self.jump)


class _Sight(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operation and keeps the receptive field of each tensor; unknown ones pass it on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fields: dict[int, _Field] = {}
        self.alive: list[Tensor] = []  # an id means one tensor only while that tensor lives

    def begin(self, images: Tensor) -> None:
        axes = images.ndim - 2
        self._set(images, _Field((1.0,) * axes, (1.0,) * axes))

    def of(self, tensor: Tensor) -> tuple[float, ...]:
        known = self.fields.get(id(tensor))
        return known.size if known else ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = [
            self.fields[id(item)] for item in tree_leaves((args, kwargs or {})) if id(item) in self.fields
        ]
        if known:
            before = _Field(*(tuple(map(max, zip(*parts, strict=True))) for parts in _columns(known)))
            rule = RULES.get(func.overloadpacket)
            after = rule(before, args) if rule else before
            for item in tree_leaves(out):
                if isinstance(item, Tensor):
                    self._set(item, after)
        return out

    def _set(self, tensor: Tensor, seen: _Field) -> None:
        self.fields[id(tensor)] = seen
        self.alive.append(tensor)


def _columns(known: Sequence[_Field]) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    return [item.size for item in known], [item.jump for item in known]


def _each(value: Any, axes: int) -> list[int]:
    """Return one number an axis: aten gives a single one for all of them, or an empty list."""
    numbers = [int(item) for item in value] if isinstance(value, list | tuple) else [int(value)]
    return numbers * axes if len(numbers) == 1 else numbers


def _convolution(seen: _Field, args: Any) -> _Field:
    weight, stride, dilation, transposed = args[1], args[3], args[5], args[6]
    axes = weight.ndim - 2
    if axes != len(seen.size):
        return seen.whole()  # another number of axes than the image: no pixels to count
    if transposed:
        return seen.behind_resize(_each(stride, axes), weight.shape[2:])
    return seen.behind_window(weight.shape[2:], _each(stride, axes), _each(dilation, axes))


def _pool(seen: _Field, args: Any) -> _Field:
    axes = len(seen.size)
    length = _each(args[1], axes)
    stride = _each(args[2], axes) if len(args) > 2 and args[2] else length
    return seen.behind_window(length, stride, [1] * axes)


def _mean(seen: _Field, args: Any) -> _Field:
    image, places = args[0], args[1] if len(args) > 1 else None
    axes = range(image.ndim) if places is None else [place % image.ndim for place in places]
    return seen.whole() if image.ndim > 2 and any(axis >= 2 for axis in axes) else seen


def _slice(seen: _Field, args: Any) -> _Field:
    """Return the field behind `x[..., ::step]`, which takes every step-th place along one axis."""
    step, axis = (args[4] if len(args) > 4 else 1), (args[1] if len(args) > 1 else 0) % args[0].ndim - 2
    if axis < 0 or axis >= len(seen.size):
        return seen
    jump = [value * (step if place == axis else 1) for place, value in enumerate(seen.jump)]
    return _Field(seen.size, tuple(jump))


def _whole(seen: _Field, _: Any) -> _Field:
    return seen.whole()


RULES: dict[Any, Callable[[_Field, Any], _Field]] = {
    aten.convolution: _convolution,
    aten.max_pool2d_with_indices: _pool,
    aten.avg_pool1d: _pool,
    aten.avg_pool2d: _pool,
    aten.avg_pool3d: _pool,
    aten.max_pool3d_with_indices: _pool,
    aten.mean: _mean,
    aten.slice: _slice,
    aten._adaptive_avg_pool2d: _whole,
    aten._adaptive_avg_pool3d: _whole,
    aten.adaptive_max_pool2d: _whole,
    aten.bmm: _whole,
    aten._scaled_dot_product_flash_attention_for_cpu: _whole,
    aten._scaled_dot_product_attention_math: _whole,
}
"""What operations do to a field. Where a row is missing an operation works place by place."""
