"""What a file holds beside the network that is checked: no decoy passes, nothing is passed over unsaid."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import prefixed, tiny_state, write_safetensors, write_zip
from torch import Tensor

from kernelsimp.cli.main import run

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny network whose kernels are all frozen."""
    folder = tmp_path_factory.mktemp("beside")
    model = write_zip({"state_dict": tiny_state()}, folder / "tiny.pt")
    assert run(["simplify", str(model), "--tolerance", "0.9", "--out", str(folder / "run"), "-q"]) == 0
    return folder


def good(place: Path) -> State:
    state = torch.load(place / "run" / "tiny.pt", weights_only=True)["state_dict"]
    return {name: value.clone() for name, value in state.items()}


def bad(place: Path) -> State:
    state = good(place)
    state["stem.weight"][0, 0, 1, 1] += 1
    return state


def nan(place: Path) -> State:
    return {name: torch.full((3, 3), torch.nan) for name in ("neck.weight", "top.weight")}


def checked(place: Path, payload: Any, *more: str) -> tuple[int, dict[str, Any]]:
    path = write_zip(payload, place / "new.pt")
    told = place / "verdict.json"
    words = ["check", str(path), "--baseline", str(place / "run"), *more, "--json", str(told), "-q"]
    return run(words), json.loads(told.read_text())


DECOYS: dict[str, Callable[[State, State], Any]] = {
    "state_dict, model": lambda good, bad: {"state_dict": good, "model": bad},
    "weights, module": lambda good, bad: {"weights": good, "module": bad},
    "any other key": lambda good, bad: {"model": good, "foo": bad},
    "an average": lambda good, bad: {"state_dict": good, "model_ema": bad},
    "an average two deep": lambda good, bad: {"state_dict": good, "callbacks": {"x": {"ema_weights": bad}}},
    "the top level": lambda good, bad: {"model": good, **bad},
    "in a list": lambda good, bad: {"model": good, "nets": [bad]},
    "in a tuple in a list": lambda good, bad: {"model": good, "nets": [(1, bad)]},
    "in a namespace": lambda good, bad: {"model": good, "args": argparse.Namespace(net=bad)},
    "as arrays": lambda good, bad: {"model": good, "np": {n: t.numpy() for n, t in bad.items()}},
    "called an optimiser": lambda good, bad: {"model": good, "optim_model": bad},
    "in an optimiser": lambda good, bad: {"model": good, "optimizer": {"state": bad, "param_groups": []}},
    "another prefix": lambda good, bad: {**prefixed(good, "a."), **prefixed(bad, "backbone.")},
    "another prefix, wrapped": lambda good, bad: {
        "model": {**prefixed(good, "a."), **prefixed(bad, "net.backbone.")}
    },
    "a prefix beside none": lambda good, bad: {**good, **prefixed(bad, "backbone.")},
    "in half precision": lambda good, bad: {"model": good, "fp16": {n: t.half() for n, t in bad.items()}},
}


@pytest.mark.parametrize("name", DECOYS)
def test_no_decoy_passes(name: str, place: Path) -> None:
    code, verdict = checked(place, DECOYS[name](good(place), bad(place)))
    assert code == 1
    assert any(item["rule"] == "tensors.extra" or "tensor" in item["message"] for item in verdict["findings"])


@pytest.mark.parametrize("name", [name for name in DECOYS if name != "in half precision"])
def test_a_second_network_that_left_its_holds_fails_whatever_is_allowed(name: str, place: Path) -> None:
    code, verdict = checked(place, DECOYS[name](good(place), bad(place)), "--allow-extra")
    assert code == 1
    rules = {item["rule"] for item in verdict["findings"]}
    assert rules & {"kernels.frozen_changed", "kernels.structure_broken"}


@pytest.mark.parametrize(
    "name", [name for name in DECOYS if "half" not in name and "beside none" not in name]
)
def test_copies_bit_for_bit_pass_and_are_named(name: str, place: Path) -> None:
    code, verdict = checked(place, DECOYS[name](good(place), good(place)))
    assert code == 0
    assert any("the same bit for bit" in note for note in verdict["notes"])


def test_the_rest_of_a_larger_network_is_checked_or_a_failure(place: Path) -> None:
    larger = {**prefixed(good(place), "backbone."), **nan(place)}
    code, verdict = checked(place, larger)
    assert code == 1
    assert {item["rule"] for item in verdict["findings"]} == {"tensors.extra", "weights.nan"}
    code, verdict = checked(place, larger, "--allow-extra")  # allowed to be there, not to be broken
    assert code == 1
    assert {item["rule"] for item in verdict["findings"]} == {"weights.nan"}
    sound = {**prefixed(good(place), "backbone."), "neck.weight": torch.ones(3, 3)}
    code, verdict = checked(place, sound)
    assert code == 1
    (finding,) = verdict["findings"]
    assert finding["message"] == (
        "neck: is not in the baseline and not checked; save the network alone, or pass --allow-extra"
    )
    code, verdict = checked(place, sound, "--allow-extra")
    assert code == 0
    assert verdict["notes"] == ["neck: unchecked, as --allow-extra asks"]


def test_an_added_tensor_of_the_network_itself_can_be_allowed(place: Path) -> None:
    state = {**good(place), "more.weight": torch.ones(2, 2), "extra.weight": torch.ones(2, 2, 3, 3)}
    assert checked(place, {"state_dict": state})[0] == 1
    code, verdict = checked(place, {"state_dict": state}, "--allow-extra")
    assert code == 0
    assert verdict["notes"] == [
        "extra: the baseline does not have this layer, as --allow-extra allows",
        "more.weight: the tensor is not in the baseline, as --allow-extra allows",
    ]


def test_what_training_leaves_is_named_and_no_failure(place: Path, capsys) -> None:
    optimiser = torch.optim.SGD([torch.ones(3, requires_grad=True)], momentum=0.9)
    payload = {
        "state_dict": good(place),
        "optimizer": {**optimiser.state_dict(), "state": {0: {"momentum_buffer": torch.ones(3)}}},
        "rng": torch.get_rng_state(),
        "best": torch.tensor(93.0),
        "seen": np.arange(3),
        "epoch": 3,
    }
    code, verdict = checked(place, payload)
    assert code == 0
    (note,) = verdict["notes"]
    assert note.endswith(": unchecked, as left by training and no weights")
    assert all(name in note for name in ("optimizer.state.0", "rng", "best", "seen"))
    capsys.readouterr()
    assert run(["check", str(place / "new.pt"), "--baseline", str(place / "run")]) == 0
    assert "left by training" in capsys.readouterr().out


def test_what_a_run_copied_beside_its_network_passes_and_a_change_of_it_does_not(tmp_path: Path) -> None:
    payload = {"state_dict": tiny_state(), "centres": {"c": torch.ones(4, 2)}, "names": ["a"]}
    model = write_zip(payload, tmp_path / "tiny.pt")
    assert run(["simplify", str(model), "--tolerance", "0.9", "--out", str(tmp_path / "run"), "-q"]) == 0
    written = torch.load(tmp_path / "run" / "tiny.pt", weights_only=True)
    assert checked(tmp_path, written)[0] == 0
    written["centres"]["c"][0, 0] = 2
    code, verdict = checked(tmp_path, written)
    assert code == 1
    assert [item["where"] for item in verdict["findings"]] == ["centres.c"]


def test_a_new_baseline_knows_what_its_file_holds(place: Path, tmp_path: Path) -> None:
    payload = {"model": good(place), "foo": bad(place)}
    path = str(write_zip(payload, tmp_path / "both.pt"))
    base = ["--baseline", str(tmp_path / "b.json")]
    assert run(["check", path, *base, "--update-baseline", "-q"]) == 0
    assert run(["check", path, *base, "-q"]) == 0
    payload["foo"]["head.bias"][0] += 1
    assert run(["check", str(write_zip(payload, tmp_path / "both.pt")), *base, "-q"]) == 1


def test_safetensors_hold_no_decoy_either(place: Path) -> None:
    path = write_safetensors(
        {**prefixed(good(place), "a."), **prefixed(bad(place), "b.")}, place / "two.safetensors"
    )
    assert run(["check", str(path), "--baseline", str(place / "run"), "-q"]) == 1


def test_a_zip_with_two_records_of_one_name_is_refused(place: Path, capsys) -> None:
    import warnings
    import zipfile

    path = write_zip({"state_dict": good(place)}, place / "twice.pt")
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(archive.namelist()[0], b"other")
    capsys.readouterr()
    assert run(["check", str(path), "--baseline", str(place / "run"), "-q"]) == 2
    assert "two records of one name" in capsys.readouterr().err


def test_the_gate_is_as_loud_as_a_scan_about_what_it_read(place: Path, capsys) -> None:
    path = write_zip({"state_dict": good(place), "ema": good(place)}, place / "loud.pt")
    capsys.readouterr()
    assert run(["check", str(path), "--baseline", str(place / "run"), "-q"]) == 0
    assert "also holds averaged weights under 'ema'" in capsys.readouterr().err
