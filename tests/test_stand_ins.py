"""Checkpoints with foreign objects: read with inert stand-ins, and nothing of them ever runs."""

import argparse
import builtins
import collections
import datetime
import functools
import importlib
import operator
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import WRITERS, TinyNet, same, tiny_net, tiny_state
from torch import nn

from kernelsimp.errors import CheckpointError
from kernelsimp.models.checkpoint import Checkpoint, load_checkpoint
from kernelsimp.models.inert_tree import plain_data
from kernelsimp.models.stand_ins import load_plain_pickle, may_be_called

TWO = pytest.mark.parametrize("container", ["zip", "legacy"])


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package with classes that are here while a file is written, and gone when it is read."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history, self._statistics = np.arange(4.0), {"mean": HistoryBuffer.mean}

        def mean(self) -> float:
            return 0.0

    class EasyDict(dict):  # type: ignore[type-arg]
        pass

    class Net(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 5)
            self.activation = torch.relu
            self.register_buffer("hidden", torch.ones(2), persistent=False)

    package = types.ModuleType("faraway")
    for kind in (HistoryBuffer, EasyDict, Net):
        kind.__module__, kind.__qualname__ = "faraway", kind.__name__
        setattr(package, kind.__name__, kind)
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = "faraway", "HistoryBuffer.mean"
    monkeypatch.setitem(sys.modules, "faraway", package)
    return package


def read_without(package: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Read a file where the package cannot be imported."""
    monkeypatch.delitem(sys.modules, package)
    return load_checkpoint(path)


@TWO
def test_a_foreign_object_beside_the_weights_is_left_out(container, foreign, tmp_path, monkeypatch) -> None:
    payload = {"state_dict": tiny_state(), "epoch": 3, "hub": {"loss": foreign.HistoryBuffer(), "n": 2}}
    path = WRITERS[container](payload, tmp_path / "net.pt")
    checkpoint = read_without("faraway", path, monkeypatch)
    assert same(dict(checkpoint.tensors), tiny_state())
    assert checkpoint.warnings == (f"{path}: 1 foreign entry (faraway.HistoryBuffer) is left out",)
    checkpoint.save(tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)  # nothing foreign is written back
    assert {key: again[key] for key in ("epoch", "hub")} == {"epoch": 3, "hub": {"n": 2}}
    assert list(again) == ["state_dict", "epoch", "hub"]
    assert same(dict(again["state_dict"]), tiny_state())


def test_every_harmless_value_of_a_training_script(foreign, tmp_path, monkeypatch) -> None:
    payload = {
        "model": tiny_state(),
        "args": argparse.Namespace(lr=0.1),
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
        "space": types.SimpleNamespace(a=1),
        "recent": collections.deque([1.0, 2.0], maxlen=5),
        "meters": collections.defaultdict(list, {"loss": [0.5]}),
        "config": foreign.EasyDict(depth=20),
        "loss": nn.CrossEntropyLoss(),
        "norm": functools.partial(nn.BatchNorm2d, eps=1e-3),
        "curve": np.arange(3.0),
    }
    path = WRITERS["zip"](payload, tmp_path / "net.pt")
    checkpoint = read_without("faraway", path, monkeypatch)
    assert same(dict(checkpoint.tensors), tiny_state())
    assert checkpoint.warnings == (
        f"{path}: 7 foreign entries (datetime.datetime, types.SimpleNamespace, collections.deque and 4 more) "
        "are left out",
    )
    kept = checkpoint.raw.payload
    assert list(kept) == ["model", "args", "curve"]
    assert kept["args"] == argparse.Namespace(lr=0.1)
    assert np.array_equal(kept["curve"], np.arange(3.0))


@TWO
def test_a_state_dict_inside_foreign_containers(container, foreign, tmp_path, monkeypatch) -> None:
    inside = foreign.EasyDict(state_dict=collections.defaultdict(list, tiny_state()), depth=20)
    path = WRITERS[container](inside, tmp_path / "net.pt")
    checkpoint = read_without("faraway", path, monkeypatch)
    assert same(dict(checkpoint.tensors), tiny_state())
    assert checkpoint.wrapper == "state_dict"
    assert checkpoint.warnings[0] == f"{path}: the object faraway.EasyDict is read and written as a dict"


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@TWO
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickled_module_gives_its_state_dict(container, wrapped, foreign, tmp_path, monkeypatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = foreign.Net().half()
    state = dict(net.state_dict())
    assert "hidden" not in state
    path = WRITERS[container]({"epoch": 1, "model": net, "ema": None} if wrapped else net, tmp_path / "a.pt")
    checkpoint = read_without("faraway", path, monkeypatch)
    assert same(dict(checkpoint.tensors), state)
    under = " under 'model'" if wrapped else ""
    assert checkpoint.warnings[0] == (
        f"{path}: the module faraway.Net{under} is read without its code, and written back only as a plain "
        "state dict"
    )
    checkpoint.save(tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert same(dict(again["model"] if wrapped else again), state)


def test_a_module_of_a_class_that_is_here_is_not_made(tmp_path, monkeypatch) -> None:
    path = WRITERS["zip"]({"model": tiny_net()}, tmp_path / "net.pt")
    monkeypatch.setattr(TinyNet, "__setstate__", lambda *_: pytest.fail("its code ran"), raising=False)
    assert same(dict(load_checkpoint(path).tensors), tiny_state())


def test_a_shell_that_forces_weights_only_changes_nothing(tmp_path, monkeypatch) -> None:
    path = WRITERS["zip"]({"model": tiny_net()}, tmp_path / "net.pt")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    assert same(dict(load_checkpoint(path).tensors), tiny_state())
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"


def test_tied_tensors_of_a_module_stay_tied(foreign, tmp_path, monkeypatch) -> None:
    net = foreign.Net()
    net.twin = net.depthwise
    path = WRITERS["zip"](net, tmp_path / "net.pt")
    tensors = read_without("faraway", path, monkeypatch).tensors
    assert tensors["twin.weight"].data_ptr() == tensors["depthwise.weight"].data_ptr()


def test_a_foreign_object_alone_is_no_network(foreign, tmp_path, monkeypatch) -> None:
    path = WRITERS["zip"](foreign.HistoryBuffer(), tmp_path / "net.pt")
    with pytest.raises(CheckpointError) as caught:
        read_without("faraway", path, monkeypatch)
    assert str(caught.value) == (
        f"{path}: holds a pickled faraway.HistoryBuffer without a tensor; save model.state_dict()"
    )


class Call:
    """Is pickled as a call of any function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


CALLS = {
    "posix.system": lambda marker: Call(os.system, f"touch {marker}"),
    "builtins.eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "builtins.exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
    "builtins.getattr": lambda marker: Call(getattr, Call(importlib.import_module, "os"), "system"),
    "subprocess.Popen": lambda marker: Call(subprocess.Popen, ["touch", str(marker)]),
    "subprocess.run": lambda marker: Call(subprocess.run, ["touch", str(marker)]),
    "io.open": lambda marker: Call(open, str(marker), "w"),
    "operator.attrgetter": lambda marker: Call(operator.attrgetter, "system"),
    "importlib.import_module": lambda marker: Call(importlib.import_module, "antigravity"),
    "builtins.map": lambda marker: Call(set, Call(map, os.system, [f"touch {marker}"])),
    "torch.serialization.load": lambda marker: Call(torch.load, str(marker)),
    "torch.hub.load": lambda marker: Call(torch.hub.load, "a", "b"),
    "builtins.__import__": lambda marker: Call(builtins.__import__, "antigravity"),
}


@TWO
@pytest.mark.parametrize("name", CALLS)
def test_a_call_beside_real_weights_stays_dead(name, container, foreign, tmp_path, monkeypatch) -> None:
    marker = tmp_path / "marker"
    deep = {"a": [foreign.HistoryBuffer(), (1, {"b": CALLS[name](marker)})]}
    path = WRITERS[container]({"state_dict": tiny_state(), "more": deep}, tmp_path / "net.pt")
    before = set(sys.modules)
    with pytest.raises(CheckpointError) as caught:
        read_without("faraway", path, monkeypatch)
    words = str(caught.value)
    assert words.startswith(f"{path}: a full pickled object that would run code from ")
    assert words.endswith("or pass --trust-pickle if you trust where it came from")
    assert "\n" not in words
    assert not marker.exists()
    assert "antigravity" not in set(sys.modules) - before


RAW = {
    "OBJ": b"(cposix\nsystem\nS'touch %s'\no.",
    "INST": b"(S'touch %s'\niposix\nsystem\n.",
    "INST without arguments": b"(iposix\nfork\n.",
    "py2 name": b"c__builtin__\neval\n(S'%s'\ntR.",
    "NEWOBJ of a function": b"\x80\x02cposix\nfork\n)\x81.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93(S'%s'\ntR.",
    "a dotted name": b"\x80\x04\x8c\x06shutil\x8c\x09os.system\x93(S'%s'\ntR.",
    "getattr of a stand-in": b"c__builtin__\ngetattr\n(ca\nB\nS'run'\ntR(S'%s'\ntR.",
    "getattr of a module": b"c__builtin__\ngetattr\n(cposix\nDirEntry\nS'system'\ntR.",
}


@pytest.mark.parametrize("name", RAW)
def test_no_opcode_calls_a_function(name: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "a.pkl", tmp_path / "marker"
    path.write_bytes(RAW[name].replace(b"%s", str(marker).encode()))
    with path.open("rb") as file, pytest.raises(Exception, match=r"it calls |must be a"):
        load_plain_pickle(file)
    assert not marker.exists()


CHANGES = {
    "a function of ours": b"ctorch._utils\n_rebuild_tensor_v2\n}S'a'\nI1\nsb.",
    "a class of the standard library": b"ccollections\nOrderedDict\n(N}S'move_to_end'\nI1\ns\x86b.",
    "a codec": b"c_codecs\nencode\n(S'a'\nS'idna'\ntR.",
}


@pytest.mark.parametrize("name", CHANGES)
def test_no_pickle_changes_what_others_use(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(CHANGES[name])
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError):
        load_plain_pickle(file)


def test_modules_that_hold_one_another_end(tmp_path: Path) -> None:
    net = tiny_net()
    net._modules["self"] = net
    path = WRITERS["zip"](net, tmp_path / "net.pt")
    assert same(dict(load_checkpoint(path).tensors), tiny_state())


def test_data_that_holds_itself_ends() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert plain_data(loop).payload == [1]


def test_what_may_be_called() -> None:
    assert all(
        map(may_be_called, ("models.yolo.Model", "datetime.datetime", "a.b._Private", "pathlib.PosixPath"))
    )
    assert not any(map(may_be_called, ("os.system", "subprocess.Popen", "models.build", "torch.hub.load")))
    assert may_be_called("pandas._libs.internals._unpickle_block")
