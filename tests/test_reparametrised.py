"""Weight norm, spectral norm and pruning masks: the effective weight is read, and written back."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.parametrizations as new
from builders import WRITERS, npz
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from kernelsimp.cli.main import run
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.contents import tensors_beside
from kernelsimp.models.layers import bank_from_checkpoint, bank_from_model
from kernelsimp.models.reparametrised import plain_copy, plain_module
from kernelsimp.models.scannable import open_to_scan
from kernelsimp.settings import ModelSettings

HOW: dict[str, Callable[[nn.Module], object]] = {
    "old weight norm": nn.utils.weight_norm,
    "weight norm": new.weight_norm,
    "weight norm over all": lambda layer: new.weight_norm(layer, dim=None),
    "weight norm of inputs": lambda layer: new.weight_norm(layer, dim=1),
    "old spectral norm": nn.utils.spectral_norm,
    "spectral norm": new.spectral_norm,
    "mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "mask of filters": lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0),
}
EACH = pytest.mark.parametrize("how", HOW)

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")


def split_network(how: str, layers: tuple[int, ...] = (0, 2, 3)) -> nn.Sequential:
    """Three convolutions, the last transposed and square, some of them re-parametrised; evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolutions = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        net = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ConvTranspose2d(6, 6, 3))
        for layer in layers:
            HOW[how](net[layer])
            net[layer](torch.randn(1, net[layer].in_channels, 8, 8))
        return net.eval()


def stored(path: Path) -> Any:
    """The tensors of a file under the names that they have there."""
    return load_checkpoint(path).raw.payload


def weights(net: nn.Module) -> list[Tensor]:
    """The weights that the network multiplies with."""
    net(torch.zeros(1, 3, 8, 8))  # older hooks compute them here
    return [net[at].weight.detach() for at in (0, 2, 3)]


@EACH
@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("layers", [(0, 2, 3), (2,)])
def test_the_effective_weight_is_read(
    how: str, container: str, layers: tuple[int, ...], tmp_path: Path
) -> None:
    net = split_network(how, layers)
    path = WRITERS[container](net.state_dict(), tmp_path / "net.pt")
    checkpoint = load_checkpoint(path)
    assert list(checkpoint.tensors) == ["0.bias", "0.weight", "2.bias", "2.weight", "3.bias", "3.weight"] or (
        set(checkpoint.tensors) == {f"{at}.{what}" for at in (0, 2, 3) for what in ("weight", "bias")}
    )
    for at, weight in zip((0, 2, 3), weights(net), strict=True):
        assert torch.equal(checkpoint.tensors[f"{at}.weight"], weight)
    assert len(checkpoint.warnings) == 1
    assert checkpoint.warnings[0].startswith(f"{path}: {len(layers)} weight")
    assert how.removeprefix("old ").split(" of")[0].split(" over")[0] in checkpoint.warnings[0]
    assert [layer.name for layer in bank_from_checkpoint(checkpoint).layers] == ["0", "2", "3"]
    assert not tensors_beside(checkpoint)


@EACH
@pytest.mark.parametrize("container", WRITERS)
def test_what_was_not_changed_is_written_in_its_parts(how: str, container: str, tmp_path: Path) -> None:
    net = split_network(how)
    state = net.state_dict()
    path = WRITERS[container](state, tmp_path / "net.pt")
    load_checkpoint(path).save(tmp_path / "again.pt")
    again = stored(tmp_path / "again.pt")
    assert set(again) == set(state)
    assert all(torch.equal(again[name], state[name]) for name in state)


@EACH
@pytest.mark.parametrize("container", WRITERS)
def test_a_changed_weight_comes_back_as_it_was_set(how: str, container: str, tmp_path: Path) -> None:
    net = split_network(how)
    path = WRITERS[container](net.state_dict(), tmp_path / "net.pt")
    checkpoint = load_checkpoint(path)
    fresh = torch.linspace(-1, 1, 6 * 6 * 9).reshape(6, 6, 3, 3)
    changed = checkpoint.with_tensors({"2.weight": fresh})
    changed.save(tmp_path / "again.pt")
    again = load_checkpoint(tmp_path / "again.pt")
    assert torch.equal(again.tensors["2.weight"], fresh)
    for at in (0, 3):
        assert torch.equal(again.tensors[f"{at}.weight"], checkpoint.tensors[f"{at}.weight"])
    state = stored(tmp_path / "again.pt")
    if how.startswith("mask"):
        net.load_state_dict(state)  # the user's own network takes it
        assert torch.equal(weights(net)[1], fresh)
    else:
        assert "2.weight" in state
        assert not any(name.startswith(("2.weight_", "2.parametrizations")) for name in state)
        folded = plain_copy(net)
        folded.load_state_dict(dict(again.tensors))
        assert torch.equal(folded[2].weight, fresh)


def test_zeros_that_stay_zero_keep_the_mask_closed(tmp_path: Path) -> None:
    net = split_network("mask of filters")
    path = WRITERS["zip"](net.state_dict(), tmp_path / "net.pt")
    checkpoint = load_checkpoint(path)
    changed = checkpoint.with_tensors({"2.weight": checkpoint.tensors["2.weight"] * 2})
    changed.save(tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt")
    assert torch.equal(again["2.weight_mask"], net[2].weight_mask)


@EACH
def test_a_network_in_memory_is_read_and_left_alone(how: str) -> None:
    net = split_network(how)
    before = copy.deepcopy(dict(net.state_dict()))
    opened = open_to_scan(net, ModelSettings())
    assert [layer.name for layer in opened.bank.layers] == ["0", "2", "3"]
    assert torch.equal(opened.bank.layers[1].kernels, weights(net)[1])
    assert list(before) == list(net.state_dict())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@EACH
def test_a_folded_network_computes_the_same(how: str) -> None:
    net = split_network(how)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    folded = plain_copy(net)
    assert torch.equal(folded(images), net(images))
    assert len(bank_from_model(folded).layers) == 3


def test_half_precision_is_computed_wide(tmp_path: Path) -> None:
    net = split_network("weight norm").half()
    path = WRITERS["zip"](net.state_dict(), tmp_path / "net.pt")
    weight = load_checkpoint(path).tensors["2.weight"]
    wide = copy.deepcopy(net).float()
    assert weight.dtype == torch.float16
    assert torch.equal(weight, wide[2].weight.half())


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_an_unknown_parametrisation_is_named(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3))
    parametrize.register_parametrization(net[1], "weight", _Doubled())
    path = WRITERS["zip"](net.state_dict(), tmp_path / "net.pt")
    assert load_checkpoint(path).warnings == (
        f"{path}: '1.parametrizations.weight.original' is part of a re-parametrisation that is not known, "
        "and is passed over; save the network after remove_parametrizations",
    )
    assert parametrize.is_parametrized(plain_module(net)[1])


def test_names_that_only_look_like_parts(tmp_path: Path) -> None:
    state = {
        "c.weight": torch.randn(4, 3, 3, 3),
        "pos_u": torch.randn(4, 8),
        "pos_v": torch.randn(4, 8),
        "a_g": torch.randn(4),
        "a_v": torch.randn(4),
        "b_g": torch.randn(4, 4),
        "b_v": torch.randn(4, 4),
    }
    checkpoint = load_checkpoint(WRITERS["zip"](state, tmp_path / "net.pt"))
    assert list(checkpoint.tensors) == list(state)
    assert not checkpoint.warnings


CODE = """
import torch.nn.utils.prune as prune
import torch.nn.utils.parametrizations as new
from torch import nn

def net():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), *head)
    prune.l1_unstructured(model[2], "weight", 0.5)
    new.weight_norm(model[0])
    return model
"""


def test_a_network_that_its_code_prunes_is_simplified_and_checked(tmp_path: Path, capsys) -> None:
    (tmp_path / "code.py").write_text(CODE)
    space: dict[str, Callable[[], nn.Module]] = {}
    exec(CODE, space)
    path = WRITERS["zip"](space["net"]().state_dict(), tmp_path / "net.pt")
    arch = ["--arch", f"{tmp_path}/code.py:net"]
    data = ["--data", npz(tmp_path / "images.npz", (8, 8, 3))]
    out = ["--tolerance", "0.6", "--out", str(tmp_path / "run"), "-q"]
    assert run(["simplify", str(path), *arch, *data, *out]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["kernels"]["simplified"] > 0
    check = ["check", str(tmp_path / "run" / "net.pt"), "--baseline", str(tmp_path / "run"), *arch, "-q"]
    assert run(check) == 0
    assert run(["audit", str(path), *arch, "--input-size", "8", "-q"]) == 0
    assert "tensor(" not in capsys.readouterr().err
