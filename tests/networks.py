"""Small networks beside `builders.TinyNet`, and images for them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mixed(nn.Module):
    """One convolution of each kind, sides that tell axes apart."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Conv2d(3, 4, (3, 5), padding=(1, 2), bias=False)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.transposed = nn.ConvTranspose2d(6, 4, 3, padding=1)
        self.grouped_transposed = nn.ConvTranspose2d(4, 6, 5, padding=2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.line = nn.Conv1d(6, 5, 3, padding=1)
        self.volume = nn.Conv3d(1, 2, 3, padding=1)
        self.out = nn.Linear(2 * 5, 3)

    def forward(self, images):
        x = self.depthwise(self.dense(images))
        x = self.norm(self.grouped_transposed(self.transposed(self.grouped(x).relu()).relu()))
        x = self.line(x.mean(3))
        return self.out(self.volume(x[:, None, :, :, None]).mean((3, 4)).flatten(1))


class Residual(nn.Module):
    """A small residual network with batch norm, as most are."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.point = nn.Conv2d(width, width, 1, bias=False)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = x + self.conv2(F.relu(self.bn1(self.conv1(x))))
        x = self.point(F.relu(self.bn2(self.deep(x))))
        return self.head(x.mean((2, 3)))


def smooth_images(count: int, seed: int = 0, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.avg_pool2d(torch.randn(count, 3, side + 2, side + 2, generator=generator), 3, 1) * 3


def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """Give batch norms the statistics of `images`, as training would have."""
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model(images)
    return model.eval()


def network() -> nn.Module:
    torch.manual_seed(0)
    return settled(Residual(), smooth_images(64, 9))


class Twice(nn.Module):
    """One convolution used twice, one weight in two modules, one layer never used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, stride=2)
        self.right.weight = self.left.weight
        self.unused = nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.again(F.relu(self.again(x))))
        return self.head(self.right(F.relu(self.left(x))).mean((2, 3)))


class Tied(nn.Module):
    """One weight in two convolutions, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images))


class Winding(nn.Module):
    """A shared module, in-place operations, a weight in two modules, a branch and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.twice = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=1)
        self.right.weight = self.left.weight
        self.last = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
        self.unused = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm(self.twice(x)), inplace=True)
        z = self.twice(y)
        z += y
        y = F.relu_(self.left(z)) + self.right(x)
        y *= 0.5
        return self.last(y).mean((2, 3))


def winding() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Winding().eval()
    return model, torch.randn(6, 3, 8, 8)
