"""Convolutions of an ONNX graph whose weights stand behind nodes, and the operators of other domains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.layers import bank_from_checkpoint

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.normal(size=(4, 3, 3, 3)).astype(np.float32)
STEPS = RANDOM.integers(-100, 100, (4, 3, 3, 3), dtype=np.int8)
SCALES = np.array([0.5, 0.25, 0.01, 0.03], np.float32)
ZEROS = np.array([3, -2, 0, 1], np.int8)


def write(path: Path, nodes: list[Any], weights: dict[str, Any]) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    kept = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [value], [], kept)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    return path


def layers(path: Path) -> dict[str, np.ndarray]:
    bank = bank_from_checkpoint(load_checkpoint(path))
    return {layer.name: layer.kernels.float().numpy() for layer in bank.layers}


BEHIND: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "identity": (
        [helper.make_node("Identity", ["w"], ["a"]), helper.make_node("Identity", ["a"], ["v"])],
        {"w": WEIGHT},
    ),
    "cast": (
        [helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT)],
        {"w": WEIGHT.astype(np.float16)},
    ),
    "transpose": (
        [helper.make_node("Transpose", ["w"], ["v"], perm=[3, 2, 0, 1])],
        {"w": np.ascontiguousarray(WEIGHT.transpose(2, 3, 1, 0))},
    ),
    "reshape": (
        [helper.make_node("Reshape", ["w", "s"], ["v"])],
        {"w": WEIGHT.reshape(4, 27), "s": np.array([0, -1, 3, 3])},
    ),
    "dequantised, one scale for all": (
        [helper.make_node("DequantizeLinear", ["w", "s"], ["v"])],
        {"w": STEPS, "s": np.float32(0.02)},
    ),
    "dequantised, a scale each": (
        [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], axis=0)],
        {"w": STEPS, "s": SCALES, "z": ZEROS},
    ),
    "quantised and dequantised": (
        [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["v"], axis=0),
        ],
        {"w": WEIGHT, "s": SCALES, "z": ZEROS},
    ),
    "transposed and cast": (
        [
            helper.make_node("Transpose", ["w"], ["t"]),
            helper.make_node("Cast", ["t"], ["v"], to=TensorProto.FLOAT),
        ],
        {"w": np.ascontiguousarray(WEIGHT.transpose(3, 2, 1, 0)).astype(np.float64)},
    ),
}


@pytest.mark.parametrize("name", BEHIND)
def test_the_weight_is_what_the_convolution_gets(name: str, tmp_path: Path) -> None:
    nodes, weights = BEHIND[name]
    path = write(tmp_path / "net.onnx", [*nodes, helper.make_node("Conv", ["x", "v"], ["y"])], weights)
    output = [helper.make_tensor_value_info("v", TensorProto.FLOAT, None)]
    kept = [numpy_helper.from_array(np.asarray(array), key) for key, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [], output, kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    expected = ReferenceEvaluator(model).run(None, {})[0]
    found = layers(path)
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"], expected)
    assert load_checkpoint(path).warnings == ()


@pytest.mark.parametrize("operator", ["FusedConv", "NhwcConv", "ConvTransposeWithDynamicPads"])
def test_convolutions_of_com_microsoft_are_read(operator: str, tmp_path: Path) -> None:
    node = helper.make_node(operator, ["x", "w"], ["y"], domain="com.microsoft", strides=[2, 2])
    path = write(tmp_path / "net.onnx", [node], {"w": WEIGHT})
    transposed = "Transpose" in operator
    np.testing.assert_array_equal(layers(path)["w"], WEIGHT.transpose(1, 0, 2, 3) if transposed else WEIGHT)


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_quantised_convolutions_are_read_with_scale_and_zero_point(domain: str, tmp_path: Path) -> None:
    inputs = ["x", "one", "zero", "w", "s", "z", "one", "zero"]
    weights = {"w": STEPS, "s": SCALES, "z": ZEROS, "one": np.float32(1), "zero": np.int8(0)}
    path = write(
        tmp_path / "net.onnx", [helper.make_node("QLinearConv", inputs, ["y"], domain=domain)], weights
    )
    expected = (STEPS.astype(np.float32) - ZEROS[:, None, None, None]) * SCALES[:, None, None, None]
    np.testing.assert_array_equal(layers(path)["w"], expected)


def test_integer_convolutions_are_read_in_steps_and_said_so(tmp_path: Path) -> None:
    inputs = ["x", "w", "", "z"]
    weights = {"w": STEPS.view(np.uint8), "z": np.uint8(128)}
    path = write(tmp_path / "net.onnx", [helper.make_node("ConvInteger", inputs, ["y"])], weights)
    np.testing.assert_array_equal(layers(path)["w"], STEPS.view(np.uint8).astype(np.float32) - 128)
    told = f"{path}: 1 convolution read in whole steps, without their scale: w"
    assert load_checkpoint(path).warnings == (told,)


def test_one_constant_used_in_two_ways_is_two_layers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["v"], perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["x", "v"], ["y"]),
        helper.make_node("Conv", ["x", "w"], ["z"]),
        helper.make_node("Identity", ["w"], ["u"]),
        helper.make_node("Conv", ["x", "u"], ["t"]),
    ]
    found = layers(write(tmp_path / "net.onnx", nodes, {"w": WEIGHT}))
    np.testing.assert_array_equal(found["w"], WEIGHT)
    np.testing.assert_array_equal(found["w'"], WEIGHT.transpose(1, 0, 2, 3))
    assert len(found) == 2


UNSEEN: dict[str, tuple[list[Any], dict[str, Any], str, str]] = {
    "computed": (
        [helper.make_node("Mul", ["w", "g"], ["v"]), helper.make_node("Conv", ["x", "v"], ["y"])],
        {"g": np.float32(2)},
        "v",
        "its weight is computed by Mul",
    ),
    "blocked layout": (
        [helper.make_node("Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc")],
        {},
        "w",
        "Conv of com.microsoft.nchwc is not known",
    ),
    "deformable": (
        [helper.make_node("DeformConv", ["x", "w", "o"], ["y"])],
        {},
        "w",
        "DeformConv is not known",
    ),
    "computed scale": (
        [
            helper.make_node("Sqrt", ["g"], ["s"]),
            helper.make_node("DequantizeLinear", ["w", "s"], ["v"]),
            helper.make_node("Conv", ["x", "v"], ["y"]),
        ],
        {"w": STEPS, "g": np.float32(4)},
        "v",
        "its weight is computed by Sqrt",
    ),
    "blocks": (
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["v"], block_size=3),
            helper.make_node("Conv", ["x", "v"], ["y"]),
        ],
        {"w": STEPS, "s": np.ones((4, 1, 3, 3), np.float32)},
        "v",
        "its weight is quantised in blocks",
    ),
    "an input": (
        [helper.make_node("Conv", ["x", "x"], ["y"])],
        {},
        "x",
        "its weight is no constant of the file",
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    nodes, weights, where, reason = UNSEEN[name]
    plain = helper.make_node("Conv", ["x", "plain"], ["p"])
    path = write(tmp_path / "net.onnx", [*nodes, plain], {"w": WEIGHT, "plain": WEIGHT, **weights})
    checkpoint = load_checkpoint(path)
    assert checkpoint.warnings == (f"{path}: 1 convolution passed over: {where} ({reason})",)
    bank = bank_from_checkpoint(checkpoint)
    assert [layer.name for layer in bank.layers] == ["plain"]
    assert {item.name: item.reason for item in bank.skipped}[where]


def test_functions_are_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    body = helper.make_function(
        "my",
        "Block",
        ["i", "k"],
        ["o"],
        [helper.make_node("Conv", ["i", "k"], ["o"])],
        [helper.make_opsetid("", 19)],
    )
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    call = helper.make_node("Block", ["x", "w"], ["y"], domain="my")
    graph = helper.make_graph([call], "g", [value], [result], [numpy_helper.from_array(WEIGHT, "w")])
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("my", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, functions=[body]).SerializeToString())
    np.testing.assert_array_equal(layers(path)["w"], WEIGHT)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: helper.make_node("Cast", ["w"], ["v"], to=999),
        lambda: helper.make_node("Transpose", ["w"], ["v"], perm=[0, 0, 9, 1]),
        lambda: helper.make_node("Reshape", ["w", "nine"], ["v"]),
        lambda: helper.make_node("DequantizeLinear", ["w", "nine"], ["v"], axis=7),
        lambda: helper.make_node("Identity", ["v"], ["v"]),
    ],
)
def test_nodes_that_make_no_sense_hide_their_layer_alone(spoil: Callable[[], Any], tmp_path: Path) -> None:
    nodes = [
        spoil(),
        helper.make_node("Conv", ["x", "v"], ["y"]),
        helper.make_node("Conv", ["x", "w"], ["z"]),
    ]
    path = write(tmp_path / "net.onnx", nodes, {"w": WEIGHT, "nine": np.arange(9)})
    assert list(layers(path)) == ["w"]


def test_half_precision_stays_half(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["w"], ["v"], to=TensorProto.BFLOAT16)
    path = write(tmp_path / "net.onnx", [node, helper.make_node("Conv", ["x", "v"], ["y"])], {"w": WEIGHT})
    kernels = bank_from_checkpoint(load_checkpoint(path)).layers[0].kernels
    assert kernels.dtype == torch.bfloat16
    assert torch.equal(kernels, torch.from_numpy(WEIGHT).bfloat16())
