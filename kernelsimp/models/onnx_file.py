"""Read the weights of an ONNX model; its Conv and ConvTranspose nodes say which are kernels.

Weights are initialisers or Constant nodes, under the names that the graph gives them. The `onnx` package
is an extra and only imported here.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelsimp.error_text import short
from kernelsimp.errors import CheckpointError
from kernelsimp.files import quiet
from kernelsimp.models.exported import Convolution, Exported

_OPERATORS = {"Conv": False, "ConvTranspose": True}
"""Operator -> whether it is transposed; the others (ConvInteger, QLinearConv) hold no real numbers."""


def read_onnx(path: Path) -> Exported:
    """Return the constants of an ONNX graph and the convolutions among them.

    Raises `CheckpointError` where the package is missing, the file is damaged, or the model is empty.
    """
    onnx = _onnx()
    try:
        with quiet():
            model = onnx.load(path)
            tensors = {_text(name): _tensor(onnx, proto) for name, proto in _constants(model.graph)}
    except Exception as error:
        raise CheckpointError(f"{path}: not a valid ONNX file ({short(error)}); export it again") from error
    if not model.graph.node:
        raise CheckpointError(f"{path}: an empty ONNX model without a single node; export it again")
    convolutions: dict[str, Convolution] = {}
    computed = 0
    for node in _nodes(model.graph):
        if node.op_type in _OPERATORS and len(node.input) > 1:
            groups = next((item.i for item in node.attribute if item.name == "group"), 1)
            strides = next((item.ints for item in node.attribute if item.name == "strides"), ())
            if node.input[1] in tensors:
                convolutions[node.input[1]] = Convolution(
                    int(groups), _OPERATORS[node.op_type], max(map(int, strides), default=1)
                )
            else:
                computed += 1
    remark = f"{path}: {computed} convolutions have a computed weight and are passed over"
    return Exported(tensors, convolutions, (remark,) if computed else ())


def _onnx() -> Any:
    try:
        importlib.import_module("onnx.numpy_helper")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise CheckpointError("reading .onnx needs a package: pip install 'kernelsimp[onnx]'") from error


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
    array = onnx.numpy_helper.to_array(proto)
    if array.dtype.kind in "fiub" and array.dtype.name in _NATIVE:
        return torch.from_numpy(np.array(array))
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    # four-bit and eight-bit floats and text: shapes are all that anyone will see of them
    return torch.zeros(array.shape, dtype=torch.uint8)


_NATIVE = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}
