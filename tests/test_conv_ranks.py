"""Conv1d and Conv3d without their network's code, and budgets on Conv3d."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kernelsimp.cli.main import run
from kernelsimp.models.layers import bank_from_model, bank_from_tensors


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv1d(1, 16, 9), nn.Conv1d(16, 16, 9)),
        nn.Sequential(nn.Conv3d(1, 8, 3), nn.Conv3d(8, 8, (1, 3, 3))),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv1d(8, 6, 5), nn.Conv3d(6, 4, 3)),
        nn.Sequential(
            nn.Conv1d(3, 8, 5, bias=False),
            nn.BatchNorm1d(8),
            nn.Conv1d(8, 4, 3, bias=False),
            nn.GroupNorm(2, 4),
        ),
        nn.Sequential(nn.BatchNorm3d(3), nn.Conv3d(3, 5, 3, bias=False)),
        nn.Sequential(nn.Conv1d(3, 8, 5), nn.Conv1d(8, 8, 5, groups=8), nn.Conv1d(8, 4, 1)),
        nn.Sequential(nn.ConvTranspose1d(6, 4, 5), nn.ConvTranspose3d(4, 2, 3)),
    ],
)
def test_ranks_are_told_by_bias_and_normalisation(network: nn.Module) -> None:
    found = bank_from_tensors(network.state_dict())
    exact = bank_from_model(network)
    assert found.warnings == ()
    assert [layer.name for layer in found.layers] == [layer.name for layer in exact.layers]
    for one, other in zip(found.layers, exact.layers, strict=True):
        assert (one.kind, one.groups, one.weight_shape) == (other.kind, other.groups, other.weight_shape)
        assert torch.equal(one.kernels, other.kernels)
        assert one.kind_source == ("weights" if len(one.weight_shape) == 4 else "guessed")


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"odd.bias": torch.zeros(7)},
        {"odd.bias": torch.zeros(8, 9)},
        {"norm.weight": torch.ones(5), "norm.bias": torch.zeros(5)},
        {"scale.weight": torch.ones(8)},
    ],
)
def test_a_weight_that_nothing_shows_to_be_a_convolution_is_warned_of(beside: dict[str, Tensor]) -> None:
    state = {"conv.weight": torch.randn(8, 3, 3, 3), "odd.weight": torch.randn(8, 8, 9), **beside}
    bank = bank_from_tensors(state)
    assert [layer.name for layer in bank.layers] == ["conv"]
    told = "the checkpoint: odd: 3-D or 5-D and passed over, nothing shows a convolution, pass --arch"
    assert bank.warnings == (told,)


@pytest.mark.parametrize("side", [1, 3])
def test_files_of_such_weights_are_simplified_and_checked(side: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind = nn.Conv1d if side == 1 else nn.Conv3d
    before = nn.Sequential(kind(1, 8, 3), kind(8, 8, 3)).state_dict()
    torch.save(before, tmp_path / "m.pt")
    out = tmp_path / "run"
    assert run(["simplify", str(tmp_path / "m.pt"), "--tolerance", "0.5", "--out", str(out), "--quiet"]) == 0
    after = torch.load(out / "m.pt")
    assert {name: value.shape for name, value in after.items()} == {
        name: v.shape for name, v in before.items()
    }
    assert not torch.equal(after["1.weight"], before["1.weight"])
    assert run(["check", str(out / "m.pt"), "--baseline", str(out), "--quiet"]) == 0
    after["1.weight"].view(-1)[0] += 1
    torch.save(after, out / "m.pt")
    assert run(["check", str(out / "m.pt"), "--baseline", str(out), "--quiet"]) in (0, 1)


@pytest.mark.parametrize("network", ["nn.Conv3d", "nn.Conv1d"])
def test_a_budget_of_degrees_of_freedom_is_met(network: str, tmp_path: Path) -> None:
    layers = f"{network}(1, 8, 3), nn.ReLU(), {network}(8, 8, 3)"
    (tmp_path / "net.py").write_text(
        f"from torch import nn\ndef net():\n    return nn.Sequential({layers})\n"
    )
    torch.manual_seed(0)
    kind = nn.Conv3d if "3" in network else nn.Conv1d
    torch.save(nn.Sequential(kind(1, 8, 3), nn.ReLU(), kind(8, 8, 3)).state_dict(), tmp_path / "m.pt")
    words = ["--arch", f"{tmp_path}/net.py:net", "--dof", "0.7", "--out", str(tmp_path / "run"), "--quiet"]
    assert run(["simplify", str(tmp_path / "m.pt"), *words]) == 0
    dof = json.loads((tmp_path / "run" / "report.json").read_text())["dof"]
    assert dof["fraction"] <= 0.7
