"""Watch and replay a network's forward pass, one convolution at a time.

`trace` learns the order in which convolutions run and which batch norm takes each one's output. `Replay`
then feeds images up to a layer, hands out that layer's inputs and stops; a module that had finished before
the layer began is not run again on the way to the next one, because nothing upstream of it has changed
since. Layers must therefore be visited in the order of the trace, and be changed only once visited.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError
from kernelsimp.models.layers import conv_modules
from kernelsimp.models.stored_order import module_name

CACHE_BYTES = 2 << 30
"""What a replay may keep of the outputs of finished modules; beyond it, it runs from the start each time."""


Call = tuple[nn.Module, Tensor]
"""A convolution module and what it was given; modules that share a weight are one layer."""


class _Reached(BaseException):
    """Stops a forward pass once the layer has been called; not an Exception, so that no network eats it."""


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


@dataclass
class Trace:
    """What one forward pass showed: the convolutions in order of first call, and every module's span."""

    uses: tuple[Use, ...] = ()
    spans: list[_Span] = field(default_factory=list)

    def finished_before(self, layer: str) -> dict[str, float]:
        """Return {module: bytes of output an image} for the outermost modules done when `layer` begins.

        A module that is called twice is never among them: its output is not one value.
        """
        begin = min(span.begin for span in self.spans if span.layer == layer)
        done = [0 <= span.end < begin for span in self.spans]
        counts: dict[str, int] = {}
        for span in self.spans:
            counts[span.name] = counts.get(span.name, 0) + 1
        kept = {
            span.name: span.bytes
            for place, span in enumerate(self.spans)
            if done[place] and (span.parent is None or not done[span.parent])
        }
        return {name: size for name, size in kept.items() if counts[name] == 1}


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
            shape = " x ".join(map(str, images.shape[1:]))
            advice = "see --input-size, --crop and --channels"
            raise KernelsimpError(
                f"the network cannot take images {shape}: {short(error)}; {advice}"
            ) from error
    return recorder.result()


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

    @contextmanager
    def listen(self) -> Iterator[None]:
        handles = []
        for module in self.names:
            handles.append(module.register_forward_pre_hook(self._begin))
            handles.append(module.register_forward_hook(self._end))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.clock += 1
        weight = _weight_of(module)
        layer = None if weight is None else self.convolutions.get(weight)
        parent = self.open[-1] if self.open else None
        self.spans.append(_Span(self.names[module], layer, parent, self.clock))
        self.open.append(len(self.spans) - 1)
        if isinstance(module, _BatchNorm) and inputs:
            source = next((name for name, output in self.outputs if output is inputs[0]), None)
            self.normed.append((self.names[module], source))

    def _end(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        self.clock += 1
        span = self.spans[self.open.pop()]
        span.end = self.clock
        span.bytes = sum(item.nbytes for item in _tensors(output)) / self.images
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


class Replay:
    """Hand out the inputs of one convolution after another, over the same batches of images.

    `use` in `inputs_of` follows the order of the trace. With more than `cache_bytes` to keep, every layer
    is reached from the images again.
    """

    def __init__(
        self, model: nn.Module, traced: Trace, images: Sequence[Tensor], cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.model, self.traced, self.images = model, traced, images
        self.modules = dict(model.named_modules())
        self.scale = sum(len(batch) for batch in images)
        self.limit = cache_bytes
        self.kept: list[dict[str, Any]] = [{} for _ in images]

    @torch.no_grad()
    def inputs_of(self, use: Use) -> Iterator[list[Call]]:
        """Yield, for each batch, every call of the layer in one forward pass."""
        keep = self.traced.finished_before(use.name)
        if sum(keep.values()) * self.scale > self.limit:
            keep = {}
        for place, images in enumerate(self.images):
            found: list[Call] = []
            self.kept[place] = self._run(use, images, (self.kept[place], set(keep)), found)
            yield found

    def _run(
        self, use: Use, images: Tensor, memory: tuple[dict[str, Any], set[str]], found: list[Call]
    ) -> dict[str, Any]:
        """Run until the layer's last call; return the outputs to keep for the next layer."""
        old, keep = memory
        new = {name: value for name, value in old.items() if name in keep}
        layer = _weight_of(self.modules[module_name(use.name)])

        def on_call(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            last = len(found) + 1 == use.calls
            found.append((module, inputs[0] if last else inputs[0].clone()))  # what follows may work in place
            if last:
                raise _Reached

        twins = [module for module in self.modules.values() if _weight_of(module) is layer]
        handles = [module.register_forward_pre_hook(on_call) for module in twins]
        try:
            with self._shortcuts(old, keep - old.keys(), new):
                self.model(images)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return new

    @contextmanager
    def _shortcuts(self, old: dict[str, Any], wanted: set[str], new: dict[str, Any]) -> Iterator[None]:
        """Let modules in `old` return what they returned before, and store the outputs of `wanted`.

        Copies on both ways: what follows may work in place.
        """
        patched = [self.modules[name] for name in old]
        own = [module.__dict__.get("forward") for module in patched]
        for name in old:
            self.modules[name].forward = _return_value(old[name])
        handles = [self.modules[name].register_forward_hook(_store_buffer(name, new)) for name in wanted]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module, forward in zip(patched, own, strict=True):
                del module.forward
                if forward is not None:
                    module.forward = forward


def _return_value(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: _copy_tensors(value)


def _store_buffer(name: str, new: dict[str, Any]) -> Callable[[nn.Module, Any, Any], None]:
    def store(_: nn.Module, __: Any, output: Any) -> None:
        new[name] = _copy_tensors(output)

    return store


def _copy_tensors(value: Any) -> Any:
    return tree_map_only(Tensor, Tensor.clone, value)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, value)
    return found


def layers_by_weight(model: nn.Module) -> dict[Tensor, str]:
    """Return {weight: layer name} of the plain convolutions; modules that share a weight share the name."""
    weights = ((_weight_of(module), name) for name, module in conv_modules(model).items())
    return {weight: name for weight, name in weights if weight is not None}


def _weight_of(module: nn.Module) -> Tensor | None:
    return module._parameters.get("weight")


@contextmanager
def listening_to(modules: Mapping[str, nn.Module], receive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block, hand the name and the output of every call of these modules to `receive`.

    What follows may work in place on the output: `receive` must copy what it keeps.
    """

    def to(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, output: receive(name, output) if isinstance(output, Tensor) else None

    handles = [module.register_forward_hook(to(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class Observed:
    """One call of a convolution: what went in, what came out, with the output's gradient kept."""

    call: Call
    output: Tensor


@contextmanager
def observe_convolutions(model: nn.Module) -> Iterator[dict[str, list[Observed]]]:
    """Within the block, collect every call of every convolution, by layer name.

    After a backward pass, `output.grad` is dL/dy of that call, (n, out, ...). Empty the dictionary after
    each batch: it holds the whole pass.
    """
    collected: dict[str, list[Observed]] = {}
    layers = layers_by_weight(model)

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:
            output.requires_grad_()
        output.retain_grad()
        weight = _weight_of(module)
        assert weight is not None
        collected.setdefault(layers[weight], []).append(
            Observed((module, inputs[0].detach().clone()), output)
        )
        # what follows may work in place, and must not touch the tensor whose gradient is kept
        return output.clone()

    modules = [module for module in model.modules() if _weight_of(module) in layers]
    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
