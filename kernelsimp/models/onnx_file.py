"""Read the weights of an ONNX model; its convolution nodes say which are kernels.

Weights are initialisers or Constant nodes, under the names that the graph gives them; where nodes stand
between one and its convolution, the numbers are those that the convolution gets. The `onnx` package is an
extra and only imported here.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernelsimp.error_text import short
from kernelsimp.errors import CheckpointError, how_to_install
from kernelsimp.files import quiet
from kernelsimp.models.exported import Convolution, Exported
from kernelsimp.models.onnx_weights import ANY_CONVOLUTION, Passed, Resolver, Used

MOST_NAMED = 5


def read_onnx(path: Path) -> Exported:
    """Return the constants of an ONNX graph and the convolutions among them.

    Raises `CheckpointError` where the package is missing, the file is damaged, or the model is empty.
    """
    onnx = _onnx()
    try:
        with quiet():
            model = _inlined(onnx.load(path))
            tensors = {_text(name): _tensor(onnx, proto) for name, proto in _constants(model.graph)}
    except Exception as error:
        raise CheckpointError(f"{path}: not a valid ONNX file ({short(error)}); export it again") from error
    if not model.graph.node:
        raise CheckpointError(f"{path}: an empty ONNX model without a single node; export it again")
    try:
        return _resolved(onnx, model, tensors, path)
    except Exception as error:  # attributes of wrong types, names that are no text
        raise CheckpointError(f"{path}: not a valid ONNX file ({short(error)}); export it again") from error


def _inlined(model: Any) -> Any:
    """Return a model with the bodies of its functions in place of their calls, where that can be done."""
    if not model.functions:
        return model
    try:
        return importlib.import_module("onnx.inliner").inline_local_functions(model)
    except Exception:  # an older onnx, or a model that is not valid; its convolutions are named instead
        return model


def _resolved(onnx: Any, model: Any, tensors: dict[str, Tensor], path: Path) -> Exported:
    """Return the constants with each convolution's weight, as it is used, in place of where it comes from."""
    convolutions: dict[str, Convolution] = {}
    unseen = {name: f"its weight is an input of the function {where}" for name, where in _in_functions(model)}
    unscaled: list[str] = []
    resolver = Resolver(onnx, dict(_constants(model.graph)), list(_nodes(model.graph)))
    every = list(resolver.convolutions())
    unseen |= {found.name: found.reason for found in every if isinstance(found, Passed)}
    used = [found for found in every if isinstance(found, Used)]
    for found in sorted(used, key=lambda found: found.weight is not None):
        name = found.root
        if found.weight is not None:
            weight = _tensor_from(found.weight)
            while name in convolutions and not _equal(tensors[name], weight):
                name += "'"  # one constant that several convolutions use in several ways
            tensors[name] = weight
        convolutions[name] = found.use
        unscaled += [name] if found.remark else []
    remarks = []
    if unseen:
        told = ", ".join(f"{name} ({reason})" for name, reason in list(unseen.items())[:MOST_NAMED])
        more = f" and {len(unseen) - MOST_NAMED:,} more" if len(unseen) > MOST_NAMED else ""
        remarks.append(f"{path}: {_count(len(unseen))} passed over: {told}{more}")
    if unscaled:
        told = ", ".join(unscaled[:MOST_NAMED])
        remarks.append(f"{path}: {_count(len(unscaled))} read in whole steps, without their scale: {told}")
    return Exported(tensors, convolutions, tuple(remarks), unseen)


def _count(number: int) -> str:
    return f"{number:,} convolution{'' if number == 1 else 's'}"


def _in_functions(model: Any) -> Iterator[tuple[str, str]]:
    """Yield (name, function) of the convolutions inside functions of the model, whose weights are inputs."""
    for function in model.functions:
        for node in _nodes(function):
            if ANY_CONVOLUTION.search(node.op_type):
                yield f"{function.name}.{node.name or node.output[0]}", function.name


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _onnx() -> Any:
    try:
        importlib.import_module("onnx.numpy_helper")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise CheckpointError(f"reading .onnx needs a package: {how_to_install('onnx')}") from error


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield every node, those of branches and loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _nodes(inner)


def _constants(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) of every constant in the graph: initialisers first, then Constant nodes."""
    for initialiser in graph.initializer:
        yield initialiser.name, initialiser
    for node in _nodes(graph):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from ((item.name, item) for item in inner.initializer)


def _text(name: str | bytes) -> str:
    """Return a name; the parser hands over raw bytes where they are no text."""
    if isinstance(name, bytes):
        raise ValueError(f"a tensor is named {name!r}")
    return name


def _tensor(onnx: Any, proto: Any) -> Tensor:
    return _tensor_from(onnx.numpy_helper.to_array(proto))


def _tensor_from(array: NDArray[Any]) -> Tensor:
    if array.dtype.kind in "fiub" and array.dtype.name in _NATIVE:
        return torch.from_numpy(np.array(array))
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16).copy()).view(torch.bfloat16)
    # four-bit and eight-bit floats and text: shapes are all that anyone will see of them
    return torch.zeros(array.shape, dtype=torch.uint8)


_NATIVE = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}
