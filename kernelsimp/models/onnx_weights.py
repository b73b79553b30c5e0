"""The weight that a convolution of an ONNX graph really uses, where nodes stand between it and a constant.

Followed are Identity, Cast, Transpose, Reshape, QuantizeLinear and DequantizeLinear, with what they do to the
numbers as ONNX defines it; of quantised convolutions the scale and zero point. Anything else is said.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelsimp.models.exported import Convolution

Array = NDArray[Any]

PLAIN_DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Whose convolutions are known; other domains may store weights in an order of their own."""

LONGEST = 64
"""Nodes followed back from a convolution to its constant."""


@dataclass(frozen=True)
class _Operator:
    """Where a convolution's weight stands among its inputs, and its scale and zero point where there are."""

    transposed: bool = False
    weight: int = 1
    scale: int | None = None
    zero: int | None = None


OPERATORS = {
    "Conv": _Operator(),
    "ConvTranspose": _Operator(transposed=True),
    "FusedConv": _Operator(),
    "NhwcConv": _Operator(),
    "NhwcFusedConv": _Operator(),
    "ConvTransposeWithDynamicPads": _Operator(transposed=True),
    "ConvInteger": _Operator(zero=3),
    "QLinearConv": _Operator(weight=3, scale=4, zero=5),
}
"""Weights of all of these are (out, in / groups, ...), of the transposed (in, out / groups, ...)."""

ANY_CONVOLUTION = re.compile(r"Conv(?!ert|ex)")
"""What the names of operators that convolve have in common."""


class NotExactError(Exception):
    """Why a weight cannot be read."""


@dataclass(frozen=True, eq=False)
class Used:
    """One convolution: the constant its weight comes from, the weight, and how it is used.

    `weight` is None where it is the constant itself. `remark` says what its numbers are, if not the weight's.
    """

    root: str
    weight: Array | None
    use: Convolution
    remark: str = ""


@dataclass(frozen=True, eq=False)
class Passed:
    """A convolution whose weight cannot be read, and why."""

    name: str
    reason: str


class Resolver:
    """Follows weights through the nodes of one graph; `constants` maps names to ONNX tensors."""

    def __init__(self, onnx: Any, constants: Mapping[str, Any], nodes: Sequence[Any]) -> None:
        self.onnx, self.constants = onnx, constants
        self.makers = {output: node for node in nodes for output in node.output if output}
        self.nodes = nodes

    def convolutions(self) -> Iterator[Used | Passed]:
        """Yield every convolution of the graph, in its order."""
        for node in self.nodes:
            known = OPERATORS.get(node.op_type) if node.domain in PLAIN_DOMAINS else None
            if known is None and not ANY_CONVOLUTION.search(node.op_type):
                continue
            at = known.weight if known else 1
            name = node.input[at] if len(node.input) > at else node.name or node.op_type
            if known is None or len(node.input) <= at:
                domain = f" of {node.domain}" if node.domain else ""
                yield Passed(name, f"{node.op_type}{domain} is not known")
                continue
            try:
                yield self._used(node, known, name)
            except NotExactError as error:
                yield Passed(name, str(error))

    def _used(self, node: Any, known: _Operator, name: str) -> Used:
        groups = int(next((item.i for item in node.attribute if item.name == "group"), 1))
        strides = next((item.ints for item in node.attribute if item.name == "strides"), ())
        use = Convolution(groups, known.transposed, max(map(int, strides), default=1))
        root, weight = self._follow(name)
        if known.scale is None and known.zero is None:
            return Used(root, weight, use)
        stored = self._array(root) if weight is None else weight
        if known.scale is None:
            remark = "of whole steps without their scale"
            zero = self._optional(node, known.zero)
            return Used(root, _dequantised(stored, np.float32(1), zero, 0), use, remark)
        scale = self._optional(node, known.scale)
        if scale is None:
            raise NotExactError("its scale is computed")
        return Used(root, _dequantised(stored, scale, self._optional(node, known.zero), 0), use)

    def _follow(self, name: str) -> tuple[str, Array | None]:
        """Return the constant behind a name, and the array it becomes; None where it stays as it is."""
        steps: list[Any] = []
        while name not in self.constants:
            maker = self.makers.get(name)
            if maker is None:
                raise NotExactError("its weight is no constant of the file")
            if maker.op_type not in STEPS or maker.domain not in PLAIN_DOMAINS or not maker.input:
                raise NotExactError(f"its weight is computed by {maker.op_type}")
            steps.append(maker)
            if len(steps) > LONGEST:
                raise NotExactError(f"its weight is computed by more than {LONGEST} nodes")
            name = maker.input[0]
        steps = [node for node in steps if node.op_type != "Identity"]
        if not steps:
            return name, None
        array = self._array(name)
        for node in reversed(steps):
            array = STEPS[node.op_type](self, node, array)
        return name, array

    def _array(self, name: str) -> Array:
        return np.asarray(self.onnx.numpy_helper.to_array(self.constants[name]))

    def _optional(self, node: Any, at: int | None) -> Array | None:
        """Return an input of a node that is a constant; None where the node has none."""
        if at is None or len(node.input) <= at or not node.input[at]:
            return None
        root, array = self._follow(node.input[at])
        return self._array(root) if array is None else array

    # ------------------------------------------------------------ what nodes do

    def cast(self, node: Any, array: Array) -> Array:
        to = int(_attribute(node, "to", 0))
        try:
            kind = np.dtype(self.onnx.helper.tensor_dtype_to_np_dtype(to))
        except (KeyError, ValueError) as error:
            raise NotExactError(f"its weight is cast to type {to}") from error
        if kind.name not in ("float16", "float32", "float64", "bfloat16"):
            raise NotExactError(f"its weight is cast to {kind.name}")
        return array.astype(kind)

    def transpose(self, node: Any, array: Array) -> Array:
        order = list(_attribute(node, "perm", ())) or list(range(array.ndim))[::-1]
        if sorted(order) != list(range(array.ndim)):
            raise NotExactError("its weight is transposed along axes it does not have")
        return array.transpose(order)

    def reshape(self, node: Any, array: Array) -> Array:
        shape = self._optional(node, 1)
        if shape is None or shape.ndim != 1 or _attribute(node, "allowzero", 0):
            raise NotExactError("its weight is reshaped to a computed shape")
        sides = [
            array.shape[i] if side == 0 and i < array.ndim else int(side) for i, side in enumerate(shape)
        ]
        try:
            return array.reshape(sides)
        except ValueError as error:
            raise NotExactError("its weight is reshaped to another size") from error

    def dequantize(self, node: Any, array: Array) -> Array:
        scale, zero = self._scale_of(node)
        return _dequantised(array, scale, zero, int(_attribute(node, "axis", 1)))

    def quantize(self, node: Any, array: Array) -> Array:
        """Return round(x / scale) + zero point, halves to even, within what the stored type holds."""
        scale, zero = self._scale_of(node)
        kind = np.dtype(np.uint8) if zero is None else zero.dtype
        other = zero is None and _attribute(node, "output_dtype", 0)
        if other or kind.kind not in "iu" or kind.itemsize > 2:
            raise NotExactError(f"its weight is quantised to {kind.name}")
        axis = int(_attribute(node, "axis", 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.rint(array.astype(np.float32) / _along(scale.astype(np.float32), array, axis))
        if zero is not None:
            steps = steps + _along(zero.astype(np.float32), array, axis)
        return steps.clip(np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)

    def _scale_of(self, node: Any) -> tuple[Array, Array | None]:
        if _attribute(node, "block_size", 0):
            raise NotExactError("its weight is quantised in blocks")
        scale = self._optional(node, 1)
        if scale is None:
            raise NotExactError("its scale is missing")
        return scale, self._optional(node, 2)


STEPS: dict[str, Any] = {
    "Identity": None,
    "Cast": Resolver.cast,
    "Transpose": Resolver.transpose,
    "Reshape": Resolver.reshape,
    "DequantizeLinear": Resolver.dequantize,
    "QuantizeLinear": Resolver.quantize,
}


def _dequantised(array: Array, scale: Any, zero: Array | None, axis: int) -> Array:
    """Return (x - zero point) * scale; both of one number, or one for each place along `axis`."""
    scale = np.asarray(scale)
    kind = scale.dtype if scale.dtype.name in ("float16", "float32", "float64", "bfloat16") else np.float32
    steps = array.astype(np.int32) if array.dtype.kind in "iu" else array.astype(np.float32)
    if zero is not None:
        steps = steps - _along(zero.astype(steps.dtype), array, axis)
    return np.asarray((steps.astype(kind) * _along(scale.astype(kind), array, axis)).astype(kind))


def _along(values: Array, array: Array, axis: int) -> Array:
    """Return one value, or one for each place along an axis, in the shape that spreads over `array`."""
    if values.size == 1:
        return values.reshape(())
    if values.ndim != 1 or not -array.ndim <= axis < array.ndim or array.shape[axis] != values.size:
        raise NotExactError(f"its scale of shape {values.shape} does not fit a weight of {array.shape}")
    shape = [1] * array.ndim
    shape[axis] = values.size
    return values.reshape(shape)


def _attribute(node: Any, name: str, default: Any) -> Any:
    for item in node.attribute:
        if item.name == name:
            return item.ints if isinstance(default, tuple) else item.i
    return default
