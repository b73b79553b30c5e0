"""The survey: what it says of layers and of depthwise kernels, against what autograd and the loss say."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from every_window import every_row, input_for
from networks import winding
from saying import Heard
from torch import Tensor, nn
from torch.nn import functional as F

from kernelsimp.models.hooks import trace
from kernelsimp.models.layers import bank_from_model, canonical
from kernelsimp.solver.fisher import Sensitivity, cached_survey, survey, weight_slopes

DEPTHWISE: dict[str, Callable[[], nn.Module]] = {
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "two filters a channel, strided": lambda: nn.Conv2d(4, 8, (3, 5), stride=2, groups=4, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1, groups=4),
    "one-dimensional": lambda: nn.Conv1d(4, 4, 5, groups=4),
}


@pytest.mark.parametrize("name", DEPTHWISE)
def test_slopes_are_each_images_own_gradient_of_weights_and_bias(name: str) -> None:
    module: nn.Module = DEPTHWISE[name]()
    images = input_for(module)
    layer = bank_from_model(module).layers[0]
    slope = torch.randn(module(images).shape, generator=torch.Generator().manual_seed(4))
    found = weight_slopes((module, images), slope)
    for place in range(len(images)):
        (gradient,) = torch.autograd.grad((module(images[place, None]) * slope[place]).sum(), module.weight)
        expected = canonical(gradient, layer.kind, layer.groups).reshape(layer.count, -1)
        assert torch.allclose(found[place, :, :-1], expected, atol=1e-4)
        assert torch.allclose(found[place, :, -1], slope[place].flatten(1).sum(1), atol=1e-4)


class Gated(nn.Module):
    """A depthwise layer whose channels count differently."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.head = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.deep(images).square().mean((2, 3)))


def test_the_information_of_a_depthwise_kernel_is_that_of_its_weights_less_the_bias() -> None:
    """A loss that moves by e and is mended by the bias moves as much as e'F e says, by finite differences."""
    torch.manual_seed(0)
    model = Gated().eval()
    images = torch.randn(3000, 3, 6, 6) + 1
    seen = survey(model, trace(model, images[:2]), images.split(500), 0)["deep"]
    assert seen.kernels is not None
    assert seen.kernels.shape == (3, 9, 9)
    mean = torch.stack([rows.mean(0) for rows in every_row(model.deep, images)])
    step, wide = 0.005, copy.deepcopy(model).double()
    with torch.no_grad():
        before = wide(images.double()).log_softmax(1)
        for kernel in range(3):
            error = torch.randn(9, generator=torch.Generator().manual_seed(kernel))
            moved = copy.deepcopy(model)
            moved.deep.weight[kernel, 0] += step * error.reshape(3, 3)
            moved.deep.bias[kernel] -= step * error @ mean[kernel]
            after = moved(images).log_softmax(1)
            divergence = float((before.exp() * (before - after)).sum(1).mean())
            wide = error.double()
            assert divergence == pytest.approx(
                0.5 * step**2 * float(wide @ seen.kernels[kernel] @ wide), rel=0.3
            )


def test_the_survey_sees_blocks_and_fisher_information() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1)
    )
    model = nn.Sequential(*model, nn.Flatten(), nn.Linear(5, 3)).eval()
    images = torch.randn(40, 3, 8, 8)
    seen = survey(model, trace(model, images), images.split(16), seed=0)
    assert set(seen) == {"0", "2"}
    unfolded = F.unfold(images, 3, padding=1).permute(0, 2, 1).reshape(-1, 27).double()
    gram = unfolded.T @ unfolded / len(unfolded)
    expected = torch.stack([gram[9 * j : 9 * j + 9, 9 * j : 9 * j + 9] for j in range(3)])
    assert torch.allclose(seen["0"].blocks, expected, atol=1e-5)
    # E over labels drawn from the model of (dL/dy)^2, here summed over all labels exactly
    y = model[:3](images).detach().requires_grad_()
    logits = model[3:](y)
    share = logits.softmax(1).detach()
    exact = torch.zeros(5, dtype=torch.float64)
    for label in range(3):
        loss = F.cross_entropy(logits, torch.full((40,), label), reduction="none")
        gradient = torch.autograd.grad(loss.sum(), y, retain_graph=True)[0].double().square().sum((2, 3))
        exact += (share[:, label : label + 1].double() * gradient).mean(0)
    assert torch.allclose(seen["2"].fisher, exact, rtol=0.3)
    assert seen["2"].fisher.argmax() == exact.argmax()


def test_a_survey_is_made_once_and_kept(tmp_path: Path) -> None:
    model, images = winding()
    made: list[int] = []

    def make() -> Mapping[str, Sensitivity]:
        made.append(1)
        return survey(model, trace(model, images), [images], seed=0)

    path = tmp_path / "resume" / "survey.safetensors"
    first, again = cached_survey(path, make), cached_survey(path, make)
    assert len(made) == 1
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name].blocks, again[name].blocks) for name in first)
    assert all(torch.equal(first[name].fisher, again[name].fisher) for name in first)
    path.write_bytes(b"damaged")
    cached_survey(path, make)
    cached_survey(path, make)
    assert len(made) == 2


def test_a_network_that_is_no_classifier_is_surveyed_with_noise_on_its_output() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 1)).eval()
    images = torch.randn(64, 2, 6, 6)
    seen = survey(model, trace(model, images), images.split(32), seed=0)
    # dL/dy of layer 0 is W'eps at every position: its expected square, summed over 36 positions
    expected = 36 * model[1].weight.detach().double().square().sum((0, 2, 3))  # type: ignore[operator, union-attr]
    assert torch.allclose(seen["0"].fisher, expected, rtol=0.15)


def test_a_network_without_gradients_is_surveyed_without_them_and_says_so() -> None:
    class Hard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).sign().detach().mean((2, 3))

    model, images, heard = Hard().eval(), torch.randn(4, 3, 6, 6), Heard()
    seen = survey(model, trace(model, images), images.split(2), 0, heard)
    assert seen["conv"].fisher.tolist() == [1, 1, 1, 1]
    assert heard.warnings == ["this network gives no gradients: every output channel counts alike"]


def test_a_layer_that_is_never_run_is_not_in_the_survey() -> None:
    model, images = winding()
    assert "unused" not in survey(model, trace(model, images), [images], seed=0)


def test_what_is_known_of_depthwise_kernels_is_kept_too(tmp_path: Path) -> None:
    model, images = Gated().eval(), torch.randn(8, 3, 6, 6)
    made = survey(model, trace(model, images), [images], seed=0)
    first, again = (cached_survey(tmp_path / "survey.safetensors", lambda: made)["deep"] for _ in range(2))
    assert first.kernels is not None
    assert again is not first
    assert again.kernels is not None
    assert torch.equal(first.kernels, again.kernels)
