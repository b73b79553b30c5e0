"""Where a network's layers stand in its forward pass: what each one's output goes into, and in what order.

A layer is a convolution or a linear layer; modules that share a weight are one layer. Its output is seen at
the layer itself, or at the addition that takes it (through a batch norm that may be absorbed): there what a
shortcut brings can be answered for, too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernelsimp.error_text import short
from kernelsimp.errors import KernelsimpError
from kernelsimp.memory import is_out_of_memory
from kernelsimp.models.layers import CONVOLUTIONS, TRANSPOSED
from kernelsimp.models.stored_order import LONE, canonical, stored_order

ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True)
class Stage:
    """One layer: how often it is called, and the batch norm that alone takes all that it puts out, if any.

    `addition` counts the additions after its call, from 0, up to the one that takes its output; None where
    none does.
    """

    name: str
    calls: int = 1
    norm: str | None = None
    addition: int | None = None


def layer_modules(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the modules of every layer with a plain weight, by its first name."""
    found: dict[str, list[nn.Module]] = {}
    names: dict[Tensor, str] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and weight is not None:
            found.setdefault(names.setdefault(weight, name or LONE), []).append(module)
    return found


def groups_of(layer: nn.Module) -> int:
    """Return the number of groups of a layer."""
    return int(getattr(layer, "groups", 1))


def is_transposed(layer: nn.Module) -> bool:
    """Say whether a layer is a transposed convolution, which stores its inputs first."""
    return isinstance(layer, TRANSPOSED)


def matrix_of(layer: nn.Module) -> Tensor:
    """Return a layer's weight as (outputs, cells of one filter), in canonical order."""
    weight: Any = layer.weight
    kind = "transposed" if is_transposed(layer) else "dense"
    matrix: Tensor = weight.detach()
    return matrix if matrix.ndim == 2 else canonical(matrix, kind, groups_of(layer)).flatten(1)


@torch.no_grad()
def put_matrix(layer: nn.Module, matrix: Tensor) -> None:
    """Undo `matrix_of`: write the weights of a layer, cast to its dtype."""
    weight: Any = layer.weight
    if weight.ndim == 2:
        weight.copy_(matrix)
        return
    kind = "transposed" if is_transposed(layer) else "dense"
    grid = weight.shape[2:] if weight.ndim > 3 else (1, *weight.shape[2:])
    kernels = matrix.reshape(len(matrix), -1, *grid)
    weight.copy_(stored_order(kernels, kind, groups_of(layer), tuple(weight.shape)))


def is_addition(function: Any, args: Any, kwargs: Any) -> bool:
    """Say whether an operation adds two tensors of one shape, neither of them scaled."""
    if function not in ADDITIONS or (kwargs or {}).get("alpha", 1) != 1:
        return False
    one, other = args[:2]
    return isinstance(other, Tensor) and one.shape == other.shape and one.is_floating_point()


@torch.no_grad()
def stages_of(model: nn.Module, images: Tensor) -> tuple[Stage, ...]:
    """Run `images` once and return the layers in the order of their first calls.

    Raises `KernelsimpError` with the network's own words where it refuses the images.
    """
    recorder = _Recorder(model)
    with recorder.listen(), recorder:
        try:
            model(images.clone())
        except Exception as error:
            if is_out_of_memory(error):
                raise
            shape = " x ".join(map(str, images.shape[1:]))
            raise KernelsimpError(
                f"the network cannot take images {shape}: {short(error)}; see --input-size, --crop and "
                "--channels"
            ) from error
    return recorder.stages()


@dataclass
class _Output:
    """One output of a layer: what becomes of it."""

    layer: str
    taken: Tensor
    version: int
    norms: list[str] = field(default_factory=list)
    elsewhere: bool = False
    additions: int = 0
    addition: int | None = None


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows each layer's output, by the identity of tensors, into batch norms and additions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = {item: name for name, items in layer_modules(model).items() for item in items}
        self.norms: dict[nn.Module, str] = {
            item: name for name, item in model.named_modules() if isinstance(item, _BatchNorm)
        }
        self.outputs: list[_Output] = []
        self.owner: dict[int, tuple[_Output, bool]] = {}
        self.alive: list[Tensor] = []  # an id means one tensor only while that tensor lives
        self.inside: list[nn.Module] = []

    @contextmanager
    def listen(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in (*self.layers, *self.norms):
                stack.callback(module.register_forward_pre_hook(self._begin).remove)
                stack.callback(module.register_forward_hook(self._end).remove)
            yield

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if module in self.layers:
            self._take(inputs, added=False)
        self.inside.append(module)

    def _end(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.inside.pop()
        if not isinstance(output, Tensor) or not inputs or not isinstance(inputs[0], Tensor):
            return
        if module in self.layers:
            item = _Output(self.layers[module], inputs[0], inputs[0]._version)
            self.outputs.append(item)
            self._own(output, item, raw=True)
        elif (owner := self.owner.get(id(inputs[0]))) is not None:
            owner[0].norms.append(self.norms[module])
            self._own(output, owner[0], raw=False)

    def _own(self, tensor: Tensor, output: _Output, *, raw: bool) -> None:
        self.owner[id(tensor)] = (output, raw)
        self.alive.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside:
            return func(*args, **(kwargs or {}))
        added = is_addition(func, args, kwargs)
        self._take((args, kwargs or {}), added=added)
        if added:
            for output in self.outputs:
                output.additions += 1
        return func(*args, **(kwargs or {}))

    def _take(self, values: Any, *, added: bool) -> None:
        """Note what takes outputs; what is taken twice, or changed in place, is followed no further."""
        for item in tree_leaves(values):
            if not isinstance(item, Tensor) or id(item) not in self.owner:
                continue
            owner, raw = self.owner.pop(id(item))
            owner.elsewhere = owner.elsewhere or raw
            if added and owner.addition is None and owner.taken._version == owner.version:
                owner.addition = owner.additions

    def stages(self) -> tuple[Stage, ...]:
        calls = Counter(output.layer for output in self.outputs)
        fed = Counter(name for output in self.outputs for name in output.norms)
        first = {output.layer: output for output in reversed(self.outputs)}
        found = []
        for name in dict.fromkeys(output.layer for output in self.outputs):
            output, alone = first[name], calls[name] == 1
            norm = output.norms[0] if alone and len(output.norms) == 1 and not output.elsewhere else None
            norm = norm if norm is not None and fed[norm] == 1 else None
            addition = output.addition if alone and (norm is not None or not output.norms) else None
            found.append(Stage(name, calls[name], norm, addition))
        return tuple(found)


# ---------------------------------------------------------------- batch norms


def absorb_norms(model: nn.Module, stages: tuple[Stage, ...]) -> Mapping[str, str]:
    """Fold each batch norm that one layer alone feeds into that layer, in place; return {layer: norm}.

    The norm keeps its tensors: gamma 1, mean 0, variance 1 - eps, and beta, which becomes the layer's bias;
    the layer's own bias becomes 0.
    """
    modules = dict(model.named_modules())
    done: dict[str, str] = {}
    for stage in stages:
        layer, norm = modules.get("" if stage.name == LONE else stage.name), modules.get(stage.norm or "?")
        if layer is not None and isinstance(norm, _BatchNorm) and _absorbable(norm):
            _absorb(layer, norm)
            done[stage.name] = str(stage.norm)
    return done


def _absorbable(norm: _BatchNorm) -> bool:
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if any(item is None or not bool(item.isfinite().all()) for item in tensors):
        return False
    assert norm.running_var is not None
    return norm.eps < 0.5 and bool((norm.running_var >= 0).all())


@torch.no_grad()
def _absorb(layer: nn.Module, norm: _BatchNorm) -> None:
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = norm.weight.double() / (var.double() + norm.eps).sqrt()
    bias: Any = layer.bias
    level = mean.double() if bias is None else mean.double() - bias.double()
    norm.bias.copy_(norm.bias.double() - scale * level)
    if bias is not None:
        bias.zero_()
    put_matrix(layer, matrix_of(layer).double() * scale[:, None])
    norm.weight.fill_(1.0)
    mean.zero_()
    var.fill_(1.0 - norm.eps)
