"""What channels answer to: shares against sums by hand, patches against planted ones, what is passed over."""

import json
from dataclasses import replace

import jsonschema
import pytest
import torch
from builders import NET, npz
from torch import Tensor, nn
from torch.nn.functional import conv2d

from kernelsimp.analysis.patches import TopPatches, Window, alike, patches
from kernelsimp.analysis.selectivity import TOP, measure_selectivity, name_kernels, shuffled
from kernelsimp.cli.main import run
from kernelsimp.models.layers import bank_from_model
from kernelsimp.records.selectivity import LayerSelectivity, Selectivity
from kernelsimp.report.store import json_schema


def measured(model: nn.Module, images: Tensor, size: int = 4) -> LayerSelectivity:
    found = measure_selectivity(model.eval(), bank_from_model(model), list(images.split(size)))
    assert len(found.layers) == 1
    return found.layers[0]


def layer(kernels: Tensor, groups: int = 1) -> nn.Sequential:
    out, each, *grid = kernels.shape
    made = nn.Conv2d(each * groups, out, grid, padding=1, groups=groups)
    made.weight.data = kernels
    return nn.Sequential(made, nn.ReLU(inplace=True))


def pictures(count: int = 12, channels: int = 4) -> Tensor:
    return torch.rand(count, channels, 10, 12, generator=torch.Generator().manual_seed(3))


def test_kernels_that_are_what_they_are_named_explain_all_and_chance_does_not() -> None:
    torch.manual_seed(0)
    found = measured(layer(torch.randn(8, 4, 3, 1).expand(-1, -1, -1, 3).contiguous()), pictures())
    assert found.named == 1
    assert found.explained == pytest.approx(1, abs=1e-6)
    assert found.named_by_chance < 0.7
    assert found.explained_by_chance < 0.7
    assert (found.channels, found.kernels) == (8, 32)


def test_the_share_explained_is_that_of_the_variance_over_images_and_positions() -> None:
    torch.manual_seed(1)
    kernels = torch.randn(6, 4, 3, 3)
    kernels[:, :2] = kernels[:, :2].mean(3, keepdim=True) + 0.01 * torch.randn(6, 2, 3, 3)
    model, images = layer(kernels), pictures()
    names = name_kernels(bank_from_model(model).spatial[0], 0.1)
    answer, rest = (conv2d(images, weight, padding=1).double() for weight in (kernels, names.rest))
    by_hand = 1 - rest.var((0, 2, 3)) / answer.var((0, 2, 3))
    found = measured(model, images)
    assert found.explained == pytest.approx(float(by_hand.mean()), abs=1e-5)
    assert 0.2 < found.explained < 0.9
    again = measured(model, images, size=5)
    assert replace(again, explained=0, explained_by_chance=0) == replace(
        found, explained=0, explained_by_chance=0
    )
    assert again.explained == pytest.approx(found.explained, abs=1e-9)
    assert names.share == pytest.approx(found.named)
    assert found.named >= 0.5


def test_kernels_without_a_name_explain_nothing_and_take_no_bits() -> None:
    torch.manual_seed(2)
    kernels = torch.randn(4, 4, 3, 3)
    model = layer(kernels)
    while name_kernels(bank_from_model(model).spatial[0], 0.01).share:
        model[0].weight.data = torch.randn(4, 4, 3, 3)
    found = measure_selectivity(model, bank_from_model(model), [pictures()], tolerance=0.01).layers[0]
    assert (found.named, found.words, found.bits, found.explained) == (0, 0, 0, 0)


def test_bits_are_the_entropy_of_the_names() -> None:
    kernels = torch.zeros(4, 1, 3, 3)
    kernels[0, 0, :, 1] = torch.tensor([1.0, 2.0, -1.0])
    kernels[1, 0, 1, :] = torch.tensor([1.0, 2.0, -1.0])
    kernels[2:] = kernels[:2]
    names = name_kernels(bank_from_model(layer(kernels, 4)).spatial[0], 0.1)
    assert names.words == 2
    assert names.bits == pytest.approx(1)


def test_shuffled_kernels_keep_their_numbers_and_their_places() -> None:
    own = bank_from_model(layer(torch.randn(3, 2, 3, 3))).spatial[0]
    again = shuffled(own, 5)
    assert torch.equal(again.kernels.flatten(2).sort(2).values, own.kernels.flatten(2).sort(2).values)
    assert not torch.equal(again.kernels, own.kernels)
    assert torch.equal(again.kernels, shuffled(own, 5).kernels)


def test_a_channel_that_answers_to_one_thing_has_patches_alike_and_mixed_ones_are_not() -> None:
    torch.manual_seed(4)
    shapes = torch.randn(2, 1, 5, 5)
    shapes -= shapes.mean((2, 3), keepdim=True)
    shapes[1] -= (shapes[0] * shapes[1]).sum() / shapes[0].square().sum() * shapes[0]
    images = 0.01 * torch.randn(16, 1, 20, 20)
    for number, image in enumerate(images):
        row, column = 1 + number % 7, 2 + number % 9
        image[0, row : row + 5, column : column + 5] += 5 * shapes[0, 0]
        image[0, 13:18, column : column + 5] += 5 * shapes[1, 0]
    model = nn.Sequential(nn.Conv2d(1, 2, 5, bias=False))
    model[0].weight.data = shapes
    found = measured(model, images)
    assert found.alike > 0.95
    assert found.alike_mixed < 0.7


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    images = pictures(9, 2)
    top = TopPatches(3, 4)
    for first in (0, 3, 6):
        top.add(
            torch.randn(3, 3, 5, 6, generator=torch.Generator().manual_seed(first)),
            first,
            Window((0.3, 0.25), (-0.8, -0.9), (0.4, 0.3)),
        )
    own, _ = alike({"a": top}, [images[:5], images[5:]], 0)["a"]
    means = []
    for channel in range(3):
        rows = [
            patches(images[number], centre[None], top.window.side)[0]
            for number, centre in zip(top.image[channel].tolist(), top.centre[channel], strict=True)
        ]
        cosines = torch.stack(rows) @ torch.stack(rows).T
        means.append(float((cosines.sum() - cosines.trace()) / 12))
    assert own == pytest.approx(sum(means) / 3, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({"padding": 1}, (9, 9)),
        ({"stride": 2, "padding": 2, "dilation": 2}, (11, 15)),
        ({"padding": "same"}, (8, 6)),
        ({}, (10, 10)),
    ],
)
def test_a_window_lies_where_the_convolution_looks(options, grid) -> None:
    module = nn.Conv2d(1, 1, (3, 5), bias=False, **options)
    module.weight.data.fill_(1)
    image = torch.zeros(1, 1, *grid, requires_grad=True)
    answer, window = module(image)[0, 0], Window.of(module, grid)
    place = (answer.shape[0] // 2, answer.shape[1] // 2)
    rows, columns = torch.autograd.grad(answer[place], image)[0][0, 0].nonzero().T
    for axis, cells in enumerate((rows, columns)):
        centre = window.first[axis] + window.step[axis] * place[axis]
        low, high = (float(2 * end / grid[axis] - 1) for end in (cells.min(), cells.max() + 1))
        assert centre - window.side[axis] == pytest.approx(low, abs=1e-6)
        assert centre + window.side[axis] == pytest.approx(high, abs=1e-6)


def test_the_top_patches_are_those_of_the_largest_answers_one_an_image() -> None:
    answers = torch.randn(7, 2, 4, 4)
    top = TopPatches(2, 3)
    top.add(answers[:4], 0, Window())
    top.add(answers[4:], 4, Window())
    largest = answers.flatten(2).max(2).values.T
    assert torch.equal(top.answer, largest.topk(3, dim=1).values)
    assert torch.equal(top.image, largest.topk(3, dim=1).indices)


def test_a_patch_knows_no_light_and_no_contrast_and_one_of_one_colour_is_zero() -> None:
    image = pictures(1, 3)[0]
    centres = torch.tensor([[0.0, 0.0], [0.9, -0.9]])
    first, again = patches(image, centres, (0.4, 0.4)), patches(3 * image + 5, centres, (0.4, 0.4))
    assert torch.allclose(first, again, atol=1e-5)
    assert not patches(torch.full((3, 8, 8), 0.25), centres, (0.4, 0.4)).any()


def test_what_is_no_plain_convolution_and_what_no_image_reaches_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 3, 3)
            self.idle = nn.Conv2d(3, 3, 3)
            self.last = nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.up(x)).mean((2, 3))

    model = Odd().eval()
    found = measure_selectivity(model, bank_from_model(model), [pictures(3, 3)])
    assert [layer.name for layer in found.layers] == ["last"]
    assert dict(found.skipped) == {
        "up": "a ConvTranspose2d, not a plain convolution",
        "idle": "no image reached it",
    }
    assert found.top == 3 < TOP


def test_means_are_over_channels() -> None:
    rows = [
        LayerSelectivity("a", "dense", channels, 1, 0, 0, 0, share, 0, 0, 0, 0)
        for channels, share in ((1, 0.0), (3, 1.0))
    ]
    assert Selectivity(tuple(rows), 1, 0.1, 64).mean("explained") == 0.75


def test_evaluate_explains_from_the_command_line(model, tmp_path, capsys) -> None:
    images = npz(tmp_path / "images.npz", (8, 8, 3), 20)
    arguments = ["evaluate", str(model), "--arch", NET, "--data", images, "--explain"]
    assert run([*arguments, "--json", str(tmp_path / "e.json")]) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    jsonschema.Draft202012Validator(json_schema("kernelsimp.evaluate/1")).validate(found)
    assert found["selectivity"]["images"] == 20
    assert len(found["selectivity"]["layers"]) >= 1
    said = " ".join(capsys.readouterr().out.split())
    assert "What channels answer to, on 20 test images (figure / by chance)" in said
    assert "of a channel's variance (shuffled cells:" in said
