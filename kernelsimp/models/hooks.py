"""Watch a network's forward and backward pass, one convolution at a time.

`trace` learns the order in which convolutions run and which batch norm takes each one's output; `replay` goes
that way again. `tap_convolutions` sees every input and gradient as it comes, and keeps none.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError
from kernelsimp.memory import is_out_of_memory
from kernelsimp.models.layers import conv_modules

Call = tuple[nn.Module, Tensor]
"""A convolution module and what it was given; modules that share a weight are one layer."""


@dataclass(frozen=True)
class Use:
    """How a network uses one convolution: `calls` a forward pass, and `positions` of output an image.

    `norm` names the batch norm, if there is exactly one, that takes this layer's output and no other's.
    """

    name: str
    calls: int
    positions: int
    norm: str | None


@dataclass
class _Span:
    """One call of one module during the traced pass, as times on one clock."""

    name: str
    layer: str | None
    parent: int | None
    begin: int
    end: int = -1
    bytes: float = 0.0
    used_in: set[int] = field(
        default_factory=set
    )  # the spans in which something was computed from its output
    plain: bool = True  # whether that is one tensor


@dataclass
class Trace:
    """What one forward pass showed: the convolutions in order of first call, and every module's span."""

    uses: tuple[Use, ...] = ()
    spans: list[_Span] = field(default_factory=list)

    def finished_before(self, layer: str) -> dict[str, float]:
        """Return {module: bytes of output an image} for the outermost modules done when `layer` begins.

        A module that is called twice is never among them: its output is not one value. The bytes are 0 where
        nobody wants the output any more: only modules that are among them have computed something from it.
        """
        begin = min(span.begin for span in self.spans if span.layer == layer)
        done = [0 <= span.end < begin for span in self.spans]
        counts: dict[str, int] = {}
        for span in self.spans:
            counts[span.name] = counts.get(span.name, 0) + 1
        kept = {
            place: span
            for place, span in enumerate(self.spans)
            if done[place] and (span.parent is None or not done[span.parent]) and counts[span.name] == 1
        }
        return {
            span.name: 0.0
            if span.plain and all(self._within(use, kept) for use in span.used_in)
            else span.bytes
            for span in kept.values()
        }

    def _within(self, place: int | None, outer: Container[int]) -> bool:
        """Say whether a span is one of `outer` or lies within one."""
        while place is not None and place not in outer:
            place = self.spans[place].parent
        return place is not None

    @property
    def largest_output(self) -> float:
        """The bytes of the largest output of a module, an image."""
        return max((span.bytes for span in self.spans), default=0.0)


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> Trace:
    """Run `images` once and return the order of convolutions and the spans of all modules.

    Raises `KernelsimpError` with the network's own words where it refuses the images.
    """
    recorder = _CallRecorder(model, len(images))
    with recorder.listen():
        try:
            model(images)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            shape = " x ".join(map(str, images.shape[1:]))
            advice = "see --input-size, --crop and --channels"
            raise KernelsimpError(
                f"the network cannot take images {shape}: {short(error)}; {advice}"
            ) from error
    return recorder.result()


class _Uses(TorchFunctionMode):
    """Tells a recorder of every tensor that something is computed from."""

    def __init__(self, recorder: "_CallRecorder") -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.recorder.see_use((args, kwargs))
        return func(*args, **(kwargs or {}))


def _unwatched(hook: Callable[..., None]) -> Callable[..., None]:
    """Have a recorder not see what its own hook computes."""

    def run(self: "_CallRecorder", *args: Any) -> None:
        self.watching = False
        hook(self, *args)
        self.watching = True

    return run


class _CallRecorder:
    """Hooks on every module that write down when it runs and what its output is."""

    def __init__(self, model: nn.Module, images: int) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.images = images
        self.convolutions = layers_by_weight(model)
        self.spans: list[_Span] = []
        self.open: list[int] = []
        self.clock = 0
        self.shapes: dict[str, list[int]] = {}
        self.outputs: list[tuple[str, Tensor]] = []
        self.normed: list[tuple[str, str | None]] = []
        self.made: dict[int, list[_Span]] = {}  # whose output a tensor is, by its identity
        self.watching = True
        self.alive: list[Tensor] = []  # so that no identity is used twice

    @contextmanager
    def listen(self) -> Iterator[None]:
        handles = []
        for module in self.names:
            handles.append(module.register_forward_pre_hook(self._begin))
            handles.append(module.register_forward_hook(self._end))
        with _removing(handles), _Uses(self):
            yield

    def see_use(self, values: Any) -> None:
        """Note that something is computed from `values` where the network is now."""
        if self.open and self.watching:
            for tensor in tensors_in(values):
                for span in self.made.get(id(tensor), ()):
                    span.used_in.add(self.open[-1])

    @_unwatched
    def _begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.clock += 1
        weight = weight_of(module)
        layer = None if weight is None else self.convolutions.get(weight)
        parent = self.open[-1] if self.open else None
        self.spans.append(_Span(self.names[module], layer, parent, self.clock))
        self.open.append(len(self.spans) - 1)
        if isinstance(module, _BatchNorm) and inputs:
            source = next((name for name, output in self.outputs if output is inputs[0]), None)
            self.normed.append((self.names[module], source))

    @_unwatched
    def _end(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        self.clock += 1
        span = self.spans[self.open.pop()]
        span.end = self.clock
        span.bytes = sum(item.nbytes for item in tensors_in(output)) / self.images
        span.plain = isinstance(output, Tensor)
        for item in tensors_in(output):
            self.alive.append(item)
            self.made.setdefault(id(item), []).append(span)
        if span.layer is not None and isinstance(output, Tensor):
            self.outputs.append((span.layer, output))  # kept alive, so that identity means identity
            self.shapes.setdefault(span.layer, []).append(int(output[0, 0].numel()))

    def result(self) -> Trace:
        uses = tuple(
            Use(name, len(sizes), sum(sizes), self._norm_of(name)) for name, sizes in self.shapes.items()
        )
        return Trace(uses, self.spans)

    def _norm_of(self, layer: str) -> str | None:
        """Return the batch norm fed by this layer alone, or None."""
        fed = {norm for norm, source in self.normed if source == layer}
        if len(fed) != 1:
            return None
        norm = fed.pop()
        sources = [source for name, source in self.normed if name == norm]
        return norm if set(sources) == {layer} else None


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors of a nested value, in order."""
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, value)
    return found


def layers_by_weight(model: nn.Module) -> dict[Tensor, str]:
    """Return {weight: layer name} of the plain convolutions; modules that share a weight share the name."""
    weights = ((weight_of(module), name) for name, module in conv_modules(model).items())
    return {weight: name for weight, name in weights if weight is not None}


def weight_of(module: nn.Module) -> Tensor | None:
    """Return the module's own parameter called weight, if it has one."""
    return module._parameters.get("weight")


@contextmanager
def _removing(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Take the hooks off when the block ends, however it ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def listening_to(modules: Mapping[str, nn.Module], receive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block, hand the name and the output of every call of these modules to `receive`.

    What follows may work in place on the output: `receive` must copy what it keeps.
    """

    def to(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, output: receive(name, output) if isinstance(output, Tensor) else None

    handles = [module.register_forward_hook(to(name)) for name, module in modules.items()]
    with _removing(handles):
        yield


@contextmanager
def calls_of(model: nn.Module, see: Callable[[str, Call], None]) -> Iterator[None]:
    """Within the block, hand the layer's name and every call of convolutions larger than 1x1 to `see`.

    It gets the input as the layer saw it, and must be done with it when it returns.
    """
    layers = layers_by_weight(model)

    def call(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        weight = weight_of(module)
        assert weight is not None
        see(layers[weight], (module, inputs[0].detach()))

    handles = [module.register_forward_hook(call) for module in _spatial(model, layers)]
    with _removing(handles):
        yield


def _spatial(model: nn.Module, layers: Container[Tensor]) -> Iterator[nn.Module]:
    convolutions: list[Any] = [module for module in model.modules() if weight_of(module) in layers]
    return (module for module in convolutions if any(side > 1 for side in module.kernel_size))


@contextmanager
def tap_convolutions(
    model: nn.Module, see: Callable[[str, Call], None], hear: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Within the block, hand calls of convolutions larger than 1x1 to `see`, then their gradients to `hear`.

    `see` gets the layer's name and the call while the input is as the layer saw it; `hear` gets dL/dy,
    (n, out, ...), in a backward pass. Both must be done with it when they return: nothing is kept here.
    """
    layers = layers_by_weight(model)

    def tap(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weight = weight_of(module)
        assert weight is not None
        see(layers[weight], (module, inputs[0].detach()))
        leaf = not output.requires_grad
        if leaf:  # a network that detaches: its gradients begin here
            output.requires_grad_()
        output.register_hook(partial(hear, layers[weight]))  # type: ignore[no-untyped-call]
        return output.clone() if leaf else output  # what follows may work in place, not on a leaf

    handles = [module.register_forward_hook(tap) for module in _spatial(model, layers)]
    with _removing(handles):
        yield
