"""A baseline of the run of `reports`, and ten kinds of damage that the gate must see."""

from collections.abc import Callable

import numpy as np
import reports
import torch
from torch import Tensor

from kernelsimp.evaluation.accuracy import Outcome
from kernelsimp.records.limits import Baseline, baseline_of

LAYER = "layer1.0.conv1"
FINGERPRINT = "cd" * 32
FROZEN, BROKEN, NAN, LAYERS = (
    "kernels.frozen_changed",
    "kernels.structure_broken",
    "kernels.nan",
    "layers.changed",
)


def tensors() -> dict[str, Tensor]:
    return {f"{name}.weight": kernels.clone() for name, kernels in reports.before_and_after()[1].items()}


def baseline() -> Baseline:
    return baseline_of(reports.report())


def outcome(correct: int, seed: int = 2) -> Outcome:
    right = np.zeros(reports.TOTAL, dtype=bool)
    right[np.random.default_rng(seed).permutation(reports.TOTAL)[:correct]] = True
    return Outcome(right, 0.3)


def at(structure: int, layer: str = LAYER) -> tuple[int, int]:
    """Return the first kernel of a structure."""
    out, into = np.argwhere(reports.before_and_after()[2].layer(layer).choice == structure)[0]
    return int(out), int(into)


def flip(values: dict[str, Tensor]) -> None:
    values[f"{LAYER}.weight"][at(1)].view(torch.int32)[0, 0] ^= 1


def swap(values: dict[str, Tensor]) -> None:
    values[f"{LAYER}.weight"] = values[f"{LAYER}.weight"].flip(0)


def add_noise(values: dict[str, Tensor]) -> None:
    values[f"{LAYER}.weight"] += 1e-3


def scale(values: dict[str, Tensor]) -> None:
    values["conv1.weight"] *= 1.01


def poison(values: dict[str, Tensor]) -> None:
    values[f"{LAYER}.weight"][at(0)][1, 1] = torch.nan


def lose(values: dict[str, Tensor]) -> None:
    del values["layer2.0.conv1.weight"]


def reshape(values: dict[str, Tensor]) -> None:
    values["conv1.weight"] = values["conv1.weight"][:, :, :2]


def add(values: dict[str, Tensor]) -> None:
    values["extra.weight"] = torch.ones(2, 2, 3, 3)


def halve(values: dict[str, Tensor]) -> None:
    values["conv1.weight"] = values["conv1.weight"].half()


def revive(values: dict[str, Tensor]) -> None:
    values[f"{LAYER}.weight"][at(3)] = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))


DAMAGED: list[tuple[Callable[[dict[str, Tensor]], None], set[str]]] = [
    (flip, {FROZEN, BROKEN}),
    (swap, {FROZEN, BROKEN}),
    (add_noise, {FROZEN, BROKEN}),
    (scale, {FROZEN}),
    (poison, {NAN}),
    (lose, {LAYERS}),
    (reshape, {LAYERS}),
    (add, {LAYERS}),
    (halve, {FROZEN}),
    (revive, {FROZEN, BROKEN}),
]
