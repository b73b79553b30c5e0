"""The audit: worked examples of the literature, slow twins, and the command line."""

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from builders import NET, TinyNet, tiny_net, tiny_state, write_zip
from torch import Tensor, nn

from kernelsimp.analysis.alternatives import ALTERNATIVES, Layer, alternatives
from kernelsimp.analysis.ranks import activation_ranks, effective_rank, mean_correlation, weight_rank
from kernelsimp.cli.main import run
from kernelsimp.models.footprint import Footprint, costed_modules, footprints
from kernelsimp.models.zoo import ZOO
from kernelsimp.report.store import json_schema
from kernelsimp.report.tables.audit import audit_tables
from kernelsimp.settings import AuditSettings

USUAL = AuditSettings()


def maps(side: int, kernel: int, macs: int = 0) -> Footprint:
    """Return the footprint of a layer that keeps the size of its maps."""
    return Footprint(macs, (side, side), (side, side), (1, 1), (1, 1), (kernel, kernel))


def cost_of(layer: Layer, name: str, settings: AuditSettings = USUAL):
    return {item.name: item for item in alternatives(layer, settings)}[name]


# --- worked examples of the literature


def test_two_3x3_against_one_5x5_is_25_over_18_and_three_against_7x7_is_49_over_27():
    assert cost_of(Layer((5, 5), 64, 64), "stacked 3x3").weight_ratio == pytest.approx(25 / 18)
    assert cost_of(Layer((7, 7), 64, 64), "stacked 3x3").weight_ratio == pytest.approx(49 / 27)
    assert "stacked 3x3" not in {item.name for item in alternatives(Layer((3, 3), 64, 64), USUAL)}


def test_fully_connected_against_convolution_is_l4_over_k2():
    item = cost_of(Layer((11, 11), 1, 1, maps=maps(32, 11)), "fully connected")
    assert item.weights == 32**4
    assert 1 / item.weight_ratio == pytest.approx(32**4 / 11**2)
    assert round(1 / item.weight_ratio) == 8666
    wide = cost_of(Layer((11, 11), 3, 8, maps=maps(32, 11)), "fully connected")
    assert wide.weight_ratio == pytest.approx(item.weight_ratio)  # channels cancel


def test_16_to_32_channels_is_4608_weights_against_656_depthwise_separable():
    layer = Layer((3, 3), 16, 32)
    assert layer.weights == 4608
    assert cost_of(layer, "depthwise-separable").weights == 656


def test_256_channels_is_589824_weights_against_25600_in_a_bottleneck_of_32():
    layer = Layer((3, 3), 256, 256)
    assert layer.weights == 589_824  # not 65,536, which forgets the nine cells
    assert cost_of(layer, "bottleneck", AuditSettings(bottleneck=8)).weights == 25_600


def test_the_other_formulas():
    layer = Layer((5, 3), 6, 8, 2)
    assert layer.weights == 15 * 6 * 8 // 2
    assert cost_of(layer, "k x 1 + 1 x k").weights == (5 * 6 * 8 + 3 * 8 * 8) // 2
    assert cost_of(Layer((3, 3), 8, 12), "grouped").weights == 9 * 8 * 12 // 4
    assert "grouped" not in {item.name for item in alternatives(Layer((3, 3), 6, 12), USUAL)}
    square = Layer((3, 3), 16, 16, maps=maps(30, 3, 9 * 16 * 16 * 900))
    fourier = cost_of(square, "FFT")
    assert fourier.weights == square.weights
    assert fourier.macs == 32**2 * 10 * 32 + 4 * 32**2 * 256  # padded to 32, log2(1024) = 10
    assert fourier.mac_ratio == pytest.approx(9 * 256 * 900 / (1024 * 320 + 4 * 1024 * 256))


def test_macs_follow_the_weights_and_are_unknown_without_maps():
    known = Layer((3, 3), 16, 32, maps=maps(10, 3, 460_800))
    item = cost_of(known, "depthwise-separable")
    assert item.macs == 65_600
    assert item.mac_ratio == pytest.approx(item.weight_ratio)
    unknown = {item.name: item for item in alternatives(Layer((3, 3), 16, 32), USUAL)}
    assert {item.macs for item in unknown.values()} == {None}
    assert not {"FFT", "fully connected"} & set(unknown)


def test_no_alternative_is_offered_where_it_has_no_meaning():
    pointwise = {item.name for item in alternatives(Layer((1, 1), 16, 16, maps=maps(8, 1, 1)), USUAL)}
    assert pointwise == {"grouped", "fully connected"}
    depthwise = {item.name for item in alternatives(Layer((3, 3), 16, 16, 16), USUAL)}
    assert depthwise == {"k x 1 + 1 x k"}
    assert all(formula(Layer((3, 3, 3), 4, 4), USUAL) is None for formula in (ALTERNATIVES["stacked 3x3"],))


# --- what a pass over shapes sees


def by_hand(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Count MACs from the shapes that a real pass shows."""
    found: dict[str, int] = {}

    def listen(name: str, module: nn.Module) -> None:
        def keep(_: nn.Module, __: object, out: Tensor) -> None:
            weight = module.weight
            places = out[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
            found[name] = found.get(name, 0) + weight.numel() * places

        module.register_forward_hook(keep)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            listen(name, module)
    with torch.no_grad():
        model.eval()(images)
    return found


def test_macs_of_every_layer_are_those_counted_by_hand():
    seen = footprints(TinyNet, (3, 8, 8))
    expected = by_hand(TinyNet(), torch.zeros(1, 3, 8, 8))
    assert {name: layer.macs for name, layer in seen.layers.items()} == expected
    assert list(seen.layers) == ["stem", "depthwise", "pointwise", "head"]
    assert seen.macs == sum(expected.values())


def test_resnet20_has_its_published_macs_and_receptive_fields():
    seen = footprints(ZOO["resnet20"], (3, 32, 32))
    assert seen.macs == 40_551_040  # 40.55 million in every published count
    fields = {name: layer.receptive_field for name, layer in seen.layers.items()}
    assert [fields[f"layer{n}.0.conv1"] for n in (1, 2, 3)] == [(5, 5), (17, 17), (41, 41)]
    assert fields["layer3.2.conv2"] == (81, 81)


def reach(model: nn.Module, layer: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return the extent of the pixels whose gradient reaches the middle of a layer's output."""
    taken: list[Tensor] = []
    handle = layer.register_forward_hook(lambda *args: taken.append(args[2]))
    images = torch.ones(1, *shape, dtype=torch.float64, requires_grad=True)
    model(images)
    handle.remove()
    out = taken[0]
    out[0, :, out.shape[2] // 2, out.shape[3] // 2].sum().backward()
    assert images.grad is not None
    rows, columns = (images.grad[0].abs().sum(0).sum(axis).nonzero()[:, 0] for axis in (1, 0))
    return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


class Winding(nn.Module):
    """Strides, dilation, pools, a slice, a shortcut and an oblong kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.wide = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.down = nn.Conv2d(2, 2, 3, stride=2, padding=1)
        self.oblong = nn.Conv2d(2, 2, (1, 5), padding=(0, 2))
        self.last = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        x = x + self.wide(x)
        x = torch.nn.functional.avg_pool2d(self.down(x), 2)
        x = self.oblong(x)[:, :, ::2, ::2]
        return self.last(x).mean((2, 3))


def test_receptive_fields_are_as_far_as_gradients_reach():
    model = Winding().double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)  # positive: nothing cancels
    seen = footprints(Winding, (1, 96, 96)).layers
    for name in ("first", "wide", "down", "oblong", "last"):
        assert seen[name].receptive_field == reach(model, model.get_submodule(name), (1, 96, 96)), name


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.after = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images)
        gate = torch.sigmoid(self.gate(torch.nn.functional.adaptive_avg_pool2d(x, 1)))
        return self.after(x * gate)


def test_behind_a_global_pool_a_layer_sees_the_whole_image():
    seen = footprints(Squeezed, (2, 9, 9)).layers
    assert [seen[name].receptive_field for name in ("body", "gate", "after")] == [(3, 3), (9, 9), (9, 9)]


class Shared(nn.Module):
    """One convolution called twice, and a tensor made on the CPU in forward, which meta cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.same = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.same.weight = self.twice.weight

    def forward(self, images: Tensor) -> Tensor:
        scale = float(torch.ones(1).sum()) + float(images.sum()) * 0
        return self.same(self.twice(images)) * scale


def test_a_shared_weight_is_one_layer_and_a_network_that_needs_numbers_runs_on_the_cpu():
    seen = footprints(Shared, (2, 6, 6))
    assert {name: layer.macs for name, layer in seen.layers.items()} == {"twice": 2 * 36 * 36}
    assert seen.layers["twice"].receptive_field == (5, 5)


# --- ranks


def test_ranks_of_known_weights():
    assert weight_rank(torch.eye(4).reshape(4, 1, 2, 2)).effective == pytest.approx(4)
    assert weight_rank(torch.eye(4)).stable == pytest.approx(4)
    one = weight_rank(torch.outer(torch.arange(1.0, 4), torch.arange(1.0, 6)))
    assert (one.effective, one.stable, one.full) == (pytest.approx(1, abs=1e-5), pytest.approx(1), 3)
    zero = weight_rank(torch.zeros(2, 3))
    assert (zero.effective, zero.stable) == (0.0, 0.0)
    values = torch.tensor([3.0, 1.0])
    found = weight_rank(torch.diag(values))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.effective == pytest.approx(math.exp(entropy))
    assert found.stable == pytest.approx(10 / 9)
    assert effective_rank(values.double()) == pytest.approx(math.exp(entropy))


def test_ranks_of_outputs_are_numpys_own():
    model = tiny_net()
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = activation_ranks(model, costed_modules(model), [images[:4], images[4:]])
    with torch.no_grad():
        rows = model.stem(images).permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    centred = rows - rows.mean(0)
    singular = np.linalg.svd(centred, compute_uv=False)
    shares = singular / singular.sum()
    assert found["stem"].effective == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    correlation = np.abs(np.corrcoef(rows.T))
    assert found["stem"].correlation == pytest.approx((correlation.sum() - 4) / 12, rel=1e-6)
    assert (found["stem"].rows, found["stem"].full) == (6 * 64, 4)
    assert found["head"].rows == 6


def test_constant_channels_have_no_correlation():
    assert mean_correlation(torch.diag(torch.tensor([1.0, 0.0]).double())) is None
    assert mean_correlation(torch.ones(2, 2).double()) == pytest.approx(1)
    assert mean_correlation(torch.zeros(3, 3).double()) is None


# --- the command line


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_zip(tiny_state(), tmp_path / "tiny.pt")


def audited(arguments: list[str], capsys) -> dict:
    assert run(["audit", *arguments, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(json_schema("kernelsimp.audit/1")).validate(found)
    return dict(found)


def test_weights_alone_tell_all_but_sizes(model, capsys):
    found = audited([str(model)], capsys)
    assert [layer["name"] for layer in found["layers"]] == ["stem", "depthwise", "pointwise"]
    assert {layer["macs"] for layer in found["layers"]} == {None}
    (note,) = found["notes"]
    assert note.endswith("are unknown: weights alone do not tell them; pass --arch")
    assert found["totals"]["parameters"] == sum(p.numel() for p in TinyNet().parameters())
    stem = found["layers"][0]
    assert (stem["patch"], stem["expansion"]) == (27, pytest.approx(4 / 27))
    assert stem["parameter_share"] == pytest.approx(108 / found["totals"]["parameters"])
    assert (found["layers"][1]["parameters"], found["layers"][1]["patch"]) == (40, 9)


def test_an_architecture_without_a_size_says_what_it_needs(model, capsys):
    found = audited([str(model), "--arch", NET], capsys)
    assert found["notes"][0].endswith("are unknown: pass --input-size, or --data")
    assert found["layers"][-1]["kind"] == "linear"


def test_with_a_size_everything_is_there(model, capsys):
    found = audited([str(model), "--arch", NET, "--input-size", "8", "--bottleneck", "2"], capsys)
    assert found["input_shape"] == [3, 8, 8]
    assert found["totals"]["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert sum(layer["mac_share"] for layer in found["layers"]) == pytest.approx(1)
    names = {item["name"] for item in found["layers"][0]["alternatives"]}
    assert names == {"bottleneck", "depthwise-separable", "k x 1 + 1 x k", "FFT", "fully connected"}


def test_with_images_outputs_have_ranks_and_the_table_says_so(model, tmp_path, capsys, monkeypatch):
    generator = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = generator.integers(0, 255, (20, 8, 8, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(20) % 5
    np.savez(tmp_path / "images.npz", **arrays)
    data = ["--arch", NET, "--data", f"npz:{tmp_path}/images.npz"]
    found = audited([str(model), *data], capsys)
    assert all(layer["activations"]["full"] > 0 for layer in found["layers"])
    monkeypatch.setattr("kernelsimp.cli.console.out.width", 120)
    assert run(["audit", str(model), *data]) == 0
    printed = capsys.readouterr().out
    for words in ("Cost", "narrows", "mean |r|", "times fewer weights", "4 layers, 221 parameters"):
        assert words in printed, words


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--arch", NET, "--input-size", "8", "--channels", "1"], "the network cannot take images 1 x 8 x 8"),
        (["--arch", NET, "--groups", "0"], "--groups is 0; expected 1 or more"),
        (["--bottleneck", "0"], "--bottleneck is 0; expected 1 or more"),
        (["--arch", "zoo:resnet2o"], "did you mean 'resnet"),
    ],
)
def test_bad_input_gets_one_line(model, more, words, capsys):
    assert run(["audit", str(model), *more, "--quiet"]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_real_mobilenet_has_the_macs_of_its_paper(shared_data, capsys):
    arch = f"{shared_data}/nets.py:mobilenet_v1_025"
    path = f"{shared_data}/checkpoints/mobilenet_v1_025.safetensors"
    found = audited([path, "--arch", arch, "--input-size", "224"], capsys)
    assert found["totals"]["macs"] == pytest.approx(41e6, rel=0.01)  # Howard 2017, table 6: 41 million
    assert found["totals"]["parameters"] == pytest.approx(0.47e6, rel=0.02)


def test_tables_fit_their_heads(model, capsys):
    from kernelsimp.commands.audit import audit
    from kernelsimp.commands.inputs import settle_for_model

    given = {"model": {"arch": NET}, "data": {"input_size": 8}}
    for table in audit_tables(audit(model, settle_for_model(given, None))):
        assert table.rows
        assert all(len(row) == len(table.heads) for row in table.rows)
