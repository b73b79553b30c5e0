"""`simplify` says what others lost of whom the survey predicted as much: by the study's own results."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_net
from torch import nn

import kernelsimp as ks
from kernelsimp.solver.distance import Distance
from kernelsimp.solver.foresight import PRECEDENTS, SHARE, foresee

RESULTS = Path(__file__).parents[1] / "docs" / "study.jsonl"


def networks_of_the_study() -> list[dict[str, float]]:
    cells = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    rows = [cell["rows"][0] for cell in cells if cell["claim"] == "prediction"]
    return [figures for row in rows for figures in row["networks"].values()]


def test_what_is_said_of_others_is_what_the_study_measured() -> None:
    networks, floor = networks_of_the_study(), 0.0
    assert f"KL at {SHARE:.0%}, nats" in networks[0]
    assert sum(seen.networks for seen in PRECEDENTS) == len(networks)
    for seen in PRECEDENTS:
        lost = [
            item["points lost"]
            for item in networks
            if floor <= item["loss predicted of the plan"] < seen.below
        ]
        assert seen.networks == len(lost)
        assert seen.median == pytest.approx(float(np.median(lost)), abs=0.05)
        assert seen.most == pytest.approx(max(lost), abs=0.05)
        floor = seen.below


def images() -> torch.Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_report_says_what_was_predicted_before_anything_changed() -> None:
    report = ks.simplify(tiny_net(), images(), dof=0.5, cost="absolute").report
    (line,) = [note for note in report.notes if "before any kernel changed" in note]
    predicted = sum(layer.predicted_loss or 0 for layer in report.layers)
    assert f"a loss of {predicted:.2g} nats" in line
    assert any(f"the {seen.networks} networks of the study" in line for seen in PRECEDENTS)


def test_nothing_is_said_where_nothing_like_it_was_seen() -> None:
    def trial(predicted: float, agreement: float | None = 1.0) -> Any:
        return SimpleNamespace(predicted={"layer": predicted}, distance=Distance(0.0, agreement))

    middle = PRECEDENTS[1].below * 0.99
    assert f"{PRECEDENTS[1].most:.1f} at most" in foresee(trial(middle))[0]
    assert foresee(trial(middle, None)) == ()
    assert foresee(trial(0.0)) == ()
    assert foresee(trial(PRECEDENTS[-1].below)) == ()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    notes = ks.simplify(net, images(), dof=0.5, cost="absolute").report.notes
    assert not any("before any kernel changed" in note for note in notes)
