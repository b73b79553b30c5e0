"""Convolutions as two thinner ones: exact for kernels of exact rank, whatever stride, padding and groups."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Tied, Twice, smooth_images
from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.files import quiet
from kernelsimp.kernels.separable import full_rank, halves, ranks_of, unroll
from kernelsimp.models import thin, zoo
from kernelsimp.models.architectures import build_model
from kernelsimp.models.factorised import exact_plan, factorise, factorised_layer, separable_layers
from kernelsimp.models.standalone import build_standalone, standalone_text, write_standalone
from kernelsimp.models.thin import ByChannel, Thin, replace_layers

CASES: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "stride": {"stride": (2, 3)},
    "dilation": {"dilation": (2, 3), "padding": (1, 0)},
    "zeros": {"padding": (3, 1)},
    "reflect": {"padding": (3, 1), "padding_mode": "reflect"},
    "replicate": {"padding": (1, 2), "padding_mode": "replicate", "stride": 2},
    "circular": {"padding": (2, 1), "padding_mode": "circular"},
    "same": {"padding": "same"},
    "same, even": {"padding": "same", "kernel_size": (4, 2)},
    "valid": {"padding": "valid"},
    "wide": {"kernel_size": (2, 7)},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 6, "out_channels": 6, "padding": 1},
    "depthwise, two a channel": {"groups": 6, "out_channels": 12, "stride": 2},
}


def layer_of_rank(rank: int, case: dict[str, Any]) -> nn.Conv2d:
    """Return a layer whose matrix in each group has this rank."""
    torch.manual_seed(0)
    layer = nn.Conv2d(**{"in_channels": 6, "out_channels": 8, "kernel_size": (5, 3), **case})
    vertical, horizontal = halves(layer.weight, layer.groups, rank)
    with torch.no_grad():
        layer.weight.copy_(composed(vertical, horizontal, layer.groups))
        if layer.bias is not None:
            layer.bias.normal_()
    return layer.eval()


def composed(vertical: Tensor, horizontal: Tensor, groups: int) -> Tensor:
    """The slow twin: sum every pair of a group by hand."""
    out, rank, _, wide = horizontal.shape
    _, inputs, high, _ = vertical.shape
    weight = torch.zeros(out, inputs, high, wide, dtype=torch.float64)
    for o in range(out):
        group = o // (out // groups)
        for r in range(rank):
            weight[o] += vertical[group * rank + r] * horizontal[o, r][None]
    return weight


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rank", [1, 2])
def test_two_thinner_layers_put_out_what_the_whole_one_does(name: str, rank: int) -> None:
    layer = layer_of_rank(rank, CASES[name])
    images = smooth_images(2, side=12).repeat(1, 2, 1, 1)
    made = factorised_layer(layer, Thin(rank))
    with quiet():  # an even kernel with padding "same" warns of a copy
        assert far(made(images), layer(images)) < 1e-5
    assert ranks_of(layer.weight, layer.groups).tolist() == [rank] * layer.groups


def test_a_rank_too_low_is_not_the_same() -> None:
    layer = layer_of_rank(3, CASES["zeros"])
    images = smooth_images(2).repeat(1, 2, 1, 1)
    assert far(factorised_layer(layer, Thin(2))(images), layer(images)) > 1e-2


def test_the_full_rank_restricts_nothing() -> None:
    for groups, out in ((1, 8), (2, 8), (6, 6)):
        weight = torch.randn(out, 6 // groups, 5, 3)
        rank = full_rank(tuple(weight.shape), groups)
        assert far(composed(*halves(weight, groups, rank), groups), weight.double()) < 1e-12
        assert unroll(weight, groups).shape[1:].numel() * groups == weight.numel()
        assert min(unroll(weight, groups).shape[1:]) == rank


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(KernelsimpError, match="rank 0; expected 1 or more"):
        halves(torch.randn(4, 1, 3, 3), 4, 0)


@pytest.mark.parametrize("each", [1, 2])
def test_a_depthwise_layer_runs_channel_by_channel(each: int) -> None:
    layer = layer_of_rank(1, {"groups": 6, "out_channels": 6 * each, "padding": 1, "stride": 2})
    with torch.no_grad():
        layer.weight[each : 2 * each].normal_()
        layer.weight[4 * each].normal_()
    plan = exact_plan({"layer": layer})
    assert plan["layer"] == (Thin(1, (0, 2, 3, 5)),)
    images = smooth_images(2).repeat(1, 2, 1, 1)
    made = factorised_layer(layer, plan["layer"][0])
    assert isinstance(made, ByChannel)
    assert far(made(images), layer(images)) < 1e-5


class Pointwise(nn.Module):
    """A layer at two places, a lone kernel row, and layers of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.again = nn.Sequential(self.shared, nn.ReLU(), self.shared)
        self.row = nn.Conv2d(6, 6, (1, 3))
        self.point = nn.Conv2d(6, 6, 1)
        self.up = nn.ConvTranspose2d(6, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.up(self.point(self.row(self.again(self.shared(self.stem(images))))))


def test_a_layer_at_two_places_is_replaced_at_both() -> None:
    torch.manual_seed(0)
    model = Pointwise().eval()
    found, whole = separable_layers(model)
    assert set(found) == {"stem", "shared"}
    assert set(whole) == {"row", "up"}
    assert whole["up"] == "a ConvTranspose2d, not a plain Conv2d"
    made = factorise(
        model, {name: Thin(full_rank(tuple(item.weight.shape), 1)) for name, item in found.items()}
    )
    assert made.again[0] is made.shared is made.again[2]
    images = smooth_images(2)
    assert far(made(images), model(images)) < 1e-5
    assert isinstance(model.shared, nn.Conv2d)


@pytest.mark.parametrize("network", [Tied, Twice])
def test_a_weight_of_two_modules_stays_whole(network: type[nn.Module]) -> None:
    found, whole = separable_layers(network())
    name = "first" if network is Tied else "left"
    assert name not in found
    assert whole[name] == "its weight is shared with another layer, or computed"


def test_a_lone_convolution_is_replaced() -> None:
    layer = layer_of_rank(2, CASES["reflect"])
    (name,) = separable_layers(layer)[0]
    made = factorise(layer, {name: Thin(2)})
    images = smooth_images(2).repeat(1, 2, 1, 1)
    assert isinstance(made, nn.Sequential)
    assert far(made(images), layer(images)) < 1e-5


def test_fresh_modules_take_the_weights_of_made_ones() -> None:
    torch.manual_seed(0)
    model = Pointwise().eval()
    plan = {"stem": Thin(2), "shared": Thin(3)}
    made = factorise(model, plan)
    other = replace_layers(copy.deepcopy(Pointwise()), plan)
    other.load_state_dict(made.state_dict(), strict=True)
    images = smooth_images(2)
    assert torch.equal(other.eval()(images), made(images))


def test_another_network_is_refused() -> None:
    with pytest.raises(TypeError, match="a layer is ConvTranspose2d, expected Conv2d"):
        replace_layers(Pointwise(), {"up": Thin(1)})


# ---------------------------------------------------------------- the file that builds it


@pytest.mark.parametrize("arch", ["zoo:digits-cnn", "torchvision:squeezenet1_1"])
def test_networks_by_name_are_built_without_us(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(arch)
    name = "dense.0" if arch.startswith("zoo") else "features.3.expand3x3"
    plan = {name: Thin(5)}
    made, place = factorise(model, plan).eval(), tmp_path / "a.py"
    text = standalone_text(arch, plan, "a.safetensors", channels_last=False)
    assert "kernelsimp" not in text.replace("made by kernelsimp", "")
    write_standalone((place, tmp_path / "a.safetensors"), text, made.state_dict())
    images = torch.rand(
        2, 1 if arch.startswith("zoo") else 3, *((8, 8) if arch.startswith("zoo") else (64, 64))
    )
    with torch.no_grad():
        assert torch.equal(build_standalone(place)(images), made(images))


def test_texts_that_go_into_one_file_share_no_name() -> None:
    own = [
        {key for key, item in vars(module).items() if getattr(item, "__module__", "") == module.__name__}
        for module in (thin, zoo)
    ]
    assert all(own)
    assert not own[0] & own[1]
