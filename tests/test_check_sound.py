"""What a scan refuses a check refuses; what the gate cannot see it says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from kernelsimp.commands.check import Gate, open_subject, update_baseline
from kernelsimp.commands.check import check as run_check
from kernelsimp.gate import CheckedNetwork, baseline_from, check
from kernelsimp.records.verdict import Verdict
from kernelsimp.settings import Settings
from kernelsimp.watch import SILENT

RANDOM = np.random.default_rng(0)


def state(*layers: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: value.clone() for name, value in nn.Sequential(*layers).state_dict().items()}


@pytest.mark.parametrize("side", [3, 1])
@pytest.mark.parametrize("value", [1e30, -1e9])
def test_a_weight_that_a_scan_refuses_fails(value: float, side: int) -> None:
    tensors = state(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, side))
    baseline = baseline_from(CheckedNetwork(tensors))
    assert check(baseline, CheckedNetwork(tensors)).exit_code == 0
    tensors["1.weight"][2, 1, 0, 0] = value
    verdict = check(baseline, CheckedNetwork(tensors))
    assert [(finding.rule, finding.where) for finding in verdict.errors] == [("weights.unreal", "1")]
    assert "kernel (2, 1) holds a weight of size" in verdict.errors[0].message


def test_minus_infinity_in_a_convolution_fails_though_masks_may_hold_it() -> None:
    tensors = state(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    baseline = baseline_from(CheckedNetwork(tensors))
    tensors["1.weight"][0, 0] = float("-inf")
    verdict = check(baseline, CheckedNetwork(tensors))
    assert [finding.rule for finding in verdict.errors] == ["weights.unreal"]


def test_nan_is_said_once() -> None:
    tensors = state(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    baseline = baseline_from(CheckedNetwork(tensors))
    tensors["0.weight"][0, 0] = float("nan")
    tensors["1.weight"][0, 0] = float("nan")
    verdict = check(baseline, CheckedNetwork(tensors))
    assert sorted(finding.rule for finding in verdict.errors) == ["kernels.nan", "weights.nan"]


# --- graphs


def convolutions(behind: str, weight: np.ndarray) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Two convolutions, the second's weight behind a node."""
    scale = np.float32(0.01)
    stored = {
        "DequantizeLinear": np.rint(weight / scale).clip(-127, 127).astype(np.int8),
        "Transpose": weight.transpose(3, 2, 1, 0).copy(),
        "QLinearConv": np.rint(weight / scale).clip(-127, 127).astype(np.int8),
    }.get(behind, weight)
    first = helper.make_node("Conv", ["x", "first.weight"], ["a"])
    if behind == "QLinearConv":
        inputs = ["a", "s", "z", "second.weight", "s", "z", "s", "z"]
        nodes = [first, helper.make_node("QLinearConv", inputs, ["y"])]
    else:
        inputs = ["second.weight", "s"] if behind in ("DequantizeLinear", "Mul") else ["second.weight"]
        options = {"to": TensorProto.FLOAT} if behind == "Cast" else {}
        conv = helper.make_node("Conv", ["a", "v"], ["y"])
        nodes = [first, helper.make_node(behind, inputs, ["v"], **options), conv]
    return nodes, {"second.weight": stored, "s": np.asarray(scale), "z": np.zeros((), np.int8)}


def write(path: Path, nodes: list[Any], weights: dict[str, np.ndarray]) -> None:
    first = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    kept = [
        numpy_helper.from_array(array, name) for name, array in {"first.weight": first, **weights}.items()
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "g", [value], [], kept)).SerializeToString())


def judge(path: Path, baseline: Path) -> Verdict:
    return run_check(path, Gate(baseline), Settings())


@pytest.mark.parametrize("name", ["second.weight", "onnx::Conv_12"])
@pytest.mark.parametrize(
    "behind", ["Identity", "Cast", "Transpose", "DequantizeLinear", "QLinearConv", "Abs"]
)
def test_a_zeroed_layer_of_a_graph_fails_wherever_its_weight_stands(
    behind: str, name: str, tmp_path: Path
) -> None:
    path, baseline = tmp_path / "net.onnx", tmp_path / "b.json"
    weight = RANDOM.normal(size=(4, 4, 3, 3)).astype(np.float32)
    for round_, array in enumerate((weight, weight * 0)):
        nodes, weights = convolutions(behind, array)
        for node in nodes:
            node.input[:] = [name if item == "second.weight" else item for item in node.input]
        write(path, nodes, {name if key == "second.weight" else key: item for key, item in weights.items()})
        if round_ == 0:
            update_baseline(path, Gate(baseline), Settings())
            assert judge(path, baseline).exit_code == 0
    verdict = judge(path, baseline)
    if behind == "Abs":  # it cannot be read: then it is not passed in silence
        assert verdict.notes == ("v: not checked, its weight is computed by Abs",)
    else:
        where = name.removesuffix(".weight")
        assert [(finding.rule, finding.where) for finding in verdict.errors] == [("layers.zeroed", where)]


def test_a_layer_of_the_baseline_that_is_hidden_now_fails(tmp_path: Path) -> None:
    path, baseline = tmp_path / "net.onnx", tmp_path / "b.json"
    weight = RANDOM.normal(size=(4, 4, 3, 3)).astype(np.float32)
    write(path, *convolutions("Identity", weight))
    update_baseline(path, Gate(baseline), Settings())
    write(path, *convolutions("Mul", weight))
    verdict = judge(path, baseline)
    assert verdict.exit_code == 1
    assert ("layers.unseen", "v") in [(finding.rule, finding.where) for finding in verdict.errors]


def test_what_was_hidden_in_the_baseline_stays_a_note(tmp_path: Path) -> None:
    path, baseline = tmp_path / "net.onnx", tmp_path / "b.json"
    write(path, *convolutions("Mul", RANDOM.normal(size=(4, 4, 3, 3)).astype(np.float32)))
    update_baseline(path, Gate(baseline), Settings())
    verdict = judge(path, baseline)
    assert (verdict.exit_code, verdict.notes) == (0, ("v: not checked, its weight is computed by Mul",))
    subject, _ = open_subject(path, Gate(baseline), Settings(), None, SILENT)
    assert [layer.name for layer in subject.spatial] == ["first"]
