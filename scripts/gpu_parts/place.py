"""Where the check works: a small network, made-up images, and the commands of the package run on a device."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

SMALL = """
from torch import nn


def small():
    def block(before, after):
        return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    depthwise = [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU()]
    layers = [*block(3, 16), *depthwise, nn.MaxPool2d(2), *block(16, 16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))
"""
"""The network that goes through every command: dense and depthwise layers, with and without a norm."""


@dataclass(frozen=True)
class Answer:
    """What a check came to: whether it is right, in words, and its numbers for the JSON."""

    ok: bool
    figure: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where the check works: its folder, its device, and what commands are given."""

    folder: Path
    device: str

    @property
    def arch(self) -> str:
        return f"{self.folder / 'network.py'}:small"

    @property
    def data(self) -> str:
        return f"npz:{self.folder / 'images.npz'}"

    @property
    def model(self) -> Path:
        return self.folder / f"trained-{self.device}" / "model.pt"

    def run(self, *words: Any, device: str | None = None) -> str:
        """Run a command of the package; raises `RuntimeError` with its last line where it fails."""
        call = [sys.executable, "-m", "kernelsimp", *map(str, words), "--device", device or self.device]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["nothing said"]
            raise RuntimeError(f"exit {done.returncode}: {lines[-1]}")
        return done.stdout

    def simplify(self, name: str, *words: Any, device: str | None = None) -> Path:
        out = self.folder / f"{name}-{device or self.device}"
        self.run(
            "simplify",
            self.model,
            "--arch",
            self.arch,
            "--data",
            self.data,
            "--out",
            out,
            *words,
            device=device,
        )
        return out


def images(folder: Path, count: int = 600) -> None:
    """Write images of ten classes: where a bright spot lies."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        labels = np.arange(count) % 10
        drawn = generator.integers(0, 90, (count, 16, 16, 3), dtype=np.uint8)
        for image, label in zip(drawn, labels, strict=True):
            row, column = divmod(int(label), 5)
            image[2 + 8 * row : 6 + 8 * row, 3 * column : 3 * column + 3] += 150
        arrays |= {f"{split}_images": drawn, f"{split}_labels": labels}
    np.savez(folder / "images.npz", **arrays)
