"""The published figures on real checkpoints; skipped where those are not at hand."""

import json

import pytest
import torch

from kernelsimp.cli.main import run


@pytest.fixture
def resnet20(shared_data) -> list[str]:
    data = f"npz:{shared_data / 'cifar10-exact.npz'}"
    return [
        str(shared_data / "checkpoints" / "resnet20-12fca82f.th"),
        "--arch",
        "zoo:resnet20",
        "--data",
        data,
    ]


def test_resnet20_is_scanned_whole(resnet20, capsys):
    assert run(["scan", resnet20[0], "--depth", "shallow", "--json", "-"]) == 0
    totals = json.loads(capsys.readouterr().out)["totals"]
    assert (totals["layers"], totals["kernels"], totals["dead"]) == (19, 29_744, 1_349)


def test_resnet20_by_the_relative_rule_loses_what_was_measured(resnet20, tmp_path):
    out = tmp_path / "run"
    assert run(["simplify", *resnet20, "--dof", "0.49", "--cost", "relative", "--out", str(out), "-q"]) == 0
    original, simplified = json.loads((out / "report.json").read_text())["accuracy"]["stages"]
    assert (original["correct"], original["total"]) == (932, 1017)
    assert simplified["correct"] <= 800


def test_a_plan_without_a_match_returns_every_tensor(resnet20, tmp_path):
    assert run(["simplify", resnet20[0], "--tolerance", "0", "--out", str(tmp_path), "--quiet"]) == 0
    before = torch.load(resnet20[0], weights_only=True, map_location="cpu")
    after = torch.load(tmp_path / "resnet20-12fca82f.th", weights_only=True, map_location="cpu")
    assert after["best_prec1"] == before["best_prec1"]
    assert list(after["state_dict"]) == list(before["state_dict"])
    assert all(
        torch.equal(after["state_dict"][name], tensor) for name, tensor in before["state_dict"].items()
    )


@pytest.mark.slow
def test_resnet20_through_its_real_inputs_keeps_its_accuracy(resnet20, tmp_path):
    out = tmp_path / "run"
    arguments = ["--dof", "0.39", "--cost", "absolute", "--out", str(out), "--quiet"]
    assert run(["simplify", *resnet20, *arguments]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["dof"]["fraction"] <= 0.39
    assert report["accuracy"]["stages"][-1]["correct"] >= 925
