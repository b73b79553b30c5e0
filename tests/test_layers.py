"""Kernels out of networks and state dicts: order, kinds, reasons, and weights that cannot be right."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_net, tiny_state
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.models.architectures import build_model
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.layers import (
    bank_from_model,
    bank_from_tensors,
    canonical,
    check_weights,
    conv_modules,
    damage,
    layer_name,
    stored_order,
    tensor_name,
)

# sides are distinct primes wherever a layer allows it, so that no two axes can be confused
CONVOLUTIONS = {
    "dense": nn.Conv2d(3, 7, (5, 2)),
    "depthwise": nn.Conv2d(6, 12, 3, groups=6),
    "grouped": nn.Conv2d(6, 10, (3, 5), groups=2),
    "single-input": nn.Conv2d(1, 5, 3),
    "single output": nn.Conv2d(3, 1, 5),
    "transposed": nn.ConvTranspose2d(3, 7, (5, 2)),
    "transposed grouped": nn.ConvTranspose2d(6, 10, (3, 5), groups=2),
    "transposed depthwise": nn.ConvTranspose2d(4, 4, 3, groups=4),
    "one-dimensional": nn.Conv1d(3, 7, 5),
    "one-dimensional transposed": nn.ConvTranspose1d(4, 6, 3, groups=2),
    "three-dimensional": nn.Conv3d(3, 7, (2, 5, 1)),
}
KINDS = {
    "dense": "dense",
    "depthwise": "depthwise",
    "grouped": "grouped",
    "single-input": "single-input",
    "single output": "dense",
    "three-dimensional": "dense",
    "one-dimensional": "dense",
}


def slow_canonical(module: nn.Module, weight: np.ndarray) -> np.ndarray:
    """Build (out, in / groups, grid) kernel by kernel from the definition of the module: the slow twin."""
    groups, outs, ins = module.groups, module.out_channels, module.in_channels
    grid = weight.shape[2:] if weight.ndim > 3 else (1, weight.shape[2])
    result = np.zeros((outs, ins // groups, *grid), dtype=weight.dtype)
    for out in range(outs):
        group = out // (outs // groups)
        for within in range(ins // groups):
            if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
                kernel = weight[group * (ins // groups) + within, out % (outs // groups)]
            else:
                kernel = weight[out, within]
            result[out, within] = kernel.reshape(grid)
    return result


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_canonical_order_agrees_with_the_slow_twin(name: str) -> None:
    module = CONVOLUTIONS[name]
    (layer,) = bank_from_model(nn.Sequential(module)).layers
    expected = slow_canonical(module, module.weight.detach().numpy())
    assert layer.kind == KINDS.get(name, "transposed")
    assert layer.groups == module.groups
    assert layer.kind_source == "architecture"
    assert layer.weight_shape == tuple(module.weight.shape)
    assert np.array_equal(layer.kernels.numpy(), expected)
    back = stored_order(layer.kernels, layer.kind, layer.groups, layer.weight_shape)
    assert torch.equal(back, module.weight)


@pytest.mark.parametrize("name", ["transposed", "transposed grouped", "transposed depthwise"])
def test_a_transposed_kernel_is_what_one_input_sends_to_one_output(name: str) -> None:
    """Feed an impulse into one input channel: each output of its group shows the kernel of that pair."""
    module = CONVOLUTIONS[name]
    kernels = canonical(module.weight.detach(), "transposed", module.groups)
    ins, outs = module.in_channels // module.groups, module.out_channels // module.groups
    for channel in range(module.in_channels):
        impulse = torch.zeros(1, module.in_channels, 1, 1)
        impulse[0, channel] = 1
        with torch.no_grad():
            answer = module(impulse)[0] - module.bias[:, None, None]
        group = channel // ins
        for out in range(group * outs, (group + 1) * outs):
            torch.testing.assert_close(answer[out], kernels[out, channel % ins])


def test_canonical_is_a_view_where_it_can_be() -> None:
    weight = torch.randn(4, 3, 3, 3)
    assert canonical(weight, "dense", 1).data_ptr() == weight.data_ptr()
    assert canonical(weight, "transposed", 1).data_ptr() == weight.data_ptr()


@pytest.mark.parametrize(("layer", "tensor"), [("a.b", "a.b.weight"), ("(the only layer)", "weight")])
def test_names_of_layers_and_tensors(layer: str, tensor: str) -> None:
    assert tensor_name(layer) == tensor
    assert layer_name(tensor) == layer


# ---------------------------------------------------------------- from a network


class Shared(nn.Module):
    """One convolution under two names, one weight in two convolutions, a lone parameter, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3)
        self.again = self.first
        self.twin = nn.Conv2d(3, 3, 3)
        self.twin.weight = self.first.weight
        self.table = nn.Parameter(torch.zeros(1, 3, 4, 4))
        self.norm = nn.BatchNorm2d(3)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 3))
        self.normed_too = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 3))
        self.lazy = nn.LazyConv2d(4, 3)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_shared_modules_and_weights_count_once_and_every_other_tensor_has_a_reason() -> None:
    model = Shared()
    assert list(conv_modules(model)) == ["first", "normed", "normed_too", "lazy"]
    bank = bank_from_model(model)
    assert [layer.name for layer in bank.layers] == ["first"]
    reasons = {item.name: item.reason for item in bank.skipped}
    part = "part of a re-parametrised convolution; remove the parametrisation first"
    assert reasons["again.weight"] == "the same tensor as first.weight"
    assert reasons["twin.weight"] == "the same tensor as first.weight"
    assert reasons["table"] == "4-D, but no convolution uses it"
    assert reasons["norm.num_batches_tracked"] == "a scalar"
    assert reasons["normed.parametrizations.weight.original1"] == part
    assert reasons["normed_too.parametrizations.weight.original1"] == part
    assert reasons["lazy.weight"] == "lazy convolution without a shape yet; run the network once first"
    everything = {*model.state_dict()}
    assert set(reasons) == everything - {"first.weight"}


def test_kernels_can_be_taken_from_the_file_in_their_stored_type() -> None:
    stored_as = {name: value.half() for name, value in tiny_state().items()}
    bank = bank_from_model(tiny_net(1), stored_as)
    for layer in bank.layers:
        assert layer.kernels.dtype == torch.float16
        assert layer.kernels.data_ptr() == stored_as[tensor_name(layer.name)].data_ptr()


def test_a_network_without_convolutions() -> None:
    with pytest.raises(KernelsimpError) as caught:
        bank_from_model(nn.Linear(3, 4))
    assert str(caught.value) == (
        "the network: no convolution found among 2 tensors (1 1-D, 1 2-D); expected a 4-D '*.weight'"
    )


# ---------------------------------------------------------------- from weights alone


def test_every_tensor_is_a_layer_or_has_a_reason() -> None:
    state = OrderedDict(
        {
            "conv.weight": torch.randn(4, 3, 3, 3),
            "conv.bias": torch.zeros(4),
            "head.weight": torch.randn(5, 4),
            "steps": torch.tensor(3),
            "wave.weight": torch.randn(4, 2, 3),
            "volume.weight": torch.randn(4, 2, 3, 3, 3),
            "table": torch.randn(1, 4, 7, 7),
            "codes.weight": torch.zeros(4, 2, 3, 3, dtype=torch.int8),
            "empty.weight": torch.zeros(0, 2, 3, 3),
            "sparse.weight": torch.eye(3).to_sparse(),
        }
    )
    state["copy.weight"] = state["conv.weight"]
    bank = bank_from_tensors(state)
    assert [layer.name for layer in bank.layers] == ["conv"]
    assert {item.name: item.reason for item in bank.skipped} == {
        "conv.bias": "a vector: bias or normalisation",
        "head.weight": "a matrix: linear layer or embedding",
        "steps": "a scalar",
        "wave.weight": "3-D; if it is a Conv1d, pass --arch",
        "volume.weight": "5-D; if it is a Conv3d, pass --arch",
        "table": "4-D, but not named *.weight: a table, an embedding or a re-parametrised weight",
        "codes.weight": "4-D, but of int8: expected real numbers",
        "empty.weight": "empty: (0, 2, 3, 3)",
        "sparse.weight": "stored sparse: expected plain numbers; save it with .to_dense()",
        "copy.weight": "the same tensor as conv.weight",
    }


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "X: no convolution found among 0 tensors (nothing at all); expected a 4-D '*.weight'"),
        (
            {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2), "b.weight": torch.zeros(2, 2)},
            "X: no convolution found among 3 tensors (1 1-D, 2 2-D); expected a 4-D '*.weight'",
        ),
        (
            {"a.weight": torch.zeros(2, 3, 5)},
            "X: no convolution found among 1 tensors (1 3-D); 3-D and 5-D weights need --arch",
        ),
    ],
)
def test_no_convolution_says_what_was_found(tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(KernelsimpError) as caught:
        bank_from_tensors(tensors, "X")
    assert str(caught.value) == words


def kinds(state: dict[str, Tensor]) -> dict[str, str]:
    return {layer.name: layer.kind for layer in bank_from_tensors(state).layers}


def weights(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}


def test_one_input_is_depthwise_only_where_widths_match_on_both_sides() -> None:
    assert kinds(tiny_state())["depthwise"] == "depthwise"
    grey = weights(conv1=(10, 1, 5, 5), conv2=(20, 10, 5, 5), fc1=(50, 320), fc2=(10, 50))
    assert kinds(grey) == {"conv1": "single-input", "conv2": "dense"}
    no_consumer = weights(stem=(8, 3, 3, 3), dw=(8, 1, 3, 3), head=(5, 7))
    assert kinds(no_consumer)["dw"] == "single-input"
    no_producer = weights(stem=(9, 3, 3, 3), dw=(8, 1, 3, 3), head=(5, 8, 1, 1))
    assert kinds(no_producer)["dw"] == "single-input"
    grey_residual = weights(stem=(16, 1, 3, 3), z=(16, 16, 3, 3), a=(16, 16, 3, 3))
    assert kinds(grey_residual)["stem"] == "single-input"
    between_linears = weights(up=(32, 8), dw=(32, 1, 3, 3), down=(8, 32))
    assert kinds(between_linears)["dw"] == "depthwise"
    single = weights(stem=(1, 3, 3, 3), one=(1, 1, 3, 3), head=(5, 1, 1, 1))
    assert kinds(single)["one"] == "single-input"


def test_a_file_sorted_by_name_has_no_before_and_after() -> None:
    mobile = weights(
        conv=(8, 3, 3, 3), dw1=(8, 1, 3, 3), dw2=(16, 1, 3, 3), pw1=(16, 8, 1, 1), pw2=(4, 16, 1, 1)
    )
    assert kinds(mobile)["dw2"] == "depthwise"
    grey = weights(conv1=(16, 1, 3, 3), conv2=(16, 16, 3, 3))
    assert kinds(grey)["conv1"] == "single-input"


@pytest.mark.parametrize(("ins", "outs", "groups"), [(6, 10, 1), (6, 10, 2), (9, 6, 3)])
def test_a_bias_gives_a_transposed_convolution_away(ins: int, outs: int, groups: int) -> None:
    module = nn.ConvTranspose2d(ins, outs, 3, groups=groups)
    (guessed,) = bank_from_tensors(nn.Sequential(module).state_dict()).layers
    (exact,) = bank_from_model(nn.Sequential(module)).layers
    assert (guessed.kind, guessed.groups) == (exact.kind, exact.groups)
    assert torch.equal(guessed.kernels, exact.kernels)
    assert guessed.kind_source == "weights"


def test_a_lone_convolution_has_the_empty_name() -> None:
    (layer,) = bank_from_tensors(nn.Conv2d(2, 3, 3).state_dict()).layers
    assert tensor_name(layer.name) == "weight"


FACTS = {
    "resnet20-12fca82f.th": (19, 29_744, {"dense": 19}),
    "resnet56-4bfd9763.th": (55, 94_256, {"dense": 55}),
    "lenet_mnist.pt": (2, 210, {"single-input": 1, "dense": 1}),
    "mobilenet_v1_025.safetensors": (14, 1_264, {"depthwise": 13, "dense": 1}),
    "yolofastestv2-coco.pth": (28, 1_680, {"depthwise": 27, "dense": 1}),
}


@pytest.mark.parametrize("name", FACTS)
def test_published_checkpoints(name: str, shared_data: Path) -> None:
    bank = bank_from_tensors(load_checkpoint(shared_data / "checkpoints" / name).tensors)
    check_weights(bank)
    found: dict[str, int] = {}
    for layer in bank.spatial:
        found[layer.kind] = found.get(layer.kind, 0) + 1
    assert (len(bank.spatial), sum(layer.count for layer in bank.spatial), found) == FACTS[name]


def test_weights_and_network_agree_on_a_published_depthwise_net(shared_data: Path) -> None:
    checkpoint = load_checkpoint(shared_data / "checkpoints" / "mobilenet_v1_025.safetensors")
    guessed = {layer.name: layer for layer in bank_from_tensors(checkpoint.tensors).layers}
    exact = bank_from_model(build_model(f"{shared_data / 'nets.py'}:mobilenet_v1_025")).layers
    assert {layer.name: (layer.kind, layer.groups) for layer in exact} == {
        name: (layer.kind, layer.groups) for name, layer in guessed.items()
    }


# ---------------------------------------------------------------- soundness


def layer_with(value: float, dtype: torch.dtype = torch.float32) -> LayerKernels:
    """A layer of 8 x 4 kernels in which cell (1, 2) of kernel (5, 3) has this value."""
    kernels = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.05
    kernels = kernels.to(dtype)
    kernels[5, 3, 1, 2] = value
    return LayerKernels("features.7", "dense", kernels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "features.7: kernel (5, 3) holds NaN"),
        (float("inf"), "features.7: kernel (5, 3) holds an infinite weight"),
        (float("-inf"), "features.7: kernel (5, 3) holds an infinite weight"),
    ],
)
def test_nan_and_inf_are_named(value: float, words: str, dtype: torch.dtype) -> None:
    bank = KernelBank((layer_with(0.1), layer_with(value, dtype)))
    with pytest.raises(KernelsimpError) as caught:
        check_weights(bank)
    assert str(caught.value) == f"{words}; repair the checkpoint or pass --skip-layers features.7"


@pytest.mark.parametrize("value", [1e4, -1e4, 3e37])
def test_an_absurd_weight_is_named(value: float) -> None:
    words = damage(layer_with(value))
    assert words is not None
    size = f"{abs(value):.3g}"
    assert words.startswith(
        f"features.7: kernel (5, 3) holds a weight of size {size}, its layer's RMS is 0.0"
    )


def test_every_flip_of_a_top_exponent_bit_is_seen() -> None:
    clean = layer_with(0.1).kernels
    for position in range(0, clean.numel(), 37):
        bits = clean.clone().reshape(-1).view(torch.int32)
        bits[position] ^= 1 << 30
        flipped = LayerKernels("x", "dense", bits.view(torch.float32).reshape(clean.shape))
        assert damage(flipped) is not None


@pytest.mark.parametrize(
    ("value", "begins"), [(float("nan"), "x: kernel (127, 5) holds NaN"), (1e9, "x: kernel (127, 5) holds a")]
)
def test_a_layer_that_is_read_in_parts(value: float, begins: str) -> None:
    kernels = torch.full((128, 1024, 3, 3), 0.1)
    kernels[127, 5, 0, 0] = value
    words = damage(LayerKernels("x", "dense", kernels))
    assert words is not None
    assert words.startswith(begins)


@pytest.mark.parametrize(
    "kernels",
    [
        torch.zeros(4, 4, 3, 3),
        torch.zeros(144).index_fill(0, torch.tensor(5), 1.0).reshape(4, 4, 3, 3),
        torch.ones(1, 1, 1, 1),
        torch.nn.functional.pad(torch.ones(4, 4, 1, 1), (1, 1, 1, 1)),
        torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(1)),
        torch.full((4, 4, 3, 3), 1e-42),
        torch.full((4, 4, 3, 3), 60000.0, dtype=torch.float16),
    ],
    ids=["zero", "one weight", "one number", "centre only", "random", "denormal", "large fp16"],
)
def test_odd_but_sound_layers_pass(kernels: Tensor) -> None:
    assert damage(LayerKernels("x", "dense", kernels)) is None


def test_layers_of_a_sound_net_pass() -> None:
    check_weights(bank_from_model(tiny_net()))
