"""Small networks that no library builds: the residual networks for CIFAR-10 and a toy for 8 x 8 digits.

Module names follow the published checkpoints, so that those load strictly.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class Shorten(nn.Module):
    """Halve the grid and pad with zero channels: the shortcut without parameters, option A of He et al."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.before, self.after = extra // 2, extra - extra // 2

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else Shorten(outputs - inputs)

    def forward(self, images: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(images))


class CifarResNet(nn.Module):
    """Classify (n, 3, 32, 32) images with 6 * `blocks` + 2 layers in three stages of 16, 32, 64 channels.

    Source: He, Zhang, Ren, Sun, Deep residual learning for image recognition, section 4.2.
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        scores: Tensor = self.linear(features.mean((2, 3)))
        return scores


class DigitsCnn(nn.Module):
    """Classify (n, 1, 8, 8) digits; has every kind of layer that a demonstration should show.

    A dense 5 x 5 stem, a depthwise 3 x 3 with its pointwise mate, and a dense 3 x 3, 11,754 parameters.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = _convolution(1, 16, 5)
        self.depthwise = _convolution(16, 16, 3, groups=16)
        self.pointwise = _convolution(16, 32, 1)
        self.dense = _convolution(32, 32, 3)
        self.linear = nn.Linear(32 * 4, classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pointwise(self.depthwise(self.stem(images)))
        features = F.max_pool2d(features, 2)
        features = F.max_pool2d(self.dense(features), 2)
        scores: Tensor = self.linear(features.flatten(1))
        return scores


class Separable(nn.Module):
    """A depthwise 5 x 5 and its pointwise mate around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = _convolution(channels, channels, 5, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(images + self.bn(self.pointwise(self.depthwise(images))))


class DigitsDepthwise(nn.Module):
    """Classify (n, 1, 8, 8) digits; every kernel larger than 1 x 1 is depthwise, 5 x 5, in two layers of 48.

    Depthwise kernels begin at a tenth of the usual size, so that what they end as was learned, not drawn: of
    digits shown mirrored half of the time the gradients are mirror-symmetric on average.
    """

    def __init__(self, channels: int = 48, blocks: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.stem = _convolution(1, channels, 1)
        self.blocks = nn.Sequential(*(Separable(channels) for _ in range(blocks)))
        self.linear = nn.Linear(channels, classes)
        _initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                nn.init.normal_(module.weight, std=0.1 * (2 / 25) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.blocks(self.stem(images)).mean((2, 3)))
        return scores


def _convolution(inputs: int, outputs: int, side: int, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, side, padding=side // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs), *(Block(outputs, outputs) for _ in range(blocks - 1)))


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


ZOO: Mapping[str, Callable[[], nn.Module]] = {
    **{f"resnet{6 * blocks + 2}": partial(CifarResNet, blocks) for blocks in (3, 5, 7, 9, 18)},
    "digits-cnn": DigitsCnn,
    "digits-depthwise": DigitsDepthwise,
}
"""Every network of `--arch zoo:NAME`, built without weights."""
