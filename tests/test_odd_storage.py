"""Tensors that are no plain real numbers, and networks of one layer or of 1x1: right, or one true line."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from builders import WRITERS, write_zip
from saying import command_refusal
from torch import Tensor, nn

from kernelsimp.cli.main import run
from kernelsimp.errors import CheckpointError, KernelsimpError
from kernelsimp.models.architectures import build_model
from kernelsimp.models.checkpoint import load_checkpoint
from kernelsimp.models.layers import bank_from_checkpoint, bank_from_model

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:.*quantized tensor")


def weight(*shape: int) -> Tensor:
    return torch.randn(shape or (8, 4, 3, 3), generator=torch.Generator().manual_seed(0))


def quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch means to drop them; files have them
        return torch.quantize_per_tensor(weight(), 0.01, 0, torch.qint8)


UNREAL = {
    "int8": (weight() * 50).to(torch.int8),
    "complex64": weight().to(torch.complex64),
    "stored sparse": weight().to_sparse(),
    "quantised (qint8)": quantised(),
    "bool": weight() > 0,
}


@pytest.mark.parametrize("words", UNREAL)
def test_numbers_that_are_not_real_are_named(words: str, tmp_path: Path, capsys) -> None:
    value = UNREAL[words]
    path = write_zip({"c.weight": value, "d.weight": value.clone()}, tmp_path / "net.pt")
    for command in (["scan"], ["simplify", "--tolerance", "0.3", "--out", str(tmp_path / "run")]):
        told = command_refusal([command[0], str(path), *command[1:]], capsys)
        assert "no convolution found among 2 tensors (2 4-D); 'c.weight' is " in told
        assert words in told


@pytest.mark.parametrize("words", UNREAL)
def test_beside_real_kernels_they_are_passed_over_with_a_warning(words: str, tmp_path: Path, capsys) -> None:
    path = write_zip({"a.weight": weight(), "c.weight": UNREAL[words]}, tmp_path / "net.pt")
    bank = bank_from_checkpoint(load_checkpoint(path))
    assert [layer.name for layer in bank.layers] == ["a"]
    assert len(bank.warnings) == 1
    assert bank.warnings[0].startswith(f"{path}: 'c.weight' is ")
    assert words in bank.warnings[0]
    out = ["--tolerance", "0.6", "--out", str(tmp_path / "run"), "-q"]
    if words.startswith(("stored", "quantised")):
        assert run(["simplify", str(path), *out]) == 2
        assert "'c.weight' is sparse, quantised or empty" in capsys.readouterr().err.splitlines()[-1]
        return
    assert run(["simplify", str(path), *out]) == 0
    kept = load_checkpoint(tmp_path / "run" / "net.pt").tensors["c.weight"]
    assert kept.dtype == UNREAL[words].dtype
    assert kept.layout == UNREAL[words].layout
    assert run(["check", str(tmp_path / "run" / "net.pt"), "--baseline", str(tmp_path / "run"), "-q"]) == 0


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_read_exactly_and_written_as_float8(dtype: torch.dtype, tmp_path: Path) -> None:
    narrow = weight().to(dtype)
    path = write_zip({"c.weight": narrow, "d.weight": weight(16, 8, 3, 3).to(dtype)}, tmp_path / "net.pt")
    layer = bank_from_checkpoint(load_checkpoint(path)).layers[0]
    assert torch.equal(torch.cat(list(layer.chunks())), narrow.float().reshape(-1, 3, 3))
    out = ["--tolerance", "0.6", "--out", str(tmp_path / "run"), "-q"]
    assert run(["simplify", str(path), *out]) == 0
    again = load_checkpoint(tmp_path / "run" / "net.pt").tensors["c.weight"]
    assert again.dtype == dtype
    assert not torch.equal(again.float(), narrow.float())


def test_a_repeated_tensor_is_written_out(tmp_path: Path) -> None:
    state = {"c.weight": weight(1, 1, 3, 3).expand(8, 4, 3, 3), "c.bias": torch.zeros(1).expand(8)}
    path = write_zip(state, tmp_path / "net.pt")
    tensors = load_checkpoint(path).tensors
    assert torch.equal(tensors["c.weight"], state["c.weight"])
    assert tensors["c.weight"].is_contiguous()
    assert run(["simplify", str(path), "--tolerance", "0.9", "--out", str(tmp_path / "run"), "-q"]) == 0


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_small_file_cannot_ask_for_gigabytes(container: str, tmp_path: Path) -> None:
    huge = weight(1, 1, 3, 3).expand(12000, 12000, 3, 3)
    path = WRITERS[container]({"c.weight": huge}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: 'c.weight' (12000x12000x3x3 float32) repeats 9 numbers to 5.18 GB; save the tensor "
        "that was expanded"
    )


def test_a_meta_tensor_has_no_numbers(tmp_path: Path) -> None:
    path = write_zip({"c.weight": torch.empty(8, 4, 3, 3, device="meta")}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: 'c.weight' is on the device meta, a shape without numbers; save the network once its "
        "weights are loaded"
    )


def test_quantised_tensors_are_not_exported_to_safetensors(tmp_path: Path, capsys) -> None:
    path = write_zip({"a.weight": weight(), "c.weight": UNREAL["quantised (qint8)"]}, tmp_path / "net.pt")
    out = str(tmp_path / "net.safetensors")
    told = command_refusal(["export", str(path), "--to", "safetensors", "--out", out], capsys)
    assert "'c.weight' is quantised (qint8)" in told


def test_a_lone_convolution_has_a_name_and_is_simplified(tmp_path: Path, capsys) -> None:
    path = write_zip({"weight": weight(), "bias": torch.zeros(8)}, tmp_path / "net.pt")
    assert run(["scan", str(path), "--json", "-", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"][0]["name"] == "(the only layer)"
    out = tmp_path / "run"
    assert run(["simplify", str(path), "--tolerance", "0.6", "--out", str(out), "-q"]) == 0
    assert not torch.equal(load_checkpoint(out / "net.pt").tensors["weight"], weight())
    assert "(the only layer)" in (out / "report.md").read_text()
    assert run(["check", str(out / "net.pt"), "--baseline", str(out), "-q"]) == 0
    broken = write_zip({"weight": torch.full((8, 4, 3, 3), torch.nan)}, tmp_path / "broken.pt")
    assert "(the only layer): kernel (0, 0) holds NaN" in command_refusal(["scan", str(broken)], capsys)


def test_a_lone_convolution_as_a_module() -> None:
    (layer,) = bank_from_model(nn.Conv2d(4, 8, 3)).layers
    assert layer.name == "(the only layer)"


def test_a_network_of_pointwise_layers_alone(tmp_path: Path, capsys) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    path = write_zip(net.state_dict(), tmp_path / "net.pt")
    assert run(["scan", str(path), "-q"]) == 0
    told = command_refusal(
        ["simplify", str(path), "--tolerance", "0.2", "--out", str(tmp_path / "run"), "-q"], capsys
    )
    assert told == f"{path}: every convolution is 1x1, so there is no kernel to simplify"


CODE = """
from torch import nn

def half():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).half()

def lazy():
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 8, 3))
"""


def test_a_network_in_half_precision_runs_in_float32(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    state = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).half().state_dict()
    path = write_zip(state, tmp_path / "net.pt")
    arch = ["--arch", f"{tmp_path}/code.py:half"]
    assert run(["audit", str(path), *arch, "--input-size", "16", "-q"]) == 0
    assert {value.dtype for value in build_model(arch[1]).parameters()} == {torch.float32}


def test_a_lazy_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    with pytest.raises(KernelsimpError) as caught:
        build_model(f"{tmp_path}/code.py:lazy")
    assert str(caught.value) == (
        f"--arch {tmp_path}/code.py:lazy: has lazy layers whose shapes are not known yet; run it once on an "
        "image before it is returned"
    )
