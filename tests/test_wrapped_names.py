"""Wrappers inside names, NumPy arrays for tensors, tuples, plain pickles: read, and written as they were."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Bomb, prefixed, same, tiny_state, write_zip

from kernelsimp.cli.main import run
from kernelsimp.errors import CheckpointError
from kernelsimp.models.architectures import build_model, fit
from kernelsimp.models.checkpoint import load_checkpoint

SPELLINGS: dict[str, Callable[[str], str]] = {
    "compiled part": lambda name: name.replace("stem.", "stem._orig_mod."),
    "FSDP": lambda name: "_fsdp_wrapped_module." + name.replace("stem.", "stem._fsdp_wrapped_module."),
    "checkpointed": lambda name: name.replace("depthwise.", "depthwise._checkpoint_wrapped_module."),
    "several": lambda name: "module._orig_mod." + name.replace("head.", "head._fpw_module._orig_mod."),
}


@pytest.mark.parametrize("how", SPELLINGS)
def test_wrappers_inside_names(how: str, tmp_path: Path) -> None:
    spell = SPELLINGS[how]
    state = {spell(name): value for name, value in tiny_state().items()}
    path = write_zip({"state_dict": state}, tmp_path / "net.pt")
    checkpoint = load_checkpoint(path)
    assert same(dict(checkpoint.tensors), tiny_state())
    assert checkpoint.own_names == set(state)
    fresh = torch.ones(4, 3, 3, 3)
    checkpoint.with_tensors({"stem.weight": fresh}).save(tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)["state_dict"]
    assert same(again, {**state, spell("stem.weight"): fresh})


def test_names_that_would_become_one_stay(tmp_path: Path) -> None:
    state = {"a._orig_mod.weight": torch.zeros(2, 2, 3, 3), "a.weight": torch.ones(2, 2, 3, 3)}
    assert same(dict(load_checkpoint(write_zip(state, tmp_path / "net.pt")).tensors), state)


def arrays(dtype: str = "<f4") -> dict[str, Any]:
    return {name: np.asarray(value, dtype=dtype) for name, value in prefixed(tiny_state(), "").items()}


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8"])
@pytest.mark.parametrize("protocol", [2, 4, 5, "zip"])
def test_arrays_in_place_of_tensors(protocol: int | str, dtype: str, tmp_path: Path) -> None:
    payload = {"model": arrays(dtype), "__author__": "Caffe2", "matching_heuristics": True}
    path, out = tmp_path / "net.pkl", tmp_path / "again.pkl"
    if protocol == "zip":
        write_zip(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload, protocol=int(protocol)))
    checkpoint = load_checkpoint(path)
    assert not checkpoint.warnings
    for name, value in payload["model"].items():
        assert np.array_equal(checkpoint.tensors[name].numpy(), value)
    checkpoint.with_tensors({"stem.weight": torch.ones(4, 3, 3, 3)}).save(out)
    if protocol == "zip":
        again = torch.load(out, weights_only=False)
    else:
        assert out.read_bytes()[:2] == path.read_bytes()[:2]
        again = pickle.loads(out.read_bytes())
    assert list(again) == list(payload)
    assert list(again["model"]) == list(payload["model"])
    for name, value in payload["model"].items():
        assert again["model"][name].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
        assert np.array_equal(again["model"][name], np.ones_like(value) if name == "stem.weight" else value)


def test_a_plain_pickle_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"state_dict": dict(tiny_state())}))
    checkpoint = load_checkpoint(path)
    assert same(dict(checkpoint.tensors), tiny_state())
    checkpoint.save(tmp_path / "again.pkl")
    assert same(pickle.loads((tmp_path / "again.pkl").read_bytes())["state_dict"], tiny_state())


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bomb_in_a_plain_pickle_of_arrays_stays_dead(protocol: int, tmp_path: Path) -> None:
    path, marker = tmp_path / "net.pkl", tmp_path / "marker"
    path.write_bytes(pickle.dumps({"model": arrays(), "more": Bomb(marker)}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"would run code from posix\.system"):
        load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_state_dict_and_a_number(kind: type, tmp_path: Path) -> None:
    path = write_zip(kind([dict(tiny_state()), 12]), tmp_path / "net.pt")
    checkpoint = load_checkpoint(path)
    assert same(dict(checkpoint.tensors), tiny_state())
    checkpoint.save(tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert type(again) is kind
    assert same(again[0], tiny_state())
    assert again[1] == 12


PARTS = """
from torch import nn
class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(4, 5)
    def forward(self, x):
        return self.head(self.backbone(x).mean((2, 3)))
class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.module = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return self.inner.module(x).mean((2, 3))
"""


@pytest.mark.parametrize("outer", ["", "module.", "model."])
def test_a_wrapped_part_fits_a_network_without_the_wrapper(outer: str, tmp_path: Path) -> None:
    arch = tmp_path / "net.py"
    arch.write_text(PARTS)
    torch.manual_seed(0)
    plain = build_model(f"{arch}:Parts").state_dict()
    state = {outer + name.replace("backbone.", "backbone.module."): item for name, item in plain.items()}
    path, out = write_zip(state, tmp_path / "net.pt"), tmp_path / "run"
    words = ["--arch", f"{arch}:Parts", "--tolerance", "0.6", "--out", str(out), "-q"]
    assert run(["simplify", str(path), *words]) == 0
    after = torch.load(out / "net.pt", weights_only=True)
    assert list(after) == list(state)
    changed = f"{outer}backbone.module.2.weight"
    assert not torch.equal(after[changed], state[changed])
    check = ["--baseline", str(out), "-q"]
    assert run(["check", str(out / "net.pt"), *check]) == 0
    assert run(["check", str(out / "net.pt"), "--arch", f"{arch}:Parts", *check]) == 0
    after[changed].view(-1)[:9] = torch.arange(9.0) ** 2
    assert run(["check", str(write_zip(after, tmp_path / "bad.pt")), *check]) == 1


def test_a_network_whose_own_part_is_called_module_keeps_it(tmp_path: Path) -> None:
    arch = tmp_path / "net.py"
    arch.write_text(PARTS)
    model = build_model(f"{arch}:Named")
    checkpoint = load_checkpoint(write_zip(model.state_dict(), tmp_path / "net.pt"))
    assert list(fit(model, checkpoint).tensors) == ["inner.module.weight", "inner.module.bias"]
