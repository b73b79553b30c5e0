"""A small network to be made of thinner layers, as files, and measurements that say what a test needs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kernelsimp.analysis.layer_times import LayerTime, LayerTimes
from kernelsimp.kernels.rank import snap
from kernelsimp.models.thin import Thin
from kernelsimp.records.factorised import Latency, Ratio, Timing

Measured = Callable[..., None]

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 7, padding=3, groups=8, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 12, 5, stride=2, padding=2, bias=False)
        self.head = nn.Linear(12, 4)

    def forward(self, images):
        x = self.deep(self.stem(images).relu())
        return self.head(self.wide(self.norm(x).relu()).mean((2, 3)))


class Branching(Net):
    def forward(self, images):
        x = self.stem(images).relu()
        x = self.deep(x)
        if x.sum().item() > 0:
            x = x + 0.5
        return self.head(self.wide(self.norm(x).relu()).mean((2, 3)))


class Reused(Net):
    def forward(self, images):
        x = self.deep(self.deep(self.stem(images).relu()))
        return self.head(self.wide(self.norm(x).relu()).mean((2, 3)))


class Maps(Net):
    def forward(self, images):
        return self.wide(self.norm(self.deep(self.stem(images).relu())).relu())


class Shared(Net):
    def __init__(self):
        super().__init__()
        self.again = nn.Conv2d(3, 8, 3, padding=1)
        self.again.weight = self.stem.weight

    def forward(self, images):
        x = self.deep((self.stem(images) + self.again(images)).relu())
        return self.head(self.wide(self.norm(x).relu()).mean((2, 3)))
"""


def make_place(folder: Path) -> Path:
    """Write a network whose depthwise layer is of rank one but for one channel, its code, and images."""
    (folder / "code.py").write_text(CODE)
    model = net(folder)
    torch.save(model.state_dict(), folder / "net.pt")
    torch.save(net(folder, "Shared").state_dict(), folder / "shared.pt")
    generator = np.random.default_rng(0)
    smooth = torch.nn.functional.interpolate(torch.rand(160, 3, 4, 4), size=12, mode="bilinear")
    pixels = (smooth * 255).byte().permute(0, 2, 3, 1).numpy()
    arrays = {}
    for split, part in (("train", slice(0, 96)), ("val", slice(96, 128)), ("test", slice(128, 160))):
        arrays[f"{split}_images"] = pixels[part]
        arrays[f"{split}_labels"] = generator.integers(0, 4, part.stop - part.start)
    np.savez(folder / "i.npz", **arrays)
    return folder


def net(folder: Path, name: str = "Net") -> nn.Module:
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(compile(CODE, str(folder / "code.py"), "exec"), space)
    model: Any = space[name]()
    with torch.no_grad():
        flat = model.deep.weight.flatten(0, 1)
        model.deep.weight.copy_(snap(flat).reshape(model.deep.weight.shape))
        model.deep.weight[3].normal_()
    return model.eval()


def measured_as(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Return what has every layer, and the network, measured to be so many times as fast."""

    def be(ratio: float, network: float | None = None) -> None:
        whole = ratio if network is None else network
        one = Timing(1.0, 1.0, 1.0)
        found = tuple(Latency("eager", size, one, one, Ratio(whole, whole, whole)) for size in (1, 32))
        monkeypatch.setattr("kernelsimp.commands.factorised_forms.network_latency", lambda *_: found)

        def timed(_: LayerTimes, __: nn.Conv2d, ways: list[Thin], ___: object) -> Mapping[Thin, LayerTime]:
            one, other = Timing(1e-3, 1e-3, 1e-3), Timing(1e-3 / ratio, 1e-3 / ratio, 1e-3 / ratio)
            return {way: LayerTime(one, other, Ratio(ratio, ratio, ratio)) for way in ways}

        monkeypatch.setattr(LayerTimes, "_timed", timed)

    return be


def words(place: Path, out: Path, *more: str, code: str = "Net") -> list[str]:
    arch = f"{place / 'code.py'}:{code}"
    times = out.parent / "times.json"
    common = ["--arch", arch, "--out", str(out), "--times", str(times), "--engines", "eager"]
    source = place / ("shared.pt" if code == "Shared" else "net.pt")
    return ["export", str(source), "--to", "factorised", *common, *more]


def real(place: Path) -> list[str]:
    return ["--data", f"npz:{place / 'i.npz'}"]


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return found


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
